"""POPE's questions of the testbed: half present, half absent, absent ones by the three rules, counted here by loops."""

import numpy as np
import pytest

from prunehal.benchmarks.pope import KINDS
from prunehal.testbed.polling import polling_questions
from prunehal.testbed.questions import is_there
from prunehal.testbed.scenes import scene
from prunehal.testbed.world import NAMES

ASKED = {is_there(name): name for name in NAMES}


def by_image(kind, n=40):
    found = {}
    for question in polling_questions("test", n, kind):
        found.setdefault(int(question.image), []).append((ASKED[question.text], question.label))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_questions_is_about_what_is_there_and_none_comes_twice(kind):
    for image_id, asked in by_image(kind).items():
        names = scene("test", image_id % 100_000_000).names
        assert len(asked) == len(set(asked)) == 6
        assert [label for _, label in asked] == ["yes", "no"] * 3
        assert all((name in names) == (label == "yes") for name, label in asked)


def test_the_kinds_share_what_is_there_and_differ_in_what_is_not():
    kinds = {kind: by_image(kind) for kind in KINDS}
    for image_id, asked in kinds["random"].items():
        assert [asked[::2] == kinds[kind][image_id][::2] for kind in KINDS] == [True] * 3
    assert len({str(found) for found in kinds.values()}) == 3
    numbers = [question.question_id for question in polling_questions("test", 5, "random")]
    assert numbers == list(range(1, len(numbers) + 1))


def test_popular_and_adversarial_absent_objects_are_those_that_loops_count():
    frequency, beside = dict.fromkeys(NAMES, 0), np.zeros((len(NAMES), len(NAMES)), dtype=int)
    for index in range(2000):
        names = scene("test", index).names
        for name in names:
            frequency[name] += 1
            for other in names:
                beside[NAMES.index(name), NAMES.index(other)] += name != other
    for kind in ("popular", "adversarial"):
        for image_id, asked in by_image(kind).items():
            names, taken = scene("test", image_id % 100_000_000).names, set()
            for (present, _), (absent, _) in zip(asked[::2], asked[1::2], strict=True):
                counts = frequency if kind == "popular" else dict(zip(NAMES, beside[NAMES.index(present)].tolist(), strict=True))
                best = max(counts[name] for name in NAMES if name not in names and name not in taken and name != present)
                assert counts[absent] == best
                taken.add(absent)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="kind='hard': expected one of 'random', 'popular', 'adversarial'"):
        polling_questions("test", 1, "hard")
