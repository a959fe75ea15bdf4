"""Files of benchmarks: every layout in use is read, every unusable line is named, and reports are written whole or not at all."""

import functools
import gzip
import json

import pytest
from typer.testing import CliRunner

from prunehal.benchmarks import BadInput, Report
from prunehal.commands.app import app
from prunehal.files.paths import written
from prunehal.files.records import bad_lines, read_records

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
def file(file):
    return functools.partial(file, name="input.json")


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


# The command line.


def called(*words):
    return CliRunner().invoke(app, ["score", *map(str, words)])


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
