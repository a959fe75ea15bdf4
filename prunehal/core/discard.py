"""Discard: drop visual tokens on another's decision, before the policy sees its first step, and without an event."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunehal.core.arguments import check_keep
from prunehal.core.given import Given
from prunehal.core.informative import Telling

if TYPE_CHECKING:
    from prunehal.core.cache import PrunableCache

__all__ = ["as_entries", "discard", "entries_of", "leave_only"]


def discard(cache: PrunableCache, keep: Tensor) -> None:
    """Drop the visual tokens that are not to be kept from the layers' K and V; layers may keep different numbers.

    To be called by a listener, when it hears the last layer at step m = 1. The policy takes its votes at m = 1 on what is
    left, each layer by its own number of tokens; this is no prune of the policy's, and no event. A token that is dropped
    from a layer must not have been visible there: the caller hides it from that layer's attention.

    Args:
        cache: of the run.
        keep: bool (layer, pool, head, visual), as the entries of ``cache.table.valid``.

    Raises:
        RuntimeError: some layer has not reported its attention yet, or a step came before.
        ValueError: the policy is `Keep`, `Informative` or `Standout`, which had its scores before.
    """
    table, layers, reports = cache.table, cache._pruned, cache._reports
    if cache.step != 1 or len(reports) != len(layers):
        raise RuntimeError(
            f"discard: step {cache.step} with the attention of {len(reports)} of {len(layers)} layers; expected step 1 with all. "
            "Fix: call it when a listener hears the last layer."
        )
    if isinstance(cache.policy, Given):
        name = type(cache.policy).__name__
        raise ValueError(
            f"discard: the policy {name}() was given the tokens to leave, and some of them would be gone; expected another "
            f"policy. Fix: NoPruning(), or {name}() without a decoder that drops visual tokens."
        )
    left = (keep & table.valid)[:, :, 0].sum(-1).tolist()
    slots = table.drop(keep, left, -1, layers[0].seen)
    for place, (layer, remaining) in enumerate(zip(layers, slots, strict=True)):
        layer.take(remaining)
        for rows in filter(None, (reports, cache._asked)):
            rows[place] = rows[place].gather(2, remaining.expand_as(rows[place][..., : remaining.shape[-1]]))


def leave_only(cache: PrunableCache, keep: Tensor) -> None:
    """Drop all visual tokens but the given ones from a prompt whose last token is still to be read; no step and no event.

    The policy then sees every step, m = 1 too, on what is left.

    Args:
        cache: that holds K and V of the prompt but for its last token; nothing was observed yet.
        keep: True at the visual tokens that stay; see `entries_of`.

    Raises:
        ValueError: as `entries_of` does; the policy is `Informative` or `Standout`, whose scores are those of all tokens; it
            keeps the same tokens in all layers, and the mask does not.
    """
    if isinstance(cache.policy, Telling):
        raise ValueError(
            f"keep: is given with the policy {type(cache.policy).__name__}(), which has scored all tokens; expected another one. "
            "Fix: no keep, or then=NoPruning()."
        )
    layers = cache._pruned
    cache._allocate(layers[0].keys)
    table = cache.table
    marks = entries_of(cache, keep)
    if cache.policy.kept == "shared" and bool((marks != marks[:1]).any()):
        raise ValueError(
            f"policy={cache.policy!r}: kept='shared' keeps the same tokens in all layers, but different ones are left in them "
            "before it starts; expected kept='layer' or 'head', or one set for all layers. Fix: policy with kept='layer', or "
            "keep of shape (batch, prompt); after a Draft, kept='shared' in both policies."
        )
    left = marks[:, :, 0].sum(-1).tolist()
    if left != table.left:
        slots = table.drop(marks, left, -1, layers[0].seen)
        for layer, remaining in zip(layers, slots, strict=True):
            layer.take(remaining)


def entries_of(cache: PrunableCache, keep: Tensor) -> Tensor:
    """Return a mask of prompt positions as entries of the table, bool (layer, pool, head, visual); before any prune.

    Args:
        cache: whose table is made.
        keep: bool (batch, prompt), or (layer, batch, prompt), or (layer, batch, head, prompt) where the policy keeps a set
            for each KV head. Rows are those of the inputs; text is passed over.

    Raises:
        ValueError: the mask has another shape; a layer of a row would keep nothing, or its heads different numbers.
    """
    table, prompt, layers = cache.table, cache.prompt, cache._pruned
    check_keep(keep)
    heads = table.valid.shape[2]
    whole = keep if keep.ndim > 2 else keep.expand(len(layers), -1, -1)
    whole = whole if whole.ndim > 3 else whole[:, :, None]
    wanted = (len(layers), prompt.rows, len(prompt))
    if keep.dtype != torch.bool or whole.shape[2] not in (1, heads) or (*whole.shape[:2], *whole.shape[3:]) != wanted:
        raise ValueError(
            f"keep: has shape {tuple(keep.shape)} and dtype {keep.dtype}; expected bool (batch, prompt) = {wanted[1:]}, or "
            f"(layer, batch, prompt) with {wanted[0]} layers. Fix: mark the visual tokens that are to stay."
        )
    marks = as_entries(cache, whole.expand(-1, -1, heads, -1).float()).bool()
    counts = marks.sum(-1).tolist()
    if any(len(set(of_heads)) > 1 for of_layer in counts for of_heads in of_layer):
        raise ValueError("keep: the KV heads of a layer keep different numbers of tokens; expected as many. Fix: mark as many.")
    for layer, of_layer in zip(layers, counts, strict=True):
        for pool, (n, *_) in enumerate(of_layer):
            if not n and table.totals[pool]:
                raise ValueError(
                    f"keep: row {pool // table.pools} keeps no visual token in layer {layer.index}; expected at least one in "
                    "each layer (and image, where each is pruned by itself). Fix: mark one."
                )
    return marks


def as_entries(cache: PrunableCache, values: Tensor) -> Tensor:
    """Return values of prompt positions as entries of the table, (layer, pool, head, visual); before any prune.

    Args:
        cache: whose table is made.
        values: (layer, batch, head, prompt), of the inputs' rows.
    """
    table = cache.table
    copies = table.valid.shape[1] // table.pools // cache.prompt.rows
    return table.read(list(values.repeat_interleave(copies, dim=1).to(table.valid.device))) * table.valid
