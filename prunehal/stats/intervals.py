"""Intervals and tests for captions and their mentions: bootstrap over images, effect sizes, adjusted odds
(`prunehal.stats.odds`).

Images are drawn, never mentions or captions alone: mentions of one caption depend on each other, and two methods that
caption the same images are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from prunehal.stats.bootstrap import Interval, Statistic, bca
from prunehal.stats.odds import adjusted_logit, binary
from prunehal.stats.pooled import counts, paired_counts, ratio

__all__ = ["Association", "Interval", "adjusted_logit", "association", "bootstrap_interval", "paired_bootstrap"]


@dataclass(frozen=True)
class Association:
    """How the values of faithful (positive) and hallucinated mentions differ.

    Attributes:
        auc: P(value of a faithful mention > value of a hallucinated one), ties half; 0.5 = no association.
        cohens_d: (mean of the faithful - mean of the hallucinated) / pooled standard deviation.
        p_value: two-sided Mann-Whitney U. It takes mentions as independent; with clusters, trust the intervals.
        n_positive, n_negative: numbers of faithful and of hallucinated mentions.
    """

    auc: Interval
    cohens_d: Interval
    p_value: float
    n_positive: int
    n_negative: int

    def __str__(self) -> str:
        return (
            f"AUC {self.auc}; d {self.cohens_d}; Mann-Whitney p = {self.p_value:.2g} "
            f"({self.n_positive} faithful, {self.n_negative} hallucinated)"
        )


def bootstrap_interval(
    items: pd.DataFrame, metric: str, n_resamples: int = 5000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Estimate a pooled CHAIR metric with its interval over images.

    Args:
        items: one row per caption, as in `ChairResult.items`.
        metric: a name of `prunehal.stats.pooled.METRICS`, such as "distinct_chair_i" or "recall" (fractions in [0, 1]) or
            "words".
        n_resamples, seed, confidence: of the bootstrap.

    Raises:
        ValueError: an unknown metric, a missing column, an image_id twice, fewer than two images, a setting out of
            range.

    >>> items = pd.DataFrame({"image_id": range(4), "n_hallucinated": [0, 1, 0, 2], "n_mentions": [4, 4, 3, 5]})
    >>> bootstrap_interval(items, "chair_i").estimate
    0.1875
    """
    return bca(ratio(counts(items, metric, "items")), len(items), len(items), n_resamples, seed, confidence)


def paired_bootstrap(
    items_a: pd.DataFrame,
    items_b: pd.DataFrame,
    metric: str,
    n_resamples: int = 5000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Estimate the difference b - a of a pooled CHAIR metric on the same images, with its interval over images.

    Each resample draws images, and takes both captions of each: what the images have in common cancels. Rows are
    matched by image_id, in any order.

    Args:
        items_a, items_b: one row per caption, as in `ChairResult.items`.
        metric: a name of `prunehal.stats.pooled.METRICS`, such as "distinct_chair_i" or "recall" (fractions in [0, 1]) or
            "words".
        n_resamples, seed, confidence: of the bootstrap.

    Raises:
        ValueError: as in `bootstrap_interval`, or the two sets of images differ.

    >>> a = pd.DataFrame({"image_id": [1, 2, 3], "words": [10, 20, 30]})
    >>> b = pd.DataFrame({"image_id": [3, 2, 1], "words": [31, 21, 11]})
    >>> str(paired_bootstrap(a, b, "words"))
    '1.000 [1.000, 1.000], n = 3'
    """
    a, b = paired_counts(items_a, items_b, metric)
    ratio_a, ratio_b = ratio(a), ratio(b)
    return bca(lambda weights: ratio_b(weights) - ratio_a(weights), len(a), len(a), n_resamples, seed, confidence)


def association(
    values: Sequence[float] | pd.Series,
    positive: Sequence[bool] | pd.Series,
    clusters: Sequence | pd.Series | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Association:
    """Compare a quantity between faithful and hallucinated mentions.

    The direction is that of the claim under test: an AUC above 0.5 and a d above 0 say that faithful mentions have the
    larger values, P(value of a faithful mention > value of a hallucinated one) > 0.5.

    Args:
        values: one number per mention, such as its visual attention.
        positive: True for a faithful mention, False for a hallucinated one.
        clusters: image_id of each mention; the bootstrap draws images then, and single mentions without it.
        n_resamples, seed, confidence: of the bootstrap; a resample that lacks one of the classes is left out.

    Raises:
        ValueError: unequal lengths, values missing or all equal, a class in fewer than two clusters.

    >>> association([3, 4, 5, 6], [False, True, False, True], n_resamples=100).auc.estimate
    0.75
    """
    x = np.asarray(values, dtype=float)
    faithful = binary(positive, "positive")
    codes, labels = pd.factorize(np.arange(len(x)) if clusters is None else np.asarray(clusters))
    if not len(x) == len(faithful) == len(codes):
        raise ValueError(
            f"values, positive and clusters have {len(x)}, {len(faithful)} and {len(codes)} entries; expected one of "
            "each per mention; pass columns of the same frame"
        )
    if not np.isfinite(x).all() or (codes < 0).any():
        raise ValueError(
            f"{(~np.isfinite(x)).sum()} values are not finite and {(codes < 0).sum()} clusters are missing; expected a "
            "number and a cluster for each mention; drop those mentions"
        )
    for name, group in (("faithful (positive)", faithful), ("hallucinated (negative)", ~faithful)):
        if (held := len(np.unique(codes[group]))) < 2:
            raise ValueError(f"{name} mentions lie in {held} cluster(s), expected at least 2; add captions")
    if np.ptp(x) == 0:
        raise ValueError(f"all {len(x)} values equal {x[0]}; expected values that vary; check the column")
    settings = (len(labels), len(x), n_resamples, seed, confidence)
    return Association(
        auc=bca(_auc(x, faithful, codes), *settings),
        cohens_d=bca(_cohens_d(x, faithful, codes), *settings),
        p_value=float(stats.mannwhitneyu(x[faithful], x[~faithful]).pvalue),
        n_positive=int(faithful.sum()),
        n_negative=int((~faithful).sum()),
    )


def _auc(x: np.ndarray, faithful: np.ndarray, codes: np.ndarray) -> Statistic:
    hallucinated = np.flatnonzero(~faithful)[np.argsort(x[~faithful])]
    # How many hallucinated mentions lie below each faithful one, without and with its ties.
    fewest, most = (np.searchsorted(x[hallucinated], x[faithful], side) for side in ("left", "right"))

    def statistic(weights: np.ndarray) -> np.ndarray:
        columns = np.ascontiguousarray(weights.T)  # (unit, resample): mentions are then gathered as whole rows
        negative = np.zeros((len(hallucinated) + 1, len(weights)))  # (hallucinated mention, resample), running weight
        np.cumsum(columns[codes[hallucinated]], axis=0, out=negative[1:])
        positive = columns[codes[faithful]]  # (faithful mention, resample)
        wins = (np.einsum("mr,mr->r", positive, negative[side]) for side in (fewest, most))
        pairs = positive.sum(axis=0) * negative[-1]
        return np.divide(sum(wins) / 2, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)  # ties count half

    return statistic


def _cohens_d(x: np.ndarray, faithful: np.ndarray, codes: np.ndarray) -> Statistic:
    z = x - x.mean()  # keeps the sums of squares from cancelling
    moments = np.stack([group * power for group in (faithful, ~faithful) for power in (z**0, z, z**2)])
    sums = np.stack([np.bincount(codes, row) for row in moments], axis=1)  # (cluster, 6)

    def statistic(weights: np.ndarray) -> np.ndarray:
        n1, s1, q1, n0, s0, q0 = (weights @ sums).T
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample without one of the classes: not finite
            variance = (q1 - s1**2 / n1 + q0 - s0**2 / n0) / (n1 + n0 - 2)
            return (s1 / n1 - s0 / n0) / np.sqrt(variance)

    return statistic
