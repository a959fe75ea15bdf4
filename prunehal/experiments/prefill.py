"""Give the model its prompts, and each experiment its cache: what a batch of images becomes before it is decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.core import Draft, FirstToken, Keep, NoPruning, PrunableCache, SharedPrefill, attach
from prunehal.decoding.named import BEAMS
from prunehal.experiments.experiment import TESTBED, Experiment
from prunehal.experiments.images import pictures
from prunehal.models.chat import CAPTION_PROMPT, encode, render, to_model
from prunehal.testbed.world.captions import PROMPT
from prunehal.testbed.world.oracle import object_tokens
from prunehal.testbed.world.scenes import GRID, scene_of

__all__ = ["batch_inputs", "caches", "object_marks"]


def batch_inputs(
    model: PreTrainedModel, processor: ProcessorMixin, experiment: Experiment, keys: Sequence[int | str]
) -> dict[str, Tensor]:
    """Return what the model reads for these image ids, on its device."""
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
    if (counts := set(visual.sum(1).tolist())) != {GRID**2}:
        raise ValueError(
            f"positions_only=True: the scenes have {sorted(counts)} visual tokens in this model; expected {GRID**2}, as in "
            "the testbed's tiles; use the embedded model"
        )
    at = torch.tensor([scene_of(key).tiles(experiment.tiles, experiment.clutter)[1] for key in keys], device=visual.device)
    before = torch.where(visual, at[:, None], 0) + torch.where(visual.cumsum(1) == GRID**2, experiment.tiles, 0) * ~visual
    return torch.arange(visual.shape[1], device=visual.device) + GRID**2 * before


def caches(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], keys: Sequence[int | str], many: bool, maps: bool = False
) -> Callable[[Experiment], tuple[PrunableCache, Mapping[str, Tensor]]]:
    """Return what makes an experiment's cache and the inputs of its generate().

    Args:
        model, inputs, keys: a batch, as :func:`batch_inputs` made it.
        many: let the experiments share one prefill, where the model allows it.
        maps: record the attention on every visual token.
    """
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
        options: dict[str, Any] = {"seeds": [_seed(key) for key in keys], "entropy": True, "maps": maps}
        if isinstance(policy, Keep):
            options["keep"] = object_marks(model, inputs, experiment, keys)
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


def object_marks(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], experiment: Experiment, keys: Sequence[int | str]
) -> Tensor:
    """Mark the visual tokens that show an object, bool (batch, prompt); see `prunehal.testbed.world.oracle.object_tokens`."""
    tiles = 0 if experiment.positions_only else experiment.tiles
    return object_tokens([scene_of(key) for key in keys], _visual(model, inputs).cpu(), tiles, experiment.clutter)


def _seed(key: int | str) -> int:
    """Return what keys the random selection of an image: the image, not its place in the batch."""
    return key if isinstance(key, int) else int.from_bytes(hashlib.sha256(key.encode()).digest()[:7])
