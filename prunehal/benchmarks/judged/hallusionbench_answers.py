"""Read the questions of HallusionBench, and the verdict on each answer, from result files or from the replies of a judge.

The published verdicts stand in the entry `VERDICT` of a result file ("0" incorrect, "1" correct, "2" unclear). Replies of
the user's own judge come as rows with the question's key, as it was exported with the prompt; or added to a result file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from prunehal.benchmarks.replies import REPLY_KEYS, refuse_another_question, refuse_other_verdicts, reply
from prunehal.files.reading import convert
from prunehal.files.records import BadInput, Record, read_records, read_shipped

__all__ = [
    "PLACE", "VERDICT", "Result", "answers", "carried", "key_of", "question_key", "questions", "read_judgement", "result_records",
]  # fmt: skip

VERDICT = "gpt4v_output_gpt_check"  # the entry of the official files, whichever judge and model
PLACE = ("category", "subcategory", "set_id", "figure_id", "question_id")

_WORDS = ("incorrect", "correct", "unclear")  # the verdicts 0, 1 and 2
_FIX = "Give exactly one judged record for each question."


def questions() -> list[dict[str, Any]]:
    """Return the 1129 records of HallusionBench.json: the five parts of the key, visual_input (0 none, 1 original or plain,
    2 edited image), sample_note, question, gt_answer_details, gt_answer ("1" yes, "0" no) and filename (None: no image).

    The images are not shipped.

    >>> len(questions()), questions()[0]["category"], questions()[0]["filename"]
    (1129, 'VS', None)
    """
    return read_shipped("hallusionbench", "HallusionBench.json.gz")


def question_key(record: Mapping[str, Any]) -> str:
    """Return the official name of a question.

    >>> question_key(questions()[0])
    'VS_chart_0_0_0'
    """
    return "_".join(str(record[part]) for part in PLACE)


class Result(msgspec.Struct):
    """The entries of a row that are read, each of which may be missing; all others are ignored."""

    category: str | None = None
    subcategory: str | None = None
    set_id: str | int | None = None
    figure_id: str | int | None = None
    question_id: str | int | None = None
    key: str | None = None
    model_prediction: str | None = None
    same: str | int | None = None


def result_records(path: Path | str) -> list[Record]:
    """Read a result file, with or without verdicts, or rows with the key of a question and the reply of a judge.

    Raises:
        BadInput: lines that cannot be read, that lack the key or a part of it, or have an entry of another type.
        OSError: the file cannot be read.
    """
    records, problems = read_records(path)
    for record in records:
        try:
            convert(record.value, Result)
            key_of(record.value)
        except ValueError as error:
            problems.append(f"{record.where}: {error}")
    if not records:
        problems.append("there are no records; expected one for each question")
    if problems:
        raise BadInput(path, problems, "Give the records of HallusionBench.json, with model_prediction or judgement added.")
    return records


def read_judgement(text: str, rule: str = "official") -> int | None:
    """Return the verdict of a reply: 0 incorrect, 1 correct, 2 unclear.

    By the official rule a reply with neither "incorrect" nor "correct" is unclear. By the strict one a reply must begin with
    one of the three words, alone or in quotes or bold, and is None otherwise. A reply that is nothing but 0, 1 or 2 (or 1.0, as
    tables write it) is that verdict by both.

    >>> [read_judgement(text) for text in ("Incorrect.", "Correct", "unclear", "not correct", "I cannot say")]
    [0, 1, 2, 1, 2]
    >>> [read_judgement(text, rule="strict") for text in ("**Correct**", "not correct", "I cannot say")]
    [1, None, None]
    """
    if (number := _number(text)) is not None:
        return number
    lower = text.lower()
    if rule == "strict":
        first = re.match(r"[\W_]*([a-z]+)", lower)
        return _WORDS.index(first[1]) if first and first[1] in _WORDS else None
    return 0 if "incorrect" in lower else 1 if "correct" in lower else 2


def answers(
    given: Sequence[tuple[str, Mapping[str, Any]]],
    against: Sequence[Mapping[str, Any]],
    rule: str = "official",
    judgement_key: str | None = None,
) -> list[dict[str, Any]]:
    """Return the verdict on each question, and what the summaries need besides, in the order of the questions.

    Args:
        given: rows, each with its name in error messages, such as ``line 7``.
        against: the questions.
        rule: "official" or "strict", for replies (see `read_judgement`); an unreadable one is incorrect by the strict rule.
        judgement_key: the key that holds the verdict or the reply; None takes the one that is there.

    Returns:
        For each question the parts of its key, visual_input, verdict, correct, same, reply (None where the row holds a
        verdict) and readable.

    Raises:
        BadInput: a row belongs to no question, or to one that has a row already; it has no verdict, or the text or image of
            another question than its key names; a question has no row.
    """
    asked = {question_key(question): question for question in against}
    judged: dict[str, dict[str, Any]] = {}
    problems = []
    for where, record in given:
        try:
            key = key_of(record)
            if key not in asked:
                raise ValueError(f"{key} is none of the {len(asked)} questions")
            if key in judged:
                raise ValueError(f"{key} is answered twice")
            refuse_another_question(record, carried(asked[key]), key, [asked[key].get("question", "")])
            place = {part: str(asked[key][part]) for part in (*PLACE, "visual_input")}
            judged[key] = place | {"same": record.get("same")}
            verdict = _verdict(record, key, rule, judgement_key)
            right = ("1", "2") if place["category"] == "VS" and place["figure_id"] == "0" else ("1",)
            judged[key] |= verdict | {"correct": verdict["verdict"] in right}
        except ValueError as error:
            problems.append(f"{where}: {error}")
    problems += [f"{key} has no record" for key in asked if key not in judged]
    if problems:
        raise BadInput("HallusionBench records", problems, _FIX)
    return [judged[key] for key in asked]


def _verdict(record: Mapping[str, Any], key: str, rule: str, judgement_key: str | None) -> dict[str, Any]:
    """Return the verdict of a row, and the reply that it was read from, if any."""
    taken = judgement_key or (VERDICT if VERDICT in record else None)
    replies = [name for name in REPLY_KEYS if name in record]
    if taken == VERDICT or (taken is None and not replies):
        number = _number(str(record.get(VERDICT)))
        if number is None:
            raise ValueError(f"{key} has {VERDICT} {record.get(VERDICT)!r}; expected 0, 1 or 2")
        verdict = str(number)
        if judgement_key is None:
            refuse_other_verdicts(record, VERDICT, verdict, _held)
        if judgement_key is None and replies and str(read_judgement(reply(record))) != verdict:
            raise ValueError(
                f"{VERDICT} {verdict!r} and {replies[0]} {reply(record)[:40]!r} differ; expected one verdict; "
                "Fix: name the one to take with --judgement-key"
            )
        return {"verdict": verdict, "reply": None, "readable": True}
    text = reply(record, judgement_key, _held)
    read = read_judgement(text, rule)
    readable = (read if rule == "strict" else _held(text)) is not None
    return {"verdict": "0" if read is None else str(read), "reply": text, "readable": readable}


def _number(text: str) -> int | None:
    """Return the verdict that a number stands for: 0, 1 or 2, also as 1.0."""
    number = re.fullmatch(r"\s*([012])(?:\.0+)?\s*", text)
    return int(number[1]) if number else None


def _held(text: str) -> int | None:
    """Return the verdict that a reply holds, or None where it has neither a number nor one of the words."""
    is_verdict = _number(text) is not None or any(word in text.lower() for word in _WORDS)
    return read_judgement(text) if is_verdict else None


def key_of(record: Mapping[str, Any]) -> str:
    """Return the key of a row's question, from ``key`` or from its parts.

    Raises:
        ValueError: neither is there, or they differ.

    >>> key_of({"key": "VS_chart_0_0_0", "judgement": "correct"})
    'VS_chart_0_0_0'
    """
    missing = [part for part in PLACE if record.get(part) is None]
    if not missing:
        parts = question_key(record)
        if record.get("key", parts) != parts:
            raise ValueError(f"key is {record['key']!r}; expected {parts!r}, as the parts of the key have it")
        return parts
    if record.get("key") is not None:
        return str(record["key"])
    raise ValueError(f"no {', '.join(missing)}; expected the five parts of a question's key, or the key")


def carried(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a question that a row may repeat; not those that differ in some of the authors' result files.

    >>> list(carried(questions()[0]))
    ['question']
    """
    parts = {name: question[name] for name in ("question", "filename") if question.get(name) is not None}
    return parts | ({"image": parts["filename"]} if "filename" in parts else {})
