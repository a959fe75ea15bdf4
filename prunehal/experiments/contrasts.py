"""Contrasts: the differences between the values of an option, separately for each value of a second option.

A main effect is a mean over all other options. Where an option has one effect with one selection and the opposite with another,
its main effect may be near 0; the contrasts show both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from prunehal.experiments.over_images import fit_over_images
from prunehal.stats.bootstrap import Statistic
from prunehal.stats.effects import DEGREE, design

__all__ = ["contrasts"]


def contrasts(
    table: pd.DataFrame,
    options: Sequence[str],
    change: Statistic,
    budget: Statistic,
    n_images: int,
    option: str,
    against: object,
    within: str,
    degree: int = DEGREE,
    *,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the change with each value of an option minus that with one of them, at equal budget, within a second option.

    The model is that of `prunehal.experiments.over_images.p_over_images` with the interaction of the two options; the intervals
    are over settings and images.

    Args:
        table: one line for each setting; columns of options.
        options: of the model; ``option`` and ``within`` among them.
        change, budget: weights (resample, image) -> (resample, setting), such as those of `SharedImages`.
        n_images: number of images.
        option: whose values are compared.
        against: the value that the others are compared with, such as the published one.
        within: the second option.
        degree: of the polynomial of the budget.
        confidence: of the intervals.

    Returns:
        One line for each value of ``within`` and each other value of ``option``: both, settings (that have these two),
        settings_against (that have ``against`` instead), difference, low, high; NaN where either has no setting.

    Raises:
        ValueError: no setting has ``against``, or the settings do not separate the options.

    >>> table = pd.DataFrame({"kept": list("abab") * 5, "selection": list("uuvv") * 5})
    >>> does = np.random.default_rng(0).normal([[0.0], [1.0], [0.0], [-1.0]] * 5, 0.3, (20, 30))  # (setting, image)
    >>> budget = np.random.default_rng(1).normal(50, 5, (20, 30))
    >>> pools = [lambda weights, m=m: weights @ m.T / weights.sum(axis=1, keepdims=True) for m in (does, budget)]
    >>> found = contrasts(table, ["kept", "selection"], *pools, 30, "kept", "a", "selection")
    >>> found[["selection", "kept", "settings"]].values.tolist(), found["difference"].round().tolist()
    ([['u', 'b', 5], ['v', 'b', 5]], [1.0, -1.0])
    """
    pair = (within, option)
    if against not in set(table[option]):
        raise ValueError(f"no setting has {option}={against!r}; expected one of {sorted(set(table[option]), key=str)}; name one")
    fit = fit_over_images(design(table, options, (), pair=pair), change, budget, n_images, degree)
    if fit is None:
        raise ValueError(
            f"the {len(table)} settings do not separate the effects of {', '.join(options)}; give more settings, or fewer options"
        )
    params, covariance, freedom = fit
    reach = stats.t.ppf((1 + confidence) / 2, freedom)
    lines = []
    for place in sorted(table[within].unique()):
        here = table.loc[table[within] == place, option]
        for value in sorted(set(table[option]) - {against}):
            both = [design(table, options, (), pair=pair, values={within: place, option: at}).mean() for at in (value, against)]
            apart = np.append((both[0] - both[1]).to_numpy(), np.zeros(degree))  # the budget is held
            made, error = apart @ params, np.sqrt(apart @ covariance @ apart)
            counted = {"settings": int((here == value).sum()), "settings_against": int((here == against).sum())}
            ends = (made, made - reach * error, made + reach * error) if all(counted.values()) else (np.nan,) * 3
            lines.append({within: place, option: value} | counted | dict(zip(("difference", "low", "high"), ends, strict=True)))
    return pd.DataFrame(lines)
