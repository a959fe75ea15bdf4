"""Reading files: every input ends, at a cost linear in its length; encodings, bounds, equal keys, and the name in every error."""

import errno
import functools
import gzip
import json
import os
import threading
import time
import tomllib

import msgspec
import pytest
from typer.testing import CliRunner

from prunehal.benchmarks.judged import pairwise
from prunehal.commands.app import app
from prunehal.files import reading
from prunehal.files.reading import convert, read_bytes, read_json, read_text
from prunehal.files.records import BadInput, read_records, read_values

ROWS = [{"image_id": 42, "caption": "A dog."}, {"image_id": 7, "caption": "Ein Hündchen\u2028\U0001f415"}]


@pytest.fixture
def file(file):
    return functools.partial(file, name="input.json")


# Every input ends, and what can be read behind what cannot is read.


@pytest.mark.parametrize(
    ("content", "left", "n_problems"),
    [
        ("]", [], 1),
        ("]]}]", [], 1),
        ('] {"a": 1}', [], 1),
        (']\n{"a": 1}', [1], 1),
        ('[{"a": 1}]]', [1], 1),
        ('[{"a": 1}] ]\n{"a": 2}', [1, 2], 1),
        ('{"a": 1}}\n{"a": 2}', [1, 2], 1),
        ('[{"a": 1}, nothing]', [1], 1),
        ("[[]]", [], 1),
        ("[" * 5, [], 2),
        ("{" * 5, [], 1),
        (":", [], 1),
        ('{"a": 1}\n' + '{"a": "' + "x" * 5000 + '\n{"a": 3}', [1, 3], 1),  # a torn line, longer than the decoder's window
        ('{"a": "' + "x" * 100_000 + '"}\n{"a": ' + "7" * 4095 + "}", ["x" * 100_000, int("7" * 4095)], 0),
        ("[" + "1" * 4100 + ', {"a": 1}]', [1], 1),
    ],
)
def test_every_input_ends(file, content, left, n_problems):
    records, problems = read_records(file(content))
    assert [record.value["a"] for record in records] == left
    assert len(problems) == n_problems, problems


def test_the_decoders_windows_cut_nothing(file):
    values = [True, None, -1.25e10, float("-inf"), 'é"\\', {"b": False, "c": {}}, [], "", 12345678901234567890]
    tail = json.dumps({"a": values})[1:]
    for before in range(2**12 - len(tail) - 20, 2**12 + 2):
        text = '{"p": "' + "x" * before + '", ' + tail + "\n" + json.dumps({"a": 1})
        records, problems = read_records(file(text))
        assert ([record.value["a"] for record in records], problems) == ([values, 1], []), before


def test_a_stray_bracket_ends_at_the_command_line(file):
    path = file("]")
    done = CliRunner().invoke(app, ["score", "chair", str(path)])
    assert done.exit_code == 2
    assert f"{path}: 1 problem\n  line 1: no JSON (Expecting value)" in done.stderr


BROKEN = {
    "Python dicts": "{{'image_id': {0}, 'caption': 'A dog.'}}\n",
    "Python dicts in one list": "{{'image_id': {0}, 'caption': 'A dog.'}}, ",
    "torn lines": '{{"image_id": {0}, "caption": "A do\n',
    "no closing brace": '{{"image_id": {0}, "caption": "A dog."\n',
    "nested": '{{"a":\n',
    "nested lists": '{{"a": 1, "b": [\n',
    "brackets": "]\n",
    "equal keys": '{{"a": {0}, "a": -1}}\n',
    "long numbers": '{{"a": ' + "1" * 5000 + "}}\n",
    "deep, then long": '{{"a": [[[[{{"b": 1}},\n',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_four_times_the_bad_lines_cost_at_most_six_times_as_much(file, monkeypatch, kind):
    """Counted in the characters that the decoder is given, and those whose lines its errors count."""
    cost = 0
    decode = reading.JsonDecoder.raw_decode

    def counted(self, text):
        nonlocal cost
        cost += len(text)
        return decode(self, text)

    monkeypatch.setattr(reading.JsonDecoder, "raw_decode", counted)
    costs = []
    for n in (500, 2000):
        cost = 0
        _, problems = read_records(file("[" * (kind == "Python dicts in one list") + "".join(map(BROKEN[kind].format, range(n)))))
        costs.append(cost)
        assert problems
    assert costs[1] <= 6 * costs[0], costs


def test_only_the_first_problems_are_named(file):
    path = file("".join(map(BROKEN["Python dicts"].format, range(2000))))
    with pytest.raises(BadInput) as caught:
        read_values(path)
    assert len(caught.value.problems) == 2000
    said = str(caught.value).splitlines()
    assert len(said) == 23
    assert said[0] == f"{path}: 2000 problems"
    assert said[20].startswith("  line 20: no JSON")
    assert said[21] == "  and 1980 more"


@pytest.mark.parametrize("filling", ["\n", " ", "*", "Accuracy:\n", "Accuracy: 8 6 ", "1", "\n** "])
def test_a_long_reply_costs_no_more_than_its_length(filling):
    def took(n):
        text = "Accuracy: 8 6" + filling * n + "x"
        begin = time.thread_time()
        assert pairwise.parse(text) is None
        return time.thread_time() - begin

    # Four times the length twice over: 16 where the cost grows with the length, 256 where it grows with its square. The least
    # of several, in time of this thread, so that what else the machine does does not count; 0.1 ms is above the clock's steps.
    short, long = (min(took(n) for _ in range(5)) for n in (20_000, 320_000))
    assert long <= 6**2 * max(short, 1e-4)


# Encodings.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings(file, encoding, packed):
    def path(text):
        raw = text.encode(encoding)
        return file(gzip.compress(raw) if packed else raw)

    assert read_values(path(json.dumps(ROWS, ensure_ascii=False))) == ROWS
    assert read_json(path(json.dumps(ROWS, ensure_ascii=False))) == ROWS
    assert read_text(path("42\nHündchen.jpg\n")) == "42\nHündchen.jpg\n"
    assert tomllib.loads(read_text(path('a = "ü"'))) == {"a": "ü"}


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_marked_utf_16_of_either_order(file, mark):
    text = json.dumps(ROWS, ensure_ascii=False).encode("utf-16-le" if mark == b"\xff\xfe" else "utf-16-be")
    assert read_values(file(mark + text)) == ROWS


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"42\n\xe9t\xe9.jpg\n", "line 2: no UTF-8"),
        ("42.jpg".encode("utf-16")[:-1], "it cannot be read as UTF-16 (truncated data at byte 12)"),
        (b"\xff\xfe\x00\xd8a\x00", "it cannot be read as UTF-16 (illegal UTF-16 surrogate at byte 2)"),
    ],
)
def test_what_cannot_be_decoded_is_named_with_file_and_encoding(file, raw, problem):
    path = file(raw)
    for read in (read_text, read_json, read_values):
        with pytest.raises(BadInput) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert problem in caught.value.problems


# Bounds.


def test_a_packed_file_is_unpacked_up_to_a_limit(file):
    bomb = file(gzip.compress(b" " * 1001))
    assert read_bytes(bomb, limit=1001) == b" " * 1001
    with pytest.raises(BadInput, match=r"input\.json: 1 problem\n  it gives more than 1,000 bytes; expected at most"):
        read_bytes(bomb, limit=1000)
    with pytest.raises(BadInput, match="more than 1,000 bytes"):
        read_text(bomb, limit=1000)
    assert len(read_bytes(file(b" " * 1001), limit=1000)) == 1001  # a plain file is as long as it looks


def test_the_readers_keep_to_the_limit(file, monkeypatch):
    path = file(gzip.compress(json.dumps(ROWS).encode()))
    monkeypatch.setattr(read_bytes, "__defaults__", (20,))
    for read in (read_records, read_values):
        with pytest.raises(BadInput, match=r"input\.json: 1 problem\n  it gives more than 20 bytes"):
            read(path)


def test_devices_and_pipes_are_read_up_to_the_limit(tmp_path):
    with pytest.raises(BadInput, match="/dev/zero: 1 problem\n  it gives more than 1,000 bytes"):
        read_bytes("/dev/zero", limit=1000)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(json.dumps(ROWS),))
    writer.start()
    assert read_values(pipe) == ROWS
    writer.join(60)


# Equal keys.


def test_equal_keys_that_differ_are_refused_by_line(file):
    path = file('{"a": 1, "a": 1}\n{"a": 2, "b": {"c": 1, "c": "x"}}\n{"a": 3}\n{"a": 1, "a": true}')
    records, problems = read_records(path)
    assert [record.value["a"] for record in records] == [1, 3]
    assert problems == [
        "line 2: key 'c' stands twice in one object, with 1 and 'x'; expected it once",
        "line 4: key 'a' stands twice in one object, with 1 and True; expected it once",
    ]
    with pytest.raises(BadInput, match=r"input\.json: 1 problem\n  key 'a' stands twice in one object, with 1 and 2"):
        read_json(file('{"a": 1, "a": 2}'))


# The file's name in every error.


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("r=2: expected less"), "x.json: 1 problem\n  r=2: expected less"),
        (BadInput("the grades", ["line 3: bad"], "Do this."), "x.json: 1 problem\n  line 3: bad\nDo this."),
        (EOFError("ended early"), "x.json: 1 problem\n  it cannot be unpacked (ended early)"),
        (RecursionError("too deep"), "x.json: 1 problem\n  it is nested too deeply\nExpected"),
        (msgspec.ValidationError("Expected `int`"), "x.json: 1 problem\n  Expected `int`"),
        (ValueError("x.json: broken"), "x.json: broken"),  # named already
        (ValueError("ax.json: broken"), "x.json: 1 problem\n  ax.json: broken"),
    ],
)
def test_errors_of_a_reader_name_the_file(error, message):
    with pytest.raises(ValueError, match=r"x\.json") as caught, reading.reading("x.json"):
        raise error
    assert str(caught.value).startswith(message)


def test_decoders_name_file_and_line(tmp_path):
    for decode, text, message in (
        (json.loads, '{"a": 1,\n}', "line 2: no JSON"),
        (tomllib.loads, 'a = 1\nb = "', "at end of document"),
        (lambda text: text.encode("latin-1").decode("utf-8"), "é", "it cannot be read as UTF-8"),
    ):
        with pytest.raises(BadInput, match=message) as caught, reading.reading(tmp_path):
            decode(text)
        assert caught.value.path == str(tmp_path)


def test_errors_of_the_system_name_the_file(file):
    with pytest.raises(OSError, match="No space left") as caught, reading.reading("x.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "x.json")
    with pytest.raises(OSError, match="other") as caught, reading.reading("x.json"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "other.json")
    assert caught.value.filename == "other.json"
    other = file("")
    with pytest.raises(BadInput) as caught, reading.reading("x.json"):
        raise BadInput(other, ["bad"])  # of another file
    assert caught.value.path == str(other)
    with pytest.raises(KeyError), reading.reading("x.json"):
        raise KeyError("a fault of the code")


# Records.


class Inner(msgspec.Struct):
    name: str
    sizes: list[int] = []


class Outer(msgspec.Struct):
    question: str
    by_name: dict[str, Inner] = {}
    grade: float | None = None


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ({"question": 3}, Outer, "line 7: question is 3; expected text"),
        ({}, Outer, "line 7: no question; expected it, found []"),
        ({"question": "", "grade": "0.5"}, Outer, "line 7: grade is '0.5'; expected a number or null"),
        ({"question": "", "grade": True}, Outer, "line 7: grade is True; expected a number or null"),
        (
            {"question": "", "by_name": {"a": {"name": "x", "sizes": [1]}, "b": {"name": "y", "sizes": [1, "z"]}}},
            Outer,
            "line 7: by_name.'b'.sizes[1] is 'z'; expected a whole number",
        ),
        (
            {"question": "", "by_name": {"a": {"name": "x"}, "b": {"size": 1}}},
            Outer,
            "line 7: no name in by_name.'b'; expected it, found ['size']",
        ),
        ([1], Outer, "line 7: it is [1]; expected an object in braces"),
        ({"1": ["dog"], "2": "cat"}, dict[str, list[str]], "line 7: '2' is 'cat'; expected a list"),
        ({1: []}, dict[str, list[str]], "line 7: expected `str`, got `int` as a key"),
        (
            {"question": "x" * 100, "by_name": "y" * 100},
            Outer,
            f"line 7: by_name is '{'y' * 56}...; expected an object in braces",
        ),
    ],
)
def test_records_that_do_not_fit_are_named(value, kind, message):
    with pytest.raises(ValueError, match="line 7") as caught:
        convert(value, kind, "line 7")
    assert str(caught.value) == message


def test_records_that_fit():
    value = {"question": "?", "by_name": {"a": {"name": "x"}}, "grade": 1, "more": object()}
    assert convert(value, Outer) == Outer("?", {"a": Inner("x", [])}, 1.0)
