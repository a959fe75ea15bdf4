"""Work: caption one batch of images under several policies, with one prefill; what every worker of a cluster runs.

A process loads a model once and keeps it; it does one task at a time.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.benchmarks.chair import score
from prunehal.captioning import Captioned, caption_batch, mention_attention
from prunehal.core import Draft, FirstToken, Keep, NoPruning, PrunableCache, SharedPrefill, attach
from prunehal.decoding.base import Decoder
from prunehal.decoding.named import BEAMS
from prunehal.experiments.description import TESTBED, Experiment
from prunehal.experiments.pictures import pictures, truth
from prunehal.experiments.sampling import KeyedSampling
from prunehal.experiments.versions import MadeBy, made_by
from prunehal.loading import load
from prunehal.running.chat import encode, render, to_model
from prunehal.running.loop import is_out_of_memory
from prunehal.running.tasks import CAPTION_PROMPT
from prunehal.testbed.captions import PROMPT
from prunehal.testbed.oracle import object_tokens
from prunehal.testbed.scenes import GRID, scene_of

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
        made_by: code, weights and images of the process that made them, which may be another one than stores them.
    """

    rows: Rows
    made_by: MadeBy


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
    ['The image shows a']
    """
    with _BUSY:
        return Made(_halving(task), made_by(task.experiments[0]))  # the others have the same model and images


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
    inputs = _inputs(model, processor, first, keys)
    made = _caches(model, inputs, keys, many=len(task.experiments) > 1)
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


def _inputs(
    model: PreTrainedModel, processor: ProcessorMixin, experiment: Experiment, keys: Sequence[int | str]
) -> dict[str, Tensor]:
    text = experiment.prompt or (PROMPT if experiment.images == TESTBED else CAPTION_PROMPT)
    prompt = render(processor, text, experiment.template, model.config.model_type)
    if experiment.tiles and not experiment.positions_only:
        prompt = prompt.replace(processor.image_token, processor.image_token * (experiment.tiles + 1))
    inputs = to_model(encode(processor, pictures(experiment, keys), [prompt] * len(keys)), model)
    if experiment.positions_only:
        inputs["position_ids"] = _positions(_visual(model, inputs), experiment, keys)
    return inputs


def _visual(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    return inputs["input_ids"] == model.config.image_token_id


def _positions(visual: Tensor, experiment: Experiment, keys: Sequence[int | str]) -> Tensor:
    """Return the positions, (batch, prompt), that scene and text have among the background tiles; a prompt is not padded."""
    at = torch.tensor([scene_of(key).tiles(experiment.tiles, experiment.clutter)[1] for key in keys], device=visual.device)
    before = torch.where(visual, at[:, None], 0) + torch.where(visual.cumsum(1) == GRID**2, experiment.tiles, 0) * ~visual
    return torch.arange(visual.shape[1], device=visual.device) + GRID**2 * before


def _caches(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], keys: Sequence[int | str], many: bool
) -> Callable[[Experiment], tuple[PrunableCache, Mapping[str, Tensor]]]:
    """Return what makes an experiment's cache and the inputs of its generate(): from one prefill where the model allows it."""
    shared = None
    if many:
        try:
            shared = SharedPrefill(model, inputs)
        except ValueError:  # some models cannot share a prompt; a prompt that is wrong is refused by attach() too
            shared = None

    @cache
    def before_decoding(kind: type[SharedPrefill], **length: int) -> SharedPrefill:
        return kind(model, inputs, **length)

    def made(experiment: Experiment) -> tuple[PrunableCache, Mapping[str, Tensor]]:
        decoding, policy, prefill = experiment.decoding, experiment.policy, shared
        options: dict[str, Any] = {"seeds": [_seed(key) for key in keys], "entropy": True}
        if isinstance(policy, Keep):
            options["keep"] = _on_objects(model, inputs, experiment, keys)
        if experiment.mode == "draft":
            prefill = before_decoding(Draft, max_new_tokens=experiment.max_new_tokens)
        elif experiment.mode == "first-token" and isinstance(policy, Keep):
            policy, prefill = NoPruning(), before_decoding(SharedPrefill)
        elif experiment.mode == "first-token":
            prefill = before_decoding(FirstToken)
        if prefill is None or getattr(decoding, "whole_prompt", False):
            return attach(model, inputs, policy, **options), inputs
        copies = BEAMS if decoding == "beam" else getattr(decoding, "num_beams", 1)
        return prefill.attach(policy, copies=copies, **options), prefill.inputs

    return made


def _on_objects(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], experiment: Experiment, keys: Sequence[int | str]
) -> Tensor:
    tiles = 0 if experiment.positions_only else experiment.tiles
    return object_tokens([scene_of(key) for key in keys], _visual(model, inputs).cpu(), tiles, experiment.clutter)


def _search(experiment: Experiment, keys: Sequence[int | str], inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of generate() that a way of decoding without a decoder needs."""
    if experiment.decoding == "beam":
        return {"num_beams": BEAMS}
    if experiment.decoding == "nucleus":
        return {"logits_processor": [KeyedSampling(keys, experiment.seed, inputs["input_ids"].shape[1])]}
    return {}


def _seed(key: int | str) -> int:
    """Return what keys the random selection of an image: the image, not its place in the batch."""
    return key if isinstance(key, int) else int.from_bytes(hashlib.sha256(key.encode()).digest()[:7])


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
