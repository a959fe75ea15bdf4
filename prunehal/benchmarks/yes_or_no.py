"""Read answers to yes-or-no questions by the strict rule, which POPE and AMBER share, and count those that are unreadable.

Each benchmark has an official rule of its own. The official rule of POPE takes nearly any text for a yes or a no, that of AMBER
nothing but exactly Yes and No. By the strict rule the first word decides, in both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from prunehal.benchmarks.replies import unreadable_counts

__all__ = ["counts", "first_word", "label_of"]

_LABELS = {"yes": "yes", "no": "no", "1": "yes", "0": "no", "true": "yes", "false": "no"}
_EDGE = re.compile(r"^[\W_]+|[\W_]+$")  # punctuation and underscores around a word


def first_word(text: str) -> str | None:
    """Return ``"yes"`` or ``"no"`` where the first word is one of them, without punctuation and case; otherwise None.

    >>> first_word("**NO**, there is none"), first_word("Yes."), first_word("There is no dog")
    ('no', 'yes', None)
    """
    word = next(filter(None, (_EDGE.sub("", token) for token in text.split())), "").lower()
    return word if word in ("yes", "no") else None


def counts(texts: Collection[str], readable: Sequence[bool], hint: str) -> dict[str, int | float]:
    """Return n, n_empty, unreadable (how many the rule cannot read) and unreadable_share for a report.

    Args:
        texts: the answers.
        readable: whether the rule finds an answer in each.
        hint: what was expected of an answer, and the fix, for the error.

    Raises:
        ValueError: none of the answers can be read, so that a score would not measure the model.

    >>> counts(["Yes", "", "A dog"], [True, False, False], "expected yes or no")
    {'n': 3, 'unreadable': 2, 'unreadable_share': 0.6666666666666666, 'n_empty': 1}
    """
    if not any(readable):
        first = next(iter(texts))
        raise ValueError(f"none of the {len(texts)} answers can be read, the first is {first[:60]!r}; {hint}")
    return {"n": len(texts), **unreadable_counts(list(texts), readable)}


def label_of(value: Any) -> str | None:
    """Return ``"yes"`` or ``"no"`` for a label in any way of writing it, otherwise None.

    >>> label_of("Yes"), label_of(0), label_of(True), label_of("perhaps")
    ('yes', 'no', 'yes', None)
    """
    return _LABELS.get(str(value).strip().rstrip(".").lower()) if isinstance(value, str | int) else None
