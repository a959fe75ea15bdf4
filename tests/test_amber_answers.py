"""AMBER's yes-or-no part against answers scored by hand, and against a literal twin of the official script."""

import gzip
import json
import random

import pytest

from prunehal.benchmarks.amber.files import annotations
from prunehal.benchmarks.amber.score import score_answers, score_discriminative
from prunehal.files.paths import data_path
from prunehal.files.records import BadInput


def twin_of_answers(responses):
    """Score answers with one counter for each line of the official script, added up in its order."""
    records = json.loads(gzip.decompress(data_path("amber", "annotations.json.gz").read_bytes()))
    short = {
        "discriminative-attribute-state": "s", "discriminative-attribute-number": "n", "discriminative-attribute-action": "a",
        "discriminative-hallucination": "h", "discriminative-relation": "r", "relation": "r",
    }  # fmt: skip
    count = {}
    for part in ["", *"snahr"]:
        for what in ("asked", "no_asked", "no_said"):
            count[part, what] = 0.001
        for what in ("right", "no_right", "no_said_right"):
            count[part, what] = 0
    for number, response in responses.items():
        truth = records[number - 1]["truth"]
        for part in ("", short[records[number - 1]["type"]]):
            count[part, "asked"] += 1
            if truth == "yes":
                if response == "Yes":
                    count[part, "right"] += 1
            else:
                count[part, "no_asked"] += 1
                if response == "No":
                    count[part, "right"] += 1
                    count[part, "no_right"] += 1
            if response == "No":
                count[part, "no_said"] += 1
                if truth == "no":
                    count[part, "no_said_right"] += 1

    def ratio(parts, above, below):
        if len(parts) == 3:
            a, b, c = parts
            return (count[a, above] + count[b, above] + count[c, above]) / (count[a, below] + count[b, below] + count[c, below])
        return count[parts, above] / count[parts, below]

    scores = {}
    groups = {"all": "", "existence": "h", "attribute": "sna", "state": "s", "number": "n", "action": "a", "relation": "r"}
    for name, parts in groups.items():
        precision = round(ratio(parts, "no_said_right", "no_said") * 100, 1)
        recall = round(ratio(parts, "no_right", "no_asked") * 100, 1)
        small = 0.001 if name == "existence" else 0.0001
        if all(count[part, "asked"] == 0.001 for part in parts or [""]):  # no question: the script's numbers are of nothing
            scores[name] = {"accuracy": None, "precision": None, "recall": None, "f1": None}
            continue
        scores[name] = {
            "accuracy": round(ratio(parts, "right", "asked") * 100, 1),
            "precision": precision,
            "recall": recall,
            "f1": round(2 * (precision / 100) * (recall / 100) / ((precision / 100) + (recall / 100) + small) * 100, 1),
        }
    return scores


def groups_of(report):
    return {name: value for name, value in report.metrics.items() if isinstance(value, dict)}


@pytest.mark.parametrize("seed", range(12))
def test_answers_equal_the_twin(seed):
    rng = random.Random(seed)
    said = ["Yes", "No", rng.choice(["No.", "yes", "", "no", "I see"])]
    numbers = rng.sample(range(1005, 15221), rng.choice([5, 60, 3000]))
    right = rng.random()
    answers = {
        number: {"yes": "Yes", "no": "No"}[annotations()[number]["truth"]] if rng.random() < right else rng.choice(said)
        for number in numbers
    }
    report = score_answers(answers)
    assert groups_of(report) == twin_of_answers(answers)
    assert report.metrics["unreadable"] == sum(answer not in ("Yes", "No") for answer in answers.values())
    assert report.metrics["n_empty"] == list(answers.values()).count("")
    assert report.settings["n"]["all"] == report.metrics["n"] == len(numbers)
    parts = [report.settings["n"][part] for part in ("state", "number", "action")]
    assert sum(parts) == report.settings["n"]["attribute"]


@pytest.mark.parametrize("answer", ["Yes", "No", "right"])
def test_all_the_answers_equal_the_twin(answer):
    answers = {number: answer for number in range(1005, 15221)}
    if answer == "right":
        answers = {number: annotations()[number]["truth"].capitalize() for number in answers}
    report = score_answers(answers)
    assert groups_of(report) == twin_of_answers(answers)
    assert report.settings["n"] == {
        "all": 14216, "existence": 4924, "attribute": 7628, "state": 4764, "number": 2072, "action": 792, "relation": 1664,
    }  # fmt: skip


# 1005 yes, 1006 no (state); 1013 yes, 1014 no (number); 1017 yes, 1018 no (action); 8633 no (existence); 13557 yes
# ("discriminative-relation"), 13558 no ("relation")
def test_answers_by_hand():
    report = score_answers({1005: "Yes", 1006: "No", 1013: "No", 1014: "no", 1018: "No", 8633: "No", 13557: "Yes", 13558: "Yes"})
    assert [item["correct"] for item in report.items] == [True, True, False, False, True, True, True, False]
    assert report.items[3] == {
        "id": 1014, "type": "discriminative-attribute-number", "truth": "no", "response": "no", "answer": None, "correct": False,
    }  # fmt: skip
    assert report.metrics["all"] == {
        "accuracy": round(5 / 8.001 * 100, 1),
        "precision": round(3 / 4.001 * 100, 1),  # 75.0
        "recall": round(3 / 5.001 * 100, 1),  # 60.0
        "f1": round(2 * 0.75 * 0.6 / (0.75 + 0.6 + 0.0001) * 100, 1),
    }
    assert report.metrics["attribute"] == {
        "accuracy": round(3 / 5.003 * 100, 1),
        "precision": round(2 / 3.003 * 100, 1),  # 66.6, not 66.7
        "recall": round(2 / 3.003 * 100, 1),
        "f1": 66.6,
    }
    assert report.metrics["number"] == {"accuracy": 0.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert report.metrics["relation"] == {"accuracy": 50.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert report.metrics["existence"] == {"accuracy": 99.9, "precision": 99.9, "recall": 99.9, "f1": 99.9}
    nothing = {"accuracy": None, "precision": None, "recall": None, "f1": None}  # no question of this type
    assert score_answers({1005: "Yes"}).metrics["existence"] == score_answers({8633: "No"}).metrics["attribute"] == nothing


def test_existence_adds_a_larger_number_below_the_line():
    """Precision 100.0 and recall 50.0: 1 / (1.5 + 0.001) = 66.62 %, and 1 / (1.5 + 0.0001) = 66.66 %."""
    assert [annotations()[number]["truth"] for number in range(8633, 8637)] == ["no"] * 4
    metrics = score_answers({8633: "No", 8634: "No", 8635: "Yes", 8636: "Yes"}).metrics
    assert (metrics["existence"]["precision"], metrics["existence"]["recall"]) == (100.0, 50.0)
    assert (metrics["existence"]["f1"], metrics["all"]["f1"]) == (66.6, 66.7)


@pytest.mark.parametrize("answer", ["No.", "no", "NO", " No", "No ", "", "No, there is not"])
def test_anything_else_is_wrong_and_neither(answer):
    metrics = score_answers({1006: answer, 1014: "No"}).metrics["all"]
    assert metrics == {"accuracy": 50.0, "precision": 99.9, "recall": 50.0, "f1": 66.6}


def test_discriminative_file(file):
    answers = {1005: "Yes", 1006: "", 8633: "No"}
    path = file([{"id": number, "response": response} for number, response in answers.items()])
    report = score_discriminative(path)
    assert (report.metrics, report.items) == (score_answers(answers).metrics, score_answers(answers).items)
    assert report.settings["benchmark"] == "AMBER discriminative"
    assert (report.settings["responses"], report.settings["n_bad"]) == (str(path), 0)
    assert report.settings["n_other"] == 0
    path = file([*json.loads(path.read_text()), {"id": 1, "response": "A lake."}, {"id": 1005, "response": "No"}, {"id": 1007}])
    with pytest.raises(BadInput) as caught:
        score_discriminative(path)
    assert [problem.split("; ")[0] for problem in caught.value.problems] == [
        "line 1, object 5: id 1005 again, first on line 1", "line 1, object 6: no answer",
    ]  # fmt: skip
    report = score_discriminative(path, skip_bad=True)
    assert (report.items, report.settings["n_bad"], report.settings["n_other"]) == (score_answers(answers).items, 2, 1)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({}, "there are no responses"),
        ({1: "Yes"}, "id 1 is generative; expected a disc"),
        ({1005: True}, "id 1005 is True; expected"),
    ],
)
def test_answers_name_what_is_wrong(answers, message):
    with pytest.raises(ValueError, match=message):
        score_answers(answers)
