"""Read from stored rows how often and when the vote calls for a prune, and what the factor of its threshold does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from prunehal.core import NoPruning, PruneHal
from prunehal.experiments import Experiment, Store, graded, read_grid
from prunehal.experiments.choosing import Chosen, choose_by_rule
from prunehal.experiments.over_images import SharedImages
from prunehal.files.paths import data_path
from prunehal.models.load import EMBEDDED
from prunehal.stats.bootstrap import bca
from prunehal.stats.pooled import ratio

__all__ = [
    "at_edge",
    "chosen_factors",
    "factors_at_equal_budget",
    "on_mentions",
    "saturation",
    "time_to_prune",
    "vote_rate",
]


def time_to_prune(store: Store, experiment: Experiment, number: int = 1) -> pd.DataFrame:
    """Estimate by which step captions were pruned for the ``number``-th time (Kaplan and Meier 1958, JASA 53).

    A caption that ends before is censored at its last step. By statsmodels.

    Args:
        store: holds the rows.
        experiment: whose captions.
        number: 1 for the first prune.

    Returns:
        One line for each step at which such a prune happened, and one for step 1: step, pruned (share of the captions), at_risk
        (captions that were running and had not been pruned so often).

    Raises:
        FileNotFoundError: rows are missing.

    >>> curve = time_to_prune(Store.shipped(), Experiment(split="test"))
    >>> curve["pruned"].tolist()
    [0.0]
    """
    from statsmodels.duration.api import SurvfuncRight

    captions, events = store.captions(experiment), store.events(experiment)
    when = captions["image_id"].map(events[events["number"] == number].set_index("image_id")["step"])
    steps = captions["tokens"] + captions["finished"]
    start = pd.DataFrame({"step": [1.0], "pruned": [0.0], "at_risk": [len(captions)]})
    if when.isna().all():
        return start
    curve = SurvfuncRight(when.fillna(steps), when.notna().astype(int))
    happened = np.asarray(curve.n_events) > 0
    found = {"step": curve.surv_times, "pruned": 1 - curve.surv_prob, "at_risk": curve.n_risk}
    return pd.concat([start, pd.DataFrame(found)[happened]], ignore_index=True)


def saturation(store: Store, experiment: Experiment) -> pd.DataFrame:
    """Return in one line how many of its t prunes a policy spends.

    Returns:
        Columns: r, t, prunes (mean for each caption), all_used (share of the captions), last_step (median step of the last prune
        of those), tokens (mean length of the captions).

    Raises:
        ValueError: the policy is no PruneHal.
        FileNotFoundError: rows are missing.

    >>> from prunehal.core import PruneHal
    >>> saturation(Store.shipped(), Experiment(split="test", policy=PruneHal(r=0.9, t=1)))["all_used"].tolist()
    [1.0]
    """
    policy = experiment.policy
    if not isinstance(policy, PruneHal):
        raise ValueError(
            f"policy={policy!r} of {experiment.name}: has no r and t; expected PruneHal(...); ask for an experiment with that"
        )
    captions, events = store.captions(experiment), store.events(experiment)
    last = events.loc[events["number"] == policy.limit, "step"]
    line = {
        "r": policy.r,
        "t": policy.t,
        "prunes": captions["prunes"].mean(),
        "all_used": (captions["prunes"] == policy.limit).mean(),
    }
    return pd.DataFrame([line | {"last_step": last.median(), "tokens": captions["tokens"].mean()}])


def vote_rate(store: Store, experiment: Experiment) -> pd.DataFrame:
    """Return one line for each step from m = 2: whether a majority voted, and what the step wrote.

    Returns:
        Columns: image_id, step; voted; names_object (the step wrote the first token of an object's name); hallucinated (of that
        object; False elsewhere).

    Raises:
        FileNotFoundError: rows are missing.

    >>> rate = vote_rate(Store.shipped(), Experiment(split="test", n_images=20))
    >>> bool(rate["voted"].any()), bool(rate["names_object"].any())
    (False, True)
    """
    captions = store.captions(experiment)
    lengths = zip(captions["image_id"], captions["tokens"] + captions["finished"], strict=True)
    frame = pd.DataFrame([(image_id, step) for image_id, n in lengths for step in range(2, n + 1)], columns=["image_id", "step"])
    votes = store.votes(experiment)[["image_id", "step"]].assign(voted=True)
    mentions = store.mentions(experiment).drop_duplicates(["image_id", "step"])[["image_id", "step", "hallucinated"]]
    frame = frame.merge(votes, how="left").merge(mentions.assign(names_object=True), how="left")
    return frame.fillna({"voted": False, "names_object": False, "hallucinated": False}).astype(
        {"voted": bool, "names_object": bool, "hallucinated": bool}
    )


def on_mentions(store: Store, experiment: Experiment, *, n_resamples: int = 5000) -> pd.DataFrame:
    """Return in one line how often a policy votes and prunes, and at what words.

    Args:
        store: holds the rows.
        experiment: whose captions.
        n_resamples: of the bootstrap over images.

    Returns:
        What :func:`saturation` returns; votes (steps with a majority in a caption, whether or not a prune was still allowed); and
        in percent, with _low and _high (95% BCa interval over images; NaN where there are none): steps_naming, votes_naming and
        prunes_naming, the shares of the steps from m = 2, of the votes and of the prunes by vote at which the name of an object
        begins.

    Raises:
        ValueError, FileNotFoundError: as :func:`saturation`.

    >>> from prunehal.core import PruneHal
    >>> line = on_mentions(Store.shipped(), Experiment(split="test", n_images=20, policy=PruneHal(r=0.7, t=3)), n_resamples=200)
    >>> bool(line["steps_naming"].item() > line["votes_naming"].item())
    True
    """
    line, steps = saturation(store, experiment), vote_rate(store, experiment)
    by_vote = store.events(experiment).query("reason == 'vote'")[["image_id", "step"]].assign(pruned=True)
    steps = steps.merge(by_vote, how="left").fillna({"pruned": False})
    keys = sorted(steps["image_id"].unique())
    line["votes"] = steps["voted"].sum() / len(keys)
    for name, which in (("steps", steps), ("votes", steps[steps["voted"]]), ("prunes", steps[steps["pruned"].astype(bool)])):
        found = which.groupby("image_id")["names_object"].agg(["sum", "size"]).reindex(keys, fill_value=0)
        counted = found.set_axis(["top", "bottom"], axis=1).reset_index(drop=True).astype(float)
        share = [np.nan] * 3
        if len(which):
            each = bca(ratio(counted), len(keys), len(which), n_resamples, 0, 0.95)
            share = [100 * value for value in (each.estimate, each.low, each.high)]
        line[[f"{name}_naming{end}" for end in ("", "_low", "_high")]] = share
    return line


def chosen_factors(store: Store, model: str = EMBEDDED) -> dict[float, Chosen]:
    """Choose a factor of the threshold for each r on the validation split, where the vote alone decides when to prune.

    The choice is against no pruning, by `prunehal.experiments.choosing.choose_by_rule`; sqrt(r) is a candidate like the others.

    Args:
        store: holds the rows of data/grids/factor.toml, and those without pruning.
        model: as in `Experiment`.

    Returns:
        r -> the choice, whose ``setting`` is a PruneHal; where no factor keeps the recall it is that of highest recall, and
        ``missed`` says so.

    Raises:
        FileNotFoundError: rows are missing.

    >>> {r: each.setting.factor for r, each in chosen_factors(Store.shipped()).items()}
    {0.4: 0.1, 0.7: 0.1, 0.9: 0.1}
    """
    by_ratio: dict[float, list[Experiment]] = {}
    for each in read_grid(data_path("grids", "factor.toml")):
        if each.split == "validation":
            by_ratio.setdefault(each.policy.r, []).append(each.with_options({"model": model}))
    none = NoPruning()
    return {
        r: choose_by_rule(graded(store, [replace(experiments[0], policy=none), *experiments]), none)
        for r, experiments in by_ratio.items()
    }


def at_edge(policy: PruneHal) -> str:
    """Return whether a factor of the threshold is the "lowest" or the "highest" that was tried for its r, or "" if it is neither.

    At an edge the best factor is not bracketed: a better one may lie further out. sqrt(r) counts as tried.

    >>> at_edge(PruneHal(r=0.7, factor=0.1)), at_edge(PruneHal(r=0.7, factor=0.5)), at_edge(PruneHal(r=0.7, factor=0.95))
    ('lowest', '', 'highest')
    """
    grid = [each.policy for each in read_grid(data_path("grids", "factor.toml")) if each.split == "validation"]
    tried = [_threshold(each) for each in grid if each.r == policy.r]
    own = _threshold(policy)
    return "lowest" if own <= min(tried) else "highest" if own >= max(tried) else ""


def _threshold(policy: PruneHal) -> float:
    return policy.r**0.5 if policy.factor is None else policy.factor


def factors_at_equal_budget(shared: SharedImages, metric: str, degree: int = 2, *, n_resamples: int = 5000) -> pd.DataFrame:
    """Return what each factor of the threshold changes against sqrt(r) at an equal number of visual tokens.

    A lower factor prunes later, so that more tokens are attended to; that alone changes captions. Least squares on one constant
    for each factor and a polynomial of the visual tokens that all factors share; BCa intervals over images.

    Args:
        shared: settings of PruneHal that differ in r and factor, and a baseline.
        metric: a name of `prunehal.experiments.compare.METRICS`, such as "distinct_chair_i".
        degree: of the polynomial.
        n_resamples: of the bootstrap over images.

    Returns:
        One line for each factor but sqrt(r): factor, difference, low, high; in points, or words.

    Raises:
        ValueError: no setting has the factor sqrt(r), or none has another.

    >>> base = Experiment(split="test", n_images=50)
    >>> from prunehal.experiments import grid
    >>> some = grid(Experiment(split="test", n_images=50, policy=PruneHal(r=0.7, t=2)), {"policy.factor": [None, 0.25, 0.95]})
    >>> factors_at_equal_budget(SharedImages.read(Store.shipped(), some, base), "recall", 1, n_resamples=200)["factor"].tolist()
    [0.25, 0.95]
    """
    factors = [each.policy.factor for each in shared.experiments]
    others = sorted({factor for factor in factors if factor is not None})
    if not others or None not in factors:
        raise ValueError(f"factors {factors}: expected None, which is sqrt(r), and others; give settings of both")
    own = np.array([[1.0, *(factor == other for other in others)] for factor in factors])
    n, change = shared.visual.shape[1], shared.change(metric)
    usual = shared.budget(np.ones((1, n)))

    def effects(weights: np.ndarray) -> np.ndarray:
        z = (shared.budget(weights) - usual.mean()) / usual.std()
        powers = np.stack([z**power for power in range(1, degree + 1)], axis=-1)
        x = np.concatenate([np.broadcast_to(own, (len(z), *own.shape)), powers], axis=-1)
        return (np.linalg.pinv(x) @ change(weights)[..., None])[:, 1 : 1 + len(others), 0]  # (resample, factor)

    found = [bca(lambda w, i=i: effects(w)[:, i], n, n, n_resamples, 0, 0.95) for i in range(len(others))]
    lines = [(factor, each.estimate, each.low, each.high) for factor, each in zip(others, found, strict=True)]
    return pd.DataFrame(lines, columns=["factor", "difference", "low", "high"])
