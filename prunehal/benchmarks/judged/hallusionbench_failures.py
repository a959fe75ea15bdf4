"""Tell how HallusionBench answers fail: language hallucination (LH), visual illusion (VI), or a mix of both.

Source: Guan et al. 2024, arXiv 2310.14566, and utils.py (get_eval_all, get_eval_pair_all, check_same_by_chatgpt; commit
08e51de) of tianyi-lab/HallusionBench, BSD-3-Clause. The rules are kept as they are in that code.

Whether two answers of a pair agree is asked of a judge as well; its prompt is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunehal.files.records import BadInput

__all__ = ["has_same", "pair_failures", "question_failures", "read_same", "same_prompts"]

_PROMPT = (
    "Imagine you are an intelligent teacher. Thoroughly read the two responses to two different questions. Assess the "
    "consistency of the information provided within those two responses. You do not know the specific questions, but you can "
    "asssess the consistency among the two responses by checking for logical conflicts if both responses are correct. If "
    'response1 does not conflict with response2, please generate “same”. Otherwise, generate "different". \n\n response1:'
    "{response}\nresponse2: {original}\nOutput:"
)
_PAIR = ("category", "subcategory", "set_id", "question_id")


def same_prompts(filled: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return, for each record in order, the published prompt that compares its answer with the one on figure 0.

    Raises:
        BadInput: a record lacks ``model_prediction``, or no record of its pair has figure 0.

    >>> record = {"category": "VD", "subcategory": "map", "set_id": "0", "question_id": "0"}
    >>> filled = [record | {"figure_id": "0", "model_prediction": "Yes."}, record | {"figure_id": "1", "model_prediction": "No."}]
    >>> same_prompts(filled)[1].splitlines()[-3:]
    [' response1:No.', 'response2: Yes.', 'Output:']
    """
    original = {_pair(record): record.get("model_prediction") for record in filled if str(record.get("figure_id")) == "0"}
    problems = []
    for place, record in enumerate(filled):
        if not isinstance(record.get("model_prediction"), str):
            problems.append(f"record {place}: no model_prediction; expected text")
        elif not isinstance(original.get(_pair(record)), str):
            problems.append(f"record {place}: no record with figure 0 in its pair")
    if problems:
        raise BadInput("HallusionBench results", problems, "Give whole pairs, filled in.")
    return [_PROMPT.format(response=record["model_prediction"], original=original[_pair(record)]) for record in filled]


def read_same(text: str) -> str:
    """Return the value of the official entry ``same``: "1" when the reply holds that word, else "0".

    >>> read_same("Same."), read_same("different"), read_same("?")
    ('1', '0', '0')
    """
    return "1" if "same" in text.lower() else "0"


def has_same(answers: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the judge was asked if answers agree.

    >>> has_same([{"same": None}, {"same": "0"}]), has_same([{"same": None}])
    (True, False)
    """
    return any(answer["same"] is not None for answer in answers)


def question_failures(answers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count how the questions fail, each seen alone.

    Without an image, a wrong answer is LH; on the original image of VD, a wrong or unclear one is VI; on the others a wrong
    one is Mix and an unclear one VI.

    Args:
        answers: category, figure_id, visual_input and verdict ("0" wrong, "1" right, "2" unclear) of each question.

    >>> question_failures([{"category": "VD", "figure_id": "1", "visual_input": "2", "verdict": "0"}])
    {'LH': 0, 'VI': 0, 'Mix': 1}
    """
    counts = {"LH": 0, "VI": 0, "Mix": 0}
    for answer in answers:
        wrong, unclear = answer["verdict"] == "0", answer["verdict"] == "2"
        if answer["category"] == "VD" and answer["figure_id"] == "0":
            counts["VI"] += wrong or unclear
        elif answer["category"] != "VD" and answer["visual_input"] == "0":
            counts["LH"] += wrong
        else:
            counts["Mix"] += wrong
            counts["VI"] += unclear
    return counts


def pair_failures(answers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count how the pairs fail: each question of a pair may point to language, to vision or to both.

    A pair that fails only for language is LH, only for vision VI, for both Mix.

    Args:
        answers: the parts of the key, visual_input, verdict and ``same`` of each question.

    Raises:
        BadInput: the rule asks for ``same`` and there is none; a pair lacks figure 0; visual_input is neither 1 nor 2 on a
            wrong VS answer with an image.

    >>> place = {"category": "VS", "subcategory": "map", "set_id": "0", "question_id": "0"}
    >>> pair_failures([place | {"figure_id": "0", "visual_input": "0", "verdict": "1", "same": "1"},
    ...                place | {"figure_id": "1", "visual_input": "2", "verdict": "0", "same": "1"}])
    {'LH': 1, 'VI': 0, 'Mix': 0}
    """
    original = {_pair(answer): answer["verdict"] for answer in answers if answer["figure_id"] == "0"}
    blamed: dict[tuple[str, ...], set[str]] = {}
    problems = []
    for answer in answers:
        try:
            blamed.setdefault(_pair(answer), set()).update(_blame(answer, original.get(_pair(answer))))
        except ValueError as error:
            problems.append(f"{'_'.join(_pair(answer))}, figure {answer['figure_id']}: {error}")
    if problems:
        raise BadInput("HallusionBench records", problems, "Judge all answers with same_prompts, or leave same out of all.")
    kinds = {frozenset({"LH"}): "LH", frozenset({"VI"}): "VI", frozenset({"LH", "VI"}): "Mix"}
    found = [kinds[frozenset(blame)] for blame in blamed.values() if blame]
    return {name: found.count(name) for name in ("LH", "VI", "Mix")}


def _blame(answer: Mapping[str, Any], original: str | None) -> set[str]:
    """Return what one answer points to, given the verdict on figure 0 of its pair."""
    verdict, category = answer["verdict"], answer["category"]
    if answer["figure_id"] == "0":
        if category == "VD":
            return {"VI"} if verdict != "1" else set()
        return {"LH"} if verdict == "0" else set()
    if original is None:
        raise ValueError("its pair has no figure 0")
    if verdict == "1":
        return set()
    if verdict == "2":
        return {"LH", "VI"} if category == "VS" and original == "0" else {"VI"}
    if category == "VD":
        return {"LH", "VI"} if original == "1" and _same(answer) else {"VI"}
    if original == "0":
        return {"LH"} if _same(answer) else {"LH", "VI"}
    if original == "2":
        return {"VI"}
    if answer["visual_input"] not in ("1", "2"):
        raise ValueError(f"visual_input is {answer['visual_input']!r}; expected 1 or 2 with an image")
    return {"LH"} if answer["visual_input"] == "2" and _same(answer) else {"VI"}


def _same(answer: Mapping[str, Any]) -> bool:
    if str(answer["same"]) not in ("0", "1"):
        raise ValueError(f"same is {answer['same']!r}; expected 0 or 1")
    return str(answer["same"]) == "1"


def _pair(record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(record.get(part)) for part in _PAIR)
