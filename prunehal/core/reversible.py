"""Restrict instead of pruning: at each step a layer sees only the best visual tokens, and none of them is lost."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunehal.core.checks import check_choice, check_count, refuse
from prunehal.core.policy import Policy

__all__ = ["StepTopK"]


@dataclass(frozen=True)
class StepTopK(Policy):
    """Let every step attend to its own k visual tokens in each layer; nothing leaves the cache, so nothing is irreversible.

    The other visual tokens get no weight in that step, and all else keeps its proportions. The trace and listeners see these
    weights; the tokens are ranked by those before the restriction. There are no events, and no memory is saved.

    Attributes:
        k: visual tokens that a layer's newest query sees; with kept="head" each KV head chooses for itself.
        by: "query", the attention of this very query; or "accumulated", that of all queries from the prompt's last one to this.
        step: the first step m that is restricted; 1 restricts the prompt's last query too, so that the first token can change.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> cache = ph.attach(model, inputs, StepTopK(16), maps=True)
    >>> ids = model.generate(**inputs, **cache.options, max_new_tokens=4)
    >>> (cache.trace.maps[:, 0, 0] > 0).sum(-1).tolist(), len(cache.kept(0)[0])
    ([144, 16, 16, 16], 144)
    """

    k: int
    by: str = field(default="query", kw_only=True)
    step: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self, "k", 1, "Let at least one visual token be seen, e.g. k=36.")
        check_choice(self, "by", ("query", "accumulated"))
        check_count(self, "step", 1, "Set step=2, the default.")
        if self.kept == "shared":
            raise refuse("kept", self.kept, "'layer' or 'head'", "A layer is restricted before the later ones are reached.")

    @property
    def restricts_from(self) -> int:
        """Return the first step that is restricted."""
        return self.step

    def score(self, rows: Tensor, previous: Tensor | None) -> Tensor:
        """Return the rows, or their sum over the steps so far."""
        return rows if previous is None or self.by == "query" else previous + rows

    def attended(self, rows: Tensor, previous: Tensor | None, valid: Tensor, seeds: Sequence[Sequence[int]]) -> Tensor:
        """Mark the tokens that the newest query sees, bool (layer, batch, head, visual).

        Args:
            rows: its attention on all cached tokens, of the same shape.
            previous: what ``score`` returned one step earlier.
            valid, seeds: as in ``choose``.
        """
        budget = torch.full(rows.shape[:2], self.k, device=rows.device)
        return self.choose(self.score(rows, previous), valid, budget, seeds)
