"""What notebook 05 compares: each option of the method by itself, and all together at an equal number of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd

from prunehal.core import Policy
from prunehal.experiments.compare import METRICS, N_RESAMPLES, PRIMARY
from prunehal.experiments.contrasts import contrasts
from prunehal.experiments.experiment import Experiment
from prunehal.experiments.over_images import SharedImages, p_over_images, share_intervals
from prunehal.experiments.store import Store
from prunehal.stats.effects import interactions, marginal_means
from prunehal.stats.intervals import paired_bootstrap
from prunehal.stats.testing import equivalence, holm, images_needed, paired_p_value

__all__ = [
    "OPTIONS",
    "at_equal_budget",
    "changed_option",
    "ends",
    "kept_shared",
    "one_at_a_time",
    "pairs_at_equal_budget",
    "sampled",
]

# Those that the random sample of combinations varies together.
OPTIONS = [
    "selection", "kept", "r", "t", "factor", "majority", "forced_first", "first", "reference", "after_prune", "statistic",
]  # fmt: skip


def changed_option(policy: Policy, usual: Policy) -> str:
    """Return the first option in which a policy differs from the usual one.

    >>> from prunehal.core import PruneHal
    >>> changed_option(PruneHal(kept="shared"), PruneHal())
    'kept = shared'
    """
    return next(f"{name} = {value}" for name, value in vars(policy).items() if value != vars(usual)[name])


def one_at_a_time(shared: SharedImages, usual: Policy, margin: float, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return what each option changes by itself, with a verdict for distinct CHAIR_i and for recall.

    Args:
        shared: settings that differ from the baseline in one option each; the baseline has the usual policy.
        usual: that policy.
        margin: points; a change that lies within it does not matter.
        n_resamples: of every bootstrap over images.

    Returns:
        The columns of `SharedImages.table` with intervals of PRIMARY; option; named (option, with its budget where that is more
        than 2% off the usual one); for each metric of PRIMARY p_, p_holm_ (over all
        lines) and verdict_: "equivalent" (within the margin: two one-sided tests at 5%, each by itself), "lower" or "higher" (not
        equivalent, and no change is rejected by a permutation test after Holm), or "unclear"; images (as many as show a change of
        distinct CHAIR_i by the margin with power 80%). Sorted by the change of distinct CHAIR_i.
    """
    base, *ours = shared.items
    table = shared.table(PRIMARY, n_resamples=n_resamples)
    table["option"] = [changed_option(each.policy, usual) for each in shared.experiments]
    budgets = table["option"] + table["visual"].map(" (budget {:.0f}%)".format)
    table["named"] = table["option"].where((table["visual"] - 100).abs() <= 2, budgets)
    for metric in PRIMARY:
        table[f"p_{metric}"] = [paired_p_value(base, each, metric) for each in ours]
        tested = holm(table, f"p_{metric}")
        table[f"p_holm_{metric}"] = tested["p_holm"]
        alike = [equivalence(base, each, metric, margin / 100, n_resamples=n_resamples).holds for each in ours]
        side = np.where(table[f"d_{metric}"] > 0, "higher", "lower")
        table[f"verdict_{metric}"] = np.where(alike, "equivalent", np.where(tested["rejected"], side, "unclear"))
    table["images"] = [images_needed(base, each, "distinct_chair_i", margin / 100) for each in ours]
    return table.sort_values("d_distinct_chair_i", ignore_index=True)


def sampled(shared: SharedImages, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return `SharedImages.table` of a sample of combinations, with options that are numbers or truth values as categories.

    Args:
        shared: settings drawn from the product of OPTIONS, and no pruning as baseline.
        n_resamples: of the intervals of PRIMARY.
    """
    table = shared.table(PRIMARY, n_resamples=n_resamples)
    usual = table["factor"].isna()
    table["factor"] = table["factor"].astype(float).astype(str).where(~usual, "sqrt(r)")
    return table.assign(forced_first=table["forced_first"].astype(str))


def at_equal_budget(shared: SharedImages, table: pd.DataFrame, metric: str, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return what each option explains of the variance between settings, at an equal number of visual tokens.

    Args:
        shared, table: what :func:`sampled` takes and returns.
        metric: a name of `prunehal.experiments.compare.METRICS`.
        n_resamples: of the bootstrap over images.

    Returns:
        One line for each of OPTIONS, the largest share first: term, share, low, high, df, p, p_holm (over settings and images,
        Holm over all options).
    """
    sample = table, OPTIONS, shared.change(metric), shared.budget, shared.visual.shape[1]
    return share_intervals(*sample, n_resamples=n_resamples).merge(p_over_images(*sample, OPTIONS), on="term")


def pairs_at_equal_budget(shared: SharedImages, table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return what each pair of options explains beyond all main effects, the largest share first.

    Args:
        shared, table, metric: as :func:`at_equal_budget`.

    Returns:
        One line for each pair: first, second, share, term, p, p_holm (over settings and images, Holm over all pairs).
    """
    sample = table, OPTIONS, shared.change(metric), shared.budget, shared.visual.shape[1]
    shares = interactions(table, f"d_{metric}", OPTIONS)[["first", "second", "share"]]
    tested = p_over_images(*sample, list(combinations(OPTIONS, 2)))[["term", "p", "p_holm"]]
    return shares.assign(term=shares["first"] + " x " + shares["second"]).merge(tested, on="term")


def ends(table: pd.DataFrame, metric: str, option: str) -> str:
    """Return the mean change at the two values of an option at which it is lowest and highest, all else as in the sample.

    Args:
        table: as :func:`sampled` returns it.
        metric: a name of `prunehal.experiments.compare.METRICS`.
        option: one of OPTIONS.
    """
    means = marginal_means(table, f"d_{metric}", OPTIONS, of=[option]).sort_values("mean")
    low, high = means.iloc[0], means.iloc[-1]
    return f"lowest {low['mean']:+.1f} with {low['value']}, highest {high['mean']:+.1f} with {high['value']}"


def kept_shared(
    store: Store,
    single: Sequence[Experiment],
    shared: SharedImages,
    table: pd.DataFrame,
    metric: str = "distinct_chair_i",
    *,
    n_resamples: int = N_RESAMPLES,
) -> pd.DataFrame:
    """Return what ``kept="shared"`` changes against "layer", by everything that was run: one at a time, and in the sample.

    A main effect of `kept` in the sample is a mean over the selections, and few of its settings with shared tokens have selection
    top, which the settings one at a time all have; so the sample is split by selection.

    Args:
        store: holds the rows of the settings one at a time.
        single: settings one at a time; those with ``kept="shared"`` are compared with the same with "layer".
        shared, table, metric: as :func:`at_equal_budget`.
        n_resamples: of the bootstrap over images, of the settings one at a time.

    Returns:
        One line for each comparison: experiment ("one at a time, r 0.7" or "sample"), selection, settings (that carry it),
        difference, low, high (95%; of the sample at equal budget, over settings and images).
    """
    lines = []
    for ours in (each for each in single if each.policy.kept == "shared"):
        usual = replace(ours, policy=replace(ours.policy, kept="layer"))
        d = paired_bootstrap(store.score(usual).items, store.score(ours).items, metric, n_resamples)
        made = (METRICS[metric] * value for value in (d.estimate, d.low, d.high))
        name = f"one at a time, r {ours.policy.r:g}"
        line = {"experiment": name, "selection": ours.policy.selection, "settings": 1}
        lines.append(line | dict(zip(("difference", "low", "high"), made, strict=True)))
    sample = table, OPTIONS, shared.change(metric), shared.budget, shared.visual.shape[1]
    apart = contrasts(*sample, "kept", "layer", "selection").query("kept == 'shared'").sort_values("selection", ascending=False)
    columns = ["experiment", "selection", "settings", "difference", "low", "high"]
    return pd.concat([pd.DataFrame(lines), apart.assign(experiment="sample")[columns]], ignore_index=True)
