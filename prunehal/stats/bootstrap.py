"""The bootstrap behind every interval: BCa over units (images), computed from resampling weights.

BCa is bias-corrected and accelerated (Efron 1987, "Better Bootstrap Confidence Intervals", JASA 82), the same as
scipy.stats.bootstrap gives for the same draws; weights make thousands of images take a second and little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special

__all__ = ["Interval", "Statistic", "bca", "check_confidence", "verdict"]

_CHUNK = 2_000_000  # weights held at once: 16 MB
_KEPT = 25_000_000  # numbers of draws that are kept for the next interval: 50 MB

Statistic = Callable[[np.ndarray], np.ndarray]  # weights (resample, unit) -> values (resample,)


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, from `n` observations.

    >>> str(Interval(0.125, 0.1, 0.15, 500))
    '0.125 [0.100, 0.150], n = 500'
    """

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}"


def verdict(low: float, high: float, nothing: float = 0.0) -> str:
    """Return "higher" or "lower" where a whole interval lies above or below a value, else "unclear".

    Args:
        low, high: ends of the interval.
        nothing: the value of no difference: 0 of a difference, 1 of an odds ratio, 0.5 of an AUC.

    >>> verdict(0.2, 1.5), verdict(-3.0, -1.0), verdict(-1.0, 0.0), verdict(0.3, 0.9, nothing=1)
    ('higher', 'lower', 'unclear', 'lower')
    """
    return "higher" if low > nothing else "lower" if high < nothing else "unclear"


def bca(statistic: Statistic, units: int, n: int, n_resamples: int, seed: int, confidence: float) -> Interval:
    """Bootstrap a statistic of weighted units; `n` is what the interval reports as its number of observations."""
    if units < 2:
        raise ValueError(f"there are {units} images or clusters, expected at least 2 to resample; add captions")
    if n_resamples < 100:
        raise ValueError(f"n_resamples is {n_resamples}, expected at least 100; 2000 or more give a steady interval")
    check_confidence(confidence)
    step = max(1, _CHUNK // max(units, n))

    def evaluate(parts: Iterable[np.ndarray]) -> np.ndarray:
        values = np.concatenate([statistic(weights) for weights in parts])
        return values[np.isfinite(values)]

    estimate = statistic(np.ones((1, units))).item()
    draws = evaluate(_drawn(units, n_resamples, seed, step))
    influence = evaluate(_leaving_one_out(units, step))
    influence = influence.mean() - influence
    spread = (influence**2).sum() ** 1.5
    acceleration = (influence**3).sum() / (6 * spread) if spread > 0 else 0.0
    below = ((draws < estimate).mean() + (draws <= estimate).mean()) / 2
    # One half draw away from 0 and 1, so that an estimate at the edge of its draws keeps a finite correction.
    bias = special.ndtri(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
    z = bias + special.ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.quantile(draws, special.ndtr(bias + z / (1 - acceleration * z)))
    return Interval(estimate, float(low), float(high), n)


def _drawn(units: int, n_resamples: int, seed: int, step: int) -> Iterator[np.ndarray]:
    """Yield how often each resample draws each unit, `step` resamples at a time: float array (resample, unit)."""
    if units * n_resamples <= _KEPT:
        times = _kept_draws(units, n_resamples, seed)
        parts = (times[start : start + step] for start in range(0, n_resamples, step))
    else:
        parts = _draws(units, n_resamples, seed, step)
    return (part.astype(float) for part in parts)


@lru_cache(maxsize=2)  # a table holds many intervals over the same images
def _kept_draws(units: int, n_resamples: int, seed: int) -> np.ndarray:
    """Return all draws at once, int16 and read-only."""
    parts = _draws(units, n_resamples, seed, max(1, _CHUNK // units))
    times = np.concatenate([part.astype(np.int16) for part in parts])
    times.flags.writeable = False
    return times


def _draws(units: int, n_resamples: int, seed: int, step: int) -> Iterator[np.ndarray]:
    """Yield how often each resample draws each unit; the draws are the same for every step."""
    rng = np.random.default_rng(seed)
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        drawn_units = rng.integers(0, units, (rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(drawn_units.ravel(), minlength=rows * units).reshape(rows, units)


def _leaving_one_out(units: int, step: int) -> Iterator[np.ndarray]:
    """Yield the weights that leave out each unit in turn, `step` units at a time."""
    for start in range(0, units, step):
        yield 1.0 - np.equal.outer(np.arange(start, min(start + step, units)), np.arange(units))


def check_confidence(confidence: float) -> None:
    """Raise a ValueError unless the confidence is a fraction between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a fraction between 0 and 1; pass 0.95 for 95%")
