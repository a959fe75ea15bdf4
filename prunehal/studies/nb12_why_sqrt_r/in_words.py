"""What the factor of the threshold does, in words that follow the numbers."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from prunehal.experiments.readable import between
from prunehal.stats.bootstrap import verdict
from prunehal.studies.nb12_why_sqrt_r.factor import balanced

__all__ = ["equal_budget", "reach"]


def reach(met: Mapping[str, float], at_random: Mapping[str, float], held: pd.DataFrame) -> list[str]:
    """Return in words how far the first prune lifts A_l, and the factor that this asks for.

    Args:
        met, at_random: the first prune's line of what `prunehal.studies.nb12_why_sqrt_r.factor.reached` returns, under these
            columns: rise, reached, low and high.
        held: indexed by number and lag, with the columns share and ratio, as fractions.

    >>> held = pd.DataFrame({"share": [1.0, 0.7], "ratio": [0.49, 0.49]}, pd.MultiIndex.from_tuples([(1, 0), (1, 1)]))
    >>> reach({"rise": 2.0, "reached": 1.0, "low": 0.9, "high": 1.0}, {"reached": 0.8}, held)[-1]
    'Factor that the measured rise asks for: 0.70; sqrt(r) = 0.70.'
    """
    ratio, (now, later) = held.loc[(1, 0), "ratio"], (held.loc[(1, lag), "share"] for lag in (0, 1))
    return [
        f"The {ratio:.0%} of the tokens that stay hold {now:.0%} of the visual attention at the prune, {later:.0%} a step later.",
        f"The first prune lifts the mean A_l by {met['rise']:.2f}: {met['reached']:.0%} [{met['low']:.0%}, {met['high']:.0%}] of "
        f"the way to 1 / r; random tokens reach {at_random['reached']:.0%}.",
        f"Factor that the measured rise asks for: {balanced(ratio, met['reached']):.2f}; sqrt(r) = {balanced(ratio):.2f}.",
    ]


def equal_budget(at_equal: pd.DataFrame, p: float) -> list[str]:
    """Return in words whether a factor differs from sqrt(r) in distinct CHAIR_i at an equal number of visual tokens.

    Args:
        at_equal: what `prunehal.studies.nb06_trigger.votes.factors_at_equal_budget` returned for distinct CHAIR_i.
        p: of one test whether any factor matters there.

    >>> lines = pd.DataFrame({"factor": [0.1, 0.5, 0.95], "difference": [-2, 0, 3], "low": [-3, -1, 1], "high": [-1, 1, 5]})
    >>> equal_budget(lines, 0.2)
    ['factor 0.1: lower, -2.0 [-3.0, -1.0]', 'factor 0.5: unclear, +0.0 [-1.0, 1.0]', 'factor 0.95: higher, +3.0 [1.0, 5.0]', \
'whether any factor matters, in one test: p = 0.2']
    """
    said = []
    for line in at_equal.to_dict("records"):
        ends = {"change": line["difference"], "change_low": line["low"], "change_high": line["high"]}
        said.append(f"factor {line['factor']:g}: {verdict(line['low'], line['high'])}, {between(ends, 'change')}")
    return [*said, f"whether any factor matters, in one test: p = {p:.2g}"]
