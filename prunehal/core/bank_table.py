"""Know where each visual token is when dropped ones go to a bank: in the layer's slots, in the bank, or nowhere.

The slots of a layer and those of its bank are counted as one row: first a spare one, which holds nothing, then the bank's, then
filling as in ``table``, then the layer's own. In both parts the tokens stand in the order of their positions, dead slots left of
them. A token keeps its entry wherever it is, so that what a policy remembers of it stays with it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prunehal.core.table import VisualTable, marked_right, sent

__all__ = ["BankTable", "Exchange"]


class Exchange(NamedTuple):
    """Say for one layer which K and V change places; all are indices (batch, head, n), and dead ones point anywhere.

    Attributes:
        back: slots of the bank that return.
        away: slots of the layer that go to the bank.
        stored: what the layer holds afterwards, out of [those that return | its slots].
        banked: what the bank holds afterwards, out of [its slots | those that came].
    """

    back: Tensor
    away: Tensor
    stored: Tensor
    banked: Tensor


class BankTable(VisualTable):
    """Hold the visual tokens of a batch of prompts, some of them in a bank.

    ``valid`` marks the tokens that the layers hold now; ``left`` and ``counts`` count them.

    >>> table = BankTable(torch.tensor([[0, 1, 1, 1, 0]]), layers=1, heads=1)
    >>> keep = torch.tensor([[[[True, False, True]]]])
    >>> table.exchange(keep, [[2]], step=2, seen=6)[0].stored.flatten().tolist()
    [0, 1, 3, 4, 5]
    >>> table.exchange(table.present, table.held, step=3, seen=7)[0].stored.flatten().tolist()  # 0 is the one that returns
    [1, 2, 0, 3, 4, 5, 6]
    >>> [[each.flatten().tolist() for each in table.kept(0, step)] for step in (2, 3, 4)]
    [[[1, 2, 3]], [[1, 3]], [[1, 2, 3]]]
    """

    def __init__(self, numbers: Tensor, layers: int, heads: int, device: torch.device | str = "cpu") -> None:
        """Start with everything cached; as `VisualTable`."""
        super().__init__(numbers, layers, heads, device)
        # The prompt position of each row's visual tokens by their number, and one more for entries that are no token.
        places = (numbers == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, : self.width]
        self._places = sent(torch.nn.functional.pad(places, (0, 1)), device)
        self._front = 0  # the spare slot and the bank's; 0 until the first exchange
        self._held: list[list[int]] | None = None
        self._log_steps: list[int] = []
        self._log = torch.zeros(0, *self._dropped.shape, dtype=torch.bool, device=device)  # after each exchange the kept ones

    @property
    def numbers(self) -> Tensor:
        """Return each cached entry's number among its row's visual tokens; ``width`` where it is in the bank or no token."""
        return self._numbers.masked_fill(~self.valid, self.width)

    @property
    def present(self) -> Tensor:
        """Return which entries are tokens that the layers or the bank hold, (layer, pool, head, visual)."""
        return self._numbers < self.width

    @property
    def held(self) -> list[list[int]]:
        """Return how many tokens of each pool a layer and its bank hold, by layer."""
        return self.left if self._held is None else self._held

    def banked(self, pool: int) -> bool:
        """Say whether the bank holds tokens of a pool."""
        return any(held[pool] > left[pool] for held, left in zip(self.held, self.left, strict=True))

    @property
    def bank_width(self) -> int:
        """Return the number of slots of each layer's bank, dead ones included."""
        return max(self._front - 1, 0)

    def bank_positions(self, layer: int) -> Tensor:
        """Return the positions of the bank's slots of a layer, (batch, head, n); -1 where a slot is dead."""
        return self.positions[layer][..., 1 : self._front]

    def scattered(self, rows: Tensor) -> Tensor:
        """Put rows back into prompt order, as VisualTable does; nan while a token is in the bank."""
        return super().scattered(rows.masked_fill(~self.valid, float("nan")))

    def read_all(self, reports: Sequence[Tensor]) -> Tensor:
        """Take the entries out of the layers' weights on [their slots | the bank's], (batch, head, slot); 0 where no token is."""
        size, whole = self.bank_width, []
        for row, filling in zip(reports, self._filling, strict=True):
            banked = torch.nn.functional.pad(row[..., row.shape[-1] - size :], (1, filling - self._front))
            whole.append(torch.cat([banked, row[..., : row.shape[-1] - size]], dim=-1))
        return self._entries(torch.stack(whole), slice(None)).masked_fill(~self.present, 0.0)

    def exchange(
        self, keep: Tensor, left: list[list[int]], step: int, seen: int, swapped: Sequence[int] | None = None
    ) -> list[Exchange]:
        """Let the layers hold the tokens to be kept, and the bank the others.

        Args:
            keep: bool (layer, pool, head, visual).
            left: how many tokens each layer keeps of each pool.
            step: the step m after which they move.
            seen: the logical length now.
            swapped: of how many tokens at most a pool changes its kept ones for banked ones; 0 if left out.

        Returns:
            For each layer what moves.
        """
        more = [[now - n for now, n in zip(*both, strict=True)] for both in zip(left, self.left, strict=True)]
        swapped = [0] * len(self.totals) if swapped is None else swapped
        coming = self._most([[max(0, n) + s for n, s in zip(of_layer, swapped, strict=True)] for of_layer in more])
        going = self._most([[max(0, -n) + s for n, s in zip(of_layer, swapped, strict=True)] for of_layer in more])
        self._held = self.held

        if self.positions is None:
            positions = torch.arange(seen, device=keep.device).expand(*self._dropped.shape[:3], seen)
        else:
            positions = self._grown(self.positions, seen)
        slots = positions.shape[-1]
        own, banked = positions[..., self._front :], positions[..., min(1, self._front) : self._front]
        leaves = self.marked(self.valid & ~keep, slots)[..., self._front :]
        returns = self.marked(keep & ~self.valid, slots)[..., min(1, self._front) : self._front]
        back, away = marked_right(returns, coming), marked_right(leaves, going)
        came, went = banked.masked_fill(~returns, -1).gather(3, back), own.masked_fill(~leaves, -1).gather(3, away)

        living = [self._living(of_layer, seen) for of_layer in left]
        stored = [max(rows) for rows in living]
        own, order = _by_position(torch.cat([came, own.masked_fill(leaves, -1)], dim=-1), max(stored))
        size = self._most([[n - now for n, now in zip(*both, strict=True)] for both in zip(self._held, left, strict=True)])
        banked, bank_order = _by_position(torch.cat([banked.masked_fill(returns, -1), went], dim=-1), size)

        before, front = [filling - self._front for filling in self._filling], 1 + size
        self.positions = torch.cat([torch.full_like(own[..., :1], -1), banked, own], dim=-1)
        self.start, self.has_dead = seen, any(min(rows) < max(rows) for rows in living)
        self._front, self._filling = front, [front + max(stored) - width for width in stored]
        self.valid, self.left, self.counts = keep, [list(of_layer) for of_layer in left], sent(left, keep.device)
        self._slots = self._found(own, banked)
        self._note(step)

        moves = []
        for place, then in enumerate(before):
            mine = order[place][..., self._filling[place] - front :]
            if then:  # the filling of a layer that stored fewer than others is not there
                mine = torch.where(mine < coming, mine, (mine - then).clamp_min(coming))
            moves.append(Exchange(back[place], (away[place] - then).clamp_min(0), mine, bank_order[place]))
        return moves

    def _most(self, counts: list[list[int]]) -> int:
        # The largest number of a row in any layer.
        return max(sum(line[start : start + self.pools]) for line in counts for start in range(0, len(line), self.pools))

    def _found(self, own: Tensor, banked: Tensor) -> Tensor:
        # The slot of each entry, by its position; both parts are sorted.
        rows = self._places.repeat_interleave(self.pools, dim=0)[None, :, None]
        places = rows.expand(*self._numbers.shape[:3], -1).gather(3, self._numbers)
        own, banked = (part.repeat_interleave(self.pools, dim=1).contiguous() for part in (own, banked))
        in_bank = (1 + torch.searchsorted(banked, places)).masked_fill(~self.present, 0)
        return torch.where(self.valid, self._front + torch.searchsorted(own, places), in_bank)

    def _note(self, step: int) -> None:
        kept = self._marked(self.width + 1, self._numbers, self.valid).unflatten(1, (-1, self.pools)).any(2)
        known = len(self._log_steps)
        if known == len(self._log):  # twice as long, so that the steps before are copied seldom
            self._log = torch.cat([self._log, kept.new_zeros(max(1, known), *kept.shape)])
        self._log[known] = kept
        self._log_steps.append(step)

    def reorder(self, index: Tensor, rows: list[int]) -> None:
        """Let the rows follow their beams."""
        super().reorder(index, rows)
        self._places, self._log = self._places.index_select(0, index), self._log.index_select(2, index)
        if self._held is not None:
            each = self.numbers_of_rows(rows)
            self._held = [[of_layer[pool] for pool in each] for of_layer in self._held]

    def kept(self, layer: int, step: int | None) -> list[Tensor]:
        """Return the prompt positions of the tokens that a layer held at a step (None: now), (head, visual) for each row."""
        before = [number for number, after in enumerate(self._log_steps) if step is None or after < step]
        if not before:
            return super().kept(layer, step)
        kept, places = self._log[before[-1], layer, ..., :-1].cpu(), self._places.cpu()
        return [torch.stack([where[:-1][mask] for mask in heads]) for heads, where in zip(kept, places, strict=True)]


def _by_position(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    # The last `width` of the positions when sorted, and their indices; dead ones are -1 and stand left.
    result = positions.sort(dim=-1, stable=True)
    start = positions.shape[-1] - width
    return result.values[..., start:], result.indices[..., start:]
