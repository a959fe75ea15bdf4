"""What is said of dose and response: words and numbers follow the comparisons."""

import numpy as np
import pytest
from made_up_doses import made_up

from prunehal.studies.nb09_causal import comparisons as dose
from prunehal.studies.nb09_causal.in_words import answer, reading
from prunehal.studies.nb09_causal.kinds_of_words import KINDS


@pytest.fixture(scope="module")
def found():
    return dose.responses(made_up())


def test_the_words_of_the_reading_follow_the_numbers(found):
    table = dose.comparisons(found, n_resamples=200)
    text = reading(table)
    bad = found[found["hallucinated"]].drop_duplicates(["image_id", "index"])
    assert "changes by -0.20 nats [-0.20, -0.20]: that lowers it" in text[0]
    assert "is -0.15 nats [-0.15, -0.15]: that lowers it; the part that does not turn is -0.05 nats" in text[1]
    assert "start token it changes by -0.05" in text[2]
    assert text[2].endswith("is -0.15 nats [-0.15, -0.15].")
    assert text[3].startswith(
        "Where the attention goes matters to such a word: the control that takes the same from the text has another effect"
    )
    assert ": -0.10 nats [-0.10, -0.10]; of the signed part alone -0.08 nats" in text[4]
    assert "in 26% of the hallucinated mentions, and one that was named before in 26%: neither is shown" in text[5]
    assert "says again" in reading(table.assign(estimate=-1.0, rejected=True))[5]
    assert "had left out" in reading(table.assign(estimate=1.0, rejected=True))[5]
    assert text[6].startswith(f"With {dose.BACK} a hallucinated word changes by +0.10 nats")
    sizes = [int((bad["kind"] == kind).sum()) for kind in KINDS]
    assert text[7].startswith(f"Prior-driven (n = {sizes[0]}) minus look-alike (n = {sizes[1]}) words: ")
    assert "too few mentions" in text[7]
    assert all(f"{kind} (n = {size})" in text[8] for kind, size in zip(KINDS, sizes, strict=True))
    assert f"neither (n = {sizes[3]}) -0.20 nats" in text[8]
    assert "lowers a faithful word: -2.00 nats" in text[9]
    assert "lowers a hallucinated one: -1.50 nats [-1.5" in text[9]
    assert f"; by kind: prior-driven (n = {sizes[0]}) " in text[9]
    assert text[10].startswith(
        "Hiding the object most alike is not shown to change look-alike words: their probability changes by (too few"
    )
    lost = table.assign(rejected=table["rejected"] & (table.index.get_level_values(0) != dose.TO_IMAGE))
    assert reading(lost)[3].startswith(
        "What the image gains is not shown to matter to such a word: the control that takes the same from the text"
    )
    assert "this design does not tell" in reading(lost)[3]
    turned = table.assign(estimate=-table["estimate"])
    assert "raises it" in reading(turned)[0]
    doubted = reading(table.assign(rejected=False))
    assert "is not shown to change it" in doubted[0]
    assert doubted[2].endswith(", not shown to differ from 0.")
    assert doubted[3].startswith("Neither")
    assert doubted[4].count(", not shown to differ from 0") == 2
    alike = table.rename(index={"neither": "look-alike", "look-alike": "neither"})
    assert reading(alike)[10] == (
        "Hiding the object most alike lowers look-alike words: their probability changes by -78% [-78, -78], significant "
        "(p < 1e-10). Hiding another object changes these words by +0.00 nats [0.00, 0.00], not shown to differ from 0, and "
        "hiding as much background by -0.10 nats [-0.10, -0.10]."
    )


def with_lines(table, **lines):
    """The table with some comparisons set: name=(estimate, rejected)."""
    keys = {
        "image": (dose.TO_IMAGE, "hallucinated - faithful, matched"),
        "new": (dose.MOVED, dose.NEW_OR_ABSENT),
        "absent": (dose.BACK_OR_TO, dose.ABSENT_NOW),
        "whole": (dose.MOVED, "hallucinated"),
    }
    table = table.copy()
    for name, (estimate, rejected) in lines.items():
        table.loc[keys[name], ["estimate", "low", "high"]] = estimate
        table.loc[keys[name], "p_holm"] = 0.001 if rejected else 0.5
        table.loc[keys[name], "rejected"] = rejected
    return table


def test_the_answer_is_yes_only_where_the_tests_say_so(found):
    table = dose.comparisons(found, n_resamples=200)
    shown = {"image": (-0.1, True), "new": (0.1, True), "absent": (0.1, True)}
    first, second = answer(with_lines(table, whole=(np.log(0.8), True), **shown))
    assert "change the word? Yes: a quarter of the attention on text moved to the image changes" in first
    assert "by -20% [-20, -20], significant (p = 0.001), and it stays the likeliest word in 49% of the mentions" in first
    assert "beyond the same given to the start token the change is -14% [-14, -14], significant" in first
    assert "the control's opposite direction is not measured, a larger disturbance is not excluded" in first
    assert "make the model hallucinate? Yes, with 3 of the 3 signs looked for" in second
    assert "beyond that control, -10% [-10, -10], significant (p = 0.001)" in second
    assert "a new true object takes over in 26% of the hallucinated mentions and another absent one in 0%" in second
    assert "in 20.0% with a quarter of the image's attention taken away and in 0.0% with a quarter of the text's added" in second
    for name, (estimate, _) in shown.items():
        for other in ((estimate, False), (-estimate, True)):
            second = answer(with_lines(table, **(shown | {name: other})))[1]
            assert "make the model hallucinate? No, that is not shown, with 2 of the 3 signs" in second
            assert other[1] or "not significant (p = 0.5)" in second
    assert "change the word? No, that is not shown: " in answer(with_lines(table, whole=(-0.1, False)))[0]
