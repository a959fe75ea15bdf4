"""Read text and JSON files in the encodings that users have, within bounds, with the file's name in every error.

Text may be UTF-8, UTF-16 or UTF-32, with or without a byte order mark, and packed with gzip. A packed file, a device or a pipe
that gives more than `LIMIT` bytes is refused; a plain file is read whole.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["LIMIT", "BadInput", "JsonDecoder", "convert", "decoded", "read_bytes", "read_json", "read_text", "reading"]

LIMIT = 2**30  # bytes that a packed file, a device or a pipe may give: more than any benchmark's file holds

_SHOWN = 20  # problems that a message lists; the others are counted
_WORDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "a list"}
_WORDS |= {"object": "an object in braces"}
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<place>\d+)\]|\[\.\.\.\]")


class BadInput(ValueError):
    """Name what is wrong with an input file: one problem for each line, such as ``line 7: no caption``.

    Attributes:
        path: the file, or the name of an input that is none.
        problems: all of them; the message lists the first 20 and counts the others.
        fix: what to do about them.
    """

    def __init__(self, path: Path | str, problems: Sequence[str], fix: str = "") -> None:
        self.path, self.problems, self.fix = str(path), list(problems), fix
        shown = [f"  {problem}" for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            shown.append(f"  and {len(self.problems) - _SHOWN} more")
        head = f"{self.path}: {len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n".join([head, *shown, *([fix] if fix else [])]))


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Add the file's name to every error that reading it, or using what was read from it, raises.

    Errors that name this file, or another file that exists, pass unchanged. So do all others than ValueError, OSError and those
    that damaged files raise (EOFError, zlib.error, RecursionError), because they are faults of the code.

    Raises:
        BadInput: a ValueError of the block, with the file's name (and the line, where the error has one).
        OSError: an OSError of the block, with the file's name.

    >>> with reading("settings.json"):
    ...     json.loads('{"seed": 1,\\n"r": }')
    Traceback (most recent call last):
    prunehal.files.reading.BadInput: settings.json: 1 problem
      line 2: no JSON (Expecting value)
    """
    name = os.fspath(path)
    try:
        yield
    except BadInput as error:
        if error.path == name or os.path.exists(error.path):
            raise
        raise BadInput(name, error.problems, error.fix) from error
    except json.JSONDecodeError as error:
        raise BadInput(name, [f"line {error.lineno}: no JSON ({error.msg})"]) from error
    except UnicodeDecodeError as error:
        raise BadInput(name, [f"it cannot be read as {error.encoding.upper()} ({error.reason} at byte {error.start})"]) from error
    except RecursionError as error:
        raise BadInput(name, ["it is nested too deeply"], "Expected a file as its program wrote it; get it again.") from error
    except (EOFError, zlib.error) as error:
        raise BadInput(name, [f"it cannot be unpacked ({error})"], "Expected a whole file; get it again.") from error
    except ValueError as error:
        if _names(error, name):
            raise
        raise BadInput(name, [str(error)]) from error
    except OSError as error:
        if error.filename is not None or _names(error, name):
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), name) from error


def read_bytes(path: Path | str, limit: int = LIMIT) -> bytes:
    """Return the content of a file, unpacked if it is packed with gzip.

    Args:
        path: the file; a device or a pipe is read to its end.
        limit: the largest number of bytes to take from a packed file, a device or a pipe.

    Raises:
        BadInput: the content is longer than the limit, or cannot be unpacked.
        OSError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            raw = file.read() if regular else file.read(limit + 1)
    except OSError as error:
        why = error.strerror or str(error)
        raise OSError(f"{path} cannot be read ({why}); expected a file that can be read; check the path") from error
    too_long = not regular and len(raw) > limit
    if raw[:2] == b"\x1f\x8b" and not too_long:
        try:
            raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(limit + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(path, [f"it cannot be unpacked ({error})"], "Expected a whole gzip file; get it again.") from error
        too_long = len(raw) > limit
    if too_long:
        problem = f"it gives more than {limit:,} bytes; expected at most so many from a packed file, a device or a pipe"
        raise BadInput(path, [problem], "Unpack it into a plain file first, if it is to be trusted.")
    return raw


def decoded(raw: bytes) -> tuple[str, list[str]]:
    """Return the text of a file's bytes, and the problems: lines that are no UTF-8 (left empty), or text that is no UTF-16.

    The encoding follows from the byte order mark, or from the zero bytes of the first characters; otherwise it is UTF-8.

    >>> decoded("\\ufeff42.jpg".encode("utf-8")), decoded("42.jpg".encode("utf-16")), decoded(b"a\\n\\xff")
    (('42.jpg', []), ('42.jpg', []), ('a\\n', ['line 2: no UTF-8']))
    """
    encoding = json.detect_encoding(raw)
    try:
        return raw.decode(encoding).removeprefix("\ufeff"), []
    except UnicodeDecodeError as error:
        if not encoding.startswith("utf-8"):
            return "", [f"it cannot be read as {encoding.upper()} ({error.reason} at byte {error.start})"]
    lines, problems = [], []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            problems.append(f"line {number}: no UTF-8")
            lines.append("")
    return "\n".join(lines), problems


def read_text(path: Path | str, limit: int = LIMIT) -> str:
    """Return the text of a file: UTF-8, UTF-16 or UTF-32, with or without a byte order mark, packed (gzip) or not.

    Raises:
        BadInput: lines that cannot be decoded, or more bytes than ``limit`` (see `read_bytes`).
        OSError: the file cannot be read.

    >>> from prunehal.files.paths import data_path
    >>> read_text(data_path("sprites", "sprites.json"))[:11]
    '{\\n "names":'
    """
    text, problems = decoded(read_bytes(path, limit))
    if problems:
        raise BadInput(path, problems, "Save it as UTF-8, or as UTF-16 with a byte order mark.")
    return text


class JsonDecoder:
    """Decode JSON, and name the keys that one object has twice with different values.

    >>> decoder = JsonDecoder()
    >>> decoder.decode('{"a": 1, "a": 1}'), decoder.clashes
    ({'a': 1}, [])
    >>> decoder.decode('{"a": 1, "a": 2}'), decoder.clashes
    ({'a': 2}, ["key 'a' stands twice in one object, with 1 and 2; expected it once"])
    """

    def __init__(self) -> None:
        self.clashes: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str) -> Any:
        """Return the value of the text; `clashes` then holds what stands twice in it."""
        self.clashes.clear()
        return self._decoder.decode(text)

    def raw_decode(self, text: str) -> tuple[Any, int]:
        """Return the value at the beginning of the text and where it ends; `clashes` then holds what stands twice in it."""
        self.clashes.clear()
        return self._decoder.raw_decode(text)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            first: dict[str, Any] = {}
            for key, value in pairs:
                if _short(first.setdefault(key, value), 10**9) != _short(value, 10**9):
                    self.clashes.append(
                        f"key {key!r} stands twice in one object, with {_short(first[key])} and {_short(value)}; expected it once"
                    )
        return content


def read_json(path: Path | str, limit: int = LIMIT) -> Any:
    """Return the one JSON value of a file; encodings and packing as in `read_text`.

    Raises:
        BadInput: text that is no JSON, with its line; a key that stands twice in an object with different values.
        OSError: the file cannot be read.

    >>> from prunehal.files.paths import data_path
    >>> read_json(data_path("sprites", "sprites.json"))["names"][0]
    'person'
    """
    decoder = JsonDecoder()
    with reading(path):
        value = decoder.decode(read_text(path, limit))
    if decoder.clashes:
        raise BadInput(path, decoder.clashes, "Keep one of them.")
    return value


def convert(value: Any, kind: Any, where: str = "") -> Any:
    """Return the value as msgspec converts it to the type, or name the key whose value does not fit.

    Args:
        value: what was read: a record, or a part of one.
        kind: the type to convert to: a `msgspec.Struct`, or a type such as ``dict[str, list[int]]``. Fields that the Struct
            does not have are ignored.
        where: begins the message, such as ``line 7``.

    Raises:
        ValueError: ``line 7: question is 3; expected text``.

    >>> convert({"1": ["dog", 5]}, dict[str, list[str]], "line 7")
    Traceback (most recent call last):
    ValueError: line 7: '1'[1] is 5; expected text
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        problem = _problem(value, str(error))
        raise ValueError(f"{where}: {problem}" if where else problem) from error


def _problem(value: Any, message: str) -> str:
    """Return what is wrong in the words of this package: the key, its value, and what msgspec expected there."""
    what, _, path = message.partition(" - at `")
    if path.startswith("key"):
        return f"{what[:1].lower()}{what[1:]} as a key"
    missing = re.fullmatch(r"Object missing required field `(.+)`", what)
    expected = re.match(r"Expected `([^`]+)`(?:, got `([^`]+)`)?$", what)
    got = "object" if missing else expected[2] if expected else None
    steps = list(_STEP.finditer(path.removesuffix("`").removeprefix("$")))
    place, part = next(_places(value, steps, got, missing[1] if missing else None), ("", value))
    if missing:
        return f"no {missing[1]}{f' in {place}' if place else ''}; expected it, found {_short(sorted(part, key=str))}"
    if expected:
        wanted = " or ".join(_WORDS.get(name, name) for name in expected[1].split(" | "))
        return f"{place or 'it'} is {_short(part)}; expected {wanted}"
    if what.startswith(("Expected", "Invalid")):  # such as "Expected `int` >= 0", "Invalid enum value 'x'"
        return f"{place or 'it'} is {_short(part)}; {what[0].lower()}{what[1:]}"
    return f"{place}: {what}" if place else what  # of a Struct's own checks


def _places(value: Any, steps: Sequence[re.Match], got: str | None, missing: str | None) -> Iterator[tuple[str, Any]]:
    """Yield the places that a path of msgspec (``$.a[0]``) can mean, in words, and the value there.

    The path leaves open which entry of a dict it means: it is one whose value is of the type that was not expected.
    """
    if not steps:
        if (got is None or _type_name(value) == got) and not (missing and missing in value):
            yield "", value
        return
    step, rest = steps[0], steps[1:]
    entries: list[tuple[str, Any]] = []
    if step["place"] is not None and isinstance(value, list | tuple):
        entries = [(f"[{step['place']}]", part) for part in value[int(step["place"]) :][:1]]
    elif step["name"] is not None and isinstance(value, dict):
        entries = [(step["name"], value.get(step["name"]))]
    elif isinstance(value, dict):
        entries = [(repr(key), part) for key, part in value.items()]
    for name, part in entries:
        for below, content in _places(part, rest, got, missing):
            yield name + (f".{below}" if below and not below.startswith("[") else below), content


def _type_name(value: Any) -> str:
    names = {bool: "bool", int: "int", float: "float", str: "str", list: "array", tuple: "array", dict: "object"}
    return names.get(type(value), "null")


def _names(error: Exception, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)) is not None


def _short(value: Any, at_most: int = 60) -> str:
    try:
        shown = repr(value)
    except RecursionError:
        shown = "nested too deeply"
    return shown if len(shown) <= at_most else f"{shown[: at_most - 3]}..."
