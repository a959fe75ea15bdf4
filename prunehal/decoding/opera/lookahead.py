"""Look one token ahead: run the model on several candidates of every beam beside a pruning cache, and keep what is chosen.

All candidates of all beams are one batch. Its K and V live for one forward: each layer's are put together, used and left, so
that no second cache is held. Nothing votes and nothing is pruned, since the policy's cache never sees this forward. What it
yields for the candidate that is chosen in the end - K, V, attention and logits - is what an ordinary forward would yield, so
the choice can be entered into the cache without another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from prunehal.core import PrunableCache
from prunehal.core.attention import claim
from prunehal.core.blocks import BlockLayer
from prunehal.core.keyword import as_option
from prunehal.core.layer import PrunableLayer
from prunehal.core.table import VisualTable
from prunehal.decoding.opera.overtrust import by_position
from prunehal.decoding.parts.forwards import beside

__all__ = ["LookAhead"]


class _AheadLayer(BlockLayer):
    """Lend one layer's K and V to several candidates of each beam, for one token; the rows are (beam, candidate) flattened."""

    def __init__(self, stored: PrunableLayer, table: VisualTable, candidates: int) -> None:
        super().__init__()
        self.stored, self.index = stored, stored.index
        self._table, self._candidates = table, candidates
        self.seen, self.is_initialized = stored.seen, True
        self.new: tuple[Tensor, Tensor] | None = None  # K and V of the candidates, (row, kv_head, 1, dim)
        self.weights: Tensor | None = None  # (row, kv_head, group, slot)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return what the beams hold, with each candidate's own K and V at the end."""
        self.new, self.seen = (key_states, value_states), self.stored.seen + 1
        pairs = ((self.stored.keys, key_states), (self.stored.values, value_states))
        keys, values = (self._with(old, new) for old, new in pairs)
        claim(keys, self)
        return keys, values

    def _with(self, old: Tensor, new: Tensor) -> Tensor:
        beams, heads, slots, dim = old.shape
        whole = old.new_empty(beams, self._candidates, heads, slots + 1, dim)
        whole[:, :, :, :slots] = old[:, None]
        whole[:, :, :, slots:] = new.unflatten(0, (beams, -1))
        return whole.flatten(0, 1)

    # What the wrapped attention asks for.

    def slot_positions(self) -> Tensor:
        """Return each slot's logical position, (1 or row, 1 or kv_head, slot); -1 where a slot is dead."""
        return self._repeated(self._table.slot_positions(self.stored.place, self.seen).to(self.stored.device))

    def slot_mask(self, mask: Tensor | None, queries: int) -> Tensor | None:
        """Turn the logical mask into the mask of the stored slots."""
        if mask is None:
            return (self.slot_positions() >= 0)[:, :, None] if self._table.has_dead else None
        return self._repeated(self.stored.slot_mask(mask if len(mask) == 1 else mask[:: self._candidates], queries))

    def _repeated(self, rows: Tensor) -> Tensor:
        return rows if len(rows) == 1 else rows.repeat_interleave(self._candidates, dim=0)

    def keeps_stock_output(self) -> bool:
        """Say whether the stock function must compute the output."""
        return self.stored.keeps_stock_output()

    def has_dropped(self) -> bool:
        """Say whether slots and positions differ."""
        return self.stored.has_dropped()

    def score_edit(self) -> None:
        """Say that no scores are edited; the decoder refuses a cache where some are."""

    def wants_row(self) -> bool:
        """Say that the candidates' rows are to be reported."""
        return True

    def report(self, weights: Tensor) -> None:
        """Take the candidates' attention weights."""
        self.weights = weights.detach()


class LookAhead:
    """Run the model on candidates for the next token, once, beside a cache that is left as it was.

    Attributes:
        candidates: ids, (beam, candidate).
        logits: of the token after each candidate, float32 (beam, candidate, vocabulary).
        rows: each candidate's attention in the last layer over all positions, itself included, (beam, candidate, position).
    """

    def __init__(self, model: torch.nn.Module, cache: PrunableCache, inputs: Mapping[str, Any], candidates: Tensor) -> None:
        """Run the candidates.

        Args:
            model: the model.
            cache: what the beams have read; a prune that is due must be done.
            inputs: of a forward with any token for each beam, as ``prepare_inputs_for_generation`` returns them.
            candidates: ids, (beam, candidate).
        """
        self.candidates, self._cache = candidates, cache
        count = candidates.shape[1]
        self._layers = [_AheadLayer(layer, cache.table, count) for layer in cache.layers]
        wide = {name: _repeated(name, value, count) for name, value in inputs.items()}
        own = Cache(layers=self._layers)
        beside(own, cache)
        wide |= {"input_ids": candidates.flatten()[:, None], **as_option(own)}
        out = model(**wide, return_dict=True)
        self.logits = out.logits[:, -1].float().to(candidates.device).unflatten(0, candidates.shape)
        last = self._layers[-1]
        rows = by_position(last.weights, last.slot_positions(), last.seen)
        self.rows = rows.to(candidates.device).unflatten(0, candidates.shape)

    def place_of(self, beams: Tensor, tokens: Tensor) -> Tensor | None:
        """Return which candidate of its beam each token is, (row,); None if one of them is none."""
        same = self.candidates[beams] == tokens[:, None]
        return same.int().argmax(1) if bool(same.any(1).all()) else None

    def commit(self, beams: Tensor, places: Tensor) -> Tensor:
        """Enter chosen candidates into the cache, whose rows have followed the beams; return the logits after them.

        Args:
            beams: rows that the choices come from, (row,).
            places: which candidate, (row,).

        Returns:
            (row, vocabulary).
        """
        rows = beams * self.candidates.shape[1] + places
        self._cache.announce(self.candidates[beams, places][:, None], None, False)
        for layer in self._layers:
            mine = rows.to(layer.weights.device)
            layer.stored.update(*(part[mine] for part in layer.new))
            layer.stored.report(layer.weights[mine])
        return self.logits[beams, places]


def _repeated(name: str, value: Any, count: int) -> Any:
    """Repeat an input for every candidate; positions of M-RoPE have the batch in their second dimension."""
    if not isinstance(value, Tensor):
        return value
    return value.repeat_interleave(count, dim=1 if name == "position_ids" and value.ndim == 3 else 0)
