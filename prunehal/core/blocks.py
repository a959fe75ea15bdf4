"""Store one layer's K and V in blocks, so that a new token is written in place instead of copying all earlier ones."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from prunehal.core.attention import Aside

__all__ = ["BLOCK", "BlockLayer", "picked", "with_room"]

BLOCK = 64  # slots that K and V grow by; torch.cat at every step costs more than the observation


class BlockLayer(CacheLayerMixin):
    """Store one layer's K and V, (batch, kv_head, slot, dim), with room for the tokens to come.

    By itself it is a drop-in for the stock DynamicLayer; PrunableLayer adds what pruning needs.

    >>> layer = BlockLayer()
    >>> keys, values = layer.update(torch.ones(1, 2, 5, 8), torch.ones(1, 2, 5, 8))
    >>> keys.shape, layer.nbytes() == 2 * (5 + BLOCK) * 2 * 8 * 4
    (torch.Size([1, 2, 5, 8]), True)
    """

    is_sliding = False
    is_croppable = False

    def __init__(self) -> None:
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

    def nbytes(self) -> int:
        """Return the memory that K and V take, with their free room."""
        return 0 if self._keys is None else sum(part.untyped_storage().nbytes() for part in (self._keys, self._values))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take shape and dtype from the first K and V."""
        self._keys, self._values = key_states[:, :, :0], value_states[:, :, :0]
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append K and V and return all that is stored."""
        # Blocks are written in place, which autograd could not follow: no gradient runs through the cache.
        key_states, value_states = key_states.detach(), value_states.detach()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self._keys.shape[2]:
            self._keys, self._values = with_room(self.keys, end), with_room(self.values, end)
        self._keys[:, :, self.length : end] = key_states
        self._values[:, :, self.length : end] = value_states
        self.length, self.seen = end, self.seen + key_states.shape[2]
        return self.keys, self.values

    def move(self, rows: Tensor, sources: Tensor, first: int) -> None:
        """Overwrite rows by other rows from slot ``first`` on, as beams follow each other; part of reorder_cache."""
        for stored in (self._keys, self._values):
            part = stored[:, :, first : self.length]
            part.index_copy_(0, rows.to(part.device), part.index_select(0, sources.to(part.device)))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows."""
        if self.is_initialized:
            self.move(torch.arange(len(beam_idx)), beam_idx, 0)

    def focus(self) -> Callable[[Tensor], Tensor] | None:
        """Return what hides slots from the newest query by its weights; None: nothing, unless a subclass says otherwise."""
        return None

    def aside(self, mask: Tensor | None, window: int | None) -> Aside | None:
        """Return keys that the newest query is compared with and does not attend to; None: none, unless a subclass has some."""
        return None

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


def picked(stored: Tensor, slots: Tensor) -> Tensor:
    """Copy the given slots, (batch, 1 or kv_head, n), of a tensor (batch, kv_head, slot, dim)."""
    slots = slots.to(stored.device).expand(-1, stored.shape[1], -1)[..., None]
    return stored.gather(2, slots.expand(-1, -1, -1, stored.shape[3]))


def with_room(stored: Tensor, slots: int) -> Tensor:
    """Copy stored K or V to a new tensor of ``slots`` slots and a block more."""
    with torch.inference_mode(False):  # so that a later turn may write to it, in inference mode or not
        room = stored.new_empty(*stored.shape[:2], slots + BLOCK, stored.shape[3])
    room[:, :, : stored.shape[2]] = stored
    return room
