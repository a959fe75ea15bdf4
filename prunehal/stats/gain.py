"""What part of a bound's change a condition reaches, with an interval: a paired ratio of differences over the same images."""

from __future__ import annotations

import numpy as np
import pandas as pd

from prunehal.stats.bootstrap import Interval, Statistic, bca
from prunehal.stats.intervals import paired_bootstrap
from prunehal.stats.pooled import counts, ratio

__all__ = ["gain_in_f1", "part", "part_of_change"]


def part_of_change(
    ours: pd.DataFrame, bound: pd.DataFrame, plain: pd.DataFrame, metric: str, *, n_resamples: int = 5000
) -> Interval:
    """Return the change of a metric from a baseline as a part of the change that a bound makes.

    The images are drawn for all three at once, so that the interval tells of both changes. It means something only where the
    bound's own change is not 0 by its interval.

    Args:
        ours, bound, plain: items of a `ChairResult` of the condition, of the bound and of the baseline, on the same images.
        metric: a name of `prunehal.stats.pooled.METRICS`.
        n_resamples: of the bootstrap over images (BCa).

    Returns:
        1 where the condition changes as much as the bound, 0 where it changes nothing, below 0 where it goes the other way.

    Raises:
        ValueError: the three are not of the same images.

    >>> plain = pd.DataFrame({"image_id": range(40), "n_truth": 4, "n_recalled": [1, 2] * 20})
    >>> bound, ours = plain.assign(n_recalled=[3, 3, 2, 2] * 10), plain.assign(n_recalled=[1, 3] * 20)
    >>> part_of_change(ours, bound, plain, "recall", n_resamples=200).estimate
    0.5
    """
    frames = [counts(items, metric, name) for name, items in (("ours", ours), ("bound", bound), ("plain", plain))]
    ids = frames[2].index
    for name, frame in zip(("ours", "bound"), frames, strict=False):
        if set(frame.index) != set(ids):
            raise ValueError(
                f"{name} has {len(frame)} images, plain {len(ids)}, and {len(ids.intersection(frame.index))} are in both; "
                "expected the same images in all three; score the captions of the same images"
            )
    return bca(part(*(ratio(frame.loc[ids]) for frame in frames)), len(ids), len(ids), n_resamples, 0, 0.95)


def gain_in_f1(
    ours: pd.DataFrame, bound: pd.DataFrame, plain: pd.DataFrame, *, n_resamples: int = 5000
) -> tuple[Interval, Interval | None]:
    """Return a bound's gain in the objects' F1 over a baseline, and the share of it that a condition wins.

    F1 is the harmonic mean of precision (1 - distinct CHAIR_i) and recall: one number in which neither can be bought by the other
    alone.

    Args:
        ours, bound, plain: items of a `ChairResult` of the condition, of the bound and of the baseline, on the same images.
        n_resamples: of the bootstrap over images (BCa).

    Returns:
        The gain as a fraction, and the share: 1 where the condition does as well as the bound, below 0 where it does harm; None
        unless the whole interval of the gain is above 0, for a share of nothing means nothing.

    >>> plain = pd.DataFrame({"image_id": range(40), "n_distinct": 4, "n_truth": 4, "n_recalled": [1, 2] * 20})
    >>> bound = plain.assign(n_recalled=4)
    >>> gain, won = gain_in_f1(plain, bound, plain, n_resamples=200)
    >>> gain.estimate, won.estimate
    (0.625, 0.0)
    """
    gained = paired_bootstrap(plain, bound, "f1", n_resamples)
    return gained, None if gained.low <= 0 else part_of_change(ours, bound, plain, "f1", n_resamples=n_resamples)


def part(ours: Statistic, bound: Statistic, plain: Statistic) -> Statistic:
    """Return the function weights of images -> change of a condition as a part of the change of a bound.

    >>> part(lambda w: w, lambda w: 3 * w, lambda w: 0 * w)(np.array([3.0])).tolist()
    [0.3333333333333333]
    """

    def statistic(weights: np.ndarray) -> np.ndarray:
        base = plain(weights)
        with np.errstate(divide="ignore", invalid="ignore"):  # draws in which the bound changes nothing are left out by bca
            return (ours(weights) - base) / (bound(weights) - base)

    return statistic
