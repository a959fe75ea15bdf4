"""Which faithful mentions a hallucinated one is compared with: as likely to begin with, and at the same place of the caption.

What both have in common there cannot be the reason why they respond otherwise. Strata without one of the two are left out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["balance", "matched", "strata"]

_BINS, _LAST = 10, 5  # bins of the baseline; place in the caption from which on all count as one


def strata(found: pd.DataFrame) -> np.ndarray:
    """Return the stratum of each mention: its baseline, in tenths of those of hallucinated ones, and its place.

    The likelier a word is, the less it can gain, and attention falls along a caption: mentions of a stratum are alike in both.

    Args:
        found: one line for each mention: hallucinated, baseline, index.
    """
    edges = np.quantile(found.loc[found["hallucinated"], "baseline"], np.linspace(0, 1, _BINS + 1))
    inside = np.searchsorted(edges[1:-1], found["baseline"], side="right") + 1
    # Below and above all hallucinated mentions are bins of their own, which hold none of them.
    inside = np.select([found["baseline"] < edges[0], found["baseline"] > edges[-1]], [0, _BINS + 1], inside)
    return inside * (_LAST + 1) + found["index"].clip(upper=_LAST).to_numpy()


def matched(found: pd.DataFrame) -> pd.DataFrame:
    """Return the mentions of those strata that hold hallucinated and faithful ones, with a weight.

    Args:
        found: one line for each mention: hallucinated, baseline, index.

    Returns:
        The lines, with stratum and weight: 1 for a hallucinated mention; a faithful one weighs as many hallucinated mentions as
        its stratum has for each faithful one.
    """
    found = found.assign(stratum=strata(found))
    counts = found.groupby("stratum")["hallucinated"].agg(bad="sum", all="size")
    counts = counts[(counts["bad"] > 0) & (counts["bad"] < counts["all"])]
    found = found.join(counts, on="stratum", how="inner")
    return found.assign(weight=np.where(found["hallucinated"], 1.0, found["bad"] / (found["all"] - found["bad"]))).drop(
        columns=["bad", "all"]
    )


def balance(found: pd.DataFrame) -> pd.DataFrame:
    """Return what matching makes alike: numbers of mentions and means, before and after.

    Args:
        found: one line for each mention: hallucinated, baseline, index.

    Returns:
        Lines: hallucinated and faithful mentions, all and matched; columns n, baseline, index (weighted by :func:`matched`).
    """
    pairs, lines = matched(found), {}
    for name, bad in (("hallucinated", True), ("faithful", False)):
        for label, part in ((name, found.assign(weight=1.0)), (f"{name}, matched", pairs)):
            part = part[part["hallucinated"] == bad]
            means = {column: np.average(part[column], weights=part["weight"]) for column in ("baseline", "index")}
            lines[label] = {"n": len(part)} | means
    return pd.DataFrame(lines).T.astype({"n": int})
