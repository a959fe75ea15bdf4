"""The table of planted bugs fits the code: each bug can still be planted, and the test that caught it is still there."""

import pytest
from mutants import MUTANTS, ROOT, read

ROWS = read()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_in_the_table_and_was_caught(mutant):
    text = (ROOT / "prunehal" / "core" / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, "the line has changed: write the mutant anew, and run make mutants"
    assert mutant.new != mutant.old
    file, test = ROWS[mutant.name].split("::")
    assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), "that test is gone: run make mutants"


def test_the_table_holds_no_other_bug():
    assert list(ROWS) == [mutant.name for mutant in MUTANTS]
    assert len(ROWS) >= 10
