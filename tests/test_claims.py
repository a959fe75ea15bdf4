"""The table of confirmatory claims: what it holds, its correction by a plain loop, and where notebooks print it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prunehal.experiments import Store
from prunehal.studies import claims
from prunehal.studies.claims import Claim, corrected

NOTEBOOKS = {path.name[:2]: path for path in sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))}


def made(p, estimate=1.0, unit="points"):
    return Claim("03", "a claim", unit, estimate, estimate - 0.1, estimate + 0.1, p)


def holm_by_loop(values):
    """Return the adjusted p-values: the k-th smallest of n times n - k + 1, and never below an earlier one."""
    order, found, highest = sorted(range(len(values)), key=lambda i: values[i]), [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        found[index] = highest
    return found


def test_the_stored_table_is_what_the_stored_rows_give():
    pd.testing.assert_frame_equal(claims.stored(), corrected(claims.claims(Store.shipped())), rtol=1e-4, check_dtype=False)


def test_one_correction_is_over_all_notebooks():
    table = claims.stored()
    assert table["p_holm"].to_numpy() == pytest.approx(holm_by_loop(table["p"].tolist()), rel=1e-4)
    assert table["notebook"].nunique() >= 8
    assert not table.duplicated(["notebook", "claim"]).any()


def test_claims_of_one_notebook_keep_the_correction_over_all():
    table = claims.stored()
    for notebook, part in table.groupby("notebook"):
        assert claims.of(notebook)["p_holm"].tolist() == part["p_holm"].tolist()


def test_a_notebook_without_claims_is_named():
    with pytest.raises(ValueError, match=r"notebook '02': makes no confirmatory claim; expected one of \['01', "):
        claims.of("02")


def test_every_notebook_that_claims_prints_its_claims():
    for notebook in claims.stored()["notebook"].unique():
        cells = json.loads(NOTEBOOKS[notebook].read_text(encoding="utf-8"))["cells"]
        printed = [cell for cell in cells if f'claims.in_words("{notebook}")' in "".join(cell["source"])]
        assert printed, f"notebook {notebook} does not print its claims"
        text = "".join("".join(output.get("text", "")) for cell in printed for output in cell["outputs"])
        assert text.strip() == claims.in_words(notebook)


def test_every_claim_is_a_line_with_its_verdict_number_and_interval_the_unclear_ones_last():
    for notebook in claims.stored()["notebook"].unique():
        first, *said = claims.in_words(notebook).splitlines()
        table = claims.of(notebook)
        unclear = table["verdict"] == "unclear"
        assert f", {unclear.sum()} of {len(table)} unclear " in first
        for text, line in zip(said, pd.concat([table[~unclear], table[unclear]]).itertuples(), strict=True):
            assert text.startswith(f"  {line.claim}: {line.verdict}, ")
            digits = 1 if line.unit == "points" else 2
            assert f" [{line.low:.{digits}f}, {line.high:.{digits}f}], p " in text


@pytest.mark.parametrize(
    ("unit", "text"), [("points", "+1.0 points ["), ("odds ratio", "odds ratio 1.00 ["), ("share", "share of variance")]
)
def test_the_unit_stands_where_a_reader_expects_it(unit, text):
    assert f"a claim: unclear, {text}" in claims.lines(corrected([made(0.9, unit=unit)]))[0]


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        (made(0.001, 2.0), "higher"),
        (made(0.001, -2.0), "lower"),
        (made(0.2, -2.0), "unclear"),
        (made(0.001, 0.8, "odds ratio"), "lower"),
        (made(0.001, 1.2, "odds ratio"), "higher"),
        (made(0.001, 0.1, "share"), "matters"),
        (made(0.2, 0.1, "share"), "unclear"),
    ],
)
def test_verdicts_follow_the_corrected_p_and_the_side(claim, verdict):
    assert corrected([claim])["verdict"].tolist() == [verdict]


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0500409, "p = 0.05004"), (0.04999, "p = 0.04999"), (0.05, "p = 0.05"), (0.0256, "p = 0.0256"), (1, "p = 1")],
)
def test_a_p_value_shows_on_which_side_of_alpha_it_lies(p, text):
    assert claims.lines(corrected([made(p)]))[0].endswith(text)


def test_a_unit_whose_null_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"unknown unit\(s\) \['words'\]; expected some of \['points', "):
        corrected([made(0.001, unit="words")])


def test_many_claims_make_a_p_of_one_percent_unclear():
    table = corrected([made(0.01), *(made(0.9) for _ in range(9))])
    assert table["verdict"].tolist() == ["unclear"] * 10
    assert np.isclose(table["p_holm"][0], 0.1)
