"""The files of AMBER: what is shipped, what is written is read back, and every unusable response is named."""

import gzip
import json

import pytest

from prunehal.benchmarks.amber import score as amber
from prunehal.benchmarks.amber.files import annotations
from prunehal.benchmarks.amber.score import queries, score_captions, score_discriminative, score_generative
from prunehal.files.records import BadInput


def test_queries():
    asked = queries("generative") + queries("discriminative")
    assert [query["id"] for query in asked] == list(range(1, 15221)) == list(annotations())
    assert {query["query"] for query in asked[:1004]} == {"Describe this image."}
    assert all((annotations()[query["id"]]["type"] == "generative") == (query["id"] <= 1004) for query in asked)
    assert {query["image"] for query in asked} == {f"AMBER_{number}.jpg" for number in range(1, 1005)}
    with pytest.raises(ValueError, match=r"'all'; expected one of \['generative', 'discriminative'\]"):
        queries("all")


def test_written_responses_are_read_back(tmp_path):
    path = tmp_path / "new" / "responses.json"
    amber.write_responses(path, {3: 'A "car"\nby a lake', 1: "A dog", 1006: ""})
    assert json.loads(path.read_text())[0] == {"id": 3, "response": 'A "car"\nby a lake'}
    report = score_generative(path)
    assert report.items == score_captions({3: 'A "car"\nby a lake', 1: "A dog"}).items
    assert report.settings == {
        "benchmark": "AMBER generative", "similarity": "exact", "threshold": 0.8, "responses": str(path), "answer_key": None,
        "n_bad": 0, "n_missing": 1002, "n_other": 1, "compared": [], "n_distinct_captions": 2, "n_without_noun": 0,
    }  # fmt: skip
    amber.write_responses(path, {3: "A car", 1: "A dog", 1006: "", 1007: "No"})
    assert score_discriminative(path).settings["n_other"] == 2
    before = path.read_bytes()
    for responses, message in (({15221: "A"}, "unknown id 15221"), ({1: 5}, "response to id 1 is 5; expected text")):
        with pytest.raises(ValueError, match=message):
            amber.write_responses(path, responses)
    assert path.read_bytes() == before


GOOD = {"id": 1, "response": "A lake and a car."}
BAD = {
    "id as other text": ({"id": "two", "response": "A"}, "line 2: unknown id 'two'; expected a number from 1 to 15220"),
    "id as a fraction": ({"id": 2.5, "response": "A"}, "line 2: unknown id 2.5"),
    "id as truth value": ({"id": True, "response": "A"}, "line 2: unknown id True"),
    "id as list": ({"id": [2], "response": "A"}, "line 2: unknown id [2]"),
    "no id": ({"response": "A"}, "line 2: no id; expected the keys id and response, found ['response']"),
    "no response": ({"id": 2, "words": "A"}, "line 2: no answer; expected one of the keys answer, response"),
    "twice": (GOOD | {"response": "A dog."}, "line 2: id 1 again, first on line 1; expected one response to each"),
    "not text": ({"id": 2, "response": None}, "line 2: response is None; expected text"),
    "nested": ({"id": 2, "response": {"text": "A"}}, "line 2: response is {'text': 'A'}; expected text"),
    "twice, once as text": ({"id": "1", "response": "A dog."}, "line 2: id 1 again, first on line 1"),
    "torn": ('{"id": 2, "resp', "line 2: no JSON"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("layout", ["lines", "list", "packed"])
def test_bad_responses_are_named_and_can_be_skipped(case, layout, file):
    bad, problem = BAD[case]
    rows = [row if isinstance(row, str) else json.dumps(row) for row in (GOOD, bad, {"id": 3, "response": "A dog."})]
    path = file("[" + ",\n".join(rows) + "]" if layout == "list" else "\n".join(rows))
    if layout == "packed":
        path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(BadInput, match="pass --skip-bad") as caught:
        score_generative(path)
    assert caught.value.path == str(path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)
    report = score_generative(path, skip_bad=True)
    assert report.items == score_captions({1: GOOD["response"], 3: "A dog."}).items
    assert report.settings["n_bad"] == 1


def test_nothing_left(file):
    path = file([{"id": 2, "response": 5}])
    with pytest.raises(BadInput, match="no response to a generative query is left; expected objects with id and response"):
        score_generative(path, skip_bad=True)
    with pytest.raises(BadInput, match="no response to a discriminative query is left"):
        score_discriminative(file("[]"))
    with pytest.raises(OSError, match="absent"):
        score_discriminative(path.with_name("absent.json"))
    with pytest.raises(BadInput, match="no response to a discriminative query is left"):
        score_discriminative(file([{"id": 2, "response": "A lake."}]))
    with pytest.raises(BadInput, match=r"responses\.json: 1 problem\n  all 2 captions are empty"):
        score_generative(file([{"id": 2, "response": ""}, {"id": 3, "response": " "}]))
