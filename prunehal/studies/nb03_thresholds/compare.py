"""What notebook 03 compares beside r and t: the selections of tokens with each other, and where in the image recall is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from prunehal.benchmarks.chair.score import ChairResult
from prunehal.core import Policy, PruneHal, TopK
from prunehal.experiments import Experiment, Store, changes
from prunehal.experiments.compare import N_RESAMPLES, PRIMARY
from prunehal.stats.intervals import bootstrap_interval
from prunehal.stats.testing import holm
from prunehal.testbed.world.scenes import scene_of

__all__ = ["ROWS", "SELECTIONS", "between_selections", "label", "recall_by_row", "selections"]

SELECTIONS = ("top", "random", "lowest")
ROWS = ("top", "middle", "bottom")  # thirds of the scene


def label(policy: Policy) -> str:
    """Return a policy's thresholds in words, without its selection.

    >>> label(PruneHal(0.4, 1)), label(TopK(36)), label(Policy())
    ('r 0.4, t 1', '36 tokens', 'no pruning')
    """
    if isinstance(policy, PruneHal):
        return f"r {policy.r:g}, t {policy.t}"
    return f"{policy.k} tokens" if isinstance(policy, TopK) else "no pruning"


def selections(baseline: Experiment, policies: Sequence[Policy]) -> list[Experiment]:
    """Return each policy with each selection of SELECTIONS.

    >>> [each.policy.selection for each in selections(Experiment(split="test"), [PruneHal()])]
    ['top', 'random', 'lowest']
    """
    return [replace(baseline, policy=replace(policy, selection=kind)) for policy in policies for kind in SELECTIONS]


def between_selections(
    store: Store, baseline: Experiment, policies: Sequence[Policy], *, n_resamples: int = N_RESAMPLES
) -> pd.DataFrame:
    """Return the paired differences between selections at the same thresholds, on the same images.

    Args:
        store: holds the rows of all.
        baseline: no pruning, on the images that are compared.
        policies: thresholds; the selection of each is replaced.
        n_resamples: of the bootstrap over images.

    Returns:
        One line for each policy and pair of selections, first minus second: thresholds, difference ("top minus random" and so
        on), the columns of `prunehal.experiments.changes`; p_holm_ and rejected_ of each metric of PRIMARY (Holm over all lines).

    Raises:
        FileNotFoundError: rows are missing.

    >>> some = Experiment(split="test", n_images=20)
    >>> between_selections(Store.shipped(), some, [PruneHal(0.4, 1)], n_resamples=100)["difference"].tolist()
    ['top minus random', 'top minus lowest', 'lowest minus random']
    """
    parts = []
    for policy in policies:
        for one, other in (("top", "random"), ("top", "lowest"), ("lowest", "random")):
            a, b = (replace(baseline, policy=replace(policy, selection=kind)) for kind in (one, other))
            part = changes(store, [a], b, p_values=True, n_resamples=n_resamples)
            parts.append(part.assign(thresholds=label(policy), difference=f"{one} minus {other}"))
    table = pd.concat(parts, ignore_index=True)
    for metric in PRIMARY:
        tested = holm(table, f"p_{metric}")
        table = table.assign(**{f"p_holm_{metric}": tested["p_holm"], f"rejected_{metric}": tested["rejected"]})
    return table


def recall_by_row(store: Store, experiments: Sequence[Experiment], *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return the recall of the objects in each third of the scene: top, middle and bottom row.

    An object stands where its centre lies (`prunehal.testbed.world.scenes.SceneObject.place`).

    Args:
        store: holds the rows of all.
        experiments: on scenes of the testbed.
        n_resamples: of the bootstrap over images.

    Returns:
        One line for each experiment: thresholds, selection, and for each of ROWS the recall in percent with its 95% interval
        (top, top_low, top_high and so on).

    Raises:
        ValueError: the images are no scenes.
        FileNotFoundError: rows are missing.

    >>> some = [Experiment(split="test", n_images=50, policy=PruneHal(0.4, 1, selection="lowest"))]
    >>> recall_by_row(Store.shipped(), some, n_resamples=100)[["top", "middle", "bottom"]].round().values.tolist()
    [[26.0, 68.0, 62.0]]
    """
    lines = []
    for experiment in experiments:
        if experiment.images != "testbed":
            raise ValueError(f"images={experiment.images!r}: expected scenes of the testbed, whose objects have places")
        items = _by_row(store.score(experiment))
        line = {"thresholds": label(experiment.policy), "selection": experiment.policy.selection}
        for row in ROWS:
            found = bootstrap_interval(items[row], "recall", n_resamples)
            line |= {row: 100 * found.estimate, f"{row}_low": 100 * found.low, f"{row}_high": 100 * found.high}
        lines.append(line)
    return pd.DataFrame(lines)


def _by_row(result: ChairResult) -> dict[str, pd.DataFrame]:
    """Return, for each row, what `bootstrap_interval` needs of each image for the recall of the objects that stand in it."""
    named = result.mentions.groupby("image_id")["node"].agg(set).to_dict()
    lines = []
    for image in result.items["image_id"]:
        for thing in scene_of(image).objects:
            lines.append((image, ROWS[thing.place[1]], 1, int(thing.name in named.get(image, ()))))
    frame = pd.DataFrame(lines, columns=["image_id", "row", "n_truth", "n_recalled"])
    counted = frame.groupby(["row", "image_id"]).sum()
    images = pd.Index(result.items["image_id"], name="image_id")
    return {row: counted.loc[row].reindex(images, fill_value=0).reset_index() for row in ROWS}
