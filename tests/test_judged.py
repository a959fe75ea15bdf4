"""MMHal-Bench and MM-Vet: official files and prompts, and the scores of judgements worked out by hand and by slow twins."""

import hashlib
import json
import random

import pytest

from prunehal.benchmarks.judged import mmhal as judged
from prunehal.benchmarks.judged import mmvet
from prunehal.files.paths import data_path
from prunehal.files.records import BadInput


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def chat(text, i=0):
    return {"id": f"chatcmpl-{i}", "object": "chat.completion", "choices": [{"index": 0, "message": {"content": text}}]}


# MMHal-Bench


def test_the_template_is_the_official_one():
    records = judged.questions()
    assert len(records) == 96
    assert [record["question_type"] for record in records] == [judged.TYPES[index % 8] for index in range(96)]
    assert {record["model_answer"] for record in records} == {""}
    records[0]["model_answer"] = "changed"
    assert judged.questions()[0]["model_answer"] == ""


def test_write_responses_fills_the_template_in(tmp_path):
    path = tmp_path / "new" / "response.json"
    judged.write_responses(path, [f"answer {index}" for index in range(96)])
    read = json.loads(path.read_text())
    assert [list(record) for record in read] == [list(record) for record in judged.questions()]
    assert read[95] == {**judged.questions()[95], "model_answer": "answer 95"}
    by_index = {str(index): f"answer {index}" for index in reversed(range(96))}
    assert judged.responses(by_index) == read
    assert judged.responses({int(index): text for index, text in by_index.items()}) == read


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["a"] * 95, r"no answer for 1 question\(s\): 95"),
        (["a"] * 97, "answer 96: expected an index from 0 to 95"),
        (["a"] * 95 + [None], "answer 95: None; expected text"),
        ({index: "a" for index in range(1, 96)}, r"no answer for 1 question\(s\): 0\n"),
        ({**dict.fromkeys(range(96), "a"), "7": "b"}, "answer '7': question 7 is answered twice"),
        ({**dict.fromkeys(range(96), "a"), "x": "c"}, "answer 'x': expected an index"),
    ],
)
def test_bad_answers_are_named_and_nothing_is_written(tmp_path, answers, message):
    with pytest.raises(BadInput, match=message):
        judged.write_responses(tmp_path / "response.json", answers)
    assert list(tmp_path.iterdir()) == []


def test_the_judge_prompt_is_the_published_one():
    template = data_path("mmhal", "judge_prompt.txt").read_text()
    assert len(template) == 6631
    assert sha256(template) == "2c73d8c50f1740d000fae62cfeed103c2f7a5bcfa904b27e6e09900e7ce600cc"
    prompt = judged.judge_prompts(judged.responses(["A {odd} answer."] * 96))[1]
    record = judged.questions()[1]
    assert prompt["index"] == 1
    head, tail = template.split("### Image Contents\n{}")
    assert tail == "\n\n### Question\n{}\n\n### Standard Human-Generated Answer\n{}\n\n### LMM Response to Evaluate\n{}\n"
    assert prompt["prompt"] == (
        f"{head}### Image Contents\nDoor, Building\n\n### Question\n{record['question']}\n\n"
        f"### Standard Human-Generated Answer\n{record['gt_answer']}\n\n### LMM Response to Evaluate\nA {{odd}} answer.\n"
    )


def test_judge_prompts_ask_for_filled_records():
    with pytest.raises(BadInput, match="no response has a model_answer"):
        judged.judge_prompts(judged.questions())
    assert len(judged.judge_prompts(judged.responses(["a", *[""] * 95]))) == 96  # a model may say nothing
    filled = judged.responses(["a"] * 96)
    with pytest.raises(BadInput, match="95 responses; expected 96, one for each question"):
        judged.judge_prompts(filled[1:])
    for key, value, message in (
        ("gt_answer", None, "response 7: gt_answer is None; expected text"),
        ("image_content", ["Cat", 5], r"response 7: image_content\[1\] is 5; expected text"),
        ("image_content", "Cat", "response 7: image_content is 'Cat'; expected a list"),
    ):
        with pytest.raises(BadInput, match=message):
            judged.judge_prompts([*filled[:7], filled[7] | {key: value}, *filled[8:]])
    del filled[7]["question"]
    with pytest.raises(BadInput, match="response 7: no question; expected it, found"):
        judged.judge_prompts(filled)


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: 0, not informative", 0),
        ("RATING: 6", 6),
        ("... - Rating: 3, not informative, no hallucination", 3),
        ("Rating: 3. I repeat: rating: 3", 3),
        ("Rating: 7", None),
        ("Rating:5", None),
        ("Rating: 10", 1),  # the official rule looks for the text alone
        ("Rating: 2 or Rating: 3", None),
        ("", None),
    ],
)
def test_rating_by_hand(text, rating):
    assert judged.rating(text) == rating


def slow_mmhal(texts):
    """Go through the replies one by one, with the official rule."""
    scores, unreadable = [], 0
    for text in texts:
        found = []
        for value in range(7):
            if text.lower().find("rating: " + str(value)) >= 0:
                found.append(value)
        if len(found) == 1:
            scores.append(found[0])
        else:
            scores.append(0)
            unreadable += 1
    types = {}
    for place, name in enumerate(judged.TYPES):
        of_type = [scores[index] for index in range(place, 96, 8)]
        types[name] = sum(of_type) / 12
    low = 0
    for value in scores:
        if not value >= 3:
            low += 1
    rates = {"average": sum(scores) / 96, "hallucination_rate": low / 96, "unreadable_share": unreadable / 96}
    return rates | {"types": types, "unreadable": unreadable, "n_empty": texts.count(""), "n": 96}


@pytest.mark.parametrize("seed", range(5))
def test_mmhal_score_equals_the_slow_twin(seed):
    rng = random.Random(seed)
    replies = [f"Rating: {value}" for value in range(9)] + ["rating: 2, no, RATING: 4", "none", "rating:3", ""]
    texts = [rng.choice(replies) for _ in range(96)]
    report = judged.score(texts)
    assert report.metrics == slow_mmhal(texts)
    assert [item["score"] for item in report.items[:3]] == [judged.rating(text) or 0 for text in texts[:3]]


def test_mmhal_score_by_hand():
    # One score for each type, in all twelve rounds: 6 5 4 3 2 1 0 and an unreadable reply.
    report = judged.score([*(f"Rating: {value}" for value in (6, 5, 4, 3, 2, 1, 0)), "?"] * 12)
    assert report.metrics["average"] == 21 / 8
    assert report.metrics["hallucination_rate"] == 4 / 8
    assert list(report.metrics["types"].values()) == [6, 5, 4, 3, 2, 1, 0, 0]
    assert report.metrics["unreadable"] == 12
    assert report.items[7] == {"index": 7, "type": "other", "score": 0, "hallucination": True, "readable": False}
    assert [item["hallucination"] for item in report.items[2:5]] == [False, False, True]


def test_judgement_files_of_all_shapes_give_the_same(tmp_path):
    texts = [f"Rating: {index % 7}" for index in range(96)]
    shapes = {
        "official.json": json.dumps([chat(text, i) for i, text in enumerate(texts)], indent=2),
        "order.jsonl": "\n".join(json.dumps({"judgement": text}) for text in texts),
        "index.json": json.dumps([{"index": i, "text": texts[i]} for i in reversed(range(96))]),
        "id.jsonl": "\n".join(json.dumps({"id": str(i), "judgement": texts[i]}) for i in random.Random(0).sample(range(96), 96)),
    }
    for name, content in shapes.items():
        (tmp_path / name).write_text(content)
        assert judged.read_judgements(tmp_path / name) == texts, name
    assert judged.score([chat(text) for text in texts]).metrics == judged.score(texts).metrics


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": "a"}] * 95, "95 judgements; expected 96"),
        ([{"text": "a"}] * 97, "97 judgements; expected 96"),
        ([{"text": "a"}] * 95 + [{"score": 3}], "line 96: no text; expected a reply under one of the keys judgement"),
        ([{"text": "a"}] * 95 + [{"text": "a", "index": 95}], "some judgements have an index or an image and some have none"),
        (
            [{"text": "a", "index": max(i, 1)} for i in range(96)],
            r"question 1 is judged twice(.|\n)*no judgement for 1 question\(s\): 0",
        ),
        ([{"text": "a", "id": i + 1} for i in range(96)], "line 96: id 96; expected a number from 0 to 95"),
    ],
)
def test_bad_judgement_files_are_named(tmp_path, records, message):
    path = tmp_path / "judgements.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(BadInput, match=message):
        judged.read_judgements(path)
    with pytest.raises(BadInput, match=message.replace("line 96", "judgement 95")):
        judged.score(records)


def test_a_torn_judgement_file_is_named(tmp_path):
    (tmp_path / "torn.jsonl").write_text('{"text": "Rating: 3"}\n' * 95 + '{"text": "Rat')
    with pytest.raises(BadInput, match="line 96: no JSON"):
        judged.read_judgements(tmp_path / "torn.jsonl")


# MM-Vet

QUESTIONS = {
    "v1_0": {"question": "What is x?", "answer": "-1<AND>-5", "capability": ["math", "ocr"], "imagename": "v1_0.png"},
    "v1_1": {"question": "Who?", "answer": "Nobody<OR>no one", "capability": ["rec"]},
    "v1_2": {"question": "Why?", "answer": "Because", "capability": ["ocr", "math"]},
    "v1_3": {"question": "Where?", "answer": "Left", "capability": ["spat", "rec", "ocr"]},
}


def test_the_mmvet_prompt_is_the_published_one():
    assert len(mmvet.PROMPT) == 2290
    assert sha256(mmvet.PROMPT) == "d1b3e0a5b4e72c888b77164489d705bba4dd149934fff564dfba6443d81afe3f"


def test_mmvet_prompts_by_hand(tmp_path):
    predictions = {key: f"text of {key}" for key in reversed(QUESTIONS)}
    mmvet.write_predictions(tmp_path / "mine.json", predictions)
    assert json.loads((tmp_path / "mine.json").read_text()) == predictions
    (tmp_path / "mm-vet.json").write_text(json.dumps(QUESTIONS, indent=4))
    asked = mmvet.judge_prompts(tmp_path / "mm-vet.json", tmp_path / "mine.json")
    assert asked == mmvet.judge_prompts(QUESTIONS, predictions)
    assert [entry["id"] for entry in asked] == list(QUESTIONS)
    assert asked[0]["prompt"] == mmvet.PROMPT + "\nWhat is x? | -1 <AND> -5 | text of v1_0 | "
    assert asked[1]["prompt"] == mmvet.PROMPT + "\nWho? | Nobody <OR> no one | text of v1_1 | "
    again = mmvet.judge_prompts(QUESTIONS, predictions, again=True)[1]["prompt"]
    assert again == asked[1]["prompt"] + "\nPredict the correctness of the answer (digit): "


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("0.5", 0.5),
        ("1.0\n", 1.0),
        ("0", 0.0),
        ("0.9 because", 0.9),
        ("1.1", None),
        ("-0.1", None),
        ("nan", None),
        ("", None),
        (" 1", None),
    ],
)
def test_read_grade_by_hand(text, grade):
    assert mmvet.read_grade(text) == grade


def test_mmvet_score_by_hand():
    report = mmvet.score(QUESTIONS, {"v1_0": 0.5, "v1_1": 1, "v1_2": 0.0, "v1_3": 0.7})
    metrics = report.metrics
    assert metrics["total"] == pytest.approx(55.0)
    assert metrics["official"] == {
        "total": 55.0,
        "capabilities": {"rec": 85.0, "ocr": 40.0, "spat": 70.0, "math": 25.0},
        "combinations": {"ocr_math": 25.0, "rec": 100.0, "rec_ocr_spat": 70.0},
        "std": 0.0,
    }
    assert list(metrics["combinations"]) == ["ocr_math", "rec", "rec_ocr_spat"]  # most frequent first
    assert (metrics["n"], metrics["n_runs"]) == (4, 1)
    assert report.items[3] == {"id": "v1_3", "capability": ["spat", "rec", "ocr"], "grade": 0.7}


def slow_mmvet(questions, grades):
    """Add the scores up run by run and question by question, as the notebook does, and round with numpy."""
    import numpy as np

    n_runs = len(next(iter(grades.values()))["score"])
    sums, counts = {}, {}
    for question in questions.values():
        names = {("capability", name) for name in question["capability"]} | {("set", frozenset(question["capability"])), "total"}
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    for key, grade in grades.items():
        capable = questions[key]["capability"]
        for name in {("capability", c) for c in capable} | {("set", frozenset(capable)), "total"}:
            for run in range(n_runs):
                sums.setdefault(name, [0.0] * n_runs)[run] += grade["score"][run]
    return {name: round((np.array(values) / counts[name] * 100).mean(), 1) for name, values in sums.items()}


@pytest.mark.parametrize("seed", range(5))
def test_mmvet_score_equals_the_slow_twin(tmp_path, seed):
    rng = random.Random(seed)
    questions = {
        f"v1_{i}": {"question": "?", "answer": "!", "capability": rng.sample(mmvet.CAPABILITIES, rng.randint(1, 3))}
        for i in range(218)
    }
    keys = rng.sample(list(questions), len(questions))
    grades = {key: {"model": [], "content": [], "score": [rng.randint(0, 10) / 10 for _ in range(5)]} for key in keys}
    (tmp_path / "grades.json").write_text(json.dumps(grades, indent=4))
    official = mmvet.score(questions, tmp_path / "grades.json").metrics["official"]
    slow = slow_mmvet(questions, grades)
    assert official["total"] == slow.pop("total")
    for name, value in official["capabilities"].items():
        assert value == slow.pop(("capability", name))
    for name, value in official["combinations"].items():
        assert value == slow.pop(("set", frozenset(name.split("_"))))
    assert slow == {}


def test_mmvet_runs_are_averaged():
    metrics = mmvet.score({"v1_0": QUESTIONS["v1_0"]}, {"v1_0": {"score": [0.2, 0.6]}}).metrics
    assert metrics["runs"] == pytest.approx([20.0, 60.0])
    assert (metrics["total"], metrics["std"]) == (pytest.approx(40.0), pytest.approx(20.0))


def test_mmvet_ties_are_rounded_as_numpy_does():
    assert mmvet.score({"v1_0": QUESTIONS["v1_0"]}, {"v1_0": 0.0015}).metrics["official"]["total"] == 0.2
    assert round(0.15, 1) == 0.1


GRADES = dict.fromkeys(QUESTIONS, 0.5)


@pytest.mark.parametrize(
    ("questions", "grades", "message"),
    [
        (QUESTIONS, {key: 0.5 for key in QUESTIONS if key != "v1_2"}, "'v1_2': no grade"),
        (QUESTIONS, {**GRADES, "v1_9": 1}, "'v1_9': a grade without a question"),
        (QUESTIONS, {**GRADES, "v1_1": 1.5}, "'v1_1': 1.5; expected a grade from 0 to 1"),
        (QUESTIONS, {**GRADES, "v1_1": True}, "'v1_1': True; expected"),
        (QUESTIONS, {**GRADES, "v1_1": {"score": []}}, "'v1_1': .*expected a grade"),
        (QUESTIONS, {**GRADES, "v1_1": {"score": [0.1, 0.2]}}, r"the numbers of runs are \[1, 2\]"),
        (
            {"v1_0": {"question": "?", "answer": "!", "capability": ["smell"]}},
            {"v1_0": 1},
            "'v1_0': capability smell; expected rec",
        ),
        ({"v1_0": {"question": "?", "capability": ["rec"]}}, {"v1_0": 1}, "'v1_0': no answer; expected it"),
        ({"v1_0": ["?", "!"]}, {"v1_0": 1}, r"'v1_0': it is \['\?', '!'\]; expected an object"),
        (
            {"v1_0": {"question": "?", "answer": "!", "capability": [["ocr"]]}},
            {"v1_0": 1},
            r"'v1_0': capability\[0\] is \['ocr'\]; expected text",
        ),
        ({"v1_0": {"question": 5, "answer": "!", "capability": ["ocr"]}}, {"v1_0": 1}, "'v1_0': question is 5; expected text"),
        ({"v1_0": {"question": "?", "answer": "!", "capability": []}}, {"v1_0": 1}, "'v1_0': no list of capabilities"),
        ({}, {}, "no question"),
    ],
)
def test_bad_mmvet_input_is_named(questions, grades, message):
    with pytest.raises(BadInput, match=message):
        mmvet.score(questions, grades)


def test_bad_mmvet_files_are_named(tmp_path):
    (tmp_path / "two.json").write_text('{"v1_0": 1}\n{"v1_1": 1}')
    with pytest.raises(BadInput, match=r"two\.json: 1 problem\n.*2 objects; expected one object"):
        mmvet.score(QUESTIONS, tmp_path / "two.json")
    (tmp_path / "torn.json").write_text('{"v1_0": 1')
    with pytest.raises(BadInput, match="line 1: no JSON"):
        mmvet.judge_prompts(QUESTIONS, tmp_path / "torn.json")
    with pytest.raises(BadInput, match="'v1_1': no prediction"):
        mmvet.judge_prompts(QUESTIONS, {key: "a" for key in QUESTIONS if key != "v1_1"})
    with pytest.raises(BadInput, match="'v1_0': 3; expected text"):
        mmvet.write_predictions(tmp_path / "out.json", {"v1_0": 3})
    with pytest.raises(BadInput, match="there are none"):
        mmvet.write_predictions(tmp_path / "out.json", {})
    assert not (tmp_path / "out.json").exists()
