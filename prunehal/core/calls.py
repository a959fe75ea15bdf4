"""Watch generate(): compare each call on a pruning cache with what was attached, before any forward runs.

Only generate() gets the whole conversation and the pixels; a forward gets the tokens that the cache has not read, and image
features in the place of pixels. This one method of transformers is therefore wrapped, once, when this module is imported, as the
attention function is; calls without a pruning cache are passed on unchanged.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.streamers import BaseStreamer

from prunehal.core.cache import PrunableCache
from prunehal.core.keyword import cache_among
from prunehal.core.offsets import offsets_of, restore_offsets

__all__ = ["ending", "watched"]


def watched(stock: Callable) -> Callable:
    """Return transformers' generate(), which compares a call on a pruning cache with what was attached before it runs."""

    positional = list(inspect.signature(stock).parameters)[2:]  # behind the model and its inputs

    @functools.wraps(stock)
    def generate(self, inputs=None, *args, **kwargs):
        cache = cache_among(kwargs)
        if not isinstance(cache, PrunableCache):
            return stock(self, inputs, *args, **kwargs)
        given = dict(zip(positional, args, strict=False)) | kwargs
        with ending(given.get("streamer")):
            _refuse_assistance(self, given)
            ids = given.get("input_ids", inputs)
            if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point() and given.get("inputs_embeds") is None:
                _compare(cache, ids, given)
            with cache.called(), _own_offsets(self, cache):
                return stock(self, inputs, *args, **kwargs)

    generate._prunehal_watched = True
    return generate


@contextmanager
def ending(streamer: BaseStreamer | None) -> Iterator[None]:
    """End a streamer if what feeds it fails inside the block, since its reader would wait for ever.

    Of blocks inside each other only the innermost that fails ends it.

    >>> class Words(BaseStreamer):
    ...     def put(self, value):
    ...         print(value)
    ...
    ...     def end(self):
    ...         print("ended")
    >>> words = Words()
    >>> try:
    ...     with ending(words), ending(words):
    ...         raise KeyError("word")
    ... except KeyError:
    ...     print("failed")
    ended
    failed
    """
    try:
        yield
    except BaseException as error:
        if streamer is not None and getattr(error, "_prunehal_ended", None) is not streamer:
            error._prunehal_ended = streamer
            streamer.end()
        raise


@contextmanager
def _own_offsets(model: torch.nn.Module, cache: PrunableCache) -> Iterator[None]:
    if cache.get_seq_length():
        restore_offsets(model, cache.offsets)
    try:
        yield
    finally:
        cache.offsets = offsets_of(model)


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
    if cache.goes_on and seen < len(prompt) and not prompt.handed_on and prompt.pictures.among(arguments):
        raise ValueError(
            "pixel_values: this cache goes on from a prompt that SharedPrefill, Draft or FirstToken has run, its images with it; "
            "expected the inputs without them. Fix: shared = SharedPrefill(model, inputs); cache = shared.attach(policy); "
            "model.generate(**shared.inputs, **cache.options)."
        )
    if seen < len(prompt):
        prompt.check_rows(len(ids))
        cache.same_images = prompt.pictures.same(arguments)
    for acts in cache.methods:
        acts.check_mask(ids, mask)
    whole = mask is None or (isinstance(mask, Tensor) and mask.shape == ids.shape)  # else only the new tokens are given
    if whole and 0 < seen < ids.shape[1]:
        cache.check_history(ids[:, :seen], None if mask is None else mask[:, :seen])


def _install() -> None:
    if not getattr(GenerationMixin.generate, "_prunehal_watched", False):
        GenerationMixin.generate = watched(GenerationMixin.generate)


_install()
