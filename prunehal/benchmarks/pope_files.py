"""Read POPE's files of questions and answers, and pair each answer with its question without ever shifting one.

The official script pairs by place. A line that cannot be read therefore keeps its place, and where that place is not certain
(an unreadable line may hide several objects) the answers after it must name their question.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from prunehal.benchmarks.files import read_records, some

__all__ = ["LABELS", "Place", "Question", "pair", "read_places", "read_questions"]

LABELS = ("yes", "no")

_ANSWER_KEYS = ("answer", "prediction", "response", "text")
_QUESTION_KEYS = ("question_id", "image", "text", "label")
_UNREADABLE = re.compile(r"line (\d+)(?:, object \d+)?: (?!the file ends)")  # a problem that stands in the place of a record


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image; the label is ``yes`` or ``no``."""

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
    torn = [Place(int(found[1]), None, readable=False) for problem in problems if (found := _UNREADABLE.match(problem))]
    places = torn + [Place(record.line, record.value) for record in records]
    return sorted(places, key=lambda place: place.line), problems


def read_questions(path: Path | str) -> tuple[list[Place], list[str]]:
    """Read a question file: the place of each `Question` (None for one that cannot be used), and the problems.

    Raises:
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
    for place in places:
        question = None
        if place.readable:
            try:
                question = _question(place.content)
                if (key := str(question.question_id)) in first:
                    raise ValueError(_again(question.question_id, first[key]))
                first[key] = place.line
            except ValueError as error:
                problems.append(f"line {place.line}: {error}")
                question = None
        asked.append(Place(place.line, question, place.readable))
    return asked, problems


def pair(asked: list[Place], given: list[Place]) -> tuple[list[tuple[Question, str]], list[str]]:
    """Pair questions and answers: by question_id when every answer has one, otherwise by place.

    Args:
        asked: from `read_questions`.
        given: from `read_places`.

    Returns:
        The usable pairs, and what is wrong with the others (unreadable lines and unusable questions are known already).

    >>> question = Question(7, "a.jpg", "Is there a dog?", "yes")
    >>> pair([Place(1, question)], [Place(1, {"answer": "Yes"}), Place(2, {"answer": "No"})])
    ([(Question(question_id=7, image='a.jpg', text='Is there a dog?', label='yes'), 'Yes')], \
['line 2: answer 2 to 1 questions; expected one for each'])
    """
    answers = [place.content for place in given if place.readable]
    by_id = bool(answers) and all("question_id" in answer for answer in answers)
    return (_by_id if by_id else _by_place)(asked, given)


def _question(value: dict[str, Any]) -> Question:
    if absent := [key for key in _QUESTION_KEYS if key not in value]:
        raise ValueError(f"no {', '.join(absent)}; expected the keys {', '.join(_QUESTION_KEYS)}")
    question = Question(*(value[key] for key in _QUESTION_KEYS))
    for key, content in asdict(question).items():
        number = key == "question_id" and type(content) is int  # True is no number here
        if not number and not (isinstance(content, str) and content.strip()):
            raise ValueError(f"{key} is {content!r}; expected {'a number or ' * (key == 'question_id')}text")
    if question.label not in LABELS:
        raise ValueError(f"unknown label {question.label!r}; expected yes or no")
    return question


def _by_place(asked: list[Place], given: list[Place]) -> tuple[list[tuple[Question, str]], list[str]]:
    pairs: list[tuple[Question, str]] = []
    problems: list[str] = []
    certain, torn = len(asked) == len(given) and _one_each(asked) and _one_each(given), 0
    for number, (question, answer) in enumerate(zip_longest(asked, given), start=1):
        if answer is None:
            problems.append(f"no answer {number} (question on line {question.line}); expected {len(asked)} answers, in order")
        elif question is None:
            problems.append(f"line {answer.line}: answer {number} to {len(asked)} questions; expected one for each")
        elif not (question.readable and answer.readable):
            torn = torn or number
        elif question.content is None:
            continue
        elif torn and not certain and "question" not in answer.content:
            problems.append(f"line {answer.line}: its place is not certain, as place {torn} cannot be read; expected question")
        else:
            _take(pairs, problems, question.content, answer)
    return pairs, problems


def _one_each(places: list[Place]) -> bool:
    """Whether every unreadable place has a line of its own, so that its rank among the others is known."""
    on_line = Counter(place.line for place in places)
    return all(place.readable or on_line[place.line] == 1 for place in places)


def _by_id(asked: list[Place], given: list[Place]) -> tuple[list[tuple[Question, str]], list[str]]:
    pairs: list[tuple[Question, str]] = []
    problems: list[str] = []
    known = {str(place.content.question_id): place for place in asked if place.content is not None}
    first: dict[str, int] = {}
    for answer in given:
        if not answer.readable:
            continue
        name = answer.content["question_id"]
        key = str(name)
        if key not in known:
            ids = some(known) or "none, as no question can be used"
            problems.append(f"line {answer.line}: unknown question_id {name!r}; expected one of {ids}")
        elif key in first:
            problems.append(f"line {answer.line}: {_again(name, first[key])}")
        else:
            first[key] = answer.line
            _take(pairs, problems, known[key].content, answer)
    for key, place in known.items():
        if key not in first:
            problems.append(f"no answer to question_id {key} (question on line {place.line}); expected one for each")
    return pairs, problems


def _take(pairs: list[tuple[Question, str]], problems: list[str], question: Question, answer: Place) -> None:
    """Add the pair, or what is wrong with its answer."""
    value = answer.content
    key = next((key for key in _ANSWER_KEYS if key in value), None)
    named, wanted = value.get("question"), question.text.strip()
    if key is None:
        problem = f"no answer; expected one of the keys {', '.join(_ANSWER_KEYS)}, found {sorted(value)}"
    elif not isinstance(value[key], str):
        problem = f"{key} is {repr(value[key])[:40]}; expected text"
    elif value[key].strip().casefold() == wanted.casefold():
        problem = f"{key} repeats the question; expected the answer under one of the keys {', '.join(_ANSWER_KEYS)}"
    elif "question" in value and not (isinstance(named, str) and wanted.casefold() in named.casefold()):
        problem = f"answers the question {repr(named)[:80]}; expected {wanted!r} (question_id {question.question_id!r})"
    elif "question_id" in value and str(value["question_id"]) != str(question.question_id):
        problem = f"question_id is {value['question_id']!r}; expected {question.question_id!r} at this place"
    else:
        pairs.append((question, value[key]))
        return
    problems.append(f"line {answer.line}: {problem}")


def _again(question_id: int | str, line: int) -> str:
    return f"question_id {question_id!r} again, first on line {line}; expected each once"
