"""Edit: let other code change the newest query's attention scores on a pruning cache, before the softmax."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from prunehal.core.observed import ObservedCache

__all__ = ["ScoreEdit", "editing"]


class ScoreEdit(Protocol):
    """Map scores to scores; called once a layer and step, for the newest query only."""

    def __call__(self, scores: Tensor, *, visual: Tensor) -> Tensor:
        """Return the new scores.

        Args:
            scores: scaled, and soft-capped where the model does so, ahead of mask and softmax, (batch, kv_head, group, slot).
            visual: which stored slots hold a visual token, bool (batch, 1 or kv_head, 1, slot).
        """


@contextmanager
def editing(cache: ObservedCache, layers: Iterable[int], edit: ScoreEdit) -> Iterator[None]:
    """Let a function change the scores of some layers inside the block; nothing is left behind, however it ends.

    What it changes are the scores of the newest query: of the prompt's last token and then of each new one. The other
    queries of a prompt run as ever. The edited query is computed explicitly, with ``exact=True`` too, and the policy and
    the listeners see the edited weights. Masked slots stay masked.

    Args:
        cache: of the run.
        layers: indices of the layers in the model.
        edit: see `ScoreEdit`.

    Raises:
        ValueError: a layer keeps no K and V of its own, so that its scores are not those of this cache; or has an edit already.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> def blind(scores, *, visual):
    ...     return scores.masked_fill(visual, -torch.inf)
    >>> import torch
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> cache = ph.attach(model, inputs, ph.NoPruning())
    >>> with editing(cache, [4, 5], blind):
    ...     ids = model.generate(**inputs, **cache.options, max_new_tokens=2)
    >>> frame = cache.trace.frame()
    >>> frame[frame["layer"] > 3]["mass"].tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    layers, known = list(layers), [layer.index for layer in cache._pruned]
    for layer in layers:
        if layer not in known:
            raise ValueError(f"layers: {layer} keeps no K and V of its own in this cache; expected some of {known}.")
        if layer in cache.edits:
            raise ValueError(
                f"layers: the scores of {layer} are edited already; expected one edit at a time. Fix: leave its block."
            )
    cache.edits.update(dict.fromkeys(layers, edit))
    try:
        yield
    finally:
        for layer in layers:
            del cache.edits[layer]
