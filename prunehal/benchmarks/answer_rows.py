"""Which field of a row holds the answer, and whether the row belongs to the question that it is joined with.

POPE and AMBER share this. Files of answers come in many layouts, and a wrong guess is a wrong number that nobody sees. So:
several keys may hold the answer only if they read alike; a row that names a question, an image or a label must name those of
its question. Both faults are of the file, not of a line, so `WrongRows` is never skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from prunehal.benchmarks.captions import image_number
from prunehal.benchmarks.files import BadInput

__all__ = [
    "ANSWER_KEYS", "RULES", "Asked", "WrongRows", "answer_in", "check_rule", "compared", "counts", "first_word", "label_of",
    "refuse_wrong", "typed", "words",
]  # fmt: skip

RULES = ("official", "strict")
ANSWER_KEYS = (
    "answer", "response", "prediction", "ans", "model_answer", "model_output", "model_response", "output", "outputs", "pred",
    "predicted_answer", "pred_answer", "generated_text", "generated_answer", "reply", "text",
)  # fmt: skip
_QUESTION_KEYS = ("question", "prompt", "query", "text")
_IMAGE_KEYS = ("image", "image_id", "image_file", "image_path", "image_name", "image_source", "file_name", "filename")
_LABEL_KEYS = ("label", "gt", "gt_answer", "gt_ans", "ground_truth", "truth", "target")
_ID_KEYS = ("question_id", "id", "answer_id", "model_id")
_NAMED = frozenset(_QUESTION_KEYS + _IMAGE_KEYS + _LABEL_KEYS + _ID_KEYS)
_LABELS = {"yes": "yes", "no": "no", "1": "yes", "0": "no", "true": "yes", "false": "no"}
_EDGE = re.compile(r"^[\W_]+|[\W_]+$")  # punctuation and underscores around a word
_SUFFIXES = (".jpg", ".jpeg", ".png")
_LONGEST_NAME = 300  # a longer text under image is no name but the picture itself


class WrongRows(ValueError):
    """Rows that belong to other questions, or whose answer could be several things: a fault of the whole file."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, for the comparison with a row that answers it.

    Attributes:
        name: how messages name the question, such as ``question_id 7``.
        text: the question; None if any prompt may have been used.
        image: file name of its image.
        label: ``yes`` or ``no``; None if the answer is no yes or no.
        others: all questions of the file as `words` gives them, so that another one is known when a row names it.
    """

    name: str
    text: str | None
    image: str
    label: str | None = None
    others: Collection[str] = field(default=(), repr=False)


def first_word(text: str) -> str | None:
    """Return ``"yes"`` or ``"no"`` where the first word is one of them, without punctuation and case; otherwise None.

    >>> first_word("**NO**, there is none"), first_word("Yes."), first_word("There is no dog")
    ('no', 'yes', None)
    """
    word = next(filter(None, (_EDGE.sub("", token) for token in text.split())), "").lower()
    return word if word in ("yes", "no") else None


def check_rule(rule: str, benchmark: str) -> None:
    """Raise a ValueError unless the rule is ``official`` or ``strict``."""
    if rule not in RULES:
        raise ValueError(f"unknown {benchmark} rule {rule!r}; expected one of {list(RULES)}")


def counts(texts: Collection[str], n_unreadable: int, hint: str) -> dict[str, int | float]:
    """Return n, n_empty, n_unreadable and unreadable (their share, from 0 to 1) for a report.

    Args:
        texts: the answers.
        n_unreadable: in how many of them the rule finds no answer.
        hint: what was expected of an answer, and the fix, for the error.

    Raises:
        ValueError: none of them can be read, so that every number would say nothing about the model.

    >>> counts(["Yes", "", "A dog"], 2, "expected yes or no")
    {'n': 3, 'n_empty': 1, 'n_unreadable': 2, 'unreadable': 0.6666666666666666}
    """
    if n_unreadable == len(texts):
        first = next(iter(texts))
        raise ValueError(f"none of the {len(texts)} answers can be read, the first is {first[:60]!r}; {hint}")
    n_empty = sum(not text.strip() for text in texts)
    return {"n": len(texts), "n_empty": n_empty, "n_unreadable": n_unreadable, "unreadable": n_unreadable / len(texts)}


def typed(value: Any, kind: Any, name: str, expected: str) -> Any:
    """Return a field's value if it is of that type; True is no number.

    Raises:
        ValueError: it is of another type.

    >>> typed(7, int | str, "question_id", "a number or text")
    7
    >>> typed(True, int | str, "question_id", "a number or text")
    Traceback (most recent call last):
    ValueError: question_id is True; expected a number or text
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise ValueError(f"{name} is {repr(value)[:40]}; expected {expected}") from None


def answer_in(row: Mapping[str, Any], asked: Asked, key: str | None, reads: Callable[[str], Hashable]) -> tuple[str, str]:
    """Return the key that holds a row's answer, and the answer, which may be empty.

    Args:
        row: an object of the file.
        asked: what it answers.
        key: the key to take; by default that of ANSWER_KEYS which is there (or caption, where no yes or no was asked for).
        reads: what scoring makes of an answer: two keys hold the same if this is equal.

    Raises:
        WrongRows: several keys could hold the answer, and they read differently.
        ValueError: no such key, or no text under it.

    >>> asked = Asked("question_id 1", "Is there a dog?", "a.jpg", "no")
    >>> answer_in({"question": "Is there a dog?", "ans": "Yes."}, asked, None, first_word)
    ('ans', 'Yes.')
    >>> answer_in({"answer": "no", "prediction": "Yes"}, asked, "prediction", first_word)
    ('prediction', 'Yes')
    >>> answer_in({"answer": "no", "prediction": "Yes"}, asked, None, first_word)
    Traceback (most recent call last):
    prunehal.benchmarks.answer_rows.WrongRows: answer is 'no' and prediction is 'Yes'; expected one key that could be the \
answer; Fix: name it by --answer-key answer or --answer-key prediction (answer_key=...)
    """
    if key is not None:
        if key not in row:
            raise ValueError(f"no {key}; expected the key of --answer-key, found {sorted(row)}")
        return key, typed(row[key], str, key, "text")
    question = None if asked.text is None else words(asked.text)
    there = [name for name in (*ANSWER_KEYS, *(["caption"] if asked.label is None else [])) if name in row]
    able = [name for name in there if not (question and isinstance(row[name], str) and words(row[name]) == question)]
    if there and not able:
        raise ValueError(f"{there[0]} repeats the question; expected the answer under one of the keys {', '.join(ANSWER_KEYS)}")
    if len(able) > 1 and "text" in able and _is_question(row["text"], asked):
        able.remove("text")
    if not able:
        raise ValueError(f"no answer; expected one of the keys {', '.join(ANSWER_KEYS)}, found {sorted(row)}")
    if asked.label is not None:  # a key of any name may hold the model's yes or no beside the truth
        rest = [name for name in row if name not in able and name not in _NAMED and name not in there]
        able += [name for name in rest if isinstance(row[name], str) and first_word(row[name]) is not None]
    taken = able[0]
    for other in able[1:]:
        both = isinstance(row[taken], str) and isinstance(row[other], str)
        if not both or reads(row[taken]) != reads(row[other]):
            raise WrongRows(
                f"{taken} is {repr(row[taken])[:40]} and {other} is {repr(row[other])[:40]}; expected one key that could be the "
                f"answer; Fix: name it by --answer-key {taken} or --answer-key {other} (answer_key=...)"
            )
    return taken, typed(row[taken], str, taken, "text")


def compared(row: Mapping[str, Any], asked: Asked, answer_key: str) -> set[str]:
    """Compare a row with the question that it is joined with, in all that it carries; return what that was.

    A question or prompt must contain the words of the question, whatever stands around them. Of an image only the name counts:
    folder, suffix and a COCO name's prefix do not. A label may be written as yes, Yes, 1 or true.

    Raises:
        WrongRows: it carries another question, image or label.

    >>> asked = Asked("question_id 1", "Is there a dog?", "COCO_val2014_000000000042.jpg", "no")
    >>> sorted(compared({"prompt": "USER: is there a dog? Yes or no?", "image_id": 42, "answer": "No"}, asked, "answer"))
    ['image', 'question']
    >>> compared({"image": "val2014/COCO_val2014_000000000043.jpg", "answer": "No"}, asked, "answer")
    Traceback (most recent call last):
    prunehal.benchmarks.answer_rows.WrongRows: image is 'val2014/COCO_val2014_000000000043.jpg'; expected \
'COCO_val2014_000000000042.jpg' (question_id 1); Fix: score against the questions that were asked, in their order
    """
    done = set()
    for what, keys, same, wanted in (
        ("question", _QUESTION_KEYS, _same_question, asked.text),
        ("image", _IMAGE_KEYS, _same_image, asked.image),
        ("label", _LABEL_KEYS, _same_label, asked.label),
    ):
        for key in keys:
            if wanted is None or key == answer_key or key not in row or (key == "text" and not _is_question(row[key], asked)):
                continue
            if (equal := same(row[key], asked)) is None and key != "label":
                continue  # nothing there that could be compared
            if not equal:
                raise WrongRows(
                    f"{key} is {repr(row[key])[:80]}; expected {wanted!r} ({asked.name}); Fix: score against the questions that "
                    "were asked, in their order"
                )
            done.add(what)
    return done


def refuse_wrong(path: Path | str, problems: Collection[str]) -> None:
    """Raise BadInput if there are problems of `WrongRows`, which no flag skips."""
    if problems:
        raise BadInput(path, list(problems), "These rows cannot be skipped: what they hold makes the other rows doubtful too.")


def label_of(value: Any) -> str | None:
    """Return ``"yes"`` or ``"no"`` for a label in any way of writing it, otherwise None.

    >>> label_of("Yes"), label_of(0), label_of(True), label_of("perhaps")
    ('yes', 'no', 'yes', None)
    """
    return _LABELS.get(str(value).strip().rstrip(".").lower()) if isinstance(value, str | int) else None


def words(text: str) -> str:
    """Return the words of a text without case and punctuation, so that ways of writing one question are equal.

    >>> words("  Is there a Dog\\nin the image?")
    'is there a dog in the image'
    """
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()


def _is_question(value: Any, asked: Asked) -> bool:
    """Whether a text that stands under ``text`` is a question, not the answer."""
    if not isinstance(value, str):
        return False
    given = words(value)
    if asked.text is None:
        return given in asked.others
    return f" {words(asked.text)} " in f" {given} " or given in asked.others or value.rstrip().endswith("?")


def _same_question(value: Any, asked: Asked) -> bool | None:
    given = "\n".join(_texts(value))
    if not given:
        return None if value in (None, "", [], {}) else False
    given, wanted = words(given), words(asked.text or "")
    return given == wanted or (given not in asked.others and f" {wanted} " in f" {given} ")


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a prompt, which may be a list of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _same_image(value: Any, asked: Asked) -> bool | None:
    if isinstance(value, bool) or not isinstance(value, str | int) or not 0 < len(str(value)) <= _LONGEST_NAME:
        return None
    given, wanted = (image_number(str(name)) for name in (value, asked.image))
    return _stem(str(value)) == _stem(asked.image) or (given is not None and given == wanted)


def _stem(name: str) -> str:
    path = PurePosixPath(name.strip().replace("\\", "/").casefold())
    return path.stem if path.suffix in _SUFFIXES else path.name


def _same_label(value: Any, asked: Asked) -> bool | None:
    label = label_of(value)
    return None if label is None else label == asked.label
