"""Watch generate(): compare each call on a pruning cache with what was attached, before any forward runs.

A forward gets only what the cache has not read, and image features in the place of pixels. The whole conversation and the pixels
reach generate() alone. So that one method of transformers is wrapped, once, when this module is imported, as the attention is;
calls without a pruning cache go straight through.
"""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import GenerationMixin

from prunehal.core.cache import PrunableCache
from prunehal.core.keyword import cache_among

__all__ = ["watched"]


def watched(stock: Callable) -> Callable:
    """Return transformers' generate(), which compares a call on a pruning cache with what was attached before it runs."""

    @functools.wraps(stock)
    def generate(self, inputs=None, *args, **kwargs):
        cache = cache_among(kwargs)
        if not isinstance(cache, PrunableCache):
            return stock(self, inputs, *args, **kwargs)
        _refuse_assistance(self, kwargs)
        ids = kwargs.get("input_ids", inputs)
        if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point() and kwargs.get("inputs_embeds") is None:
            _compare(cache, ids, kwargs)
        with cache.called():
            return stock(self, inputs, *args, **kwargs)

    generate._prunehal_watched = True
    return generate


def _refuse_assistance(model: torch.nn.Module, arguments: Mapping[str, object]) -> None:
    places = (arguments, vars(arguments.get("generation_config") or model.generation_config))
    for name in ("assistant_model", "prompt_lookup_num_tokens"):
        if any(place.get(name) is not None for place in places):
            raise ValueError(
                f"{name}: assisted and prompt-lookup decoding roll the cache back, and dropped tokens cannot return; expected "
                "greedy search, sampling or beam search. Fix: leave out assistant_model and prompt_lookup_num_tokens."
            )


def _compare(cache: PrunableCache, ids: Tensor, arguments: Mapping[str, object]) -> None:
    prompt, seen, mask = cache.prompt, cache.get_seq_length(), arguments.get("attention_mask")
    if seen < len(prompt):
        prompt.check_rows(len(ids))
        cache.same_images = prompt.pictures.same(arguments)
    whole = mask is None or (isinstance(mask, Tensor) and mask.shape == ids.shape)  # else only the new tokens are given
    if whole and 0 < seen < ids.shape[1]:
        cache.check_history(ids[:, :seen], None if mask is None else mask[:, :seen])


def _install() -> None:
    if not getattr(GenerationMixin.generate, "_prunehal_watched", False):
        GenerationMixin.generate = watched(GenerationMixin.generate)


_install()
