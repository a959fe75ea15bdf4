"""The questions of HallusionBench, and the verdict that each has: read from result files, or from the replies of a judge.

The published verdicts stand in the entry `VERDICT` of a result file ("0" incorrect, "1" correct, "2" unclear). A judge of
one's own gives rows with the key of the question, as its prompt had it, and the reply; or a result file with the replies added.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from prunehal.benchmarks.files import BadInput, Record, read_records, read_shipped
from prunehal.benchmarks.replies import REPLY_KEYS, refuse_another_question, reply
from prunehal.reading import convert

__all__ = ["PLACE", "VERDICT", "Result", "answers", "key_of", "question_key", "questions", "read_judgement", "result_records"]

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
    """The entries of a row that are read, where they are there; all others are left aside."""

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
    """Return what a reply says: 0 incorrect, 1 correct, 2 unclear.

    By the official rule a reply with neither "incorrect" nor "correct" is unclear. By the strict one a reply must begin with
    one of the three words, alone or in quotes or bold, and is None otherwise.

    >>> [read_judgement(text) for text in ("Incorrect.", "Correct", "unclear", "not correct", "I cannot say")]
    [0, 1, 2, 1, 2]
    >>> [read_judgement(text, rule="strict") for text in ("**Correct**", "not correct", "I cannot say")]
    [1, None, None]
    """
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
    """Return what the rules need of each question, in the order of the questions.

    Args:
        given: rows, each with what problems call it.
        against: the questions.
        rule: "official" or "strict", for replies (see `read_judgement`); an unreadable one is incorrect by the strict rule.
        judgement_key: the key that holds the verdict or the reply; None takes the one that is there.

    Returns:
        For each question the parts of its key, visual_input, verdict, correct, same, reply (None where the row holds a
        verdict) and readable.

    Raises:
        BadInput: rows of no question or of the same one, without a verdict, or of another question than their key names.
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
            refuse_another_question(record, _carried(asked[key]), key, [asked[key].get("question", "")])
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
        verdict = str(record.get(VERDICT))
        if verdict not in ("0", "1", "2"):
            raise ValueError(f"{key} has {VERDICT} {record.get(VERDICT)!r}; expected 0, 1 or 2")
        if judgement_key is None and replies and str(read_judgement(reply(record))) != verdict:
            raise ValueError(
                f"{VERDICT} {verdict!r} and {replies[0]} {reply(record)[:40]!r} differ; expected one verdict; "
                "Fix: name the one to take with --judgement-key"
            )
        return {"verdict": verdict, "reply": None, "readable": True}
    text = reply(record, judgement_key)
    read = read_judgement(text, rule)
    readable = read is not None if rule == "strict" else any(word in text.lower() for word in _WORDS)
    return {"verdict": "0" if read is None else str(read), "reply": text, "readable": readable}


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


def _carried(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row may carry of its question. The authors' result files have other references and visual inputs in part."""
    carried = {name: question[name] for name in ("question", "filename") if question.get(name) is not None}
    return carried | ({"image": carried["filename"]} if "filename" in carried else {})
