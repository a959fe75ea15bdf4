"""The replies of a judge: which key of a row holds the reply, whether it is of the question that the row names, what is readable.

MMHal-Bench, HallusionBench, MM-Vet and the pairwise judgement all read rows that a judge's program wrote: the exported row
(an id and the prompt) with the reply added, or a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from prunehal.benchmarks.files import BadInput, some

__all__ = ["REPLY_KEYS", "RULES", "check_rule", "refuse_another_question", "refuse_unreadable", "reply", "unreadable_counts"]

REPLY_KEYS = ("judgement", "judgment", "text", "choices")
RULES = ("official", "strict")

_IMAGES = ("image", "filename", "imagename", "image_src")  # entries that name a file, in whichever folder


def reply(record: Any, key: str | None = None) -> str:
    """Return the text of a judge's reply: the text itself, or what a row holds; a number stands for its digits.

    Args:
        record: a text, a row with the reply under one of `REPLY_KEYS`, or a chat completion.
        key: the key that holds the reply; None takes the one of `REPLY_KEYS` that is there.

    Raises:
        ValueError: no such key, several that differ, or no text there.

    >>> reply({"choices": [{"message": {"content": "Rating: 3"}}]}), reply({"id": "v1_0", "judgement": 0.5}), reply("correct")
    ('Rating: 3', '0.5', 'correct')
    >>> reply({"judgement": "Rating: 3", "text": "A dog."})
    Traceback (most recent call last):
    ValueError: judgement and text could both be the reply, and differ; expected one; Fix: name it with --judgement-key
    """
    if not isinstance(record, Mapping):
        return _text(record, "the reply")
    there = [name for name in (REPLY_KEYS if key is None else (key,)) if name in record]
    if not there:
        wanted = f"one of the keys {', '.join(REPLY_KEYS)}" if key is None else f"the key {key}"
        raise ValueError(f"no text; expected a reply under {wanted}, found {some(map(str, record))}")
    texts = {name: _text(record[name], name) for name in there}
    if len(set(texts.values())) > 1:
        raise ValueError(
            f"{' and '.join(texts)} could both be the reply, and differ; expected one; Fix: name it with --judgement-key"
        )
    return next(iter(texts.values()))


def refuse_another_question(record: Any, question: Mapping[str, Any], name: str, in_prompt: Sequence[str] = ()) -> None:
    """Compare all that a row carries of its question with the question that its id, or its place, names.

    Args:
        record: the row; entries that it does not have are not compared.
        question: what the question's entries are.
        name: what the question is called.
        in_prompt: texts that the row's ``prompt`` holds where it is of this question.

    Raises:
        ValueError: an entry is another one.

    >>> refuse_another_question({"id": "v1_0", "question": "Who?"}, {"question": "What is x?"}, "v1_0")
    Traceback (most recent call last):
    ValueError: question is 'Who?'; expected 'What is x?', as in v1_0; Fix: give each reply the id of its own question
    """
    if not isinstance(record, Mapping):
        return
    for key, wanted in question.items():
        plain = _file_name if key in _IMAGES else _plain
        if key in record and plain(record[key]) != plain(wanted):
            raise _another(key, record[key], repr(wanted), name)
    if "prompt" in record:
        prompt = _plain(record["prompt"])
        for part in in_prompt:
            if _plain(part) not in prompt:
                raise _another("prompt", record["prompt"], f"a prompt with {part!r}", name)


def check_rule(rule: str) -> None:
    """Raise a ValueError unless the rule is official or strict."""
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}: expected one of {', '.join(RULES)}. Fix: leave it out for the official one.")


def unreadable_counts(texts: Sequence[str], readable: Sequence[bool]) -> dict[str, Any]:
    """Return how many replies could not be read, their share, and how many were empty.

    >>> unreadable_counts(["Rating: 3", "", "no idea"], [True, False, False])
    {'unreadable': 2, 'unreadable_share': 0.6666666666666666, 'n_empty': 1}
    """
    unreadable = len(readable) - sum(readable)
    share = unreadable / len(readable) if readable else 0.0
    return {"unreadable": unreadable, "unreadable_share": share, "n_empty": sum(not text.strip() for text in texts)}


def refuse_unreadable(what: str, texts: Sequence[str], readable: Sequence[bool], expected: str) -> None:
    """Raise BadInput when there are replies and not one of them can be read.

    >>> refuse_unreadable("the judgements", ["?", "Rating: 3"], [False, True], "'Rating: 0' to 'Rating: 6'")
    """
    if texts and not any(readable):
        problem = f"none of the {len(texts)} replies can be read, such as {texts[0][:60]!r}; expected {expected}"
        raise BadInput(what, [problem], "Check the key that holds the replies (--judgement-key), and what the judge was asked.")


def _text(value: Any, name: str) -> str:
    if isinstance(value, list):  # the choices of a chat completion
        try:
            value = value[0]["message"]["content"]
        except (LookupError, TypeError):
            value = None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} holds no text; expected a judge's reply, or a chat completion under choices")
    return value


def _another(key: str, given: Any, wanted: str, name: str) -> ValueError:
    return ValueError(
        f"{key} is {repr(given)[:80]}; expected {wanted[:80]}, as in {name}; Fix: give each reply the id of its own question"
    )


def _plain(value: Any) -> str:
    return " ".join(str(value).split()).casefold()


def _file_name(value: Any) -> str:
    return PurePosixPath(_plain(value).replace("\\", "/")).name
