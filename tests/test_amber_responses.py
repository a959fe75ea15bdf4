"""Responses to AMBER in many layouts: rules, ids, keys, rows of other queries, empty ones; and what no layout may do."""

import json
import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from prunehal.benchmarks.amber.files import annotations
from prunehal.benchmarks.amber.score import (
    queries,
    score_answers,
    score_captions,
    score_discriminative,
    score_generative,
    write_responses,
)
from prunehal.benchmarks.pope.score import score_files
from prunehal.commands.app import app
from prunehal.files.records import BadInput
from prunehal.running.tasks import items_of, write_result

# 1005 yes, 1006 no (state); 8633 no (existence)
SUNNY = "Is the sky sunny in this image?"


@pytest.fixture
def benchmarks():
    if not os.environ.get("PRUNEHAL_BENCHMARKS"):
        pytest.skip("PRUNEHAL_BENCHMARKS is not set")
    return Path(os.environ["PRUNEHAL_BENCHMARKS"])


def command(*arguments):
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def refused(call, message):
    """Check that a file is refused, also where bad lines are skipped."""
    for skip_bad in (False, True):
        with pytest.raises(BadInput, match=message):
            call(skip_bad=skip_bad)


# Rules.


def test_yes_with_a_full_stop(file):
    path = file([{"id": 1005, "response": "Yes."}])
    done = command("amber-discriminative", path)
    assert done.exit_code == 2
    assert "none of the 1 answers can be read, the first is 'Yes.'; the official rule expected exactly Yes or No" in done.stderr
    assert "--rule strict" in done.stderr
    assert "which reads 1 of them" in done.stderr
    assert str(path) in done.stderr
    done = command("amber-discriminative", path, "--rule", "strict")
    assert done.exit_code == 0
    assert "all: accuracy 99.9000, precision 0.0000, recall 0.0000" in done.stdout
    assert "unreadable: 0\nunreadable_share: 0.0000" in done.stdout
    path = file([{"id": 1005, "response": "Yes."}, {"id": 1006, "response": "No"}, {"id": 8633, "response": ""}])
    report = score_discriminative(path)
    assert report.metrics["all"]["accuracy"] == round(1 / 3.001 * 100, 1)
    assert {name: value for name, value in report.metrics.items() if not isinstance(value, dict)} == {
        "n": 3, "n_empty": 1, "unreadable": 2, "unreadable_share": 2 / 3,
    }  # fmt: skip
    assert [item["answer"] for item in report.items] == [None, "No", None]
    strict = score_discriminative(path, rule="strict")
    assert (strict.metrics["all"]["accuracy"], strict.metrics["unreadable"], strict.metrics["n_empty"]) == (66.6, 1, 1)
    assert strict.settings["rule"] == "strict"
    for bad in ("Strict", "lenient"):
        with pytest.raises(ValueError, match=f"rule='{bad}': expected one of official, strict"):
            score_discriminative(path, rule=bad)


def first_word_by_loop(text):
    """Yes or No where the first word is one of them: letter by letter."""
    for token in text.split():
        letters = list(token)
        while letters and not letters[0].isalnum():
            letters.pop(0)
        while letters and not letters[-1].isalnum():
            letters.pop()
        if letters:
            return {"yes": "Yes", "no": "No"}.get("".join(letters).lower())
    return None


@pytest.mark.parametrize("seed", range(8))
def test_the_strict_rule_is_the_official_one_on_first_words(seed):
    rng = random.Random(seed)
    pieces = ["Yes", "yes", "NO", "No", "no", ".", ",", " ", " ", "**", "_", "\n", "not", "there", "-"]
    responses = {n: "".join(rng.choices(pieces, k=rng.randint(0, 5))) for n in rng.sample(range(1005, 15221), 400)}
    words = {number: first_word_by_loop(text) for number, text in responses.items()}
    report = score_answers(responses, "strict")
    official = score_answers({number: word or "?" for number, word in words.items()})
    for group in ("all", "existence", "attribute", "relation"):
        assert report.metrics[group] == official.metrics[group]
    assert [item["answer"] for item in report.items] == list(words.values())
    assert report.metrics["unreadable"] == sum(word is None for word in words.values()) > 0
    assert report.metrics["n_empty"] == sum(not text.strip() for text in responses.values())


@pytest.mark.parametrize("rule", ["official", "strict"])
@pytest.mark.parametrize("response", ["", "A dog.", "...", "Sunny"])
def test_no_answer_that_can_be_read_is_an_error(rule, response, file):
    path = file([{"id": number, "response": response} for number in (1005, 1006)])
    with pytest.raises(BadInput, match=rf"responses\.json: 1 problem\n  none of the 2 answers can be read.*{rule} rule expected"):
        score_discriminative(path, rule=rule)


def test_what_run_writes_is_scored(tmp_path):
    """Models end their answer by a full stop; ids are AMBER's own, also where only some queries were asked."""
    items = items_of("amber", tmp_path, "discriminative")[100:160]
    rows = {item.key: {"text": annotations()[item.key]["truth"].capitalize() + ".", "finished": True} for item in items}
    path = write_result("amber", tmp_path, items, rows)
    with pytest.raises(BadInput, match="none of the 60 answers can be read"):
        score_discriminative(path)
    report = score_discriminative(path, rule="strict")
    assert [item["id"] for item in report.items] == list(range(1105, 1165))
    assert (report.metrics["all"]["accuracy"], report.metrics["n"]) == (100.0, 60)
    items = items_of("pope", tmp_path, "coco/popular")
    path = write_result("pope", tmp_path, items[1000:1002], {item.key: {"text": "Yes."} for item in items})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["question_id"], row["image"], row["question"]) for row in rows] == [
        (item.key, item.image, item.text) for item in items[1000:1002]
    ]
    report = score_files("coco/popular", path, skip_bad=True)
    assert [item["question_id"] for item in report.items] == [1001, 1002]


# Ids, keys, rows of other queries.


def test_ids_as_text(file):
    report = score_discriminative(
        file([{"id": "1005", "response": "Yes"}, {"id": " 1006 ", "response": "No"}, {"id": "1", "response": "A"}])
    )
    assert [item["id"] for item in report.items] == [1005, 1006]
    assert report.metrics["all"]["accuracy"] == 100.0
    assert report.settings["n_other"] == 1
    path = file([{"id": "1005", "response": "Yes"}, {"id": 1005, "response": "No"}])
    with pytest.raises(BadInput, match="line 1, object 2: id 1005 again, first on line 1"):
        score_discriminative(path)
    assert score_discriminative(path, skip_bad=True).metrics["all"]["accuracy"] == 99.9


@pytest.mark.parametrize("key", ["response", "answer", "text", "prediction", "ans", "output", "model_answer"])
def test_keys_of_a_response(file, key):
    assert score_discriminative(file([{"id": 1005, key: "Yes"}])).metrics["all"]["accuracy"] == 99.9
    assert score_generative(file([{"question_id": "1", key: "A car."}])).metrics["chair"] == 99.9


def test_several_keys_that_differ(file):
    path = file([{"id": 1005, "answer": "yes", "response": "No"}])
    refused(lambda skip_bad: score_discriminative(path, skip_bad), "answer is 'yes' and response is 'No'; .*--answer-key")
    assert score_discriminative(path, answer_key="response").metrics["all"]["accuracy"] == 0.0
    done = command("amber-discriminative", path, "--answer-key", "answer", "--rule", "strict")
    assert "all: accuracy 99.9" in done.stdout
    path = file([{"id": 1, "caption": "A car.", "text": "A lake."}])
    refused(lambda skip_bad: score_generative(path, skip_bad=skip_bad), "text is 'A lake.' and caption is 'A car.'")
    assert command("amber-generative", path).exit_code == 2
    assert "chair: 99.9" in command("amber-generative", path, "--answer-key", "caption").stdout
    assert score_generative(path, answer_key="text").metrics["chair"] == 0.0
    same = file([{"id": 1, "caption": "A car.", "response": " A car."}, {"id": 2, "response": "", "caption": "\n"}])
    assert score_generative(same).metrics["n_empty"] == 1
    path = file([{"id": 1005, "response": "Yes", "llava": "No."}])
    refused(lambda skip_bad: score_discriminative(path, skip_bad), r"response is 'Yes' and llava is 'No\.'")
    path = file([{"id": 1005, "question_id": 1006, "response": "Yes"}])
    refused(lambda skip_bad: score_discriminative(path, skip_bad), "id is 1005 and question_id is 1006; expected one id")
    assert score_discriminative(file([{"id": 1005, "question_id": "x1", "response": "Yes"}])).metrics["n"] == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1005, "query": "Is the sky gloomy in this image?"}, "query is 'Is the sky gloomy.*expected 'Is the sky sunny"),
        ({"id": 1005, "prompt": "Describe this image."}, "prompt is 'Describe this image.'"),
        ({"id": 1005, "image": "AMBER_2.jpg"}, r"image is 'AMBER_2\.jpg'; expected 'AMBER_1\.jpg' \(id 1005\)"),
        ({"id": 1005, "truth": "no"}, "truth is 'no'; expected 'yes'"),
        ({"id": 15221}, "unknown id 15221; expected a number from 1 to 15220"),
        ({"id": 0}, "unknown id 0"),
        ({"id": "0"}, "unknown id '0'"),
    ],
)
def test_rows_of_other_queries_are_refused(file, row, message):
    path = file([row | {"response": "Yes"}, {"id": 1006, "response": "No"}])
    refused(lambda skip_bad: score_discriminative(path, skip_bad), message)


def test_rows_are_compared_in_all_that_they_carry(file):
    row = {"id": 1005, "prompt": f"USER: {SUNNY} Yes or no?", "image": "images/AMBER_1.jpg", "label": 1, "response": "Yes"}
    assert score_discriminative(file([row])).settings["compared"] == ["image", "label", "question"]
    assert score_discriminative(file([row, {"id": 1006, "response": "No"}])).settings["compared"] == []
    caption = {"id": 1, "query": "What do you see?", "image": "AMBER_1", "response": "A lake."}  # any prompt for a caption
    assert score_generative(file([caption])).settings["compared"] == ["image"]
    assert score_generative(file([caption | {"text": "Describe this image."}])).items == score_captions({1: "A lake."}).items
    refused(lambda skip_bad: score_generative(file([caption | {"image": "AMBER_2"}]), skip_bad=skip_bad), "image is 'AMBER_2'")
    refused(
        lambda skip_bad: score_generative(file([caption | {"query": SUNNY}]), skip_bad=skip_bad), "query is 'Is the sky sunny"
    )


def test_places_in_the_file_are_no_ids(file):
    """Answers to all yes-or-no queries, numbered from 1: the first 1004 would pass for captions, the others be shifted."""
    asked = queries("discriminative")[:3000]
    rows = [{"id": i, "response": annotations()[query["id"]]["truth"].capitalize()} for i, query in enumerate(asked, 1)]
    path = file(rows)
    message = "1004 of 1004 responses to ids from 1 to 1004 are yes or no; expected captions there"
    refused(lambda skip_bad: score_discriminative(path, skip_bad), message)
    refused(lambda skip_bad: score_generative(path, skip_bad=skip_bad), message)
    renamed = file([{"id": row["id"], "model": row["response"]} for row in rows])
    refused(lambda skip_bad: score_discriminative(renamed, skip_bad, answer_key="model"), message)
    both = [{"id": 1, "response": "A lake."}, {"id": 2, "response": "No."}, {"id": 1005, "response": "Yes"}]
    assert score_discriminative(file(both)).settings["n_other"] == 2  # one odd caption is no sign of that


def test_empty_captions_and_answers_are_scored_and_counted(file, tmp_path):
    captions = {1: "A person by a lake. A car.", 2: "", 3: " \n"}
    write_responses(tmp_path / "all.json", captions | {1005: "", 1006: "No"})
    report = score_generative(tmp_path / "all.json")
    assert report.metrics == score_captions(captions).metrics
    assert (report.metrics["n"], report.metrics["n_empty"], report.settings["n_bad"]) == (3, 2, 0)
    assert report.metrics == score_generative(tmp_path / "all.json", skip_bad=True).metrics
    answers = score_discriminative(tmp_path / "all.json")
    assert (answers.metrics["n"], answers.metrics["n_empty"], answers.metrics["all"]["accuracy"]) == (
        2,
        1,
        round(1 / 2.001 * 100, 1),
    )
    done = command("amber-generative", tmp_path / "all.json")
    assert done.exit_code == 0
    assert "\nn_empty: 2\n" in done.stdout


# Damaged files.

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["Yes", "No", "1005", 1005, 1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["id", "question_id", "response", "answer", "text", "image", "query", "question", "label", "truth", "prompt", "prediction"]
ROWS = st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6), max_size=4)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows=ROWS, skip_bad=st.booleans(), cut=st.integers(0, 40))
def test_fields_of_any_type_are_named_or_scored(tmp_path_factory, rows, skip_bad, cut):
    folder = tmp_path_factory.getbasetemp()
    path, asked = folder / "any.jsonl", folder / "asked.jsonl"
    text = "\n".join(json.dumps(row) for row in rows)
    path.write_text(text[: len(text) - cut] if cut < 20 else text)
    asked.write_text(json.dumps({"question_id": 1005, "image": "AMBER_1.jpg", "text": SUNNY, "label": "yes"}))
    for call in (
        lambda: score_discriminative(path, skip_bad),
        lambda: score_generative(path, skip_bad=skip_bad),
        lambda: score_files(asked, path, skip_bad=skip_bad),
        lambda: score_files(path, asked, skip_bad=skip_bad),
    ):
        try:
            report = call()
        except BadInput as error:
            assert str(error).split(":")[0] in (str(path), str(asked))  # noqa: PT017
        else:
            assert 0 < report.metrics["n"] == len(report.items) <= max(len(rows), 1)
            json.dumps(report.metrics, allow_nan=False)


@pytest.mark.parametrize("nested", ["[" * 900 + "]" * 900, '{"a":' * 400 + "1" + "}" * 400, "[" * 100000])
@pytest.mark.parametrize("key", ["response", "id", "query"])
def test_deep_nesting_is_named(file, nested, key):
    row = json.dumps({"id": 1005, "response": "Yes", key: None})
    with pytest.raises(BadInput, match=r"responses\.json: 1 problem\n  line 1"):
        score_discriminative(file(row.replace("null", nested)))


def calls(function):
    """How many functions a refused call enters, and how long its message is."""
    entered = 0

    def count(*_):
        nonlocal entered
        entered += 1

    sys.setprofile(count)
    try:
        function()
    except BadInput as error:
        return entered, len(str(error))
    finally:
        sys.setprofile(None)
    raise AssertionError("not refused")


@pytest.mark.parametrize(
    "row", [{"id": 99999}, {"id": 1006, "response": None}, {"id": 1006, "image": "x"}, {"id": 1006, "query": "?"}]
)
def test_bad_lines_cost_as_much_as_there_are(file, row):
    asked = file({"question_id": 1005, "image": "AMBER_1.jpg", "text": SUNNY, "label": "yes"}, "asked.json")
    for score in (lambda path: score_discriminative(path), lambda path: score_files(asked, path)):
        few, many = (file([{"id": 1005, "question_id": 1005, "response": "No"} | row] * n, f"{n}.json") for n in (500, 2000))
        with pytest.raises(BadInput):
            score(few)  # what is read once
        (few_calls, length), (many_calls, longer) = (calls(lambda: score(path)) for path in (few, many))  # noqa: B023
        assert many_calls <= 6 * few_calls
        assert longer < length + 20  # the first 20 lines are named, the others counted


# The benchmarks' own files.


def test_the_real_query_files_are_asked(benchmarks, tmp_path):
    folder = benchmarks / "amber" / "query"
    whole = items_of("amber", tmp_path, str(folder / "query_discriminative.json"))
    assert whole == items_of("amber", tmp_path, "discriminative")
    parts = [
        items_of("amber", tmp_path, str(folder / f"query_discriminative-{part}.json"))
        for part in ("existence", "attribute", "relation")
    ]
    assert sorted(item.key for items in parts for item in items) == list(range(1005, 15221))
    rows = json.loads((folder / "query_discriminative-existence.json").read_text())
    rows = [row | {"response": "No"} for row in rows]  # the query file itself, with the responses added
    path = tmp_path / "responses.json"
    path.write_text(json.dumps(rows))
    report = score_discriminative(path)
    assert (report.metrics["n"], report.settings["compared"]) == (4924, ["image", "question"])
    assert report.metrics["existence"]["accuracy"] == report.metrics["all"]["accuracy"] == 100.0  # all of these are absent


@pytest.mark.parametrize("source", ["coco", "aokvqa", "gqa"])
def test_the_real_pope_files_are_read(benchmarks, tmp_path, source):
    for kind in ("random", "popular", "adversarial"):
        path = benchmarks / "pope" / source / f"{source}_pope_{kind}.json"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        answers = tmp_path / "answers.json"
        answers.write_text("".join(json.dumps(row | {"response": row["label"]}) + "\n" for row in rows))  # text is the question
        report = score_files(path, answers)
        assert (report.metrics["accuracy"], report.metrics["n"]) == (1.0, 3000)
        assert report.settings["compared"] == ["image", "label", "question"]
        assert report.metrics == score_files(f"{source}/{kind}", answers, rule="strict").metrics


def test_the_real_example_of_answers(benchmarks, tmp_path):
    example = json.loads((benchmarks / "pope" / "answer_example.json").read_text())
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps({"question_id": 1, "image": "a.jpg", "text": "Is there a bird in the image?", "label": "yes"}))
    given_answers = tmp_path / "answers.json"
    given_answers.write_text(json.dumps(example))
    report = score_files(asked, given_answers)
    assert (report.metrics["tp"], report.settings["compared"]) == (1, ["question"])
