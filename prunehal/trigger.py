"""Read from stored rows how often and when the vote calls for a prune."""

from __future__ import annotations

import numpy as np
import pandas as pd

from prunehal.core import PruneHal
from prunehal.experiments import Experiment, Store

__all__ = ["saturation", "time_to_prune", "vote_rate"]


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
