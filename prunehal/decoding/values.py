"""Check hyper-parameters alike for all decoders: a number in an interval, or a count; True and False are neither."""

from __future__ import annotations

import math

from prunehal.core.checks import as_count, as_number, refuse

__all__ = ["check_count", "check_number"]


def check_number(name: str, value: object, within: str, fix: str) -> None:
    """Refuse what is no number of an interval.

    Args:
        name: of the parameter.
        value: of it.
        within: the interval as it is written in mathematics, with ``inf`` for no upper end.
        fix: last sentence of the error.

    Raises:
        ValueError: the value is no such number; nan never is.

    >>> check_number("alpha", 0, "[0, inf)", "Set alpha=1.0.")
    >>> check_number("ratio", 1, "[0, 1)", "Set ratio=0.5.")
    Traceback (most recent call last):
    ValueError: ratio=1: expected a number in [0, 1). Set ratio=0.5.
    """
    low, high = map(float, within[1:-1].split(","))
    number = as_number(value)
    outside = number is None or not low <= number <= high
    if outside or (number == low and within[0] == "(") or (number == high and within[-1] == ")"):
        expected = f"a number in {within}"
        if high == math.inf:
            expected = f"a number {'of at least' if within[0] == '[' else 'above'} {low:g}"
        raise refuse(name, value, expected, fix)


def check_count(name: str, value: object, least: int, fix: str, *, most: int | None = None, reason: str = "") -> None:
    """Refuse what is no integer from ``least`` on, up to ``most`` where there is one; ``reason`` goes on with the sentence.

    Raises:
        ValueError: the value is no such integer.

    >>> check_count("window", 0, 1, "Set window=15.")
    Traceback (most recent call last):
    ValueError: window=0: expected an integer of at least 1. Set window=15.
    """
    count = as_count(value)
    if count is None or count < least or (most is not None and count > most):
        expected = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
        raise refuse(name, value, expected + reason, fix)
