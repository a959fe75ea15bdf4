"""Read POPE's files of questions and answers, line by line; a line that cannot be read keeps its place among the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from prunehal.benchmarks.answer_rows import WrongRows, refuse_wrong, typed, words
from prunehal.benchmarks.yes_or_no import label_of
from prunehal.files.records import read_records

__all__ = ["LABELS", "Place", "Question", "again", "read_places", "read_questions"]

LABELS = ("yes", "no")

_FIELDS: dict[str, tuple[tuple[str, ...], Any, str, Callable[[Any], Any]]] = {  # keys, type, its name, what two must share
    "question_id": (("question_id",), int | str, "a number or text", str),
    "image": (("image", "image_source", "image_file", "image_path", "file_name"), str, "text", lambda name: PurePath(name).stem),
    "text": (("text", "question", "query"), str, "text", words),
    "label": (("label", "answer", "gt_answer", "ground_truth"), str | int | bool, "yes or no", label_of),
}
_UNREADABLE = re.compile(r"line (\d+)(?:, object (\d+))?: (?!the file ends|reading stops)")  # a problem in the place of a record


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image; the label is ``yes`` or ``no``, or empty where it is not known."""

    question_id: int | str
    image: str
    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Place:
    """What a file holds at one place: None where nothing could be read, or where a question cannot be used."""

    line: int
    content: Any
    readable: bool = True


def read_places(path: Path | str) -> tuple[list[Place], list[str]]:
    """Read the objects of a file and the places of those that cannot be read, and the problems.

    Raises:
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w") as file:
    ...     _ = file.write('{"answer": }\\n{"answer": "Yes"}\\n')
    ...     file.flush()
    ...     places, problems = read_places(file.name)
    >>> [(place.line, place.content) for place in places], problems
    ([(1, None), (2, {'answer': 'Yes'})], ['line 1: no JSON (Expecting value)'])
    """
    records, problems = read_records(path)
    torn = dict.fromkeys(match.groups() for problem in problems if (match := _UNREADABLE.match(problem)))
    places = [Place(int(line), None, readable=False) for line, _ in torn] + [
        Place(record.line, record.value) for record in records
    ]
    return sorted(places, key=lambda place: place.line), problems


def read_questions(path: Path | str, labelled: bool = True) -> tuple[list[Place], list[str]]:
    """Read a question file: the place of each `Question` (None for one that cannot be used), and the problems.

    The keys are question_id, image, text and label. Question or query may stand for text, answer for label, image_source or
    file_name for image; a label may be written as yes, Yes, 1 or true.

    Args:
        path: the file.
        labelled: whether each question needs a label.

    Raises:
        BadInput: two keys of one field differ.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w") as file:
    ...     _ = file.write('{"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "maybe"}')
    ...     file.flush()
    ...     read_questions(file.name)[1]
    ["line 1: unknown label 'maybe'; expected yes or no"]
    """
    places, problems = read_places(path)
    asked: list[Place] = []
    first: dict[str, int] = {}
    wrong = []
    for place in places:
        question = None
        if place.readable:
            try:
                question = _question(place.content, labelled)
                if (key := str(question.question_id)) in first:
                    raise ValueError(again(question.question_id, first[key]))
                first[key] = place.line
            except ValueError as error:
                (wrong if isinstance(error, WrongRows) else problems).append(f"line {place.line}: {error}")
                question = None
        asked.append(Place(place.line, question, place.readable))
    refuse_wrong(path, wrong)
    return asked, problems


def _question(value: Mapping[str, Any], labelled: bool) -> Question:
    there = {name: [key for key in keys if key in value] for name, (keys, *_) in _FIELDS.items() if labelled or name != "label"}
    if absent := [name for name, keys in there.items() if not keys]:
        raise ValueError(f"no {', '.join(absent)}; expected the keys {', '.join(there)}, found {sorted(value)}")
    return Question(**({"label": ""} | {name: _field(value, name, keys) for name, keys in there.items()}))


def _field(value: Mapping[str, Any], name: str, keys: list[str]) -> int | str:
    """Return a question's field from the keys that may hold it; an embedded image or null beside a name is ignored."""
    _, kind, expected, alike = _FIELDS[name]
    key, *others = [key for key in keys if isinstance(value[key], str | int)] or keys
    content = typed(value[key], kind, key, expected)
    for other in others:
        if alike(typed(value[other], kind, other, expected)) != alike(content):
            raise WrongRows(f"{key} is {content!r} and {other} is {value[other]!r}; expected one {name}; Fix: keep the right one")
    if name == "label":
        if label_of(content) is None:
            raise ValueError(f"unknown label {content!r}; expected yes or no")
        return str(label_of(content))
    if isinstance(content, str) and not content.strip():
        raise ValueError(f"{key} is {content!r}; expected {expected}")
    return content


def again(question_id: int | str, line: int) -> str:
    """Return the problem that an earlier line has the same question_id.

    >>> again(7, 1)
    'question_id 7 again, first on line 1; expected each once'
    """
    return f"question_id {question_id!r} again, first on line {line}; expected each once"
