"""Distinct CHAIR_i of captions whose text is gone: the lowest and the highest value that their counts allow.

Counts of mentions do not say how often a caption repeats an absent object. It names between 1 (if it names any) and
n_hallucinated distinct ones, and n_recalled present ones besides. Whatever it repeated, distinct CHAIR_i lies between the two
ends. A claim that holds at both ends holds; another is unclear until the captions are made again. The repeats of objects that
are there are known: n_mentions - n_hallucinated - n_recalled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pandas as pd

from prunehal.stats.bootstrap import Interval, verdict
from prunehal.stats.gain import part_of_change
from prunehal.stats.intervals import paired_bootstrap
from prunehal.stats.pooled import counts, ratio

__all__ = ["ENDS", "Bounds", "at_end", "bounded", "difference_bounds", "level_bounds", "share_bounds"]

ENDS = ("least", "most")  # absent objects that a caption may have named


@dataclass(frozen=True)
class Bounds:
    """The smallest and the largest value of a number that the counts allow, with the outer ends of their intervals.

    Attributes:
        least, most: the smallest and the largest value that the counts allow.
        low, high: lower end of the interval of the smallest value, upper end of that of the largest.
    """

    least: float
    most: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Return "lower" or "higher" where all values that the counts allow, and their intervals, are; else "unclear".

        >>> Bounds(0.01, 0.2, 0.005, 0.3).verdict, Bounds(-0.01, 0.2, -0.02, 0.3).verdict
        ('higher', 'unclear')
        """
        return verdict(self.low, self.high)


def bounded(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with absent_least and absent_most, the distinct absent objects that each caption can have named.

    Args:
        rows: one for each caption: n_hallucinated; n_absent, too, where it was counted: then both ends are that.

    >>> bounded(pd.DataFrame({"n_hallucinated": [0, 1, 4]}))[["absent_least", "absent_most"]].values.tolist()
    [[0, 0], [1, 1], [1, 4]]
    """
    if "n_absent" in rows:
        return rows.assign(absent_least=rows["n_absent"], absent_most=rows["n_absent"])
    return rows.assign(absent_least=rows["n_hallucinated"].clip(upper=1), absent_most=rows["n_hallucinated"])


def at_end(items: pd.DataFrame, end: str) -> pd.DataFrame:
    """Return the counts as they are if captions named the least, or the most, absent objects.

    Args:
        items: what :func:`bounded` returned, or sums of its rows.
        end: one of ENDS.

    >>> at_end(bounded(pd.DataFrame({"n_mentions": [7], "n_hallucinated": [4], "n_recalled": [2]})), "least")["n_repeats"].item()
    4
    """
    absent = items[f"absent_{end}"]
    distinct = items["n_recalled"] + absent
    return items.assign(n_absent=absent, n_distinct=distinct, n_repeats=items["n_mentions"] - distinct)


def level_bounds(items: pd.DataFrame, metric: str) -> tuple[float, float]:
    """Return the lowest and the highest value of a metric that the counts allow.

    Args:
        items: what :func:`bounded` returned, or sums of its rows.
        metric: of `prunehal.stats.pooled.METRICS`, such as "distinct_chair_i", "repeats" or "f1".

    >>> rows = pd.DataFrame({"n_mentions": [7], "n_hallucinated": [4], "n_recalled": [2]})
    >>> [round(value, 2) for value in level_bounds(bounded(rows), "distinct_chair_i")]
    [0.33, 0.67]
    """
    found = [_pooled(at_end(items, end), metric) for end in ENDS]
    return min(found), max(found)


def difference_bounds(base: pd.DataFrame, ours: pd.DataFrame, metric: str, n_resamples: int = 5000) -> Bounds:
    """Return the smallest and the largest difference of a metric, ours minus base, that the counts allow.

    Args:
        base, ours: items as of :func:`level_bounds`, of the same images.
        metric: of `prunehal.stats.pooled.METRICS`.
        n_resamples: of the bootstrap over images (BCa).

    >>> rows = pd.DataFrame({"image_id": range(9), "n_mentions": 7, "n_hallucinated": 4, "n_recalled": [2, 3, 1] * 3})
    >>> found = difference_bounds(bounded(rows), bounded(rows), "distinct_chair_i", 200)
    >>> round(found.least, 2), round(found.most, 2), found.verdict
    (-0.33, 0.33, 'unclear')
    """
    pairs = list(product(ENDS, ENDS))
    return _range(pairs, lambda a, b: paired_bootstrap(at_end(base, a), at_end(ours, b), metric, n_resamples))


def share_bounds(ours: pd.DataFrame, oracle: pd.DataFrame, base: pd.DataFrame, n_resamples: int = 5000) -> Bounds | None:
    """Return the bounds of the share of the oracle's gain in F1 of distinct objects, or None where the gain may be 0 or less.

    Args:
        ours, oracle, base: items as of :func:`level_bounds`, of the same images.
        n_resamples: of the bootstrap over images (BCa).
    """
    if difference_bounds(base, oracle, "f1", n_resamples).low <= 0:
        return None
    frames = (ours, oracle, base)

    def share(*ends: str) -> Interval:
        return part_of_change(*(at_end(*each) for each in zip(frames, ends, strict=True)), "f1", n_resamples=n_resamples)

    return _range(list(product(ENDS, repeat=3)), share)


def _range(ends: list[tuple[str, ...]], interval: Callable[..., Interval]) -> Bounds:
    """Return the range over all combinations of ends: the metrics rise or fall with each count, so no value lies beyond them."""
    found = [interval(*each) for each in ends]
    least, most = (choose(found, key=lambda each: each.estimate) for choose in (min, max))
    return Bounds(least.estimate, most.estimate, least.low, most.high)


def _pooled(items: pd.DataFrame, metric: str) -> float:
    frame = counts(items.assign(image_id=range(len(items))), metric)
    return float(ratio(frame)(pd.Series(1.0, index=frame.index).to_numpy()[None])[0])
