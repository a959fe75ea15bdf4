"""Whether the vote singles out hallucinated names: votes compared, and the answer in words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from prunehal.stats.clustered import over_images
from prunehal.stats.odds import mention_model

__all__ = ["singles_out", "votes_at_names"]

FEWEST = 10  # votes at names that a model of them needs


def votes_at_names(rate: pd.DataFrame, *, n_resamples: int = 5000) -> dict[str, float]:
    """Compare the votes at hallucinated names with those at faithful names, and at words that name no object.

    Args:
        rate: what `prunehal.studies.nb06_trigger.votes.vote_rate` returned: steps of at least two images, with names of both
            kinds.
        n_resamples: of the bootstrap over images.

    Returns:
        hallucinated, faithful and other: how many such steps there are; votes_...: at how many of them a majority voted;
        highest_hallucinated, highest_faithful: upper end of the exact 95% interval of the share with a vote, in percent (Clopper
        and Pearson 1934, Biometrika 26; as if names were independent); gap, gap_low, gap_high: share at hallucinated names minus
        that at other words, in points (BCa over images); odds_ratio, odds_low, odds_high, p: of a vote at a hallucinated
        name against a faithful one with the step held (`prunehal.stats.odds.mention_model`), NaN with fewer than ten votes at
        names.

    Raises:
        ValueError: as `prunehal.stats.clustered.over_images` and `prunehal.stats.odds.mention_model`.

    >>> from prunehal.experiments import Experiment, Store
    >>> from prunehal.studies.nb06_trigger.votes import vote_rate
    >>> line = votes_at_names(vote_rate(Store.shipped(), Experiment(split="test", n_images=50)), n_resamples=200)
    >>> line["votes_hallucinated"], line["votes_other"], bool(line["highest_hallucinated"] > line["highest_faithful"])
    (0, 0, True)
    """
    names, wrong = rate["names_object"], rate["names_object"] & rate["hallucinated"]
    line: dict[str, float] = {}
    for name, which in {"hallucinated": wrong, "faithful": names & ~wrong, "other": ~names}.items():
        n, votes = int(which.sum()), int(rate.loc[which, "voted"].sum())
        line |= {name: n, f"votes_{name}": votes}
        if name != "other":
            line[f"highest_{name}"] = 100 * stats.binomtest(votes, n).proportion_ci(method="exact").high
    found = over_images(rate[wrong | ~names], "voted", wrong[wrong | ~names], n_resamples)
    line |= {name: 100 * found[end] for name, end in {"gap": "estimate", "gap_low": "low", "gap_high": "high"}.items()}
    return line | _odds(rate[names])


def singles_out(line: Mapping[str, float]) -> str:
    """Say whether the vote singles out hallucinated names, in words that follow the intervals of :func:`votes_at_names`.

    "Yes" asks for more: more votes there than at words that name no object, and higher odds than at faithful names.

    >>> singles_out({"gap_low": -52.0, "gap_high": -48.0, "odds_low": np.nan})
    'No: words that name no object draw the vote more often than hallucinated names'
    """
    if line["gap_high"] < 0:
        besides = ", though these draw it more often than faithful ones" if line["odds_low"] > 1 else ""
        return f"No: words that name no object draw the vote more often than hallucinated names{besides}"
    if line["gap_low"] > 0 and line["odds_low"] > 1:
        return "Yes: hallucinated names draw the vote more often than faithful ones, and than words that name no object"
    return "Unclear"


def _odds(mentions: pd.DataFrame) -> dict[str, float]:
    """Return the odds of a vote at a hallucinated name against a faithful one, with the step held."""
    columns = {"odds_ratio": "odds_ratio", "odds_low": "low", "odds_high": "high"}
    if mentions["voted"].sum() < FEWEST:
        return dict.fromkeys([*columns, "p"], np.nan)
    fit = mention_model(mentions, "voted", ["hallucinated", "step"]).iloc[0]
    scale = 1 / mentions["hallucinated"].astype(float).std()  # from a standard deviation to hallucinated against faithful
    return {name: fit[column] ** scale for name, column in columns.items()} | {"p": fit["p"]}
