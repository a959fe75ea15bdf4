"""Tell a model's forwards apart by their cache: watch that none runs past a method, and change the logits of those that count."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from prunehal.core import PrunableCache
from prunehal.core.keyword import cache_among
from prunehal.core.visual import generating

__all__ = ["FAR_BELOW", "beside", "changing_logits", "guarding", "inputs_of"]

FAR_BELOW = 1e4  # of logits; e^-10000 is 0 in every float type, and a beam of such a token loses against every other


def inputs_of(module: torch.nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a forward got, by name."""
    names = inspect.signature(module.forward).parameters if args else ()
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def beside(other: Cache, cache: PrunableCache) -> None:
    """Mark a cache as that of a method's own forwards beside the run on a pruning cache; `guarding` lets them pass."""
    other._prunehal_beside = cache


@contextmanager
def guarding(model: torch.nn.Module, cache: PrunableCache, name: str) -> Iterator[None]:
    """Refuse every forward of a model on another cache inside the block: there the method would do nothing, silently.

    Args:
        model: whose generate() runs inside.
        cache: which the method is attached to.
        name: of the method.
    """

    def hook(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = cache_among(inputs_of(module, args, kwargs))
        if given is not cache and getattr(given, "_prunehal_beside", None) is not cache:
            kind = "no cache" if given is None else f"another cache ({type(given).__name__})"
            raise ValueError(
                f"cache: the model runs with {kind} inside {name}.on(), which would then do nothing; expected the "
                "cache that on() was given. Fix: generate(**inputs, **cache.options, **options), and whatever else runs "
                "the model (guidance_scale, too) outside the block."
            )

    handle = generating(model).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def changing_logits(
    model: torch.nn.Module, cache: PrunableCache, rule: Callable[[Tensor, Tensor | None], Tensor]
) -> Iterator[None]:
    """Let every forward on a cache, from the prompt's last token on, return other logits inside the block.

    The logits are replaced where the model returns them, ahead of all processors. So the order is the published one in every
    mode - contrast, cut, processors, warpers - and beam search normalises what it adds up. What generate() returns as
    ``logits`` are then the changed ones.

    A later processor may forbid every token that the cut has left, e.g. the end of the text while ``min_new_tokens`` lasts.
    So a cut token does not get -inf but its own logit, lowered by ``FAR_BELOW``: probability 0, and the most probable of
    them follows where nothing else may.

    Args:
        model: whose generate() runs inside.
        cache: of the run; forwards with another cache are left alone.
        rule: takes the newest token's logits, float32 (batch, vocabulary), and the ids that were read, (batch, token) or None
            where the model got embeddings; returns new logits, with -inf where a token is cut.
    """

    def hook(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        given = inputs_of(module, args, kwargs)
        if cache_among(given) is not cache or not cache.step:
            return output  # another run, or a chunk of the prompt that is not the last
        logits = output.logits[:, -1].float()
        changed = rule(logits, given.get("input_ids")).to(logits.device)
        changed = torch.where(changed == -torch.inf, logits - logits.amax(dim=-1, keepdim=True) - FAR_BELOW, changed)
        output.logits = torch.cat([output.logits[:, :-1].float(), changed[:, None]], dim=1)
        return output

    handle = generating(model).register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
