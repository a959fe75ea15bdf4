"""Store one layer's K and V: in blocks, by slots, and with the logical length that transformers is told."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from prunehal.core.attention import claim

if TYPE_CHECKING:
    from prunehal.core.cache import PrunableCache

__all__ = ["BLOCK", "PrunableLayer"]

BLOCK = 128  # slots that K and V grow by; torch.cat at every step costs more than the observation


class PrunableLayer(CacheLayerMixin):
    """Store one layer's K and V, (batch, kv_head, slot, dim); part of a PrunableCache.

    A sliding-window layer keeps all its entries too, and lets the mask do the windowing.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self, cache: "PrunableCache", index: int, place: int) -> None:
        self._cache = cache
        self.index, self.place = index, place  # in the model, and among the layers that are pruned
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._keys = self._values = None
        self.length = self.seen = 0  # slots stored, tokens seen
        self.is_initialized = False

    @property
    def keys(self) -> Tensor | None:
        """Return K of the stored slots, a view."""
        return None if self._keys is None else self._keys[:, :, : self.length]

    @property
    def values(self) -> Tensor | None:
        """Return V of the stored slots, a view."""
        return None if self._values is None else self._values[:, :, : self.length]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take shape and dtype from the first K and V."""
        self._keys, self._values = key_states[:, :, :0], value_states[:, :, :0]
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append K and V and return all that is stored; the returned K is how attention recognises this layer."""
        self._cache.enter(self, key_states)
        # Blocks are written in place, which autograd could not follow: no gradient runs through the cache.
        key_states, value_states = key_states.detach(), value_states.detach()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self._keys.shape[2]:
            self._keys, self._values = _with_room(self.keys, end), _with_room(self.values, end)
        self._keys[:, :, self.length : end] = key_states
        self._values[:, :, self.length : end] = value_states
        self.length, self.seen = end, self.seen + key_states.shape[2]
        keys = self.keys
        claim(keys, self)
        return keys, self.values

    def take(self, slots: Tensor) -> None:
        """Keep the given slots, (batch, 1 or kv_head, slot), in that order, and free the rest."""
        slots = slots.to(self.device).expand(-1, self._keys.shape[1], -1)[..., None]
        self.length = slots.shape[2]
        self._keys, self._values = (
            _with_room(stored.gather(2, slots.expand(-1, -1, -1, stored.shape[3])), self.length)
            for stored in (self._keys, self._values)
        )

    def move(self, rows: Tensor, sources: Tensor, first: int) -> None:
        """Overwrite rows by other rows from slot ``first`` on, as beams follow each other; part of reorder_cache."""
        for stored in (self._keys, self._values):
            part = stored[:, :, first : self.length]
            part.index_copy_(0, rows.to(part.device), part.index_select(0, sources.to(part.device)))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows; PrunableCache.reorder_cache does it together with all other state."""
        self.move(torch.arange(len(beam_idx)), beam_idx, 0)

    def get_seq_length(self) -> int:
        """Return the logical length, the number of tokens seen."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the logical length with the coming queries, and no offset."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: the cache has no maximum."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: a dropped token cannot be brought back, so the cache cannot be rolled back."""
        raise ValueError(
            f"crop({tokens_to_remove}): assisted and prompt-lookup decoding roll the cache back, and dropped tokens "
            "cannot return; expected greedy search, sampling or beam search. "
            "Fix: leave out assistant_model and prompt_lookup_num_tokens."
        )

    # What the wrapped attention asks for.

    def slot_positions(self) -> Tensor:
        """Return each slot's logical position, (1 or batch, 1 or kv_head, slot); -1 where a slot is dead."""
        return self._cache.table.slot_positions(self.place, self.seen).to(self.device)

    def slot_mask(self, mask: Tensor | None, queries: int) -> Tensor | None:
        """Turn the logical mask into the mask of the stored slots.

        None stays None while every slot is alive. A mask (batch, position) stays two-dimensional; one of
        (batch, head, query, position) gets a head for each KV head where the kept sets differ by head.
        """
        table = self._cache.table
        if table.positions is None or (mask is None and not table.has_dead):
            return mask
        if mask is None:
            alive = self.slot_positions() >= 0
            return alive[:, :, None] if queries == 1 else alive[:, 0]
        stored, start = table.positions[self.place].to(self.device), table.start
        alive, where = stored >= 0, stored.clamp_min(0)
        if mask.ndim == 2:  # padding stands left of all visual tokens, so that its slots are the same in all heads
            old = mask[:, :start].gather(1, where[:, 0]) * alive[:, 0]
            return torch.cat([old.to(mask.dtype), mask[:, start:]], dim=1)
        shape = (len(stored), max(mask.shape[1], stored.shape[1]), mask.shape[2], -1)
        old = mask[..., :start].expand(shape).gather(3, where[:, :, None].expand(shape))
        if table.has_dead:
            hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            old = old.masked_fill(~alive[:, :, None], hidden)
        return torch.cat([old, mask[..., start:].expand(shape)], dim=3)

    def keeps_stock_output(self) -> bool:
        """Say whether the stock function must compute the output: exact=True, as long as nothing was dropped."""
        return self._cache.exact and self._cache.table.positions is None

    def wants_row(self) -> bool:
        """Say whether this forward's attention row is to be reported."""
        return self._cache.wants_row(self)

    def report(self, weights: Tensor | None) -> None:
        """Take the newest query's weights, (batch, kv_head, group, slot); None for a chunk of the prompt."""
        self._cache.leave(self, weights)


def _with_room(stored: Tensor, slots: int) -> Tensor:
    room = stored.new_empty(*stored.shape[:2], slots + BLOCK, stored.shape[3])
    room[:, :, : stored.shape[2]] = stored
    return room
