"""POPE: the answers as the official script reads them, scores counted by hand and by a literal twin, files paired rightly."""

import gzip
import json
import random
import re

import pytest

from prunehal.benchmarks.pope import score as pope
from prunehal.benchmarks.pope.score import Question, parse_answer, questions, score
from prunehal.files.paths import data_path

ASKED = [
    Question(11, "a.jpg", "Is there a dog in the image?", "yes"),
    Question(12, "a.jpg", "Is there a cat in the image?", "no"),
    Question(13, "b.jpg", "Is there a bus in the image?", "yes"),
    Question(14, "b.jpg", "Is there a cup in the image?", "no"),
]
SAID = ["Yes.", "Yes, one.", "No.", "no"]  # tp, fp, fn, tn


def row(question):
    return {"question_id": question.question_id, "image": question.image, "text": question.text, "label": question.label}


# what the official script makes of an answer, and what the strict rule does
PARSED = {
    "Yes": ("yes", "yes"),
    "No": ("no", "no"),
    "no": ("no", "no"),
    "yes, there is": ("yes", "yes"),
    "No, there is no dog.": ("no", "no"),
    "There is no dog.": ("no", None),
    "There is not any dog": ("no", None),
    "NO": ("yes", "no"),
    "No!": ("yes", "no"),
    "Not at all": ("yes", None),
    "no\n": ("yes", "no"),
    "no\tdog": ("yes", "no"),
    "none": ("yes", None),
    "nothing": ("yes", None),
    "": ("yes", None),
    " \n": ("yes", None),
    "...": ("yes", None),
    "I cannot tell": ("yes", None),
    "There isn't a dog": ("yes", None),
    "Yes, no doubt": ("no", "yes"),
    "Yes. No cat though.": ("yes", "yes"),
    "I see a cat. No dog.": ("yes", None),
    ".no": ("yes", "no"),
    "Well, no": ("no", None),
    "n,o": ("no", None),
    "  no  dog": ("no", "no"),
    "**No**, sir": ("yes", "no"),
    '"Yes."': ("yes", "yes"),
    "_no_": ("yes", "no"),
    "- YES": ("yes", "yes"),
    "Yes/No": ("yes", None),
    "no-one": ("yes", None),
}


@pytest.mark.parametrize("text", PARSED)
def test_answers_by_hand(text):
    assert (parse_answer(text), parse_answer(text, "strict")) == PARSED[text]


@pytest.mark.parametrize(
    ("text", "rule", "message"), [("yes", "lax", "rule='lax': expected one of"), (None, "official", "is None; exp")]
)
def test_parse_answer_names_what_is_wrong(text, rule, message):
    with pytest.raises(ValueError, match=message):
        parse_answer(text, rule)


def test_all_nine_files():
    for source in pope.SOURCES:
        for kind in pope.KINDS:
            asked = questions(source, kind)
            assert [question.question_id for question in asked] == list(range(1, 3001))
            assert [question.label for question in asked].count("yes") == 1500
            assert len({question.image for question in asked}) == 500
            raw = gzip.decompress(data_path("pope", f"{source}_pope_{kind}.json.gz").read_bytes()).decode()
            assert [json.loads(line) for line in raw.splitlines()] == [row(question) for question in asked]
    texts = {questions(source, kind)[1].text for source in pope.SOURCES for kind in pope.KINDS}
    assert len(texts) >= 6  # nine different files


@pytest.mark.parametrize("name", [("coco", "hard"), ("vqa", "random"), ("random", "coco")])
def test_unknown_file_is_named(name):
    with pytest.raises(ValueError, match=re.escape(f"{name[0]!r}, {name[1]!r}; expected a source of ['coco'")):
        questions(*name)


def test_score_by_hand():
    report = score([*ASKED, Question(15, "c.jpg", "Is there a car?", "yes")], [*SAID, "There is"])
    assert report.metrics == {
        "tp": 2, "fp": 1, "tn": 1, "fn": 1,
        "accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": pytest.approx(2 / 3), "yes_ratio": 3 / 5, "n": 5,
        "n_empty": 0, "unreadable": 1, "unreadable_share": 1 / 5,  # "There is" is yes only because it is no "no"
    }  # fmt: skip
    assert report.items[1] == {"question_id": 12, "image": "a.jpg", "label": "no", "answer": "yes", "correct": False}
    assert [item["correct"] for item in report.items] == [True, False, False, True, True]
    assert report.settings == {"benchmark": "POPE", "rule": "official"}


def test_strict_scores_by_hand():
    report = score(ASKED, ["Perhaps", "", "yes", "NO"], rule="strict")
    assert report.metrics == {
        "tp": 1, "fp": 0, "tn": 1, "fn": 0,
        "accuracy": 0.5, "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "yes_ratio": 0.25, "n": 4,
        "n_empty": 1, "unreadable": 2, "unreadable_share": 0.5,
    }  # fmt: skip
    assert [item["answer"] for item in report.items] == [None, None, "yes", "no"]
    assert [item["correct"] for item in report.items] == [False, False, True, True]


def test_nothing_to_divide_is_zero():
    metrics = score(ASKED, ["no"] * 4).metrics
    assert (metrics["precision"], metrics["recall"], metrics["f1"], metrics["yes_ratio"]) == (0.0, 0.0, 0.0, 0.0)
    metrics = score([ASKED[1]], ["yes"]).metrics
    assert (metrics["precision"], metrics["recall"], metrics["f1"], metrics["accuracy"]) == (0.0, 0.0, 0.0, 0.0)
    assert score(ASKED, ["?", "?", "?", "no"], rule="strict").metrics["precision"] == 0.0


def twin(labels, texts):
    """Count as the official script does: one loop for the answers, one for the labels, one for the pairs."""
    said = []
    for text in texts:
        if "." in text:
            text = text[: text.index(".")]
        words = "".join(letter for letter in text if letter != ",").split(" ")
        said.append(0 if "No" in words or "not" in words or "no" in words else 1)
    wanted = [0 if label == "no" else 1 for label in labels]
    cells = {(1, 1): 0, (1, 0): 0, (0, 0): 0, (0, 1): 0}
    for pair in zip(said, wanted, strict=True):
        cells[pair] += 1
    tp, fp, tn, fn = cells[1, 1], cells[1, 0], cells[0, 0], cells[0, 1]
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "tp": tp, "fp": fp, "tn": tn, "fn": fn, "precision": precision, "recall": recall,
        "f1": 2 * precision * recall / (precision + recall), "accuracy": (tp + tn) / (tp + tn + fp + fn),
        "yes_ratio": said.count(1) / len(said), "n": len(said),
    }  # fmt: skip


def unreadable_twin(texts):
    """Count the answers in whose text, up to the first full stop, there is neither a no of the official rule nor the word yes."""
    n = 0
    for text in texts:
        begin = ""
        for letter in text:
            if letter == ".":
                break
            begin += letter
        no = any(token in ("No", "no", "not") for token in "".join(x for x in begin if x != ",").split(" "))
        spaced = "".join(letter.lower() if letter.isalnum() or letter == "_" else " " for letter in begin)
        n += not no and "yes" not in spaced.split()
    return n


@pytest.mark.parametrize("rule", pope.RULES)
@pytest.mark.parametrize("texts", [[""] * 4, ["!!!", "...", "", "?"], ["A dog", "the the", "NON", "Perhaps"]])
def test_no_answer_that_can_be_read_is_an_error(texts, rule):
    with pytest.raises(
        ValueError, match=rf"none of the 4 answers can be read, the first is .*expected a yes or no \({rule} rule"
    ):
        score(ASKED, texts, rule)
    metrics = score(ASKED, ["no", *texts[1:]], rule).metrics
    assert (metrics["unreadable"], metrics["unreadable_share"], metrics["fn"]) == (3, 0.75, 1)


def test_empty_answers_are_scored_as_the_official_script_does():
    metrics = score(ASKED, ["", " \n", "Yes", "No"]).metrics
    assert (metrics["tp"], metrics["fp"], metrics["tn"], metrics["accuracy"]) == (2, 1, 1, 0.75)
    assert (metrics["n"], metrics["n_empty"], metrics["unreadable"]) == (4, 2, 2)
    strict = score(ASKED, ["", " \n", "Yes", "No"], "strict").metrics
    assert (strict["tp"], strict["fp"], strict["tn"], strict["fn"], strict["n_empty"], strict["accuracy"]) == (1, 0, 1, 0, 2, 0.5)


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_twin_on_random_answers(seed):
    rng = random.Random(seed)
    pieces = ["No", "no", "not", "Not", "NO", "yes", "Yes", "a", "dog", ",", ".", " ", " ", " ", "\n", "!", "there is"]
    asked = questions(rng.choice(pope.SOURCES), rng.choice(pope.KINDS))[: rng.randint(40, 300)]
    texts = ["".join(rng.choices(pieces, k=rng.randint(0, 8))) for _ in asked]
    metrics = score(asked, texts).metrics
    expected = twin([question.label for question in asked], texts)
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["n_empty"] == sum(text.isspace() or not text for text in texts)
    assert metrics["unreadable"] == unreadable_twin(texts)


@pytest.mark.parametrize(
    ("asked", "said", "message"),
    [
        ([], [], "0 answers to 0 questions; expected one answer"),
        (ASKED, SAID[:3], "3 answers to 4 questions"),
        ([Question(1, "a", "b", "Yes")], ["yes"], "unknown label 'Yes' of question_id 1; expected yes or no"),
        (ASKED, [*SAID[:3], None], "the answer is None"),
    ],
)
def test_score_names_what_is_wrong(asked, said, message):
    with pytest.raises(ValueError, match=message):
        score(asked, said)
    with pytest.raises(ValueError, match="rule='loose': expected one of official, strict"):
        score(ASKED, SAID, rule="loose")
