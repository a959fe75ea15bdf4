"""The pairwise judgement: the published prompt, replies in the shapes judges write, and means, wins and bias by hand."""

import hashlib
import json
import random

import pytest

from prunehal.benchmarks.judged import pairwise
from prunehal.files.records import BadInput


def test_the_prompt_is_the_published_one():
    assert (len(pairwise.PROMPT), hashlib.sha256(pairwise.PROMPT.encode()).hexdigest()) == (
        1403,
        "2f6b767ed9f674ac356e7bda9581ef9c319557e8589981322cb3bd81d8a3f114",
    )
    assert "hallucinationsshould" in pairwise.PROMPT  # as published
    assert "countas" in pairwise.PROMPT
    assert pairwise.PROMPT.endswith("Detailedness: <Scores of the two answers>\nReason: \n")


def test_prompts_by_hand():
    a, b = {7: "A {dog}.", "x": "A sofa."}, {"x": "A couch.", 7: "A cat."}
    asked = pairwise.prompts(a, b)
    assert [(entry["image_id"], entry["order"]) for entry in asked] == [(7, "ab"), ("x", "ab")]
    head, rest = pairwise.PROMPT.split("[Assistant 1]\n{}")
    assert asked[0]["prompt"] == head + "[Assistant 1]\nA {dog}." + rest.replace("{}", "A cat.")
    both = pairwise.prompts(a, b, swap=True)
    assert [(entry["image_id"], entry["order"]) for entry in both] == [(7, "ab"), (7, "ba"), ("x", "ab"), ("x", "ba")]
    assert [both[0], both[2]] == asked
    assert [entry["prompt"] for entry in both[1::2]] == [entry["prompt"] for entry in pairwise.prompts({**b}, a)][::-1]
    json.dumps(both)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({1: "A."}, {1: "B.", 2: "C."}, r"1 image\(s\) have a caption of b only: 2"),
        ({1: "A.", 3: "A."}, {1: "B."}, r"1 image\(s\) have a caption of a only: 3"),
        ({1: "A."}, {1: None}, "image 1: the caption of b is None; expected text"),
        ({}, {}, "there are no captions"),
    ],
)
def test_captions_that_do_not_match_are_named(a, b, message):
    with pytest.raises(BadInput, match=message):
        pairwise.prompts(a, b)


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("Accuracy: 8 6\nReason: x\n\nDetailedness: 7 9\nReason: y", ((8, 6), (7, 9))),
        ("Correctness: 8, 6\nReason: x\n\nDetailedness: 7,9", ((8, 6), (7, 9))),
        ("accuracy: 8.5 10\r\nDETAILEDNESS:  1   0 ", ((8.5, 10), (1, 0))),
        ("**Accuracy:** 8 6\n**Detailedness**: **7, 9**", ((8, 6), (7, 9))),
        ("1: Accuracy: 8 6\n2. Detailedness: 7 9", ((8, 6), (7, 9))),
        ("### Accuracy: 8 6\n\n### Detailedness: 7 9", ((8, 6), (7, 9))),
        ("Accuracy: 1 1\nDetailedness: 7 9\nCorrected:\nAccuracy: 8 6", ((8, 6), (7, 9))),  # the last line counts
        ("Reason: Accuracy: 3 3 is low\nAccuracy: 8 6\nDetailedness: 7 9", ((8, 6), (7, 9))),
        ("Accuracy: 8 6", None),
        ("Detailedness: 7 9", None),
        ("Accuracy: 8\nDetailedness: 7 9", None),
        ("Accuracy: 8 6 7\nDetailedness: 7 9", None),
        ("Accuracy: 11 6\nDetailedness: 7 9", None),
        ("Accuracy: 8 6\nDetailedness: 7 10.5", None),
        ("Accuracy: -8 6\nDetailedness: 7 9", None),
        ("Accuracy: 8/10 6/10\nDetailedness: 7 9", None),
        ("Accuracy: 86\nDetailedness: 79", None),
        ("Inaccuracy: 8 6\nDetailedness: 7 9", None),
        ("", None),
    ],
)
def test_parse_by_hand(text, scores):
    assert pairwise.parse(text) == (None if scores is None else dict(zip(pairwise.CRITERIA, scores, strict=True)))


def said(image, order, correctness, detailedness):
    text = (
        f"Accuracy: {correctness[0]} {correctness[1]}\nReason: .\n\nDetailedness: {detailedness[0]} {detailedness[1]}\nReason: ."
    )
    return {"image_id": image, "order": order, "judgement": text}


# Image 1 in both orders: a has 8 and 9, b has 6 and 7 for correctness. Image 2 in one order, image 3 half readable, 4 not at all.
JUDGEMENTS = [
    said(1, "ab", (8, 6), (5, 5)),
    said(1, "ba", (7, 9), (6, 5)),
    said(2, "ab", (4, 5), (9, 3)),
    said(3, "ba", (6, 6), (2, 8)),
    {"image_id": 3, "order": "ab", "text": "I cannot see the image."},
    {"image_id": 4, "choices": [{"message": {"content": "no"}}]},
]


def test_score_by_hand():
    report = pairwise.score(JUDGEMENTS)
    assert report.metrics["correctness"] == {
        "a": pytest.approx((8.5 + 4 + 6) / 3),
        "b": pytest.approx((6.5 + 5 + 6) / 3),
        "difference": pytest.approx((2 - 1 + 0) / 3),
        "wins": 1,
        "ties": 1,
        "losses": 1,
        "position_bias": 0.0,  # image 1: 8 - 6 and 7 - 9
    }
    assert report.metrics["detailedness"] == {
        "a": pytest.approx((5 + 9 + 8) / 3),
        "b": pytest.approx((5.5 + 3 + 2) / 3),
        "difference": pytest.approx((-0.5 + 6 + 6) / 3),
        "wins": 2,
        "ties": 0,
        "losses": 1,
        "position_bias": 0.5,  # image 1: 5 - 5 and 6 - 5
    }
    assert {name: report.metrics[name] for name in ("n", "n_both", "unreadable")} == {"n": 3, "n_both": 1, "unreadable": 2}
    assert report.items[0] == {"image_id": 1, "orders": ["ab", "ba"], "correctness": (8.5, 6.5), "detailedness": (5.0, 5.5)}
    assert [item["image_id"] for item in report.items] == [1, 2, 3]


def test_a_judge_that_only_sees_the_place_finds_no_difference():
    rng = random.Random(0)
    judgements = []
    for image in range(20):
        low = rng.randint(1, 8)
        judgements += [said(image, order, (low + 2, low), (low + 1, low)) for order in ("ab", "ba")]
    metrics = pairwise.score(rng.sample(judgements, len(judgements))).metrics
    for name, bias in (("correctness", 2), ("detailedness", 1)):
        assert (metrics[name]["difference"], metrics[name]["ties"], metrics[name]["position_bias"]) == (0, 20, bias)


def test_exchanging_the_methods_exchanges_the_scores():
    other = [{**entry, "order": {"ab": "ba", "ba": "ab"}[entry.get("order", "ab")]} for entry in JUDGEMENTS]
    one, two = pairwise.score(JUDGEMENTS).metrics, pairwise.score(other).metrics
    for name in pairwise.CRITERIA:
        assert (one[name]["a"], one[name]["wins"]) == (two[name]["b"], two[name]["losses"])
        assert one[name]["difference"] == -two[name]["difference"]
        assert one[name]["position_bias"] == two[name]["position_bias"]


def test_nothing_readable_is_an_error_and_no_number():
    with pytest.raises(BadInput, match="none of the 1 replies can be read, such as 'no'; expected lines such as 'Accuracy: 8 6'"):
        pairwise.score([{"image_id": 1, "text": "no"}])
    metrics = pairwise.score([*JUDGEMENTS[2:3], {"image_id": 4, "text": ""}]).metrics
    assert metrics["correctness"]["position_bias"] is None
    assert (metrics["n"], metrics["unreadable"], metrics["unreadable_share"], metrics["n_empty"]) == (1, 1, 0.5, 1)


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        ([], "there are none"),
        ([{"text": "a"}], "judgement 0: no image_id; expected it"),
        ([{"image_id": [1], "text": "a"}], r"judgement 0: image_id is \[1\]; expected a number or text"),
        ([{"image_id": 1, "order": "a", "text": "a"}], "judgement 0: order 'a'; expected 'ab' or 'ba'"),
        ([{"image_id": 1}], "judgement 0: no text"),
        ([*JUDGEMENTS, JUDGEMENTS[1]], "judgement 6: image 1 is judged twice in order 'ba'"),
    ],
)
def test_bad_judgements_are_named(judgements, message):
    with pytest.raises(BadInput, match=message):
        pairwise.score(judgements)
