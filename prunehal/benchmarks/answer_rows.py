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
from prunehal.benchmarks.yes_or_no import first_word, label_of

__all__ = ["ANSWER_KEYS", "Asked", "Taken", "WrongRows", "answer_in", "compared", "one_key", "refuse_wrong", "typed", "words"]

ANSWER_KEYS = (
    "answer", "response", "prediction", "ans", "model_answer", "model_output", "model_response", "output", "outputs", "pred",
    "predicted_answer", "pred_answer", "generated_text", "generated_answer", "reply", "text",
)  # fmt: skip
_QUESTION_KEYS = ("question", "prompt", "query", "text")
_IMAGE_KEYS = ("image", "image_id", "image_file", "image_path", "image_name", "image_source", "file_name", "filename")
_LABEL_KEYS = ("label", "gt", "gt_answer", "gt_ans", "ground_truth", "truth", "target")
_ID_KEYS = ("question_id", "id", "answer_id", "model_id")
_NAMED = frozenset(_QUESTION_KEYS + _IMAGE_KEYS + _LABEL_KEYS + _ID_KEYS)
_SUFFIXES = (".jpg", ".jpeg", ".png")
_LONGEST_NAME = 300  # a longer text under image is no name but the picture itself


class WrongRows(ValueError):
    """Rows that belong to other questions, or whose answer could be several things: a fault of the whole file."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer of a row, the key that held it, and all keys of ANSWER_KEYS that could have."""

    key: str
    text: str
    able: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, for the comparison with a row that answers it.

    Attributes:
        name: how messages name the question, such as ``question_id 7``.
        text: the question.
        image: file name of its image.
        label: ``yes`` or ``no``; None if a text was asked for, by this prompt or by any other that is no question of ``others``.
        others: all questions of the file as `words` gives them, so that another one is known when a row names it.
    """

    name: str
    text: str
    image: str
    label: str | None = None
    others: Collection[str] = field(default=(), repr=False)


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


def answer_in(row: Mapping[str, Any], asked: Asked, key: str | None, reads: Callable[[str], Hashable]) -> Taken:
    """Return the answer of a row, which may be empty.

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
    Taken(key='ans', text='Yes.', able=('ans',))
    >>> answer_in({"answer": "no", "prediction": "Yes"}, asked, "prediction", first_word).text
    'Yes'
    >>> answer_in({"answer": "no", "prediction": "Yes"}, asked, None, first_word)
    Traceback (most recent call last):
    prunehal.benchmarks.answer_rows.WrongRows: answer is 'no' and prediction is 'Yes'; expected one key that could be the \
answer; Fix: name it by --answer-key answer or --answer-key prediction (answer_key=...)
    """
    if key is not None:
        if key not in row:
            raise ValueError(f"no {key}; expected the key of --answer-key, found {sorted(row)}")
        return Taken(key, typed(row[key], str, key, "text"), (key,))
    question = words(asked.text)
    there = [name for name in (*ANSWER_KEYS, *(["caption"] if asked.label is None else [])) if name in row]
    able = [name for name in there if not (isinstance(row[name], str) and words(row[name]) == question)]
    if there and not able:
        raise ValueError(f"{there[0]} repeats the question; expected the answer under one of the keys {', '.join(ANSWER_KEYS)}")
    if len(able) > 1 and "text" in able and _is_question(row["text"], asked):
        able.remove("text")
    if not able:
        raise ValueError(f"no answer; expected one of the keys {', '.join(ANSWER_KEYS)}, found {sorted(row)}")
    rest = [] if asked.label is None else [name for name in row if name not in there and name not in _NAMED]
    rest = [name for name in rest if isinstance(row[name], str) and first_word(row[name]) is not None]
    taken = able[0]
    for other in able[1:] + rest:  # a key of any name may hold the model's yes or no beside the truth
        both = isinstance(row[taken], str) and isinstance(row[other], str)
        if not both or reads(row[taken]) != reads(row[other]):
            raise WrongRows(
                f"{taken} is {repr(row[taken])[:40]} and {other} is {repr(row[other])[:40]}; expected one key that could be the "
                f"answer; Fix: name it by --answer-key {taken} or --answer-key {other} (answer_key=...)"
            )
    return Taken(taken, typed(row[taken], str, taken, "text"), tuple(able))


def one_key(able: Mapping[tuple[str, ...], str]) -> list[str]:
    """Return a problem if the answers of a file stand under other keys from row to row: one of them may be the truth.

    Args:
        able: the keys that could hold the answer -> the first row that has just these.

    >>> len(one_key({("answer",): "line 1"})), len(one_key({("answer", "prediction"): "line 1", ("answer",): "line 7"}))
    (0, 1)
    """
    if len(able) < 2:
        return []
    (at, first), (where, other) = [(place, " and ".join(keys)) for keys, place in able.items()][:2]
    return [
        f"{at} has an answer under {first}, {where} under {other}; expected the same keys in all rows; Fix: name one by "
        "--answer-key (answer_key=...)"
    ]


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
            if (equal := same(row[key], asked)) is None:
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
    named = f" {words(asked.text)} " in f" {given} " or given in asked.others
    return named or (asked.label is not None and value.rstrip().endswith("?"))


def _same_question(value: Any, asked: Asked) -> bool | None:
    given = "\n".join(_texts(value))
    if not given:
        return None if value in (None, "", [], {}) else False
    given, wanted = words(given), words(asked.text)
    if given == wanted or given in asked.others:
        return given == wanted
    return f" {wanted} " in f" {given} " or (None if asked.label is None else False)


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
