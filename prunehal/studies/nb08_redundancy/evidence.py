"""Where visual attention lies, and what a selection keeps: the patches of a scene's objects, which only the testbed knows.

The mass on all visual tokens says how much a step looks at the image; the share of it on objects says whether it looks at what
the caption is about. Redundant tokens change the second more than the first.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.benchmarks.chair.score import score
from prunehal.core import NoPruning
from prunehal.experiments import Experiment, Store
from prunehal.experiments.captioning import caption_batch, mention_attention
from prunehal.experiments.experiment import TESTBED
from prunehal.experiments.images import image_keys, truth
from prunehal.experiments.prefill import batch_inputs, caches, object_marks
from prunehal.experiments.tables import read_marked, write_marked
from prunehal.figures import patch_counts
from prunehal.files.paths import data_path
from prunehal.models.load import load
from prunehal.studies.nb08_redundancy.rules import CELLS, all_rules, chosen_rules
from prunehal.studies.settings import Setting
from prunehal.testbed.world.scenes import Scene

__all__ = ["FILE", "evidence", "kept_patches", "measure", "stored"]

FILE = "evidence.csv.gz"  # among the shipped results
RULES_AMONG = 3  # background tiles among which rules are compared


def evidence(
    model: PreTrainedModel, processor: ProcessorMixin, experiment: Experiment, keys: Sequence[int], batch_size: int = 25
) -> pd.DataFrame:
    """Caption scenes as an experiment says, and see how much attention their objects get and how many of their patches stay.

    Args:
        model, processor: as ``prunehal.load()`` returns them.
        experiment: on the testbed; greedy.
        keys: image ids.
        batch_size: scenes at once.

    Returns:
        One line for each scene, all means over layers: at_mentions_mass and at_others_mass (attention on all visual tokens at the
        steps that begin the name of an object, and at all others), at_mentions_share and at_others_share (of it on objects; nan
        without such a step); kept and kept_objects (share of the visual tokens, and of those on objects, that the caption's last
        step can attend to); objects (share of the visual tokens that show objects).

    Raises:
        ValueError: the experiment has other images than the testbed's, or another decoding; no keys.

    >>> from prunehal import load
    >>> from prunehal.core import PruneHal
    >>> model, processor = load()
    >>> frame = evidence(model, processor, Experiment(split="test", policy=PruneHal(r=0.25, t=1)), [300000000, 300000001])
    >>> frame["kept"].tolist(), bool((frame["kept_objects"] > frame["kept"]).all())
    ([0.25, 0.25], True)
    """
    if experiment.images != TESTBED or experiment.decoding != "greedy" or not keys:
        raise ValueError(
            f"images={experiment.images!r}, decoding={experiment.decoding!r}, {len(keys)} keys: expected greedy captions of at "
            f"least one scene of the {TESTBED!r}, whose objects are known"
        )
    parts = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    return pd.concat([_batch(model, processor, experiment, list(part)) for part in parts], ignore_index=True)


def _batch(model: PreTrainedModel, processor: ProcessorMixin, experiment: Experiment, keys: list[int]) -> pd.DataFrame:
    inputs = batch_inputs(model, processor, experiment, keys)
    cache, given = caches(model, inputs, keys, many=False, maps=True)(experiment)
    options = {"max_new_tokens": experiment.max_new_tokens, "min_new_tokens": experiment.min_new_tokens or None}
    done = caption_batch(model, processor, given, cache, keys, trace=True, do_sample=False, **options)
    on_visual = inputs["input_ids"] == model.config.image_token_id
    marks = object_marks(model, inputs, experiment, keys)[on_visual.cpu()].view(len(keys), -1)
    found = mention_attention(done, score(done.texts, truth(experiment, keys)))
    begins = found.groupby("image_id")["step"].agg(set)
    lines = []
    for row, image_id in enumerate(keys):
        maps = cache.trace.maps[:, :, row].cpu()  # (step, layer, visual); nan where dropped
        steps = done.steps.loc[done.steps["image_id"] == image_id, "step"].max()
        lines.append({"image_id": image_id} | _of_row(maps[:steps], marks[row], sorted(begins.get(image_id, ()))))
    return pd.DataFrame(lines)


def _of_row(maps: Tensor, marks: Tensor, begins: list[int]) -> dict[str, float]:
    mass, on_objects = maps.nansum(-1), maps[..., marks].nansum(-1)  # (step, layer)
    share = on_objects / mass
    at = torch.zeros(len(maps), dtype=torch.bool)
    at[[step - 1 for step in begins]] = True
    line = {}
    for name, steps in (("at_mentions", at), ("at_others", ~at)):
        line |= {f"{name}_mass": mass[steps].mean().item(), f"{name}_share": share[steps].mean().item()}
    seen = maps[-1].nan_to_num(0) > 0
    line |= {"kept": seen.float().mean().item(), "kept_objects": seen[:, marks].float().mean().item()}
    return line | {"objects": marks.float().mean().item()}


def kept_patches(
    model: PreTrainedModel, processor: ProcessorMixin, experiment: Experiment, shown: Scene
) -> tuple[str, np.ndarray]:
    """Caption one scene as an experiment says, and count in how many layers each patch is left at the end.

    Args:
        model, processor: as ``prunehal.load()`` returns them.
        experiment: on the testbed; greedy.
        shown: the scene.

    Returns:
        The caption, and layers (tile, 12, 12).

    >>> from prunehal import load
    >>> from prunehal.core import PruneHal
    >>> from prunehal.testbed.world.scenes import scene
    >>> text, counts = kept_patches(*load(), Experiment(tiles=1, policy=PruneHal(r=0.25, t=1)), scene("test", 6))
    >>> counts.shape, int(counts.sum()) == 72 * load()[0].config.text_config.num_hidden_layers
    ((2, 12, 12), True)
    """
    inputs = batch_inputs(model, processor, experiment, [shown.image_id])
    cache, given = caches(model, inputs, [shown.image_id], many=True)(experiment)
    ids = model.generate(**given, **cache.options, max_new_tokens=experiment.max_new_tokens, do_sample=False)
    layers = range(model.config.text_config.num_hidden_layers)
    counts = patch_counts([cache.kept(layer)[0] for layer in layers], tiles=experiment.tiles + 1)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True), counts


def measure(out: Path, n_images: int = 60, progress: bool = True) -> pd.DataFrame:
    """Measure the test split without pruning in every cell of `prunehal.studies.nb08_redundancy.rules`, and under every rule
    among three tiles.

    Args:
        out: compressed file to write.
        n_images: scenes of each cell.
        progress: show a bar with the time left.

    Returns:
        The columns of :func:`evidence`, and: rule (its name, or "no pruning"), tiles, clutter.

    Raises:
        FileNotFoundError: the rows of the validation split, which choose the rules, are not stored.
    """
    model, processor = load()
    rules = {"no pruning": Setting(NoPruning())} | all_rules(chosen_rules(Store.shipped()))
    plain = Experiment(split="test", n_images=n_images)
    jobs = [(name, *cell) for cell in CELLS for name in rules if name == "no pruning" or cell[0] == RULES_AMONG]
    parts = []
    for name, tiles, clutter in tqdm(jobs, desc="evidence", unit="cell", disable=not progress):
        experiment = rules[name].on(replace(plain, tiles=tiles, clutter=clutter))
        found = evidence(model, processor, experiment, image_keys(plain))
        parts.append(found.assign(rule=name, tiles=tiles, clutter=clutter))
    frame = pd.concat(parts, ignore_index=True).round(4)
    write_marked(out, frame.to_csv(index=False), plain)
    return frame


def stored(path: Path | None = None) -> pd.DataFrame:
    """Read the rows that :func:`measure` wrote; by default the shipped ones.

    Raises:
        FileNotFoundError, ValueError, BadInput: as `prunehal.experiments.tables.read_marked`.
    """
    path = data_path("results", FILE, must_exist=False) if path is None else path
    _, table = read_marked(path, Experiment(split="test"), "python -m prunehal evidence")
    return pd.read_csv(io.StringIO(table))
