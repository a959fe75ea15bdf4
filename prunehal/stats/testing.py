"""Statistics for grids of settings: p-values of paired differences, correction for many tests, "no difference", "no harm".

Two conditions are compared, b minus a, on the same images; images are the units. Offered here as well: how many images are needed
(`prunehal.stats.power`) and the model of mentions (`prunehal.stats.odds`). How to choose a setting is in
`prunehal.experiments.choosing`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd
from scipy import stats

from prunehal.stats.bootstrap import Interval
from prunehal.stats.intervals import paired_bootstrap
from prunehal.stats.odds import mention_model
from prunehal.stats.pooled import NUMBERS, linearised, paired_counts
from prunehal.stats.power import images_needed, power_of

__all__ = [
    "WORSE",
    "Verdict",
    "equivalence",
    "holm",
    "images_needed",
    "mention_model",
    "no_harm",
    "paired_p_value",
    "power_of",
]

# The direction that is worse. Shorter counts as worse, because cutting captions lowers CHAIR for free.
WORSE = MappingProxyType(
    dict.fromkeys(("chair_i", "chair_s", "distinct_chair_i", "absent", "repeats", "unfinished"), "higher")
    | dict.fromkeys(("recall", "f1", "words"), "lower")
)

_BATCH = 500_000  # permuted images held at once: some 40 MB


@dataclass(frozen=True)
class Verdict:
    """What an interval says about a margin.

    Attributes:
        metric: name of the metric; differences are b - a.
        interval: of the difference, paired BCa over images, at confidence 1 - 2 alpha.
        margin: largest difference (`equivalence`) or worsening (`no_harm`) that does not matter, in the metric's unit.
        alpha: rate of error of the claim.
        holds: True where the claim is shown. False is no proof of its opposite: read the verdict.
        verdict: the same in words.
    """

    metric: str
    interval: Interval
    margin: float
    alpha: float
    holds: bool
    verdict: str

    def __str__(self) -> str:
        return f"{self.metric}, {self.interval}: {self.verdict}"


def holm(frame: pd.DataFrame, p: str = "p_value", alpha: float = 0.05) -> pd.DataFrame:
    """Correct the p-values of a grid for the number of tests: P(any false rejection) stays at or below alpha.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6; by statsmodels. It holds
    under any dependence, so settings that share a baseline are fine. The frame must hold every comparison that was looked at.

    Args:
        frame: one row per comparison.
        p: column of p-values.
        alpha: familywise rate of error.

    Returns:
        The frame with p_holm (adjusted p-value) and rejected added, rows and index as they were.

    Raises:
        ValueError: the column is missing or holds anything but numbers in [0, 1], no rows, alpha out of range.

    >>> holm(pd.DataFrame({"r": [0.4, 0.7, 0.9], "p_value": [0.01, 0.04, 0.03]}))[["p_holm", "rejected"]].values.tolist()
    [[0.03, True], [0.06, False], [0.06, False]]
    """
    from statsmodels.stats.multitest import multipletests

    _check_alpha(alpha, 1)
    if p not in frame:
        raise ValueError(f"the frame lacks the column {p!r}; it has {list(frame.columns)}; name the column of p-values")
    if not len(frame):
        raise ValueError("the frame holds no rows; expected one for each comparison; pass the whole grid")
    values = pd.to_numeric(frame[p], errors="coerce").to_numpy(dtype=float)
    if (bad := ~((values >= 0) & (values <= 1))).any():
        raise ValueError(
            f"{p} holds {frame.loc[bad, p].head(5).tolist()}; expected numbers in [0, 1]; a comparison without a p-value was "
            "still a look: compute it"
        )
    rejected, adjusted, *_ = multipletests(values, alpha, method="holm")
    return frame.assign(p_holm=adjusted, rejected=rejected)


def paired_p_value(items_a: pd.DataFrame, items_b: pd.DataFrame, metric: str, n_resamples: int = 9999, seed: int = 0) -> float:
    """Test a paired difference of a pooled metric by swapping the two captions of images at random; two-sided.

    If the conditions do not differ, each image could as well have had its captions the other way round. All swaps are tried
    where there are at most `n_resamples` (exact: chair_s is then McNemar's test), else so many random ones, by
    scipy.stats.permutation_test. Images with equal counts need no swap. The statistic is the difference over its
    delta-method error, which keeps the rate of error where the metrics agree but the lengths do not (Janssen 1997, Statist.
    Probab. Lett. 36; Chung and Romano 2013, Ann. Statist. 41); the bare difference rejects twice too often at lengths 1 : 4.

    Args:
        items_a, items_b: one row per caption, as in `ChairResult.items`, of the same images in any order.
        metric: a name of `prunehal.stats.pooled.METRICS`, such as "distinct_chair_i", "recall" or "words".
        n_resamples: swaps tried; random ones give no p-value below 2 / (n_resamples + 1), so raise it for a large grid.
        seed: of the random swaps.

    Raises:
        ValueError: as in `paired_bootstrap`.

    >>> a = pd.DataFrame({"image_id": range(6), "words": [10, 12, 9, 11, 10, 13]})
    >>> paired_p_value(a, a.assign(words=a["words"] + [1, 2, 1, 3, 2, 1]), "words")  # 2 of 64 swaps are as far out
    0.03125
    """
    a, b = (frame.to_numpy().T for frame in paired_counts(items_a, items_b, metric))  # (top and bottom, image)
    if n_resamples < 100:
        raise ValueError(f"n_resamples is {n_resamples}, expected at least 100; 9999 resolve p-values of 0.0002")
    if a.shape[1] < 2:
        raise ValueError(f"there are {a.shape[1]} images, expected at least 2 to swap; add captions")
    differs = (a != b).any(axis=0)
    if differs.sum() < 2:  # one swap mirrors the statistic: both are as far out
        return 1.0
    both, fixed = np.concatenate([a[:, differs], b[:, differs]], axis=1), a[:, ~differs]

    def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        (ratio_a, of_a), (ratio_b, of_b) = (linearised(*counts_of(columns)) for columns in (x, y))
        gap, error = ratio_b - ratio_a, np.sqrt(((of_b - of_a) ** 2).sum(axis=-1))
        error = np.maximum(error, 1e-9 * np.abs(gap))  # images that all differ alike leave mere rounding for an error
        # Rounded, because equal values that were summed in another order must tie.
        return np.round(np.divide(gap, error, out=np.zeros_like(gap), where=error > 0), 9)

    def counts_of(columns: np.ndarray) -> np.ndarray:  # (..., differing image) -> (top and bottom, ..., image)
        swapped = both[:, columns]
        rest = fixed.reshape(2, *[1] * (columns.ndim - 1), -1)
        return np.concatenate([swapped, np.broadcast_to(rest, (*swapped.shape[:-1], fixed.shape[1]))], axis=-1)

    n = int(differs.sum())
    test = stats.permutation_test(
        (np.arange(n), np.arange(n) + n),
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        batch=max(1, _BATCH // a.shape[1]),
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def equivalence(
    items_a: pd.DataFrame,
    items_b: pd.DataFrame,
    metric: str,
    margin: float,
    alpha: float = 0.05,
    n_resamples: int = 5000,
    seed: int = 0,
) -> Verdict:
    """Test whether two conditions are the same up to a margin: two one-sided tests, by the interval of 1 - 2 alpha.

    A p-value above alpha never shows that two conditions are alike; an interval within the margin does. Source: Schuirmann 1987,
    "A comparison of the two one-sided tests procedure", J. Pharmacokinet. Biopharm. 15.

    Args:
        items_a, items_b: one row per caption, as in `ChairResult.items`, of the same images in any order.
        metric: a name of `prunehal.stats.pooled.METRICS`; all are fractions but for "absent" and "words".
        margin: largest difference either way that does not matter, chosen before looking: 0.01 is one point, 1 a word.
        alpha: rate at which conditions that differ by the margin pass.
        n_resamples, seed: of the bootstrap.

    Raises:
        ValueError: as in `paired_bootstrap`, a margin that is not positive or beyond 1 of a fraction, alpha not within
            (0, 0.5).

    >>> a = pd.DataFrame({"image_id": range(50), "words": [10, 12] * 25})
    >>> equivalence(a, a.assign(words=[10, 12, 12, 11, 11] * 10), "words", margin=1).verdict
    'equivalent: the 90% interval lies within [-1, 1]'
    """
    interval = _interval(items_a, items_b, metric, margin, alpha, n_resamples, seed)
    within = -margin <= interval.low and interval.high <= margin
    outside = interval.low > margin or interval.high < -margin
    if within:
        word, place = "equivalent", "lies within"
    else:
        word, place = ("different", "lies outside") if outside else ("undecided", "crosses an end of")
    text = f"{word}: the {1 - 2 * alpha:.0%} interval {place} [{-margin:g}, {margin:g}]"
    return Verdict(metric, interval, margin, alpha, within, text + _caveat(interval, alpha))


def no_harm(
    items_a: pd.DataFrame,
    items_b: pd.DataFrame,
    metric: str,
    margin: float,
    alpha: float = 0.05,
    n_resamples: int = 5000,
    seed: int = 0,
) -> Verdict:
    """Test whether b is at most a margin worse than a (non-inferiority); how much better it is does not matter.

    Worse is more of what is wrong or repeated (chair_i, chair_s, distinct_chair_i, absent, repeats, unfinished), a lower recall
    or f1, and fewer words (`WORSE`). One-sided at alpha: the end of the interval of 1 - 2 alpha on the worse side decides.

    Args:
        items_a, items_b: the baseline and the condition: one row per caption, as in `ChairResult.items`, of the same images.
        metric: a name of `prunehal.stats.pooled.METRICS`; all are fractions but for "absent" and "words".
        margin: largest worsening that does not matter, chosen before looking; positive for all metrics.
        alpha: rate at which a condition that is worse by the margin passes.
        n_resamples, seed: of the bootstrap.

    Raises:
        ValueError: as in `equivalence`.

    >>> a = pd.DataFrame({"image_id": range(50), "n_truth": 4, "n_recalled": [3, 2] * 25})
    >>> no_harm(a, a.assign(n_recalled=[4, 2, 3, 3, 3] * 10), "recall", margin=0.02).verdict
    'no harm: recall is at most 0.02 lower, by the lower end of the 90% interval'
    """
    interval = _interval(items_a, items_b, metric, margin, alpha, n_resamples, seed)
    # In units of harm: the interval turned so that up is worse.
    least, most = (interval.low, interval.high) if WORSE[metric] == "higher" else (-interval.high, -interval.low)
    holds, harm = most <= margin, least > margin
    end = {"higher": ("upper", "lower"), "lower": ("lower", "upper")}[WORSE[metric]][harm]
    claim = f"{metric} is {'more than' if harm else 'at most'} {margin:g} {WORSE[metric]}"
    if holds or harm:
        text = f"{'harm' if harm else 'no harm'}: {claim}, by the {end} end of the {1 - 2 * alpha:.0%} interval"
    else:
        text = f"undecided: {metric} may be {most:.3g} {WORSE[metric]}, by the {end} end of the {1 - 2 * alpha:.0%} interval"
    return Verdict(metric, interval, margin, alpha, holds, text + _caveat(interval, alpha))


def _interval(
    items_a: pd.DataFrame, items_b: pd.DataFrame, metric: str, margin: float, alpha: float, n_resamples: int, seed: int
) -> Interval:
    _check_alpha(alpha, 0.5)
    if not 0 < margin < math.inf:
        raise ValueError(f"margin is {margin}, expected a positive number in the unit of {metric}; 0.01 is one point")
    if metric not in NUMBERS and margin >= 1:
        raise ValueError(f"margin is {margin}, but {metric} is a fraction; expected less than 1; pass 0.01 for one point")
    return paired_bootstrap(items_a, items_b, metric, n_resamples, seed, 1 - 2 * alpha)


def _caveat(interval: Interval, alpha: float) -> str:
    """Return what an interval without width hides: n equal images leave room for others (exact binomial bound)."""
    if interval.high - interval.low > 1e-12 * max(1.0, abs(interval.high)):
        return ""
    return f"; all {interval.n} images differ alike, yet up to {1 - alpha ** (1 / interval.n):.2%} of images may not"


def _check_alpha(alpha: float, below: float) -> None:
    if not 0 < alpha < below:
        raise ValueError(f"alpha is {alpha}, expected a fraction between 0 and {below:g}; pass 0.05 for 5%")
