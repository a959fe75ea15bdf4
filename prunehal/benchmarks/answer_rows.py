"""Find the answer in a row, and check that the row belongs to the question that it is joined with.

POPE and AMBER share this. Files of answers come in many layouts, and a wrong guess would be a wrong score without any error.
Therefore several keys may hold the answer only if they read alike, and a row that has a question, an image or a label must have
those of its question. Either fault makes the whole file doubtful, not one line, so `WrongRows` is never skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from prunehal.benchmarks.chair.captions import image_number
from prunehal.benchmarks.other_keys import free_text, undecided
from prunehal.benchmarks.yes_or_no import first_word, label_of
from prunehal.files.records import BadInput

__all__ = [
    "ANSWER_KEYS",
    "Asked",
    "Taken",
    "WrongRows",
    "answer_in",
    "compared",
    "one_key",
    "only_truth",
    "refuse_wrong",
    "typed",
    "words",
]

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
_FEW = 3  # rows: fewer answers may all be right by chance
_LONGEST_NAME = 300  # a longer text under image is the encoded image itself, not a name


class WrongRows(ValueError):
    """Rows that belong to other questions, or whose answer could be several things: a fault of the whole file."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer of a row, the key that held it, and all keys of ANSWER_KEYS that could have held it."""

    key: str
    text: str
    able: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, to compare with a row that answers it.

    Attributes:
        name: how messages name the question, such as ``question_id 7``.
        text: the question.
        image: file name of its image.
        label: ``yes`` or ``no``; None if the answer is a caption, whose prompt may be any but one of ``others``.
        others: all questions of the file, as `words` gives them; a row that has another one of them than its own is refused.
    """

    name: str
    text: str
    image: str
    label: str | None = None
    others: Collection[str] = field(default=(), repr=False)


def typed(value: Any, kind: Any, name: str, expected: str) -> Any:
    """Return a field's value if it is of that type; True and False are not taken for numbers.

    Args:
        value: what the field holds.
        kind: the type, or several (``int | str``).
        name: the field, for the error.
        expected: the type in words, for the error.

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
        asked: the question that it answers.
        key: the key to take; by default that of ANSWER_KEYS which is there (or caption, where no yes or no was asked for).
        reads: what scoring reads in an answer; two keys hold the same answer if this is equal.

    Raises:
        WrongRows: several keys could hold the answer, and they read differently; or a text was asked for, and another one
            stands under a key of any name.
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
    if asked.label is None and (other := free_text(row, {*there, *_NAMED})) is not None:
        raise WrongRows(
            f"{taken} is {repr(row[taken])[:40]} and {other} is {repr(row[other])[:40]}; expected one key that could be the "
            f"response; Fix: name it by --answer-key {taken} or --answer-key {other} (answer_key=...)"
        )
    return Taken(taken, typed(row[taken], str, taken, "text"), tuple(able))


def only_truth(answered: Sequence[tuple[Mapping[str, Any], Taken, str | None]]) -> list[str]:
    """Return a problem if what was taken for answers may be the truth: it is the label in every row, and another key may hold
    the model's output.

    Args:
        answered: the rows, what was taken for the answer of each, and the label of its question. Fewer than three prove nothing.

    >>> row = {"answer": "no", "llava": "A dog."}
    >>> only_truth([(row, Taken("answer", "no", ("answer",)), "no")] * 3)
    ["answer is the label of the question in all 3 rows, and llava may hold the model's answers (the first is 'A dog.'); \
expected one key that could be the answer; Fix: name it by --answer-key llava or --answer-key answer (answer_key=...)"]
    """
    if len(answered) < _FEW or any(label is None or label_of(taken.text) != label for _, taken, label in answered):
        return []
    rows = [row for row, *_ in answered]
    if (other := undecided(rows, {*ANSWER_KEYS, *_NAMED})) is None:
        return []
    key = answered[0][1].key
    first = next(row[other] for row in rows if other in row)
    return [
        f"{key} is the label of the question in all {len(rows)} rows, and {other} may hold the model's answers (the first is "
        f"{repr(first)[:40]}); expected one key that could be the answer; Fix: name it by --answer-key {other} or --answer-key "
        f"{key} (answer_key=...)"
    ]


def one_key(able: Mapping[tuple[str, ...], str]) -> list[str]:
    """Return a problem if the key of the answer changes from row to row, because one of the keys may hold the truth.

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
    """Compare the question, image and label of a row with those that it is joined with; return which of the three it has.

    A question or prompt must contain the words of the question, whatever stands around them. Of an image only the name counts:
    folder, suffix and a COCO name's prefix do not. A label may be written as yes, Yes, 1 or true.

    Args:
        row: an object of the file.
        asked: the question that it is joined with.
        answer_key: the key that holds the answer, which is not compared.

    Returns:
        Of ``question``, ``image`` and ``label`` those that the row has.

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
    """Return the words of a text without case and punctuation, so that different spellings of one question are equal.

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
