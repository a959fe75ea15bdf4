"""Listen: let other code hear what a pruning cache observes, step by step, without touching model or cache code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from prunehal.core.observed import ObservedCache

__all__ = ["Listener", "listening"]


class Listener:
    """Hear of every attention row and of every move of the beams; subclass it and override what is needed."""

    def heard(self, layer: int, weights: Tensor) -> None:
        """Take the newest query's attention weights.

        Args:
            layer: index of the layer in the model.
            weights: of the newest query on the stored slots, float32 (batch, kv_head, group, slot).
        """

    def reordered(self, beam_idx: Tensor) -> None:
        """Take the new order of the rows, (batch,), after the cache has followed it; called with beam search only."""


@contextmanager
def listening(cache: ObservedCache, *listeners: Listener) -> Iterator[None]:
    """Let listeners hear a cache inside the block; none is left behind, however it ends.

    >>> import torch
    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> class Layers(Listener):
    ...     def heard(self, layer, weights):
    ...         seen.append(layer)
    >>> seen = []
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> cache = ph.attach(model, inputs, ph.NoPruning())
    >>> with listening(cache, Layers()):
    ...     ids = model.generate(**inputs, **cache.options, max_new_tokens=1)
    >>> seen
    [0, 1, 2, 3, 4, 5]
    """
    cache.listeners.extend(listeners)
    try:
        yield
    finally:
        for listener in listeners:
            cache.listeners.remove(listener)
