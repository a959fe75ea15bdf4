"""Read the grades of MM-Vet, from 0 to 1 for each question and run, from grade files or from the replies of a judge.

Three layouts are read: the evaluator's ``*-grade-*runs.json``, an object of id -> grade (a number, or the judge's reply), and
rows with the id and the reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunehal.benchmarks.replies import refuse_another_question, reply
from prunehal.files.records import BadInput, Record, read_records

__all__ = ["Grades", "read_grade", "read_grades"]

_STRICT = re.compile(r"\s*(0(?:\.\d+)?|1(?:\.0+)?)\s*\.?\s*")
_FIX = "Give each question of mm-vet.json exactly one entry under its id, such as v1_0."


@dataclass
class Grades:
    """The grades of each question.

    Attributes:
        runs: id -> grade in each run, in the order of the file.
        texts: the replies that grades were read from, numbers among them as their digits; none where no entry is a reply.
        readable: whether each reply could be read.
    """

    runs: dict[str, list[float]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    readable: list[bool] = field(default_factory=list)


def read_grade(text: str, rule: str = "official") -> float | None:
    """Return the grade that a reply begins with, or None when it is no number from 0 to 1.

    Args:
        text: the reply.
        rule: ``official``; or ``strict``: the reply must be the number and nothing more.

    >>> read_grade("0.5 | because"), read_grade("1"), read_grade("Correctness: 0.5"), read_grade("1.5")
    (0.5, 1.0, None, None)
    >>> read_grade("0.5 | because", rule="strict"), read_grade(" 0.5. ", rule="strict")
    (None, 0.5)
    """
    if rule == "strict":
        whole = _STRICT.fullmatch(text)
        return float(whole[1]) if whole else None
    try:
        value = float(text.split(" ")[0].strip())
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def read_grades(
    source: Path | str | Mapping[str, Any],
    questions: Mapping[str, Any],
    rule: str = "official",
    judgement_key: str | None = None,
) -> Grades:
    """Return the grades of all questions; a reply that cannot be read is a grade of 0, as in the evaluator.

    Args:
        source: the file, or an object of id -> grade.
        questions: the content of mm-vet.json.
        rule: how replies are read (see `read_grade`).
        judgement_key: the key that holds the reply in rows; None takes the one that is there.

    Raises:
        BadInput: a line cannot be read, a question has no grade or a grade no question, a grade is not from 0 to 1, questions
            have different numbers of runs, or a row's question, prompt or image is not that of its id.
        OSError: the file cannot be read.
    """
    grades = Grades()
    name = "MM-Vet grades" if isinstance(source, Mapping) else str(source)
    entries, problems = _entries(source, questions, judgement_key)
    problems += [f"{key!r}: no grade" for key in questions if key not in entries]
    problems += [f"{key!r}: a grade without a question in mm-vet.json" for key in entries if key not in questions]
    numbers: list[str] = []
    for key, entry in entries.items():
        values = entry.get("score") if isinstance(entry, Mapping) else [entry]
        if isinstance(entry, str):
            grade = read_grade(entry, rule)
            grades.texts.append(entry)
            grades.readable.append(grade is not None)
            values = [grade or 0.0]
        if not isinstance(values, list) or not values or not all(map(_is_grade, values)):
            problems.append(f"{key!r}: {repr(entry)[:80]}; expected a grade from 0 to 1, or a list of such grades under score")
        else:
            grades.runs[key] = values
            numbers += [] if isinstance(entry, str) else [str(entry)]
    if len(counts := {len(values) for values in grades.runs.values()}) > 1:
        problems.append(f"the numbers of runs are {sorted(counts)}; expected the same number of grades for each question")
    if problems:
        raise BadInput(name, problems, _FIX)
    if grades.texts:  # an entry that is a number was read, and counts beside the replies
        grades.texts += numbers
        grades.readable += [True] * len(numbers)
    return grades


def _entries(
    source: Path | str | Mapping[str, Any], questions: Mapping[str, Any], judgement_key: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the entry of each id, and the problems."""
    if isinstance(source, Mapping):
        return dict(source), []
    records, problems = read_records(source)
    if not records or "id" in records[0].value:
        return _rows(records, questions, judgement_key, problems)
    if len(records) != 1:
        rows = f"{len(records)} objects; expected one object with an entry for each id, or rows with id and judgement"
        raise BadInput(source, [rows, *problems], _FIX)
    return records[0].value, problems


def _rows(
    records: list[Record], questions: Mapping[str, Any], judgement_key: str | None, problems: list[str]
) -> tuple[dict[str, Any], list[str]]:
    entries: dict[str, Any] = {}
    for record in records:
        row = record.value
        key = row.get("id")
        try:
            if not isinstance(key, str):
                raise ValueError(f"id {key!r}; expected that of a question, such as v1_0")
            if key in entries:
                raise ValueError(f"{key} is graded twice; expected one row for each question")
            entries[key] = reply(row, judgement_key, read_grade)
            if key in questions:
                question = questions[key]
                carried = {name: question[name] for name in ("question", "imagename") if name in question}
                carried |= {"image": question["imagename"]} if "imagename" in question else {}
                refuse_another_question(row, carried, key, [f"{question['question']} | "])
        except ValueError as error:
            problems.append(f"{record.where}: {error}")
    return entries, problems


def _is_grade(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
