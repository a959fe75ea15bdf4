"""Where visual attention lies, and what a selection keeps: the patches of a scene's objects, which only the testbed knows.

The mass on all visual tokens says how much a step looks at the image; the share of it on objects says whether it looks at what
the caption is about. Redundant tokens change the second more than the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.benchmarks.chair import score
from prunehal.captioning import caption_batch, mention_attention
from prunehal.experiments import Experiment
from prunehal.experiments.pictures import truth
from prunehal.experiments.prefill import batch_inputs, caches, object_marks

__all__ = ["evidence"]


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
        ValueError: the experiment has other images than the testbed's.

    >>> from prunehal import load
    >>> from prunehal.core import PruneHal
    >>> model, processor = load()
    >>> frame = evidence(model, processor, Experiment(split="test", policy=PruneHal(r=0.25, t=1)), [300000000, 300000001])
    >>> frame["kept"].tolist(), bool((frame["kept_objects"] > frame["kept"]).all())
    ([0.25, 0.25], True)
    """
    if not isinstance(keys[0], int) or experiment.images != "testbed":
        raise ValueError(f"images={experiment.images!r}: objects are known of the testbed's scenes only; expected 'testbed'")
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
