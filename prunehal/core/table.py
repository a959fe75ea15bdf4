"""Know which slot of the cache holds which token: the index arithmetic of a prune.

A prune keeps the living slots in the order of their positions and puts them right, so that new tokens follow at once.
Rows that keep more set the width; the others get dead slots on the left. This module knows no K, no V and no policy; it
works on all layers, rows and heads at once.
"""

import torch
from torch import Tensor

__all__ = ["VisualTable"]


class VisualTable:
    """Hold the visual tokens of a batch of prompts, and the positions of all slots.

    Tensors are (layer, batch, head, ...), where head is 1 unless the kept sets differ by KV head. A row with fewer
    visual tokens than another has its entries on the right; ``valid`` is False at the rest.

    Attributes:
        totals, left: visual tokens of each row's prompt, and those still cached; the same in every layer.
        counts: ``left`` on the device, (batch,).
        valid: which entries are tokens, (layer, batch, head, visual).
        positions: of the slots stored at the last prune, (layer, batch, head, slot), -1 where dead; None before it.
        start: the logical length at the last prune; slots appended later hold the positions from there on.
        has_dead: whether any slot is dead.

    >>> table = VisualTable(torch.tensor([[False, True, True, True, False]]), layers=1, heads=1)
    >>> table.drop(torch.tensor([[[[True, False, True]]]]), [2], step=2, seen=6).flatten().tolist()
    [0, 1, 3, 4, 5]
    """

    def __init__(self, visual: Tensor, layers: int, heads: int) -> None:
        device, batch = visual.device, len(visual)
        self._prompt = visual
        self.totals = visual.sum(1).tolist()
        self.left = list(self.totals)
        self.counts = visual.sum(1)
        self.positions: Tensor | None = None
        self.start = 0
        self.has_dead = False
        width = max(self.totals)
        slots, shape = _marked_right(visual, width), (layers, batch, heads, width)
        self.valid = visual.gather(1, slots)[None, :, None].expand(shape)
        self._slots = slots[None, :, None].expand(shape)
        # The token's number within its prompt's visual tokens; entries that are no token share one spare column.
        numbers = (visual.cumsum(1) - 1).gather(1, slots)[None, :, None].expand(shape)
        self._numbers = numbers.masked_fill(~self.valid, width)
        self._dropped = torch.zeros(layers, batch, heads, width + 1, dtype=torch.int32, device=device)  # 0 = never

    @property
    def width(self) -> int:
        """Return the largest number of visual tokens of a prompt."""
        return self._dropped.shape[-1] - 1

    def read(self, weights: Tensor, layer: int) -> Tensor:
        """Take the visual tokens' entries, (batch, head, visual), out of weights (batch, head, slot)."""
        return weights.gather(2, self._slots[layer].to(weights.device))

    def scattered(self, rows: Tensor) -> Tensor:
        """Put rows (layer, batch, head, visual) back into prompt order; nan where dropped; heads averaged."""
        full = rows.new_full((*rows.shape[:3], self.width + 1), float("nan"))
        return full.scatter(3, self._numbers, rows)[..., :-1].nanmean(2)

    def slot_positions(self, layer: int, seen: int) -> Tensor:
        """Return a layer's slot positions, (1 or batch, 1 or head, slot); -1 where dead."""
        if self.positions is None:
            return torch.arange(seen, device=self.counts.device)[None, None]
        return self._grown(self.positions[layer], seen)

    def _grown(self, positions: Tensor, seen: int) -> Tensor:
        new = torch.arange(self.start, seen, device=positions.device).expand(*positions.shape[:-1], -1)
        return torch.cat([positions, new], dim=-1)

    def chosen(self, keep: Tensor, left: list[int], values: Tensor) -> Tensor:
        """Take the kept entries of values (layer, batch, head, visual), as ``drop`` will order them."""
        return values.gather(3, _marked_right(keep, max(left)))

    def drop(self, keep: Tensor, left: list[int], step: int, seen: int) -> Tensor:
        """Drop the visual tokens that are not to be kept, and return which slots remain, in order.

        Args:
            keep: bool (layer, batch, head, visual).
            left: how many tokens each row keeps.
            step: the step m after which they are dropped.
            seen: the logical length now.

        Returns:
            Indices of the old slots, (layer, batch, head, slot); dead ones, on the left, point anywhere.
        """
        lost = self.valid & ~keep
        gone = torch.zeros_like(self._dropped, dtype=torch.bool).scatter(3, self._numbers, lost)
        self._dropped = self._dropped.masked_fill(gone & (self._dropped == 0), step)

        if self.positions is None:
            positions = torch.arange(seen, device=keep.device).expand(*keep.shape[:3], seen)
        else:
            positions = self._grown(self.positions, seen)
        blank = torch.zeros_like(positions, dtype=torch.bool)
        alive = (positions >= 0) & ~blank.scatter(3, self._slots, lost)
        living = [seen - total + n for total, n in zip(self.totals, left, strict=True)]
        order = _marked_right(alive, max(living))
        self.positions = positions.masked_fill(~alive, -1).gather(3, order)
        self.start, self.has_dead = seen, min(living) < max(living)

        visual = blank.scatter(3, self._slots, keep).gather(3, order)
        self._numbers = self.chosen(keep, left, self._numbers.masked_fill(~keep, self.width))
        self.valid = self.chosen(keep, left, keep)
        self._slots = _marked_right(visual, max(left))
        self.left, self.counts = list(left), torch.tensor(left, device=keep.device)
        return order

    def reorder(self, index: Tensor, rows: list[int]) -> None:
        """Let the rows follow their beams."""
        for name in ("valid", "_slots", "_numbers", "_dropped", "positions"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name).index_select(1, index))
        self._prompt, self.counts = self._prompt.index_select(0, index), self.counts.index_select(0, index)
        self.totals, self.left = [self.totals[row] for row in rows], [self.left[row] for row in rows]

    def kept(self, layer: int, step: int | None) -> list[Tensor]:
        """Return the prompt positions of the tokens cached at a step (None: now), (head, visual) for each row."""
        dropped = self._dropped[layer].cpu()
        alive = dropped == 0 if step is None else (dropped == 0) | (dropped >= step)
        result = []
        for row, prompt in enumerate(self._prompt.cpu()):
            positions = prompt.nonzero().flatten()
            result.append(torch.stack([positions[mask] for mask in alive[row, :, : len(positions)]]))
        return result


def _marked_right(mask: Tensor, width: int) -> Tensor:
    # Indices of the last `width` entries when unmarked entries are sorted before marked ones: the marked ones stand
    # right, in their order, and unmarked ones fill a row that has fewer. No index comes twice, so that a scatter is
    # safe.
    return mask.to(torch.uint8).argsort(dim=-1, stable=True)[..., mask.shape[-1] - width :]
