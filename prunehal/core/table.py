"""Know which slot of the cache holds which token: the index arithmetic of a prune.

A prune keeps the living slots in the order of their positions and puts them right, so that new tokens follow at once.
Rows that keep more set the width; the others get dead slots on the left. This module knows no K, no V and no policy; it
works on all layers, rows and heads at once.

A pool is the set of visual tokens that is pruned together: all of a row, or those of one image. Every row has the same
number of pools, and row i's are the pools i * pools, i * pools + 1, ...; one that a row does not need is empty.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["VisualTable", "marked_right", "sent"]


class VisualTable:
    """Hold the visual tokens of a batch of prompts, and the positions of all slots.

    Tensors are (layer, pool, head, ...) or (layer, batch, head, ...), where head is 1 unless the kept sets differ by KV
    head. A pool with fewer visual tokens than another has its entries on the right; ``valid`` is False at the rest.

    Attributes:
        pools: number of pools in each row.
        width: the largest number of visual tokens of a prompt.
        totals: visual tokens of each pool in the prompt.
        left: those still cached, in each layer and pool.
        counts: ``left`` on the device, (layer, pool).
        valid: which entries are tokens, (layer, pool, head, visual).
        positions: of the slots stored at the last prune, (layer, batch, head, slot), -1 where dead; None before it. A layer
            that keeps fewer than another stores its slots only: its first entries are filling.
        start: the logical length at the last prune; slots appended later hold the positions from there on.
        has_dead: whether any slot is dead.

    >>> table = VisualTable(torch.tensor([[0, 1, 1, 1, 0]]), layers=1, heads=1)
    >>> table.drop(torch.tensor([[[[True, False, True]]]]), [[2]], step=2, seen=6)[0].flatten().tolist()
    [0, 1, 3, 4, 5]
    """

    def __init__(self, numbers: Tensor, layers: int, heads: int, device: torch.device | str = "cpu") -> None:
        """Start with everything cached.

        Args:
            numbers: (batch, prompt), on the CPU: in which pool a token is, from 1; 0 is no visual token.
            layers, heads: sizes of the tensors.
            device: where they shall lie.
        """
        self.pools = int(numbers.max())
        mine = (numbers[:, None] == torch.arange(1, self.pools + 1, device="cpu")[:, None]).flatten(0, 1)  # (pool, prompt)
        self.totals = mine.sum(1).tolist()
        self.left = [list(self.totals) for _ in range(layers)]
        self.counts = sent(self.left, device)
        self.positions: Tensor | None = None
        self.start = 0
        self.has_dead = False
        self._filling = [0] * layers
        self._prompt = numbers > 0
        slots, shape = marked_right(mine, max(self.totals)), (layers, len(mine), heads, max(self.totals))
        valid = mine.gather(1, slots)
        # The token's number within its row's visual tokens; entries that are no token share one spare column.
        self.width = int(self._prompt.sum(1).max())
        order = (self._prompt.cumsum(1) - 1).repeat_interleave(self.pools, dim=0).gather(1, slots)
        order = order.masked_fill(~valid, self.width)
        self.valid, self._slots, self._numbers = (
            sent(part, device)[None, :, None].expand(shape) for part in (valid, slots, order)
        )
        self._dropped = torch.zeros(layers, len(numbers), heads, self.width + 1, dtype=torch.int32, device=device)  # 0 = never

    def read(self, reports: Sequence[Tensor], first: int = 0) -> Tensor:
        """Take the visual tokens' entries, (layer, pool, head, visual), out of the layers' weights (batch, head, slot)."""
        layers = slice(first, first + len(reports))
        filled = zip(reports, self._filling[layers], strict=True)
        return self._entries(torch.stack([torch.nn.functional.pad(row, (n, 0)) if n else row for row, n in filled]), layers)

    def _entries(self, weights: Tensor, layers: slice) -> Tensor:
        if self.pools > 1:
            weights = weights.repeat_interleave(self.pools, dim=1)
        return weights.gather(3, self._slots[layers])

    def scattered(self, rows: Tensor) -> Tensor:
        """Put rows (layer, pool, head, visual) back into prompt order, (layer, batch, visual); nan where dropped."""
        full = rows.new_full((*rows.shape[:3], self.width + 1), float("nan"))
        full = full.scatter(3, self._numbers, rows)[..., :-1].nanmean(2)
        return full.unflatten(1, (-1, self.pools)).nanmean(2)  # each token is in one pool

    @property
    def numbers(self) -> Tensor:
        """Return each entry's number among its row's visual tokens, (layer, pool, head, visual); ``width`` where invalid."""
        return self._numbers

    def visual_slots(self, layer: int, slots: int, among: Tensor | None = None) -> Tensor:
        """Mark a layer's slots that hold visual tokens, ``among`` (1, pool, head, visual), bool (batch, 1 or head, slot)."""
        filling = self._filling[layer]
        among = self.valid[layer, None] if among is None else among
        marked = self._marked(filling + slots, self._slots[layer, None], among)[0, ..., filling:]
        return marked.unflatten(0, (-1, self.pools)).any(1)

    def marked(self, marks: Tensor, slots: int) -> Tensor:
        """Mark in which of so many slots the marked entries (layer, pool, head, visual) lie, (layer, batch, head, slot)."""
        return self._marked(slots, self._slots, marks).unflatten(1, (-1, self.pools)).any(2)

    def slot_positions(self, layer: int, seen: int) -> Tensor:
        """Return a layer's slot positions, (1 or batch, 1 or head, slot); -1 where dead."""
        if self.positions is None:
            return torch.arange(seen, device=self.counts.device)[None, None]
        return self._grown(self.stored_positions(layer), seen)

    def stored_positions(self, layer: int) -> Tensor:
        """Return the positions of the slots that a layer stored at the last prune, (batch, head, slot); -1 where dead."""
        return self.positions[layer][..., self._filling[layer] :]

    def _grown(self, positions: Tensor, seen: int) -> Tensor:
        new = torch.arange(self.start, seen, device=positions.device).expand(*positions.shape[:-1], -1)
        return torch.cat([positions, new], dim=-1)

    def chosen(self, keep: Tensor, left: list[list[int]], values: Tensor) -> Tensor:
        """Take the kept entries of values (layer, pool, n * head, visual), as ``drop`` will order them."""
        order = marked_right(keep, max(map(max, left)))
        return values.gather(3, order.repeat(1, 1, values.shape[2] // keep.shape[2], 1))

    def drop(self, keep: Tensor, left: list[list[int]], step: int, seen: int) -> list[Tensor]:
        """Drop the visual tokens that are not to be kept, and return which slots remain, in order.

        Args:
            keep: bool (layer, pool, head, visual).
            left: how many tokens each layer keeps of each pool.
            step: the step m after which they are dropped; -1 if no step is to have seen them.
            seen: the logical length now.

        Returns:
            For each layer indices of its old slots, (batch, head, slot); dead ones, on the left, point anywhere.
        """
        lost = self.valid & ~keep
        gone = self._marked(self.width + 1, self._numbers, lost).unflatten(1, (-1, self.pools)).any(2)
        self._dropped = self._dropped.masked_fill(gone & (self._dropped == 0), step)

        if self.positions is None:
            positions = torch.arange(seen, device=keep.device).expand(*self._dropped.shape[:3], seen)
        else:
            positions = self._grown(self.positions, seen)
        slots = positions.shape[-1]
        alive = (positions >= 0) & ~self.marked(lost, slots)
        living = [self._living(of_layer, seen) for of_layer in left]
        stored = [max(rows) for rows in living]
        order = marked_right(alive, max(stored))
        self.positions = positions.masked_fill(~alive, -1).gather(3, order)
        self.start, self.has_dead = seen, any(min(rows) < max(rows) for rows in living)
        before, self._filling = self._filling, [max(stored) - width for width in stored]

        visual = self._marked(slots, self._slots, keep).gather(3, order.repeat_interleave(self.pools, dim=1))
        self._numbers = self.chosen(keep, left, self._numbers.masked_fill(~keep, self.width))
        self.valid = self.chosen(keep, left, keep)
        self._slots = marked_right(visual, max(map(max, left)))
        self.left, self.counts = [list(of_layer) for of_layer in left], sent(left, keep.device)
        remaining = zip(order, self._filling, before, strict=True)
        return [slots[..., now:] if not then else (slots[..., now:] - then).clamp_min(0) for slots, now, then in remaining]

    def _living(self, left: list[int], seen: int) -> list[int]:
        # How many slots of a layer each row needs.
        fewer = [total - n for total, n in zip(self.totals, left, strict=True)]
        return [seen - sum(fewer[row : row + self.pools]) for row in range(0, len(fewer), self.pools)]

    def _marked(self, size: int, places: Tensor, marks: Tensor) -> Tensor:
        # Within a pool no place comes twice, but for the spare column of the numbers, which nobody reads.
        return torch.zeros(*places.shape[:3], size, dtype=torch.bool, device=marks.device).scatter(3, places, marks)

    def of_rows(self, index: Tensor) -> Tensor:
        """Return the pools of the rows in index, in order."""
        if self.pools == 1:
            return index
        return (index[:, None] * self.pools + torch.arange(self.pools, device=index.device)).flatten()

    def numbers_of_rows(self, rows: list[int]) -> list[int]:
        """Return the same on the host."""
        return [row * self.pools + pool for row in rows for pool in range(self.pools)]

    def reorder(self, index: Tensor, rows: list[int]) -> None:
        """Let the rows follow their beams."""
        pools = self.of_rows(index)
        for name in ("valid", "_slots", "_numbers"):
            setattr(self, name, getattr(self, name).index_select(1, pools))
        self._dropped = self._dropped.index_select(1, index)
        if self.positions is not None:
            self.positions = self.positions.index_select(1, index)
        self._prompt, self.counts = self._prompt[rows], self.counts.index_select(1, pools)
        each = self.numbers_of_rows(rows)
        self.totals = [self.totals[pool] for pool in each]
        self.left = [[of_layer[pool] for pool in each] for of_layer in self.left]

    def kept(self, layer: int, step: int | None) -> list[Tensor]:
        """Return the prompt positions of the tokens cached at a step (None: now), (head, visual) for each row."""
        dropped = self._dropped[layer].cpu()
        alive = dropped == 0 if step is None else (dropped == 0) | (dropped >= step)
        result = []
        for row, prompt in enumerate(self._prompt):
            positions = prompt.nonzero().flatten()
            result.append(torch.stack([positions[mask] for mask in alive[row, :, : len(positions)]]))
        return result


def sent(values: list[int] | list[list[int]] | Tensor, device: torch.device | str) -> Tensor:
    """Send values of the CPU to a device without waiting for it."""
    values = torch.as_tensor(values, device="cpu")
    return (values.pin_memory() if torch.device(device).type == "cuda" else values).to(device, non_blocking=True)


def marked_right(mask: Tensor, width: int) -> Tensor:
    """Return the indices of the last ``width`` entries when unmarked entries are sorted before marked ones.

    The marked ones stand right, in their order, and unmarked ones fill a row that has fewer. No index comes twice, so that a
    scatter is safe.

    >>> marked_right(torch.tensor([[True, False, True], [False, True, False]]), 2).tolist()
    [[0, 2], [2, 1]]
    """
    return mask.to(torch.uint8).argsort(dim=-1, stable=True)[..., mask.shape[-1] - width :]
