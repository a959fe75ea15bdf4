"""Read the files of benchmarks record by record, name what is wrong with its line number, and write reports whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunehal.files.paths import data_path, written
from prunehal.files.reading import BadInput, JsonDecoder, decoded, read_bytes, read_json

__all__ = ["BadInput", "Record", "Report", "bad_lines", "read_records", "read_shipped", "read_values", "some"]

_GAP = re.compile(r"[\s,]*")
# Where reading goes on after a place that cannot be read: an object on a line of its own or after another one.
_NEXT = re.compile(r"\n[ \t]*(?=\{)|\}\s*,\s*(?=\{)")
# The decoder gets windows of the text: each of its errors counts the lines before it, which a short window keeps cheap.
_WINDOW, _GROWTH = 2**12, 2**4
_EDGE = 16  # an error so close to a window's end may come from the cut: the longest literal of JSON has 9 characters
_BUDGET = 64  # characters that unreadable values may cost, as a multiple of the text's length; then reading stops


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a file: the line on which it begins, and its place among the objects that begin there, both from 1.

    >>> Record(1, {}, 3).where, Record(7, {}).where
    ('line 1, object 3', 'line 7')
    """

    line: int
    value: dict[str, Any]
    place: int = 1

    @property
    def where(self) -> str:
        """Say where it stands, as problems name it."""
        return f"line {self.line}" + (f", object {self.place}" if self.place > 1 else "")


@dataclass(frozen=True)
class Report:
    """What scoring one file gave.

    Attributes:
        metrics: the numbers by name; fractions in [0, 1] unless the benchmark itself defines percentages.
        items: one entry for each scored record.
        settings: what was scored and how, so that the numbers can be reproduced.
    """

    metrics: dict[str, Any]
    items: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write ``{"metrics": ..., "items": ..., "settings": ...}`` as JSON, whole or not at all."""
        content = {"metrics": self.metrics, "items": self.items, "settings": self.settings}
        with written(path) as part:
            part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_records(path: Path | str) -> tuple[list[Record], list[str]]:
    """Read the objects of a JSON file of any layout in use, and name the lines that cannot be read.

    A JSON list, JSON lines, and objects written one after the other over several lines each (as POPE's caption files
    are) are all taken; the suffix of the name does not matter, and ``.gz`` is unpacked.

    Returns:
        The records in order, and the problems: text that is no JSON, values that are no objects, a file that ends early.

    Raises:
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    ...     _ = file.write('{"image_id": 1}\\n{"image_id": \\n')
    ...     file.flush()
    ...     records, problems = read_records(file.name)
    >>> records, problems
    ([Record(line=1, value={'image_id': 1}, place=1)], ['line 2: no JSON (Expecting value)'])
    """
    text, problems = decoded(read_bytes(path))
    records: list[Record] = []
    decoder = JsonDecoder()
    end = len(text.rstrip())
    at, line, counted, place, spent = _GAP.match(text).end(), 1, 0, 0, 0
    in_list = text.startswith("[", at)
    at += in_list
    closed = not in_list
    while True:  # each pass moves on: past a bracket or a value, or past the character that begins no value
        at = _GAP.match(text, at).end()
        lines = text.count("\n", counted, at)
        line, counted, place = line + lines, at, 1 if lines else place + 1
        where = Record(line, {}, place).where
        if at == len(text):
            break
        if in_list and text[at] == "]":
            closed, in_list, at = True, False, at + 1
            continue
        try:
            value, length = _value(decoder, text, at)
        except _Unreadable as error:
            problems.append(f"{where}: no JSON ({error})")
            spent += error.cost
            if spent > _BUDGET * len(text):
                problems.append(f"{where}: reading stops here; expected fewer places that cannot be read")
                break
            following = _NEXT.search(text, at + 1)
            at = following.end() if following else end - 1 if in_list and at < end - 1 and text[end - 1] == "]" else len(text)
            continue
        if decoder.clashes:
            problems += [f"{where}: {clash}" for clash in decoder.clashes]
        elif isinstance(value, dict):
            records.append(Record(line, value, place))
        else:
            problems.append(f"{where}: {_begin(value)}; expected an object in braces")
        at += length
    if not closed:
        problems.append(f"line {line}: the file ends inside its list; expected a closing ]")
    return records, problems


def read_values(path: Path | str) -> list[dict[str, Any]]:
    """Return the objects of a file, all of which must be readable; layouts as in `read_records`.

    Raises:
        BadInput: there is text that is no JSON, or a value that is no object.
        OSError: the file cannot be read.

    >>> len(read_values(data_path("chair", "double_words.json")))
    1
    """
    records, problems = read_records(path)
    bad_lines(path, problems, skip_bad=False)
    return [record.value for record in records]


def bad_lines(path: Path | str, problems: Sequence[str], skip_bad: bool) -> int:
    """Return how many problems there are; with ``skip_bad`` off any problem is an error.

    Raises:
        BadInput: there are problems, and they are not to be skipped.

    >>> bad_lines("captions.jsonl", [], skip_bad=False), bad_lines("captions.jsonl", ["line 2: no caption"], skip_bad=True)
    (0, 1)
    """
    if problems and not skip_bad:
        ordered = sorted(problems, key=lambda problem: int(re.search(r"line (\d+)|$", problem)[1] or 0))
        raise BadInput(path, ordered, "Fix these lines, or pass --skip-bad (skip_bad=True) to go on without them.")
    return len(problems)


def read_shipped(*parts: str) -> Any:
    """Return the content of a shipped JSON file, packed (``.gz``) or not.

    >>> len(read_shipped("chair", "double_words.json")["double_words"])
    27
    """
    return read_json(data_path(*parts))


def some(values: Iterable, at_most: int = 5) -> str:
    """Show the first few values of a long list in a message.

    >>> some(range(9))
    '0, 1, 2, 3, 4, ...'
    """
    shown = list(values)
    return ", ".join(repr(value) for value in shown[:at_most]) + (", ..." if len(shown) > at_most else "")


class _Unreadable(ValueError):
    """There is no JSON value at a place; ``cost`` counts the characters that were looked at."""

    def __init__(self, why: str, cost: int) -> None:
        super().__init__(why)
        self.cost = cost


def _value(decoder: JsonDecoder, text: str, at: int) -> tuple[Any, int]:
    """Return the value that begins at a place of the text, and its length.

    The decoder gets a short window first, and a longer one whenever the window's end may be what went wrong.
    """
    size = _WINDOW
    while True:
        window = text[at : at + size]
        whole = at + size >= len(text)
        try:
            value, length = decoder.raw_decode(window)
        except json.JSONDecodeError as error:
            unterminated = error.msg.startswith("Unterminated string")  # its position is the string's start
            if whole or (error.pos < size - _EDGE and not unterminated):
                raise _Unreadable(error.msg, len(window) if unterminated else error.pos + 1) from error
        except RecursionError as error:
            raise _Unreadable("nested too deeply", len(window)) from error
        except ValueError as error:
            raise _Unreadable(str(error), len(window)) from error
        else:
            if whole or isinstance(value, dict | list | str) or length < size - _EDGE:
                return value, length
        size *= _GROWTH


def _begin(value: Any) -> str:
    try:
        return json.dumps(value)[:40]
    except RecursionError:
        return "a list that is nested too deeply"
