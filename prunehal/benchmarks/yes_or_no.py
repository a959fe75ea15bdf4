"""What an answer to a yes-or-no question is read as: the strict rule, which POPE and AMBER share, and what both count.

Each benchmark has an official rule of its own. The official rule of POPE takes nearly any text for a yes or a no, that of AMBER
nothing but exactly Yes and No. By the strict rule the first word decides, in both.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

__all__ = ["RULES", "check_rule", "counts", "first_word", "label_of"]

RULES = ("official", "strict")

_LABELS = {"yes": "yes", "no": "no", "1": "yes", "0": "no", "true": "yes", "false": "no"}
_EDGE = re.compile(r"^[\W_]+|[\W_]+$")  # punctuation and underscores around a word


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


def label_of(value: Any) -> str | None:
    """Return ``"yes"`` or ``"no"`` for a label in any way of writing it, otherwise None.

    >>> label_of("Yes"), label_of(0), label_of(True), label_of("perhaps")
    ('yes', 'no', 'yes', None)
    """
    return _LABELS.get(str(value).strip().rstrip(".").lower()) if isinstance(value, str | int) else None
