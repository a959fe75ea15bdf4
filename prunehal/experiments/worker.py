"""Work: caption one batch of images under several policies, with one prefill; what every worker of a cluster runs.

A process loads a model once and keeps it; it does one task at a time.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.benchmarks.chair.score import score
from prunehal.decoding.base import Decoder
from prunehal.decoding.named import BEAMS
from prunehal.experiments.captioning import Captioned, caption_batch, mention_attention
from prunehal.experiments.experiment import Experiment
from prunehal.experiments.images import truth
from prunehal.experiments.prefill import batch_inputs, caches
from prunehal.experiments.sampling import KeyedSampling
from prunehal.experiments.versions import MadeBy, made_by_each
from prunehal.models.load import is_out_of_memory, load

__all__ = ["Made", "Rows", "Task", "same_prefill", "work"]

_BUSY = threading.Lock()

Rows = dict[str, list[dict[str, Any]]]  # key of an experiment -> its rows


@dataclass(frozen=True)
class Task:
    """Some images under some experiments, which all give the model the same prompt.

    Attributes:
        experiments: as `same_prefill` groups them.
        keys: image ids; one, where the experiments' decoder takes one input at a time.
    """

    experiments: tuple[Experiment, ...]
    keys: tuple[int | str, ...]


@dataclass(frozen=True)
class Made:
    """What a task gave.

    Attributes:
        rows: ``{key of the experiment: rows}``; see `prunehal.experiments.store` for what a row holds.
        made_by: key of the experiment -> code, weights, images and own policy of the process that made its rows, which may be
            another one than stores them.
    """

    rows: Rows
    made_by: Mapping[str, MadeBy]


def same_prefill(experiment: Experiment) -> Experiment:
    """Return what decides the prompt, and whether it comes alone; experiments of which it is equal share their prefill.

    >>> from prunehal.core import PruneHal
    >>> same_prefill(Experiment(policy=PruneHal(), decoding="vcd", seed=1)) == same_prefill(Experiment())
    True
    """
    plain = Experiment()
    names = ["policy", "mode", "seed", "max_new_tokens", "min_new_tokens", "n_images"]
    names += [] if experiment.one_input else ["decoding"]
    return replace(experiment, **{name: getattr(plain, name) for name in names})


def work(task: Task) -> Made:
    """Caption the images of a task under its experiments; a batch for which memory does not suffice is halved.

    >>> made = work(Task((Experiment(n_images=1, max_new_tokens=4),), (200000000,)))
    >>> [row["caption"] for (row,) in made.rows.values()]
    ['The photo was taken']
    """
    with _BUSY:
        return Made(_halving(task), made_by_each(task.experiments))


def _halving(task: Task) -> Rows:
    try:
        return _worked(task)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or len(task.keys) == 1:
            raise
    if torch.cuda.is_available():  # here the error, which holds the tensors of its frames, is gone
        torch.cuda.empty_cache()
    half = len(task.keys) // 2
    parts = [_halving(replace(task, keys=keys)) for keys in (task.keys[:half], task.keys[half:])]
    return {key: [row for part in parts for row in part[key]] for key in parts[0]}


def _worked(task: Task) -> Rows:
    first, keys = task.experiments[0], list(task.keys)
    model, processor = _loaded(first.model, first.revision, first.dtype)
    inputs = batch_inputs(model, processor, first, keys)
    made = caches(model, inputs, keys, many=len(task.experiments) > 1)
    truths = truth(first, keys)
    rows = {}
    for experiment in task.experiments:
        cache, given = made(experiment)
        decoder = experiment.decoding if isinstance(experiment.decoding, Decoder) else None
        with nullcontext({}) if decoder is None else decoder.on(model, inputs, cache) as options:
            options |= _search(experiment, keys, inputs) | {"max_new_tokens": experiment.max_new_tokens, "do_sample": False}
            if experiment.min_new_tokens:
                options["min_new_tokens"] = experiment.min_new_tokens
            done = caption_batch(model, processor, given, cache, keys, trace=True, **options)
        rows[experiment.key] = _rows(done, truths, getattr(experiment.policy, "majority", 0.5))
    return rows


@lru_cache(maxsize=1)
def _loaded(name: str, revision: str | None, dtype: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    model, processor = load(name, revision=revision, dtype=dtype)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def _search(experiment: Experiment, keys: Sequence[int | str], inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of generate() that a way of decoding without a decoder needs."""
    if experiment.decoding == "beam":
        return {"num_beams": BEAMS}
    if experiment.decoding == "nucleus":
        return {"logits_processor": [KeyedSampling(keys, experiment.seed, inputs["input_ids"].shape[1])]}
    return {}


def _rows(done: Captioned, truths: Mapping[Any, set[str]], majority: float) -> list[dict[str, Any]]:
    """Turn what a batch gave into rows."""
    steps = done.steps
    layers = sorted(steps["layer"].unique().tolist())
    visual = steps.groupby("image_id")["n_visual"].mean()
    mass = steps.groupby(["image_id", "layer"])["mass"].mean().unstack()[layers].round(4)
    enough = (steps["voted"] > majority) | (steps["voted"] == 1)  # no share is above majority=1, which asks for all layers
    of_step = steps[(steps["layer"] == layers[0]) & enough]
    events, voted, mentions = defaultdict(list), defaultdict(list), defaultdict(list)
    for line in done.events.itertuples():
        events[line.image_id].append([line.step, line.reason, line.kept[0]])
    for image_id, step in zip(of_step["image_id"], of_step["step"].tolist(), strict=True):
        voted[image_id].append(step)
    found = mention_attention(done, score(done.texts, truths))
    masses = found.pivot(index=["image_id", "index"], columns="layer", values="mass").reindex(columns=layers).round(4)
    of_mention = found.groupby(["image_id", "index"]).agg(
        {"node": "first", "hallucinated": "first", "step": "first", "entropy": "mean"}
    )
    for (image_id, _), mention, of_layer in zip(
        masses.index, of_mention.loc[masses.index].values.tolist(), masses.values.tolist(), strict=True
    ):
        node, hallucinated, step, entropy = mention
        mentions[image_id].append([node, hallucinated, step, of_layer, round(entropy, 4)])
    return [
        {
            "key": line.image_id,
            "caption": line.caption,
            "tokens": line.tokens,
            "finished": line.finished,
            "visual": round(float(visual[line.image_id]), 2),
            "events": events[line.image_id],
            "voted": voted[line.image_id],
            "layers": layers,
            "mass": mass.loc[line.image_id].tolist(),
            "mentions": mentions[line.image_id],
        }
        for line in done.captions.itertuples()
    ]
