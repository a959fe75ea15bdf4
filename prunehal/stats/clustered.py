"""Means of mentions and their differences, with images as the units: mentions of one caption may depend on each other.

Intervals are BCa over images (`prunehal.stats.bootstrap`), p-values Wald's with the error of a jackknife over images. A
difference of
two groups has the degrees of freedom of the smaller one: Welch's are never fewer, so that the p-value errs on the safe side.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from prunehal.stats.bootstrap import Statistic, bca
from prunehal.stats.pooled import ratio

__all__ = ["estimate", "gap", "matched_gap", "mean", "over_images"]

_ROUNDING = 1e-9  # a spread below this share of the estimate is mere rounding


def mean(values: np.ndarray, images: np.ndarray) -> Statistic:
    """Return the function weights of images (resample, image) -> mean of the values of mentions.

    Args:
        values: one for each mention.
        images: number of the image of each mention, from 0.

    >>> mean(np.array([1.0, 2.0, 6.0]), np.array([0, 0, 1]))(np.array([[1.0, 1.0], [2.0, 0.0]])).tolist()
    [3.0, 1.5]
    """
    return ratio(pd.DataFrame({"top": np.bincount(images, values), "bottom": np.bincount(images)}))


def gap(values: np.ndarray, images: np.ndarray, first: np.ndarray) -> Statistic:
    """Return the function weights -> mean of the first group minus that of the others, as :func:`mean`.

    >>> gap(np.array([1.0, 2.0, 6.0]), np.array([0, 0, 1]), np.array([True, False, False]))(np.ones((1, 2))).tolist()
    [-3.0]
    """
    return matched_gap(values, images, first, np.zeros(len(values), dtype=int))


def matched_gap(values: np.ndarray, images: np.ndarray, first: np.ndarray, strata: np.ndarray) -> Statistic:
    """Return the function weights -> difference of two groups within strata, averaged as the first group lies in them.

    Strata that lack one of the groups are left out; nan where all do.

    Args:
        values, images: as in :func:`mean`.
        first: which mentions are of the first group, bool.
        strata: number of the stratum of each mention, from 0.

    >>> x, first, strata = np.array([1.0, 0.0, 5.0, 3.0]), np.array([True, False, True, False]), np.array([0, 0, 1, 1])
    >>> matched_gap(x, np.array([0, 0, 1, 1]), first, strata)(np.ones((1, 2))).tolist()
    [1.5]
    """
    shape = (int(images.max()) + 1, int(strata.max()) + 1)
    sums = np.zeros((2, 2, *shape))  # (sum and count, group, image, stratum)
    for group, members in enumerate((first, ~first)):
        at = (images[members], strata[members])
        np.add.at(sums[0, group], at, values[members])
        np.add.at(sums[1, group], at, 1.0)

    def statistic(weights: np.ndarray) -> np.ndarray:
        total, count = weights @ sums  # (group, resample, stratum) each
        both = (count > 0).all(axis=0)
        means = np.divide(total, count, out=np.zeros_like(total), where=both)
        share = count[0] * both
        held = share.sum(axis=-1)
        return np.divide(((means[0] - means[1]) * share).sum(axis=-1), held, out=np.full(len(held), np.nan), where=held > 0)

    return statistic


def estimate(
    statistic: Statistic, n_images: int, n: int, n_resamples: int = 5000, n_smaller: int | None = None
) -> dict[str, float]:
    """Return an estimate with its 95% interval (BCa) and p-value over images.

    Args:
        statistic: weights (resample, image) -> values.
        n_images, n: how many images and mentions it is from.
        n_resamples: of the bootstrap.
        n_smaller: images of the smaller group, for a difference of two; None: the statistic is of all images.

    Returns:
        n, images, estimate, low, high, p: two-sided, Student's t of the estimate over its jackknife error, with one degree of
        freedom fewer than the smaller group has images. Values without spread say nothing of their error: p is then nan, or 1
        where the estimate is 0.
    """
    found = bca(statistic, n_images, n, n_resamples, 0, 0.95)
    without = statistic(1.0 - np.eye(n_images))
    without = without[np.isfinite(without)]
    error = np.sqrt((len(without) - 1) / len(without) * ((without - without.mean()) ** 2).sum())
    if error > _ROUNDING * abs(found.estimate):
        p = 2 * stats.t.sf(abs(found.estimate) / error, (n_images if n_smaller is None else n_smaller) - 1)
    else:
        p = 1.0 if found.estimate == 0 else np.nan
    return {"n": n, "images": n_images, "estimate": found.estimate, "low": found.low, "high": found.high, "p": p}


def over_images(frame: pd.DataFrame, column: str, first: pd.Series | None = None, n_resamples: int = 5000) -> dict[str, float]:
    """Estimate the mean of a column over mentions, or over steps; or that of the first group of lines minus that of the others.

    Args:
        frame: one line for each mention, with its image_id.
        column: of numbers or booleans.
        first: which lines are of the first group, bool; None: the mean of all.
        n_resamples: of the bootstrap.

    Returns:
        As :func:`estimate`.

    Raises:
        ValueError: a group without lines, or fewer than two images.

    >>> frame = pd.DataFrame({"image_id": [7, 7, 8, 8], "voted": [True, False, True, False]})
    >>> over_images(frame, "voted", frame["voted"])["estimate"], over_images(frame, "voted")["estimate"]
    (1.0, 0.5)
    """
    images, labels = pd.factorize(frame["image_id"])
    values = frame[column].to_numpy(dtype=float)
    if first is None:
        return estimate(mean(values, images), len(labels), len(frame), n_resamples)
    group = first.to_numpy(dtype=bool)
    held = [len(np.unique(images[which])) for which in (group, ~group)]
    if not all(held):
        raise ValueError(
            f"the two groups of {column!r} lie in {held} images; expected lines of both; give a mask that splits them"
        )
    return estimate(gap(values, images, group), len(labels), len(frame), n_resamples, min(held))
