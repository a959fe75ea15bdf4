"""How many images a comparison needs: power of a paired difference of a pooled metric, planned from a pilot.

A pooled metric is a ratio of sums, which the delta method turns into one number for each image
(`prunehal.stats.pooled.linearised`). The difference of two conditions is then a mean of paired differences, and its power that
of a paired t-test.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
from scipy import stats

from prunehal.stats.pooled import NUMBERS, linearised, paired_counts

__all__ = ["images_needed", "power_of"]


def power_of(n: int, items_a: pd.DataFrame, items_b: pd.DataFrame, metric: str, difference: float, alpha: float = 0.05) -> float:
    """Return the chance that n images show a true difference of a metric, two-sided at alpha.

    A paired t-test of the linearised images (statsmodels' TTestPower); their spread is taken from a pilot. To find a
    difference in the wrong direction does not count. Below some 30 images, or where few images differ at all, the
    approximation is rough.

    Args:
        n: number of images.
        items_a, items_b: the pilot: one row per caption, as in `ChairResult.items`, of the same images in any order.
        metric: a name of `prunehal.stats.pooled.METRICS`; all are fractions but for "absent" and "words".
        difference: true difference to find, of either sign: the smallest that matters, not the one that the pilot showed.
        alpha: rate of error of the test.

    Raises:
        ValueError: as in `paired_bootstrap`, n below 2, a difference of zero or beyond 1 of a fraction, a pilot whose images
            all differ alike.

    >>> a = pd.DataFrame({"image_id": range(40), "words": [10, 14] * 20})
    >>> pilot = a, a.assign(words=[11, 13, 12, 16] * 10)
    >>> round(power_of(30, *pilot, "words", difference=0.5), 2)
    0.57
    """
    if not n >= 2:
        raise ValueError(f"n is {n}, expected at least 2 images; a test needs a spread")
    return _power(_effect(items_a, items_b, metric, difference, alpha), n, alpha)


def images_needed(
    items_a: pd.DataFrame, items_b: pd.DataFrame, metric: str, difference: float, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Return the smallest number of images that show a true difference of a metric with the given chance.

    Args:
        items_a, items_b, metric, difference, alpha: as in :func:`power_of`.
        power: the chance, above alpha.

    Raises:
        ValueError: as in :func:`power_of`, power not within (alpha, 1).

    >>> a = pd.DataFrame({"image_id": range(40), "words": [10, 14] * 20})
    >>> images_needed(a, a.assign(words=[11, 13, 12, 16] * 10), "words", difference=0.5)
    51
    """
    from statsmodels.stats.power import TTestPower

    effect = _effect(items_a, items_b, metric, difference, alpha)
    if not alpha < power < 1:
        raise ValueError(f"power is {power}, expected a fraction above alpha = {alpha} and below 1; 0.8 is customary")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no solution above 2 images: 2 are enough
        solved = TTestPower().solve_power(effect, power=power, alpha=alpha / 2, alternative="larger")
    about = float(np.squeeze(solved))  # statsmodels 0.14 returns an array of one number
    n = max(2, math.ceil(about - 1e-4)) if np.isfinite(about) else 2
    while n > 2 and _power(effect, n - 1, alpha) >= power:  # statsmodels 0.14 gives its first guess, 10, where it finds nothing
        n -= 1
    while _power(effect, n, alpha) < power:  # the solver comes near, and no nearer
        n += 1
    return n


def _power(effect: float, n: int, alpha: float) -> float:
    """Return the power on the side of the effect."""
    from statsmodels.stats.power import TTestPower

    found = TTestPower().power(effect, n, alpha / 2, alternative="larger")
    # scipy's noncentral t is undefined at some points far out, where all but everything is found; the normal says so too.
    return float(found if np.isfinite(found) else stats.norm.sf(stats.t.isf(alpha / 2, n - 1) - effect * math.sqrt(n)))


def _effect(items_a: pd.DataFrame, items_b: pd.DataFrame, metric: str, difference: float, alpha: float) -> float:
    """Return the difference in standard deviations of the linearised images, without sign."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, expected a fraction between 0 and 1; pass 0.05 for 5%")
    if not (np.isfinite(difference) and difference):
        raise ValueError(f"difference is {difference}, expected a number other than 0; pass the smallest one that matters")
    a, b = paired_counts(items_a, items_b, metric)
    if metric not in NUMBERS and abs(difference) >= 1:
        raise ValueError(f"difference is {difference}, but {metric} is a fraction; expected less than 1; pass 0.01 for one point")
    if len(a) < 2:
        raise ValueError(f"there are {len(a)} images, expected at least 2 to take a spread from; add captions")
    (_, of_a), (_, of_b) = (linearised(*frame.to_numpy().T) for frame in (a, b))
    spread = (of_b - of_a).std(ddof=1)
    if spread < 1e-12 * max(1.0, np.abs(of_a).max()):
        raise ValueError(
            f"all {of_a.size} images of the pilot differ alike in {metric}; expected differences that vary, to plan from; take a "
            "larger pilot"
        )
    return float(abs(difference) / spread)
