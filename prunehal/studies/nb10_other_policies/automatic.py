"""Automatic settings: what `MassShare` keeps where nobody chose an r, and what a setting is worth that was chosen elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.core import MassShare, attach
from prunehal.experiments import Experiment, Store, changes
from prunehal.experiments.choosing import Chosen
from prunehal.experiments.compare import N_RESAMPLES, PRIMARY
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import Scene

__all__ = ["chosen_ratios", "transfer"]


def transfer(
    store: Store,
    there: Mapping[str, Chosen],
    here: Mapping[str, Chosen],
    base: Experiment,
    families: Sequence[str] = ("PruneHal", "MassShare"),
    *,
    n_resamples: int = N_RESAMPLES,
) -> pd.DataFrame:
    """Return what a setting that was chosen under other conditions is worth, beside the one that was chosen under these.

    Args:
        store: holds the rows.
        there, here: what `prunehal.studies.nb10_other_policies.compare.chosen_policies` returned for the other conditions and
            for these.
        base: without pruning, under these conditions, on the split to report on.
        families: whose choices.
        n_resamples: of the bootstrap over images.

    Returns:
        The columns of `prunehal.experiments.changes` against no pruning, and: family, chosen ("there" or "here");
        regret_distinct_chair_i and regret_recall with _low and _high: by how many points the setting chosen there is worse than
        the one chosen here, so that above 0 is worse for both metrics. NaN on the line of the setting chosen here.

    Raises:
        FileNotFoundError: rows are missing.
    """
    parts = []
    for family in families:
        pair = [each[family].setting.on(base) for each in (there, here)]
        part = changes(store, pair, base, n_resamples=n_resamples).assign(family=family, chosen=["there", "here"])
        regret = changes(store, pair[:1], pair[1], n_resamples=n_resamples)
        distinct, recall = PRIMARY
        for end, other in (("", ""), ("_low", "_high"), ("_high", "_low")):
            part[f"regret_{distinct}{end}"] = [regret[f"d_{distinct}{end}"].item(), np.nan]
            part[f"regret_{recall}{end}"] = [0.0 - regret[f"d_{recall}{other}"].item(), np.nan]  # a fall of recall is worse
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def chosen_ratios(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    scenes: Sequence[Scene],
    policy: MassShare,
    *,
    tiles: int = 0,
    batch_size: int = 50,
) -> pd.DataFrame:
    """Return what share of the visual tokens `MassShare` keeps, by image and layer: the r that nobody had to choose.

    Captions are written only as far as the prune.

    Args:
        model, processor: as ``prunehal.load()`` returns them.
        scenes: whose captions.
        policy: the policy.
        tiles: clean background tiles around each scene.
        batch_size: scenes decoded at once.

    Returns:
        One line for each image that was pruned, and layer: image_id, layer, kept, ratio.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> frame = chosen_ratios(*ph.load(), [scene("test", 0)], MassShare(p=0.9))
    >>> frame["layer"].tolist(), bool(frame["ratio"].between(0, 1).all())
    ([0, 1, 2, 3, 4, 5], True)
    """
    lines = []
    for start in range(0, len(scenes), batch_size):
        batch = scenes[start : start + batch_size]
        images = [image for scene in batch for image in scene.tiles(tiles, False)[0]]
        inputs = processor(images=images, text=[build_prompt(tiles + 1)] * len(batch), return_tensors="pt").to(model.device)
        n = (inputs["input_ids"][0] == model.config.image_token_id).sum().item()
        ids = [scene.image_id for scene in batch]
        cache = attach(model, inputs, policy, seeds=ids)
        model.generate(**inputs, **cache.options, max_new_tokens=policy.wait + 1, do_sample=False)
        layers = cache.trace.frame()["layer"].unique()
        for event in cache.events.itertuples():
            lines += [(ids[event.row], layer, kept, kept / n) for layer, kept in zip(layers, event.kept, strict=True)]
    return pd.DataFrame(lines, columns=["image_id", "layer", "kept", "ratio"])
