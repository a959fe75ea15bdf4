"""Readable: tables of scores with what stands beside CHAIR_i, and differences in words: lower, higher or unclear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from prunehal.experiments.compare import LEVELS, PRIMARY
from prunehal.stats.bootstrap import Interval, verdict

__all__ = ["between", "compared", "differences", "head_of_table", "in_points", "levels", "readable"]


def between(line: Mapping[str, float] | pd.Series, name: str, digits: int = 1) -> str:
    """Return an estimate with its interval as text, from the columns name, name_low and name_high.

    >>> between(pd.Series({"d": 1.23, "d_low": 0.31, "d_high": 2.12}), "d")
    '+1.2 [0.3, 2.1]'
    """
    low, high = (line[f"{name}_{end}"] for end in ("low", "high"))
    return f"{line[name]:+.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def head_of_table(names: Sequence[str]) -> list[str]:
    """Return the first two lines of a Markdown table: the names of its columns, and the line below them.

    >>> head_of_table(["", "recall"])
    ['|  | recall |', '|---|---|']
    """
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def in_points(interval: Interval) -> str:
    """Return the interval of a fraction in points.

    >>> in_points(Interval(0.0123, 0.0031, 0.0212, 400))
    '+1.2 [0.3, 2.1]'
    """
    return between({"d": 100 * interval.estimate, "d_low": 100 * interval.low, "d_high": 100 * interval.high}, "d")


def levels(line: Mapping[str, float] | pd.Series) -> list[str]:
    """Return the scores of LEVELS of one line of a table as text: one decimal, absent objects a caption two.

    >>> levels(dict.fromkeys(LEVELS, 1.0))
    ['1.0', '1.0', '1.00', '1.0', '1.0', '1.0', '1.0']
    """
    return [f"{line[name]:.{_digits(name)}f}" for name in LEVELS]


def _digits(metric: str) -> int:
    """Return the decimals of a metric in tables."""
    return 2 if metric == "absent" else 1


def compared(label: str, low: float, high: float, number: str) -> str:
    """Return one difference in words: lower or higher where its interval leaves out 0, else unclear.

    Args:
        label: of the measure.
        low, high: ends of the interval.
        number: the difference with its interval, as :func:`between` and :func:`in_points` write it.

    >>> compared("recall", -3.0, -1.0, "-2.0 [-3.0, -1.0]")
    'recall lower, -2.0 [-3.0, -1.0]'
    """
    return f"{label} {verdict(low, high)}, {number}"


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
    shown = {label: table[name].round(_digits(name)) for name, label in LEVELS.items()}
    for metric in changed:
        name = f"d_{metric}"
        has_ends = f"{name}_low" in table
        cells = [between(line, name) if has_ends else f"{line[name]:+.1f}" for _, line in table.iterrows()]
        shown[f"change of {LEVELS[metric]}"] = pd.Series(cells, table.index)
    return pd.DataFrame(shown).join(table[list(more)].round(3))
