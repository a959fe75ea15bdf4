"""Read the files of benchmarks record by record, name what is wrong with its line number, and write reports whole."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunehal.resources import data_path, written

__all__ = ["BadInput", "Record", "Report", "bad_lines", "read_records", "read_shipped", "read_values", "some"]

_SHOWN = 20  # problems that a message lists; the others are counted
_GAP = re.compile(r"[\s,]*")
# Where reading goes on after a place that cannot be read: an object on a line of its own or after another one, or the list's end.
_NEXT = re.compile(r"\n[ \t]*(?=\{)|\}\s*,\s*(?=\{)|(?=\]\s*\Z)")


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


class BadInput(ValueError):
    """Say what is wrong with an input file: one problem for each line, such as ``line 7: no caption``."""

    def __init__(self, path: Path | str, problems: Sequence[str], fix: str = "") -> None:
        self.path, self.problems = str(path), list(problems)
        shown = [f"  {problem}" for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            shown.append(f"  and {len(self.problems) - _SHOWN} more")
        head = f"{self.path}: {len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n".join([head, *shown, *([fix] if fix else [])]))


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
    text, problems = _text(Path(path))
    records: list[Record] = []
    decoder = json.JSONDecoder()
    at, line, counted, place = _GAP.match(text).end(), 1, 0, 0
    in_list = text.startswith("[", at)
    at += in_list
    closed = not in_list
    while True:
        at = _GAP.match(text, at).end()
        lines = text.count("\n", counted, at)
        line, counted, place = line + lines, at, 1 if lines else place + 1
        if at == len(text):
            break
        if in_list and text[at] == "]":
            closed, in_list, at = True, False, at + 1
            continue
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
            problems.append(f"{Record(line, {}, place).where}: no JSON ({why})")
            found = _NEXT.search(text, at)
            at = found.end() if found else len(text)
            continue
        if isinstance(value, dict):
            records.append(Record(line, value, place))
        else:
            problems.append(f"{Record(line, {}, place).where}: {json.dumps(value)[:40]}; expected an object in braces")
        at = end
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
    path = data_path(*parts)
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)


def some(values: Iterable, at_most: int = 5) -> str:
    """Show the first few values of a long list in a message.

    >>> some(range(9))
    '0, 1, 2, 3, 4, ...'
    """
    shown = list(values)
    return ", ".join(repr(value) for value in shown[:at_most]) + (", ..." if len(shown) > at_most else "")


def _text(path: Path) -> tuple[str, list[str]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror}); expected a JSON or JSON lines file; check the path") from error
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(path, [f"it cannot be unpacked ({error})"], "Expected a whole gzip file; get it again.") from error
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadInput(path, ["it is UTF-16; expected UTF-8"], "Save it as UTF-8.")
    try:
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        problems, lines = [], []
        for number, line in enumerate(raw.split(b"\n"), start=1):
            try:
                lines.append(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                problems.append(f"line {number}: no UTF-8")
                lines.append("")
        return "\n".join(lines), problems
