"""Find keys of a row, besides those that a reader takes, which may hold the model's output.

Files keep a model's output under any key ("llava", "result", "pred_caption"), next to a truth, a reference or a prompt under a
usual one. Scoring what stands under the usual key would then give a wrong number without any error. The usual names of other
fields of questions and runs are never taken for such a key; for all others, the content decides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["free_text", "undecided"]

_FIELDS = frozenset({
    "question", "prompt", "query", "text", "instruction", "system", "image", "images", "img", "pixels", "picture", "label",
    "labels", "gt", "gts", "truth", "target", "targets", "ground_truth", "gt_answer", "gt_ans", "gt_caption", "gt_captions",
    "reference", "references", "ref", "refs", "annotation", "annotations", "hallu", "category", "source", "dataset", "split",
    "subset", "task", "group", "domain", "difficulty", "level", "object", "objects", "entity", "noun", "options", "question_type",
    "answer_type", "model", "method", "decoding", "metadata", "meta", "config", "args", "params", "settings", "metrics", "qid",
    "idx", "index", "key", "rank", "timestamp", "date", "seed", "correct", "is_correct", "acc", "accuracy", "score",
    "exact_match", "license", "note", "comment",
})  # fmt: skip
# A name, or the last part of one, such as answer_id, image_path or finish_reason.
_LAST = frozenset({
    "id", "ids", "file", "files", "path", "name", "url", "source", "type", "time", "seconds", "version", "seed", "tokens",
    "words", "length", "size", "format", "reason", "hash", "date", "config", "args", "params", "metadata", "prompt", "question",
    "instruction",
})  # fmt: skip
_PARTS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+")


def free_text(row: Mapping[str, Any], usual: Collection[str]) -> str | None:
    """Return the first key outside of the usual and the known ones under which a sentence stands: three words or more, or two
    with a full stop; None if there is no such key.

    >>> free_text({"image_id": 1, "caption": "A cat.", "pred_caption": ["A man rides a horse."]}, ("image_id", "caption"))
    'pred_caption'
    >>> free_text({"image_id": 1, "caption": "A cat.", "model_id": "of three words", "tag": "val2014"}, ("caption",))
    """
    return next((key for key, value in row.items() if key not in usual and not _known(key, value) and _sentence(value)), None)


def undecided(rows: Collection[Mapping[str, Any]], usual: Collection[str]) -> str | None:
    """Return the first key outside of the usual and the known ones which may hold answers to yes-or-no questions, or None.

    Answers are texts, true or false, 0 or 1, or lists and objects of these; other numbers anywhere under a key are none.

    >>> undecided([{"answer": "no", "ms": 12, "pred_yes": True}, {"answer": "yes", "ms": 1, "pred_yes": False}], ("answer",))
    'pred_yes'
    >>> undecided([{"answer": "no", "ms": 1, "answer_id": "x", "options": ["Yes", "No"]}, {"answer": "no", "ms": 3}], ("answer",))
    """
    may: dict[str, bool] = {}
    for row in rows:
        for key, value in row.items():
            if key not in usual and not _known(key, value):
                may[key] = may.get(key, True) and (_answers(value) or value in (None, "", [], {}))
    filled = {key for row in rows for key, value in row.items() if may.get(key) and _answers(value)}
    return next((key for key in may if key in filled), None)


def _known(key: str, value: Any) -> bool:
    if key == "model" and not isinstance(value, str):
        return False  # not the model's name
    return key.casefold() in _FIELDS or (_PARTS.findall(key) or [key])[-1].casefold() in _LAST


def _sentence(value: Any) -> bool:
    if isinstance(value, str):
        n = len(value.split())
        return n > 2 or (n == 2 and value.rstrip().endswith((".", "!")))
    if isinstance(value, Mapping | list):
        return any(map(_sentence, value.values() if isinstance(value, Mapping) else value))
    return False


def _answers(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, Mapping | list):
        return any(map(_answers, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, int | float) and value in (0, 1)
