"""Refuse: settings that cannot be, named with their value, what was expected and the fix."""

from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real

import numpy as np

__all__ = [
    "as_count",
    "as_number",
    "check_choice",
    "check_count",
    "check_flag",
    "check_fraction",
    "check_positive",
    "plain_numbers",
    "refuse",
]


def refuse(name: str, value: object, expected: str, fix: str) -> ValueError:
    """Return the error for a setting that cannot be.

    >>> str(refuse("r", 2, "a number in (0, 1]", "r is a fraction, e.g. r=0.4."))
    'r=2: expected a number in (0, 1]. r is a fraction, e.g. r=0.4.'
    """
    return ValueError(f"{name}={value!r}: expected {expected}. {fix}")


def check_choice(setting: object, name: str, choices: Sequence[str]) -> None:
    """Raise a ValueError unless the attribute is one of the choices; the first is the default."""
    value = getattr(setting, name)
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise refuse(name, value, f"one of {known}", f"Set {name}={choices[0]!r}, the default.")


def as_count(value: object) -> int | None:
    """Return an integer of any library, such as NumPy's, as Python's int; None for all else, True and False included.

    >>> as_count(3), as_count(np.int64(3)), as_count(True), as_count(3.0)
    (3, 3, None, None)
    """
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def as_number(value: object) -> float | int | None:
    """Return a real number of any library, such as NumPy's, as Python's own; None for all else, True and False included.

    >>> as_number(0.5), as_number(np.float64(0.5)), as_number(np.int8(1)), as_number(True), as_number("0.5")
    (0.5, 0.5, 1, None, None)
    """
    if isinstance(value, Integral):
        return as_count(value)
    return float(value) if isinstance(value, Real) else None


def plain_numbers(setting: object) -> None:
    """Convert the numbers and flags of a frozen setting, also in its tuples, to Python's own types; other values stay.

    So a setting with ``t=np.int64(3)`` equals, prints, hashes and is stored as the one with ``t=3``.
    """
    for field in fields(setting):
        object.__setattr__(setting, field.name, _plain(getattr(setting, field.name)))


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, np.bool_):
        return bool(value)
    number = as_number(value)
    return value if number is None else number


def check_fraction(setting: object, name: str, fix: str) -> None:
    """Raise a ValueError unless the attribute is a number in (0, 1]."""
    value = getattr(setting, name)
    number = as_number(value)
    if number is None or not 0 < number <= 1:
        raise refuse(name, value, "a number in (0, 1]", fix)


def check_positive(setting: object, name: str, fix: str) -> None:
    """Raise a ValueError unless the attribute is a finite number above 0."""
    value = getattr(setting, name)
    number = as_number(value)
    if number is None or not 0 < number < float("inf"):
        raise refuse(name, value, "a number above 0", fix)


def check_count(setting: object, name: str, least: int, fix: str) -> None:
    """Raise a ValueError unless the attribute is an integer of at least ``least``."""
    value = getattr(setting, name)
    count = as_count(value)
    if count is None or count < least:
        raise refuse(name, value, f"an integer of at least {least}", fix)


def check_flag(setting: object, name: str, fix: str) -> None:
    """Raise a ValueError unless the attribute is True or False."""
    value = getattr(setting, name)
    if not isinstance(value, bool):
        raise refuse(name, value, "True or False", fix)
