"""Accumulate: rank the visual tokens by their attention over many steps, not by that of one; shared by several policies.

One step's attention tells what the next word needs, not what the caption will need: after a few function words hardly any of
it lies on the objects. All here is pure, as in ``policy``.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunehal.core.checks import check_count, check_flag
from prunehal.core.policy import Policy
from prunehal.core.prunehal import PruneHal
from prunehal.core.seen import Seen

__all__ = ["Accumulated", "Accumulating", "check_squares", "smoothed"]


@dataclass(frozen=True)
class Accumulating(Policy):
    """Hold what policies share that rank by accumulated attention; a base, no policy of its own.

    Attributes:
        window: accumulate over the last so many steps that count; None means all since the prompt, m = 1 included.
        content: let a step count in a layer only where A_l is at least the average that it is compared with: the steps that
            look at the image. m = 1, which has nothing to be compared with, counts.
        wait: the step m of the forced prune; no layer votes before it.
        grid: patches along one side of each image (or tile), whose tokens form a square of grid x grid: a token's score
            is then the mean over the cached tokens among itself and its neighbours, 3 x 3. None: its own.
    """

    window: int | None = field(default=None, kw_only=True)
    content: bool = field(default=False, kw_only=True)
    wait: int = field(default=8, kw_only=True)
    grid: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None:
            check_count(self, "window", 1, "Set window=None to accumulate since the prompt.")
        check_flag(self, "content", "Set content=False, the default.")
        check_count(self, "wait", 1, "Set wait=8, the default.")
        if self.grid is not None:
            check_count(self, "grid", 1, "Set grid=None to leave the scores as they are.")

    def check_prompt(self, numbers: Tensor) -> None:
        """Raise a ValueError unless every run of visual tokens is made of squares of grid x grid, each in one pool."""
        if self.grid is not None:
            check_squares(numbers, self.grid)

    def judge(self, seen: Seen, reference: Tensor, entered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return level, threshold and votes as every policy does, without votes before m = wait."""
        level, threshold, vote = super().judge(seen, reference, entered)
        return level, threshold, vote & (seen.step >= self.wait)

    def rank(self, seen: Seen, level: Tensor, previous: Tensor | None) -> Tensor:
        """Return the sum of the rows that count; with a window these rows, (layer, batch, window * head, visual)."""
        rows = seen.rows
        if self.window is None:
            later = rows if previous is None else previous + rows
        else:
            blocks = rows.new_zeros(*rows.shape[:2], self.window * rows.shape[2], rows.shape[3]) if previous is None else previous
            later = torch.cat([blocks[:, :, rows.shape[2] :], rows], dim=2)
        if previous is None or not self.content:
            return later
        counts = ~(seen.value < level)  # nan: there is nothing to compare with yet
        return torch.where(counts[..., None, None], later, previous)

    def scores(self, ranked: Tensor, numbers: Tensor) -> Tensor:
        """Return the accumulated attention, (layer, batch, head, visual), smoothed over the grid where there is one."""
        scores = ranked.unflatten(2, (-1, numbers.shape[2])).sum(2)
        return scores if self.grid is None else smoothed(scores, numbers, self.grid)

    def forced(self, step: int) -> bool:
        """Say whether step m is the one that prunes without a vote."""
        return step == self.wait


@dataclass(frozen=True)
class Accumulated(Accumulating, PruneHal):
    """Prune as `PruneHal` does, but keep the tokens with the most attention accumulated over several steps.

    The forced prune comes at m = wait, and no layer votes before it. Options and defaults are those of PruneHal besides.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> cache = ph.attach(model, inputs, Accumulated(r=0.25, t=1, wait=8))
    >>> ids = model.generate(**inputs, **cache.options, max_new_tokens=12)
    >>> cache.events[["step", "reason"]].values.tolist()
    [[8, 'forced']]
    """

    def forced(self, step: int) -> bool:
        """Say whether step m is the forced first prune, m = wait."""
        return self.forced_first and step == self.wait


def smoothed(scores: Tensor, numbers: Tensor, side: int, window: int = 3) -> Tensor:
    """Average each token's score with those of its neighbours that are still there, window x window on its own tile.

    Args:
        scores: (layer, batch, head, visual).
        numbers: of the tokens within their row, tile after tile and row by row within a tile, of the same shape; entries that
            are no token have a number beyond the last tile.
        side: of a tile, in patches.
        window: of the neighbours, the token among them, in patches; odd.

    >>> smoothed(torch.tensor([[[[4.0, 0.0, 2.0]]]]), torch.tensor([[[[0, 1, 3]]]]), side=2).tolist()
    [[[[2.0, 2.0, 2.0]]]]
    """
    tiles = int(numbers.amax()) // side**2 + 1
    dense = scores.new_zeros(2, *numbers.shape[:3], tiles * side**2)
    dense[0].scatter_(3, numbers, scores)
    dense[1].scatter_(3, numbers, 1.0)
    planes = dense.reshape(2, -1, side, side)
    total, present = torch.nn.functional.avg_pool2d(planes, window, stride=1, padding=window // 2).view_as(dense)
    return total.gather(3, numbers) / present.gather(3, numbers)


def check_squares(numbers: Tensor, grid: int) -> None:
    """Raise a ValueError unless every run of visual tokens is made of squares of grid x grid, each in one pool.

    Args:
        numbers: the pool of each token, (batch, prompt); 0 is text.
        grid: patches along one side.
    """
    square = grid**2
    for row, line in enumerate(numbers.tolist()):
        runs, visual = _runs(line), [number for number in line if number]
        if odd := [length for length in runs if length % square]:
            side = math.isqrt(odd[0])
            fix = f"Set grid={side}" if side**2 == odd[0] else "Set grid=None: these patches form no square"
            raise ValueError(
                f"grid={grid}: row {row} has {odd[0]} visual tokens on end; expected a multiple of {square}, the "
                f"patches of square images or tiles. {fix}."
            )
        if any(len(set(visual[start : start + square])) > 1 for start in range(0, len(visual), square)):
            raise ValueError(
                f"grid={grid}: visual_mask gives a tile of row {row} to several images; expected one image for each "
                f"{square} tokens. Set grid=None."
            )


def _runs(line: list[int]) -> list[int]:
    """Return the lengths of the runs of visual tokens.

    >>> _runs([0, 1, 1, 0, 2])
    [2, 1]
    """
    lengths: list[int] = []
    for before, number in zip([0, *line], line, strict=False):
        if number and not before:
            lengths.append(1)
        elif number:
            lengths[-1] += 1
    return lengths
