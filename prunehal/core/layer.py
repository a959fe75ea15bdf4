"""Keep one layer's K and V by slots, with the logical length that transformers is told, and the mask of what is left."""

import copy
import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from prunehal.core.attention import Aside, claim
from prunehal.core.blocks import BlockLayer, picked, with_room

if TYPE_CHECKING:
    from prunehal.core.cache import PrunableCache

__all__ = ["PrunableLayer"]


class PrunableLayer(BlockLayer):
    """Store one layer's K and V, (batch, kv_head, slot, dim); part of a PrunableCache.

    A sliding-window layer keeps all its entries too, and lets the mask do the windowing.
    """

    def __init__(self, cache: "PrunableCache", index: int, place: int) -> None:
        self.belong(cache)
        self.index, self.place = index, place  # in the model, and among the layers that are pruned
        super().__init__()

    def belong(self, cache: "PrunableCache") -> None:
        """Say whose layer this is; without a cycle, so that K and V go with the last reference to the cache."""
        self._owner = weakref.ref(cache)

    def __deepcopy__(self, memo: dict) -> Self:
        """Copy as a part of the cache; a decoder that copies single layers runs them several times in a step."""
        if id(self._cache) not in memo:
            raise ValueError(
                f"layer {self.index}: is copied without its cache, as decoders do that run some layers several times in a step; "
                "expected each layer of the cache once. Fix: use another model, this one is not supported."
            )
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    @property
    def _cache(self) -> "PrunableCache":
        return self._owner()

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append K and V and return all that is stored; the returned K is how attention recognises this layer."""
        self._cache.enter(self, key_states)
        keys, values = super().update(key_states, value_states)
        claim(keys, self)
        return keys, values

    def take(self, slots: Tensor) -> None:
        """Keep the given slots, (batch, 1 or kv_head, slot), in that order, and free the rest."""
        self.length = slots.shape[2]
        self._keys, self._values = (with_room(picked(stored, slots), self.length) for stored in (self._keys, self._values))

    def insert(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Do as ``take`` does, where the first slots are those of other K and V, (batch, kv_head, n, dim)."""
        self._keys, self._values = torch.cat([keys, self.keys], dim=2), torch.cat([values, self.values], dim=2)
        self.take(slots)

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
        stored, start = table.stored_positions(self.place).to(self.device), table.start
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
        return self._cache.exact and not self.has_dropped()

    def has_dropped(self) -> bool:
        """Say whether any token was dropped, so that slots and positions differ."""
        return self._cache.table.positions is not None

    def score_edit(self) -> Callable[[Tensor], Tensor] | None:
        """Return what changes the newest query's scores, (batch, kv_head, group, slot), in this forward; None: nothing."""
        edit = self._cache.edits.get(self.index)
        if edit is None or not self.wants_row():
            return None
        visual = self._cache.table.visual_slots(self.place, self.length).to(self.device)
        return functools.partial(edit, visual=visual[:, :, None])

    def focus(self) -> Callable[[Tensor], Tensor] | None:
        """Return what hides slots from the newest query by its weights; None: nothing."""
        return self._cache.focus(self)

    def aside(self, mask: Tensor | None, window: int | None) -> Aside | None:
        """Return keys that the newest query is compared with and does not attend to; None: none.

        Args:
            mask: logical, as the model made it.
            window: in positions, where the mask does not contain it.
        """
        return self._cache.aside(self, mask, window)

    def wants_row(self) -> bool:
        """Say whether this forward's attention row is to be reported."""
        return self._cache.wants_row(self)

    def report(self, weights: Tensor | None) -> None:
        """Take the newest query's weights, (batch, kv_head, group, slot); None for a chunk of the prompt."""
        self._cache.leave(self, weights)
