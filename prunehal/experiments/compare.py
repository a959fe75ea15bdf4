"""Compare: the scores of experiments against a baseline on the same images, as one table; and splits to choose and report on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import pandas as pd

from prunehal.benchmarks.chair.length import equal_objects
from prunehal.core import Policy
from prunehal.experiments.choosing import Graded
from prunehal.experiments.experiment import Experiment
from prunehal.experiments.store import Store
from prunehal.stats.bootstrap import Interval
from prunehal.stats.intervals import paired_bootstrap
from prunehal.stats.pooled import NUMBERS
from prunehal.stats.testing import paired_p_value

__all__ = ["LEVELS", "METRICS", "N_RESAMPLES", "PRIMARY", "at_equal_length", "changes", "equal_lengths", "graded"]

N_RESAMPLES = 5000  # of every interval that the README shows; a notebook may ask for fewer, and says so
# What stands beside every CHAIR_i, and the unit in which tables show it: percent, or a number a caption.
METRICS = {
    name: 1 if name in NUMBERS else 100
    for name in ("chair_i", "chair_s", "distinct_chair_i", "absent", "recall", "f1", "repeats", "unfinished", "words")
}
PRIMARY = ("distinct_chair_i", "recall")  # what claims are about, and what is tested
LEVELS = {  # the columns that stand beside each other wherever captions are scored, and what readers call them
    "chair_i": "CHAIR_i",
    "distinct_chair_i": "distinct CHAIR_i",
    "absent": "absent objects",
    "recall": "recall",
    "repeats": "repeats",
    "unfinished": "unfinished",
    "words": "words",
}


def changes(
    store: Store,
    experiments: Sequence[Experiment],
    baseline: Experiment,
    *,
    p_values: bool = False,
    n_resamples: int = N_RESAMPLES,
) -> pd.DataFrame:
    """Return one line for each experiment: its policy, its scores, and their paired differences from the baseline.

    Args:
        store: holds the rows of all.
        experiments: any; each is compared on its own images.
        baseline: of the same model and images, such as one with ``NoPruning()``.
        p_values: test distinct_chair_i and recall, too (`prunehal.stats.testing.paired_p_value`); a grid wants
            `prunehal.stats.testing.holm` then.
        n_resamples: of the bootstrap over images (BCa).

    Returns:
        Columns: experiment (the object), name, policy, one for each option of the policies; visual (mean share of the visual
        tokens that a layer's cache held over the steps of a caption, in percent of the baseline's), prunes (mean for each
        caption); the metrics of METRICS: chair_i, chair_s, distinct_chair_i, recall, f1, repeats and unfinished (percent),
        absent and words (mean of a caption); for each of them d_ (difference), d_..._low and d_..._high (its 95% interval); with
        p_values p_distinct_chair_i and p_recall.

    Raises:
        ValueError: an experiment that has other images than the baseline.
        FileNotFoundError: rows are missing.

    >>> import tempfile
    >>> from prunehal.core import PruneHal
    >>> from prunehal.experiments import sweep
    >>> wanted = [Experiment(n_images=3), Experiment(n_images=3, policy=PruneHal())]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = changes(sweep(wanted, folder, progress=False), wanted[1:], wanted[0], n_resamples=100)
    >>> table[["r", "t", "prunes"]].values.tolist()
    [[0.4, 3.0, 3.0]]
    """
    lines = []
    for experiment in experiments:
        base = _same_images(baseline, experiment)
        ours, theirs = store.score(experiment), store.score(base)
        captions, before = store.captions(experiment), store.captions(base)
        line = {"experiment": experiment, "name": experiment.name} | _options_of(experiment.policy)
        line |= {"visual": 100 * captions["visual"].sum() / before["visual"].sum(), "prunes": captions["prunes"].mean()}
        for metric, unit in METRICS.items():
            d = paired_bootstrap(theirs.items, ours.items, metric, n_resamples=n_resamples)
            line |= {metric: unit * ours.metrics[metric], f"d_{metric}": unit * d.estimate}
            line |= {f"d_{metric}_low": unit * d.low, f"d_{metric}_high": unit * d.high}
        for metric in PRIMARY if p_values else ():
            line[f"p_{metric}"] = paired_p_value(theirs.items, ours.items, metric)
        lines.append(line)
    return pd.DataFrame(lines)


def at_equal_length(
    store: Store, experiment: Experiment, baseline: Experiment, *, n_resamples: int = N_RESAMPLES
) -> dict[str, Interval]:
    """Return the paired differences from the baseline when both captions of an image name equally many distinct objects.

    Both are cut after the k-th distinct object, where k is the smaller number of the two (`prunehal.benchmarks.chair.length`).

    Returns:
        distinct_chair_i, recall, chair_i (fractions) and words.

    Raises:
        ValueError, FileNotFoundError: as :func:`changes`.
    """
    scored = [store.score(each) for each in (_same_images(baseline, experiment), experiment)]
    a, b = equal_objects(*scored)
    metrics = (*PRIMARY, "chair_i", "words")
    return {metric: paired_bootstrap(a, b, metric, n_resamples=n_resamples) for metric in metrics}


def equal_lengths(
    store: Store, experiments: Sequence[Experiment], baseline: Experiment, *, n_resamples: int = N_RESAMPLES
) -> pd.DataFrame:
    """Return :func:`at_equal_length` of several experiments, in percent, as columns that join what :func:`changes` returned.

    Returns:
        equal_distinct_chair_i and equal_recall, each with _low and _high (95%). NaN for the baseline itself.

    Raises:
        ValueError, FileNotFoundError: as :func:`changes`.
    """
    columns = [f"equal_{metric}{end}" for metric in PRIMARY for end in ("", "_low", "_high")]
    lines = []
    for experiment in experiments:
        line = {}
        if experiment != baseline:
            found = at_equal_length(store, experiment, baseline, n_resamples=n_resamples)
            ends = [(d.estimate, d.low, d.high) for d in (found[metric] for metric in PRIMARY)]
            line = dict(zip(columns, (100 * value for end in ends for value in end), strict=True))
        lines.append(line)
    return pd.DataFrame(lines, columns=columns, dtype=float)


def graded(store: Store, experiments: Sequence[Experiment]) -> Graded:
    """Return the scores of the policies of one split, for `prunehal.experiments.choosing.choose` and ``report``.

    Args:
        store: holds the rows of all.
        experiments: that differ in their policy only.

    Raises:
        ValueError: they differ in more than the policy.
        FileNotFoundError: rows are missing.
    """
    plain = {replace(experiment, policy=experiments[0].policy) for experiment in experiments}
    if len(plain) != 1:
        names = [f.name for f in fields(Experiment) if len({getattr(each, f.name) for each in plain}) > 1]
        raise ValueError(f"the experiments differ in {', '.join(names)}; expected the same but for the policy; compare those")
    return Graded(experiments[0].split, {experiment.policy: store.score(experiment) for experiment in experiments})


def _same_images(baseline: Experiment, experiment: Experiment) -> Experiment:
    """Return the baseline on as many images as the experiment has.

    Raises:
        ValueError: it has other images.
    """
    for name in ("images", "split", "questions"):
        if getattr(baseline, name) != getattr(experiment, name):
            raise ValueError(
                f"{name}={getattr(experiment, name)!r} of {experiment.name}: the baseline has {getattr(baseline, name)!r}; "
                "expected the same images; compare within a split"
            )
    return replace(baseline, n_images=experiment.n_images)


def _options_of(policy: Policy) -> dict[str, object]:
    """Return ``{"policy": name, option: value, ...}``.

    >>> from prunehal.core import TopK
    >>> _options_of(TopK(36))["k"]
    36
    """
    return {"policy": type(policy).__name__} | {f.name: getattr(policy, f.name) for f in fields(policy) if f.init}
