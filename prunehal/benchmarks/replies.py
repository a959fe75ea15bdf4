"""Find a judge's reply in a row, check that it is about the question that the row names, and count what cannot be read.

MMHal-Bench, HallusionBench, MM-Vet and the pairwise judgement all read rows that a judge's program wrote: the exported row
(an id and the prompt) with the reply added, or a part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from prunehal.files.records import BadInput, some

__all__ = [
    "REPLY_KEYS", "RULES", "check_rule", "refuse_another_question", "refuse_other_verdicts", "refuse_unreadable", "reply",
    "unreadable_counts",
]  # fmt: skip

REPLY_KEYS = ("judgement", "judgment", "text", "choices")
RULES = ("official", "strict")

# Other entries under which rows in use have a verdict, or the reply that it was read from; and any *_gpt_check.
_VERDICTS = ("score", "grade", "rating", "verdict", "reply", "response", "gpt")
_CHECK = "_gpt_check"

_IMAGES = ("image", "filename", "imagename", "image_src")  # entries that name a file, in whichever folder


def reply(record: Any, key: str | None = None, read: Callable[[str], Any] | None = None) -> str:
    """Return the text of a judge's reply: the text itself, or what a row holds; a number is returned as its digits.

    Args:
        record: a text, a row with the reply under one of `REPLY_KEYS`, or a chat completion.
        key: the key that holds the reply; None takes the one of `REPLY_KEYS` that is there.
        read: from a text to the verdict that it holds, or None; with it, and without a key, other entries of the row are
            compared (see `refuse_other_verdicts`).

    Raises:
        ValueError: no such key, several that differ, no text there, or another entry with another verdict.

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
    if key is None and read is not None:
        refuse_other_verdicts(record, there[0], texts[there[0]], read)
    return texts[there[0]]


def refuse_other_verdicts(record: Mapping[str, Any], taken: str, text: str, read: Callable[[str], Any]) -> None:
    """Compare the verdict that is taken with those that a row may have under other keys.

    Other keys are score, grade, rating, verdict, reply, response, gpt and any ``*_gpt_check``. Beside ``text``, which is the
    model's own answer in many files, each of them must hold the same verdict; beside other keys, each that holds one at all.

    Args:
        record: the row.
        taken: the key that is taken.
        text: what it holds.
        read: from a text to the verdict that it holds, or None.

    Raises:
        ValueError: an entry holds another verdict.

    >>> refuse_other_verdicts({"text": "1 dog", "grade": 0.0}, "text", "1 dog", lambda text: float(text[0]))
    Traceback (most recent call last):
    ValueError: text '1 dog' and grade 0.0 could both be the verdict, and differ; expected one; Fix: name it with --judgement-key
    """
    verdict = read(text)
    for name, value in record.items():
        if name == taken or value is None or not (name in _VERDICTS or name.endswith(_CHECK)):
            continue
        try:
            other = read(_text(value, name))
        except ValueError:
            other = None
        if other != verdict and (other is not None or taken == "text"):
            raise ValueError(
                f"{taken} {text[:40]!r} and {name} {repr(value)[:40]} could both be the verdict, and differ; expected one; "
                "Fix: name it with --judgement-key"
            )


def refuse_another_question(record: Any, question: Mapping[str, Any], name: str, in_prompt: Sequence[str] = ()) -> None:
    """Refuse a row in which an entry of its question is not that of the question which its id, or its place, names.

    Args:
        record: the row; entries that it does not have are not compared.
        question: what the question's entries are.
        name: the question's name in error messages.
        in_prompt: texts that the row's ``prompt``, if it has one, must contain.

    Raises:
        ValueError: an entry differs from that of the question.

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
        raise BadInput(what, [problem], "Check the key that holds the replies (--judgement-key), and the judge's prompt.")


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
