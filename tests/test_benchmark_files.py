"""Files of benchmarks: every layout in use is read, every unusable line is named, and reports are written whole or not at all."""

import gzip
import json

import pytest
from typer.testing import CliRunner

from prunehal.__main__ import app
from prunehal.benchmarks import BadInput, Report, drop_unfinished, load_ground_truth, read_captions
from prunehal.benchmarks.files import bad_lines, read_records
from prunehal.resources import written
from prunehal.testbed.scenes import coco_instances, scene

ROWS = [{"image_id": 42, "caption": "A dog."}, {"image_id": 7, "caption": "Two\ncats."}]
LAYOUTS = {
    "lines": "\n".join(map(json.dumps, ROWS)),
    "lines, blank ones between": "\n\n".join(map(json.dumps, ROWS)) + "\n\n",
    "list": json.dumps(ROWS),
    "pretty list": json.dumps(ROWS, indent=4),
    "pretty objects one after the other": "\n".join(json.dumps(row, indent=4) for row in ROWS),
    "objects without a line between": "".join(map(json.dumps, ROWS)),
    "byte order mark": "\ufeff" + json.dumps(ROWS),
    "windows lines": "\r\n".join(map(json.dumps, ROWS)),
}


@pytest.fixture
def file(tmp_path):
    def make(content):
        path = tmp_path / "input.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(file, layout):
    records, problems = read_records(file(LAYOUTS[layout]))
    assert ([record.value for record in records], problems) == (ROWS, [])


def test_packed_files_and_line_numbers(file):
    path = file(gzip.compress(LAYOUTS["pretty objects one after the other"].encode()))
    records, _ = read_records(path)
    assert [record.line for record in records] == [1, 5]


@pytest.mark.parametrize(
    ("content", "left", "problems"),
    [
        ('{"a": 1}\n{"a": \n{"a": 3}', [1, 3], ["line 2: no JSON"]),
        ('{"a": 1}\n{\n "a": 2,\n}\n{"a": 3}\n', [1, 3], ["line 2: no JSON"]),
        ('{"a": 1}\n{"a": 2', [1], ["line 2: no JSON"]),
        ('[{"a": 1},\n{"a": 2}', [1, 2], ["line 2: the file ends inside its list"]),
        ('{"a": 1}\n7\n["b"]\n{"a": 4}', [1, 4], ["line 2: 7; expected an object", 'line 3: ["b"]; expected']),
        (b'{"a": 1}\n{"a": "\xff"}\n{"a": 3}', [1, 3], ["line 2: no UTF-8"]),
        ('[{"a": 1}, {"a": }, {"a": 3}, {"a": 4}]', [1, 3, 4], ["line 1, object 2: no JSON"]),
        ('[\n{"a": 1},\n{"a": }\n]\n', [1], ["line 3: no JSON"]),
        ('{"a": %s}\n{"a": 2}' % ("1" * 5000), [2], ["line 1: no JSON (Exceeds the limit"]),
        ("not json at all", [], ["line 1: no JSON"]),
        ("[" * 100_000, [], ["line 1: no JSON (nested too deeply)", "line 1: the file ends"]),
        ("", [], []),
    ],
)
def test_lines_that_cannot_be_read(file, content, left, problems):
    records, found = read_records(file(content))
    assert [record.value["a"] for record in records] == left
    assert len(found) == len(problems)
    for part, message in zip(problems, found, strict=True):
        assert message.startswith(part)


def test_files_that_cannot_be_read_at_all(file, tmp_path):
    packed = gzip.compress(json.dumps(ROWS).encode())
    with pytest.raises(BadInput, match=r"input\.json: 1 problem\n  it cannot be unpacked .*\nExpected a whole gzip file; get it"):
        read_records(file(packed[:20]))
    with pytest.raises(OSError, match=r"cannot be read .*expected a file that can be read"):
        read_records(tmp_path)


def test_bad_lines_are_listed_in_order_and_shortened():
    with pytest.raises(
        BadInput, match=r"(?s)x\.json: 30 problems\n  line 1: bad\n.*line 20: bad\n  and 10 more\nFix these lines"
    ):
        bad_lines("x.json", [f"line {i}: bad" for i in range(30, 0, -1)], skip_bad=False)
    assert bad_lines("x.json", ["line 1: bad"], skip_bad=True) == 1


@pytest.mark.parametrize("key", ["image_id", "image", "file_name"])
@pytest.mark.parametrize("name", [42, "42", 42.0, "COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000042.jpg"])
@pytest.mark.parametrize("text", ["caption", "text"])
def test_names_of_images_and_captions(file, key, name, text):
    path = file(json.dumps({key: name, text: "A dog."}))
    assert read_captions(path, known={42: set()}) == ({42: "A dog."}, 0)
    assert read_captions(path) == ({42: "A dog."}, 0)


def test_images_that_have_names_only(file):
    path = file(json.dumps([{"image": "photos/cat.png", "caption": "A cat."}]))
    assert read_captions(path, known={"cat"}) == ({"cat": "A cat."}, 0)
    assert read_captions(path, known={"cat.png"}) == ({"cat.png": "A cat."}, 0)


@pytest.mark.parametrize("name", ["-42", "42.5", "AMBER_42.jpg", "cat_42", "photo42.png", True, None, [42], ""])
def test_other_names_are_not_taken_for_numbers(file, name):
    with pytest.raises(BadInput, match=r"has no ground truth|expected a number or a file name"):
        read_captions(file(json.dumps({"image_id": name, "caption": "A dog."})), known={42})


def test_like_names_are_different_images(file):
    rows = [{"image": "cat_1.jpg", "caption": "A cat."}, {"image": "dog_1.jpg", "caption": "A dog."}]
    assert read_captions(file(json.dumps(rows)))[0] == {"cat_1.jpg": "A cat.", "dog_1.jpg": "A dog."}


BAD = """{"image_id": 1, "caption": "A dog."}
{"image_id": 2, "caption": " "}
{"image_id": 1, "caption": "A cat."}
{"image_id": 3, "caption": "A bus."}
{"caption": "A bus."}
{"image_id": 2, "answer": "A bus."}
{"image_id": true, "caption": "A bus."}
{"image_id": 2, "caption": ["A bus."]}
{"image_id": 2, "caption": "A bus."
{"image_id": 2, "caption": "A bus."}
"""
PROBLEMS = {
    2: "the caption is empty",
    3: "image 1 again, first on line 1",
    4: "image_id 3 has no ground truth",
    5: "no image; expected one of the keys image_id, image, file_name, found 'caption'",
    6: "no caption; expected one of the keys caption, text, found 'answer', 'image_id'",
    7: "image_id is True",
    8: "caption is \"['A bus.']\"",
    9: "no JSON",
}


def test_every_unusable_caption_is_named(file):
    with pytest.raises(BadInput) as caught:
        read_captions(file(BAD), known={1, 2})
    assert len(caught.value.problems) == len(PROBLEMS)
    for line, problem in PROBLEMS.items():
        assert f"  line {line}: {problem}" in str(caught.value)
    assert read_captions(file(BAD), known={1, 2}, skip_bad=True) == ({1: "A dog.", 2: "A bus."}, len(PROBLEMS))


def test_objects_on_one_line_are_counted(file):
    rows = [{"image_id": 1, "caption": "A dog."}, {"image_id": 1, "caption": "A cat."}, {"image_id": 2, "caption": ""}]
    with pytest.raises(BadInput) as caught:
        read_captions(file(json.dumps(rows)))
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "line 1, object 2: image 1 again, first on line 1",
        "line 1, object 3: the caption is empty",
    ]


def test_no_caption_left_is_an_error_even_when_skipping(file):
    with pytest.raises(BadInput, match="no caption is left"):
        read_captions(file('{"image_id": 5, "caption": "A dog."}'), known={1}, skip_bad=True)
    with pytest.raises(BadInput, match="no caption is left"):
        read_captions(file(""))


def test_unfinished_sentences():
    assert drop_unfinished("A dog. A cat. A b") == "A dog. A cat."
    assert drop_unfinished("A dog.\n\nA 3.5 m") == "A dog.\n\nA 3."  # the official script looks no closer
    assert drop_unfinished("A dog") == ""


def test_reports_are_written_whole(tmp_path):
    path = tmp_path / "new" / "out.json"
    Report({"chair_i": 0.5}, [{"image_id": 1}], {"scorer": "fixed"}).write(path)
    assert json.loads(path.read_text()) == {
        "metrics": {"chair_i": 0.5},
        "items": [{"image_id": 1}],
        "settings": {"scorer": "fixed"},
    }
    with pytest.raises(ValueError, match="not JSON compliant"):
        Report({"chair_i": float("nan")}, []).write(path)
    assert json.loads(path.read_text())["metrics"] == {"chair_i": 0.5}
    with pytest.raises(TypeError), written(path) as part:
        part.write_text(b"half of it is written, and then comes no text")
    with pytest.raises(IsADirectoryError, match="is a folder; expected the name of a file"):
        Report({}, []).write(tmp_path)
    with pytest.raises(OSError, match=r"the folder of .* cannot be made"):
        Report({}, []).write(path / "below" / "x.json")
    assert [each.name for each in path.parent.iterdir()] == ["out.json"]
    assert [each.name for each in tmp_path.iterdir()] == ["new"]
    Report({}, [{"response": "\ud83d"}]).write(path)  # half an emoji, as a cut-off text can hold
    assert json.loads(path.read_text())["items"] == [{"response": "\ud83d"}]


# Ground truth.

INSTANCES = {
    "images": [{"id": 1, "file_name": "one.jpg"}, {"id": 2, "file_name": "COCO_val2014_000000000002.jpg"}],
    "categories": [{"id": 18, "name": "dog"}],
    "annotations": [{"image_id": 1, "category_id": 18}],
}
SAID = {
    "images": [{"id": 3}],
    "annotations": [{"image_id": 1, "caption": "Buses"}, {"image_id": 2, "caption": "A puppy by a bus"}],
}
TABLE = {"nodes": ["dog", "cat"], "images": {"1": [1], "4": [0, 1]}}


def test_ground_truth_unites_files(tmp_path):
    names = []
    for name, content in {
        "instances": INSTANCES,
        "captions": SAID,
        "table": TABLE,
        "plain": {"1": ["cup"], "photo": ["cat"]},
    }.items():
        names.append(tmp_path / f"{name}.json")
        names[-1].write_text(json.dumps(content))
    united = {1: {"dog", "bus", "cat", "cup"}, 2: {"dog", "bus"}, 3: set(), 4: {"dog", "cat"}, "photo": {"cat"}}
    aliases = {"one.jpg": {"dog"}, "one": {"dog"}}
    assert load_ground_truth(names) == united | aliases
    # That scorer misses "bus".
    assert load_ground_truth(names[:2], "pattern") == {1: {"dog", "bus"}, 2: {"dog"}, 3: set()} | aliases


def test_ground_truth_of_the_package():
    coco, testbed = load_ground_truth(), load_ground_truth(["testbed"])
    assert len(coco) == 123_287
    assert coco[226988] >= {"person", "pizza"}
    assert 1.5 not in coco
    assert "226988" not in coco
    first = scene("validation", 4)
    assert testbed[first.image_id] == set(first.names)
    assert 17 not in testbed
    assert load_ground_truth(["testbed"])[first.image_id] == {
        coco_instances([first])["categories"][i]["name"]
        for i, c in enumerate(coco_instances([first])["categories"])
        if c["id"] in {a["category_id"] for a in coco_instances([first])["annotations"]}
    }


def test_names_and_numbers_of_images_meet(tmp_path):
    (tmp_path / "a.json").write_text('{"42": ["dog"], "COCO_val2014_000000000007.jpg": ["cup"]}')
    (tmp_path / "b.json").write_text('{"042": ["cat"], "7": ["cat"]}')
    assert load_ground_truth([tmp_path / "a.json", tmp_path / "b.json"]) == {42: {"dog", "cat"}, 7: {"cup", "cat"}}
    both = load_ground_truth(["coco", tmp_path / "a.json"])
    assert both[42] >= {"dog"}
    assert len(both) >= 123_287
    with pytest.raises(ValueError, match="the testbed's is complete; expected it alone"):
        load_ground_truth(["testbed", "coco"])


@pytest.mark.parametrize(
    "content",
    [
        {"annotations": [{"image_id": 1}]},
        {"annotations": [{"image_id": 1, "caption": None}]},
        {"annotations": [{"image_id": [1], "caption": "A dog."}]},
        {"annotations": 5},
        {"categories": [{"name": "dog"}], "images": [], "annotations": []},
        {"categories": [{"id": 1, "name": "dog"}], "images": [], "annotations": [{"image_id": 1, "segments_info": []}]},
        {"nodes": ["dog"], "images": [1]},
        {"nodes": ["dog"], "images": {"1": [7]}},
        {"1": [["dog"]]},
    ],
)
def test_broken_ground_truth_is_named(tmp_path, content):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"truth\.json: is not laid out as expected \(\w+Error"):
        load_ground_truth([path])


def test_ground_truth_of_another_layout(tmp_path):
    path = tmp_path / "odd.json"
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"odd\.json: this layout is none of"):
        load_ground_truth([path])
    path.write_text('[{"a": []}, {"b": []}]')
    with pytest.raises(ValueError, match=r"odd\.json: 2 objects; expected one"):
        load_ground_truth([path])


# The command line.


def called(*words):
    return CliRunner().invoke(app, ["score", *map(str, words)])


def test_the_command_scores_and_writes(file, tmp_path):
    captions = file('{"image_id": "COCO_val2014_000000226988.jpg", "caption": "A pizza on a table. Zebras eat and"}')
    out = tmp_path / "out.json"
    done = called("chair", captions, "--scorer", "wordnet", "--json", out)
    assert done.exit_code == 0
    report = json.loads(out.read_text())
    assert report["metrics"]["chair_i"] == 1 / 3
    assert report["items"] == [
        {
            "image_id": 226988,
            "nodes": ["pizza", "dining table", "zebra"],
            "hallucinated": [["zebra", "zebra"]],
            "chair_i": 1 / 3,
            "chair_s": 1,
            "recall": 2 / len(load_ground_truth()[226988]),
        }
    ]
    assert report["settings"]["scorer"] == "wordnet"
    called("chair", captions, "--drop-unfinished", "--json", out)
    assert json.loads(out.read_text())["metrics"]["chair_i"] == 0
    called("chair", captions, "--truncate-words", 2, "--json", out)
    assert json.loads(out.read_text())["items"][0]["nodes"] == ["pizza"]


def test_bad_input_writes_nothing_and_exits_with_2(file, tmp_path):
    captions, out = file(BAD), tmp_path / "out.json"
    truth = tmp_path / "truth.json"
    truth.write_text('{"1": ["dog"], "2": ["bus"]}')
    done = called("chair", captions, "--ground-truth", truth, "--json", out)
    assert (done.exit_code, out.exists()) == (2, False)
    assert "line 3: image 1 again" in done.stderr
    done = called("chair", captions, "--ground-truth", truth, "--json", out, "--skip-bad")
    assert done.exit_code == 0
    assert json.loads(out.read_text())["settings"]["n_bad"] == len(PROBLEMS)
    before = captions.read_bytes()
    for words, message in (
        ((captions, "--ground-truth", truth, "--skip-bad", "--json", captions), "is the file that is read"),
        ((captions, "--ground-truth", truth, "--skip-bad", "--json", tmp_path), "is a folder; expected the name of a file"),
        ((tmp_path / "absent.json",), "absent.json cannot be read (No such file or directory)"),
        ((captions, "--scorer", "nltk"), "unknown CHAIR scorer 'nltk'"),
    ):
        done = called("chair", *words)
        assert done.exit_code == 2
        assert message in done.stderr
    assert captions.read_bytes() == before


def test_judges_are_asked_and_read(file, tmp_path):
    captions, out = file(json.dumps(ROWS)), tmp_path / "prompts.jsonl"
    done = CliRunner().invoke(app, ["judge-prompts", "pairwise", str(captions), str(captions), str(out)])
    assert done.exit_code == 0
    asked = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(prompt["image_id"], prompt["order"]) for prompt in asked] == [(42, "ab"), (42, "ba"), (7, "ab"), (7, "ba")]
    replies = tmp_path / "replies.jsonl"
    replies.write_text("\n".join(json.dumps(prompt | {"judgement": "Accuracy: 8 6\nDetailedness: 5 5"}) for prompt in asked))
    assert called("pairwise", replies, "--json", out).exit_code == 0
    metrics = json.loads(out.read_text())["metrics"]
    assert (metrics["n"], metrics["correctness"]["difference"], metrics["correctness"]["position_bias"]) == (2, 0, 2)
    done = CliRunner().invoke(app, ["judge-prompts", "pairwise", str(captions), str(tmp_path / "absent"), str(out)])
    assert (done.exit_code, "cannot be read" in done.stderr) == (2, True)


def test_a_run_is_exported_for_lmms_eval(tmp_path):
    (tmp_path / "settings.json").write_text('{"settings": {"benchmark": "chair"}}')
    row = {"key": 42, "image": "42.jpg", "prompt": "Describe.", "text": "A dog."}
    torn = json.dumps(row) + '\n{"key": 43, "ima'
    (tmp_path / "rows.jsonl").write_text(torn)
    done = CliRunner().invoke(app, ["lmms-eval", str(tmp_path), str(tmp_path / "out")])
    assert done.exit_code == 0
    (written_file,) = (tmp_path / "out").iterdir()
    sample = json.loads(written_file.read_text())
    assert (sample["doc_id"], sample["input"], sample["filtered_resps"]) == (0, "Describe.", "A dog.")
    assert (tmp_path / "rows.jsonl").read_text() == torn  # another process may be writing it
    (tmp_path / "settings.json").write_text("{}")
    done = CliRunner().invoke(app, ["lmms-eval", str(tmp_path), str(tmp_path / "out")])
    assert (done.exit_code, "names no benchmark" in done.stderr) == (2, True)
