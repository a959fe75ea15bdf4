"""Refuse: settings that cannot be, named with their value, what was expected and the fix."""

from collections.abc import Sequence

__all__ = ["check_choice", "check_count", "check_flag", "check_fraction", "check_positive", "refuse"]


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


def check_fraction(setting: object, name: str, fix: str) -> None:
    """Raise a ValueError unless the attribute is a number in (0, 1]."""
    value = getattr(setting, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise refuse(name, value, "a number in (0, 1]", fix)


def check_positive(setting: object, name: str, fix: str) -> None:
    """Raise a ValueError unless the attribute is a finite number above 0."""
    value = getattr(setting, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise refuse(name, value, "a number above 0", fix)


def check_count(setting: object, name: str, least: int, fix: str) -> None:
    """Raise a ValueError unless the attribute is an integer of at least ``least``."""
    value = getattr(setting, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise refuse(name, value, f"an integer of at least {least}", fix)


def check_flag(setting: object, name: str, fix: str) -> None:
    """Raise a ValueError unless the attribute is True or False."""
    value = getattr(setting, name)
    if not isinstance(value, bool):
        raise refuse(name, value, "True or False", fix)
