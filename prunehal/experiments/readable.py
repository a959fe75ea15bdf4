"""Readable: tables of scores with what stands beside CHAIR_i, and differences in words: lower, higher or unclear."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from prunehal.bootstrap import Interval
from prunehal.experiments.compare import LEVELS, METRICS, PRIMARY

__all__ = ["between", "compared", "differences", "in_points", "readable"]


def between(line: pd.Series, name: str) -> str:
    """Return an estimate with its interval, from the columns name, name_low and name_high.

    >>> between(pd.Series({"d": 1.23, "d_low": 0.31, "d_high": 2.12}), "d")
    '+1.2 [0.3, 2.1]'
    """
    return f"{line[name]:+.1f} [{line[f'{name}_low']:.1f}, {line[f'{name}_high']:.1f}]"


def in_points(interval: Interval) -> str:
    """Return the interval of a fraction in points.

    >>> in_points(Interval(0.0123, 0.0031, 0.0212, 400))
    '+1.2 [0.3, 2.1]'
    """
    return f"{100 * interval.estimate:+.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def compared(label: str, low: float, high: float, number: str) -> str:
    """Return one difference in words: lower or higher where its interval leaves out zero, else unclear.

    Args:
        label: of the measure.
        low, high: ends of the interval.
        number: the difference with its interval, as :func:`between` and :func:`in_points` write it.

    >>> compared("recall", -3.0, -1.0, "-2.0 [-3.0, -1.0]")
    'recall lower, -2.0 [-3.0, -1.0]'
    """
    return f"{label} {'lower' if high < 0 else 'higher' if low > 0 else 'unclear'}, {number}"


def differences(line: pd.Series, metrics: Sequence[str] = PRIMARY) -> str:
    """Return the differences of one line of a table of `prunehal.experiments.changes` in words.

    >>> differences(pd.Series({"d_recall": 1.2, "d_recall_low": 0.3, "d_recall_high": 2.1}), ["recall"])
    'recall higher, +1.2 [0.3, 2.1]'
    """
    ends = [(line[f"d_{metric}_low"], line[f"d_{metric}_high"]) for metric in metrics]
    return ", ".join(compared(LEVELS[m], *end, between(line, f"d_{m}")) for m, end in zip(metrics, ends, strict=True))


def readable(table: pd.DataFrame, changed: Sequence[str] = PRIMARY, more: Sequence[str] = ()) -> pd.DataFrame:
    """Return a table of `prunehal.experiments.changes` for readers: what stands beside CHAIR_i, and changes with their intervals.

    Args:
        table: with any index.
        changed: metrics whose change is shown, with its 95% interval where the table has one.
        more: further columns, shown as they are, rounded to three digits.

    Returns:
        The columns of LEVELS under their labels (percent; absent objects and words: mean of a caption), "change of ..." and
        ``more``.

    >>> line = dict.fromkeys(LEVELS, 20.04) | {"d_recall": 1.2, "d_recall_low": 0.3, "d_recall_high": 2.1}
    >>> readable(pd.DataFrame([line]), ["recall"])[["CHAIR_i", "absent objects", "change of recall"]].values.tolist()
    [[20.0, 20.04, '+1.2 [0.3, 2.1]']]
    """
    shown = {label: table[name].round(1 if METRICS[name] == 100 or name == "words" else 2) for name, label in LEVELS.items()}
    for metric in changed:
        name = f"d_{metric}"
        has_ends = f"{name}_low" in table
        cells = [between(line, name) if has_ends else f"{line[name]:+.1f}" for _, line in table.iterrows()]
        shown[f"change of {LEVELS[metric]}"] = pd.Series(cells, table.index)
    return pd.DataFrame(shown).join(table[list(more)].round(3))
