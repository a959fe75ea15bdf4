"""Sample files of lmms-eval: the entries, their order and hashes in both layouts, and what reading gives back."""

import hashlib
import json
from datetime import datetime

import pytest

from prunehal.benchmarks import lmms_eval, score
from prunehal.files.records import BadInput

ROWS = [
    {
        "id": 11,
        "image": "a.jpg",
        "text": "Is there a dog?",
        "label": "yes",
        "said": "Yes.",
        "raw": "<think>a dog</think>Yes.",
        "ok": 1,
    },
    {"id": 12, "image": "b.jpg", "text": "Gibt es Bäume?", "label": "no", "said": "“No”", "raw": "“No”", "ok": {"score": 0.5}},
]
FIELDS = {"prompt": "text", "answer": "said", "target": "label", "raw": "raw", "metrics": ["ok"]}


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def written(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


DOC = '{\n  "id": 12,\n  "image": "b.jpg",\n  "text": "Gibt es Bäume?",\n  "label": "no"\n}'


def test_the_current_layout_by_hand(tmp_path):
    path = lmms_eval.export(ROWS, tmp_path / "model", "pope_adv", **FIELDS, timestamp="20260301_120000")
    assert path == tmp_path / "model" / "20260301_120000_samples_pope_adv.jsonl"
    first, second = written(path)
    assert list(first) == ["doc_id", "target", "resps", "filtered_resps", "token_counts", "doc_hash", "ok", "input"]
    assert first["resps"] == ["<think>a dog</think>Yes."]
    assert second == {
        "doc_id": 1,
        "target": "no",
        "filtered_resps": "“No”",  # resps is the same, and left out
        "token_counts": [None],
        "doc_hash": sha256(DOC),
        "ok": {"score": 0.5},
        "input": "Gibt es Bäume?",
    }
    assert "“No”" in path.read_text(encoding="utf-8")  # not escaped
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_captions_carry_what_stands_beside_chair_i(tmp_path):
    texts = {7: "A dog. A dog. A cat.", 8: "A bus. A"}
    report = score(texts, {7: {"dog"}, 8: {"bus"}}).report({})
    rows = [item | {"prompt": "Describe.", "caption": texts[item["image_id"]]} for item in report.items]
    metrics = ["chair_i", "distinct_chair_i", "absent", "recall", "repeats", "unfinished", "words"]
    options = {"prompt": "prompt", "answer": "caption", "doc": ["image_id"], "doc_id": "image_id", "metrics": metrics}
    path = lmms_eval.export(rows, tmp_path, "coco2014_cap_val", **options)
    first, second = lmms_eval.read(path)
    assert [first[name] for name in metrics] == [1 / 3, 1 / 2, 1, 1, 1 / 3, 0, 6]
    assert [second[name] for name in metrics] == [0, 0, 0, 1, 0, 1, 3]


def test_the_earlier_layout_by_hand(tmp_path):
    first, second = written(lmms_eval.export(ROWS, tmp_path, "pope_adv", **FIELDS, layout="0.6"))
    assert first["resps"] == [["<think>a dog</think>Yes."]]
    assert second == {
        "doc_id": 1,
        "target": "no",
        "filtered_resps": ["“No”"],
        "doc_hash": sha256(DOC),
        "prompt_hash": sha256("Gibt es Bäume?"),
        "target_hash": sha256("no"),
        "ok": {"score": 0.5},
        "input": "Gibt es Bäume?",
    }


@pytest.mark.parametrize("layout", lmms_eval.LAYOUTS)
def test_a_round_trip_gives_the_rows_back(tmp_path, layout):
    samples = lmms_eval.read(lmms_eval.export(ROWS, tmp_path, "pope_adv", **FIELDS, layout=layout))
    for doc_id, (sample, row) in enumerate(zip(samples, ROWS, strict=True)):
        assert (sample["doc_id"], sample["input"], sample["target"]) == (doc_id, row["text"], row["label"])
        assert (sample["filtered_resps"], sample["resps"], sample["ok"]) == ([row["said"]], [[row["raw"]]], row["ok"])


def test_fields_of_the_document_can_be_chosen(tmp_path):
    fields = {"prompt": "text", "answer": "said"}
    (sample,) = written(lmms_eval.export(ROWS[:1], tmp_path, "caption", **fields, doc=["id"], timestamp="20260301_120000"))
    assert sample["doc_hash"] == sha256('{\n  "id": 11\n}')
    assert sample["target"] == ""
    (sample,) = written(lmms_eval.export(ROWS[:1], tmp_path, "caption", **fields, target="id", timestamp="20260301_120001"))
    assert sample["target"] == "11"
    everything_else = {name: value for name, value in ROWS[0].items() if name != "said"}
    assert sample["doc_hash"] == sha256(json.dumps(everything_else, indent=2, ensure_ascii=False))


def test_the_name_of_the_file(tmp_path):
    when = datetime(2026, 3, 1, 9, 5, 7)
    assert lmms_eval.export(ROWS, tmp_path, "t", **FIELDS, timestamp=when).name == "20260301_090507_samples_t.jsonl"
    name = lmms_eval.export(ROWS, tmp_path, "t", **FIELDS).name
    assert datetime.strptime(name.removesuffix("_samples_t.jsonl"), "%Y%m%d_%H%M%S") <= datetime.now()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "0.8"}, r"layout is '0\.8'; expected one of"),
        ({"timestamp": "2026-03-01T12:00"}, "timestamp is '2026-03-01T12:00'; expected YYYYMMDD_HHMMSS"),
        ({"task": "a/b"}, "task is 'a/b'; expected the name of a task"),
        ({"task": ""}, "task is ''"),
        ({"metrics": ["target"]}, r"fields named \['target'\] would replace"),
        ({"metrics": ["score"]}, "row 0: no score\n  row 1: no score"),
        ({"answer": "id", "raw": None}, "row 0: id is 11; expected text"),
        ({"rows": [{**ROWS[0], "ok": float("nan")}]}, "row 0: .*expected plain JSON values"),
        ({"rows": [{**ROWS[0], "id": {1}}]}, "row 0: .*set is not JSON serializable"),
        ({"rows": []}, "there are none"),
        ({"doc_id": "target"}, r"fields named \['target'\] would replace"),
        ({"doc_id": "number"}, "row 0: no number\n  row 1: no number"),
        ({"doc_id": "id", "rows": [ROWS[0], ROWS[0]]}, "row 1: id 11 again, first in row 0; expected each question once"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, changes, message):
    settings = {"rows": ROWS, "folder": tmp_path, "task": "pope_adv", **FIELDS, **changes}
    with pytest.raises(ValueError, match=message):
        lmms_eval.export(**settings)
    assert list(tmp_path.iterdir()) == []


def test_a_sample_carries_the_questions_own_number(tmp_path):
    written = lmms_eval.export(ROWS[::-1], tmp_path, "pope_adv", **FIELDS, doc_id="id")
    samples = lmms_eval.read(written)
    assert [(sample["doc_id"], sample["input"]) for sample in samples] == [(row["id"], row["text"]) for row in ROWS]
    named = [row | {"id": f"cat_{row['id']}"} for row in ROWS[::-1]]  # a text is no doc_id, and stands beside the place
    samples = lmms_eval.read(lmms_eval.export(named, tmp_path, "pope_adv", **FIELDS, doc_id="id"))
    assert [(sample["doc_id"], sample["id"]) for sample in samples] == list(enumerate(row["id"] for row in named))


def test_a_file_without_samples_is_an_error(tmp_path):
    (tmp_path / "samples.jsonl").write_text("\n")
    with pytest.raises(BadInput, match=r"samples\.jsonl: 1 problem\n  there are no samples"):
        lmms_eval.read(tmp_path / "samples.jsonl")


@pytest.mark.parametrize(
    ("stored", "resps", "filtered"),
    [
        ({"filtered_resps": "cat"}, [["cat"]], ["cat"]),  # 0.7, generate_until
        ({"filtered_resps": "cat", "resps": "a cat"}, [["a cat"]], ["cat"]),
        ({"filtered_resps": "cat", "resps": ["a cat", "cats"]}, [["a cat", "cats"]], ["cat"]),
        ({"filtered_resps": ["cat"]}, [["cat"]], ["cat"]),  # 0.6
        ({"filtered_resps": ["cat"], "resps": [["a cat"]]}, [["a cat"]], ["cat"]),
        ({"filtered_resps": ["a", "b"], "resps": [["A"], ["B"]]}, [["A"], ["B"]], ["a", "b"]),  # several requests, both
        ({"filtered_resps": ["a", "b"]}, [["a"], ["b"]], ["a", "b"]),
        ({"filtered_resps": ["a", "b"], "resps": ["A", "B"]}, [["A"], ["B"]], ["a", "b"]),
    ],
)
def test_read_restores_what_the_layouts_leave_out(tmp_path, stored, resps, filtered):
    (tmp_path / "samples.jsonl").write_text(json.dumps({"doc_id": 0, "target": "x", **stored}))
    (sample,) = lmms_eval.read(tmp_path / "samples.jsonl")
    assert (sample["resps"], sample["filtered_resps"]) == (resps, filtered)


def test_read_sorts_by_doc_id_and_names_bad_lines(tmp_path):
    path = tmp_path / "samples.jsonl"
    lines = [json.dumps({"doc_id": doc_id, "target": "", "filtered_resps": "a"}) for doc_id in (2, 0, 1)]
    path.write_text("\n".join(lines))
    assert [sample["doc_id"] for sample in lmms_eval.read(path)] == [0, 1, 2]
    path.write_text("\n".join([*lines, lines[0], '{"doc_id": "3", "target": "", "filtered_resps": "a"}', '{"doc_id": 4}', "{"]))
    with pytest.raises(BadInput) as error:
        lmms_eval.read(path)
    assert [problem.split(" (")[0] for problem in error.value.problems] == [
        "line 7: no JSON",
        "line 4: doc_id 2 again",
        "line 5: doc_id '3'; expected a whole number",
        "line 6: no target, filtered_resps",
    ]
