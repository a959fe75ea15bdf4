"""Discard: drop visual tokens while the prompt is read, on another's decision, before the policy sees its first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from prunehal.core.cache import PrunableCache

__all__ = ["discard"]


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
    """
    table, layers, reports = cache.table, cache._pruned, cache._reports
    if cache.step != 1 or len(reports) != len(layers):
        raise RuntimeError(
            f"discard: step {cache.step} with the attention of {len(reports)} of {len(layers)} layers; expected step 1 with all. "
            "Fix: call it when a listener hears the last layer."
        )
    left = (keep & table.valid)[:, :, 0].sum(-1).tolist()
    slots = table.drop(keep, left, -1, layers[0].seen)
    for place, (layer, remaining) in enumerate(zip(layers, slots, strict=True)):
        layer.take(remaining)
        reports[place] = reports[place].gather(2, remaining.expand_as(reports[place][..., : remaining.shape[-1]]))
