"""Keep a share of the attention, not of the tokens: how many tokens that takes is each layer's and each image's own affair."""

from dataclasses import dataclass, field

from torch import Tensor

from prunehal.core.accumulated import Accumulating
from prunehal.core.checks import check_fraction

__all__ = ["MassShare", "fewest_holding"]


@dataclass(frozen=True)
class MassShare(Accumulating):
    """Keep the fewest visual tokens that hold the share p of the accumulated visual attention; once, at m = wait.

    Neither r nor t is to be tuned: where attention is spread, many tokens stay; where it is peaked, few. With kept="shared" the
    layers' mean decides for all of them; with kept="head" a layer's heads keep as many each as the one that needs most.
    selection="random" and "lowest" keep as many tokens as "top" would.

    Attributes:
        p: share of the attention on the visual tokens, in (0, 1]; at 1 only tokens without any attention go.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> cache = ph.attach(model, inputs, MassShare(p=0.9))
    >>> ids = model.generate(**inputs, **cache.options, max_new_tokens=12)
    >>> kept = cache.events["kept"][0]
    >>> len(kept), max(kept) < 144, len(set(kept)) > 1
    (6, True, True)
    """

    p: float = field(default=0.9)
    limit = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "p", "p is the share of the visual attention that stays, e.g. p=0.9.")

    def budget(self, n: int) -> int:
        """Return the fewest tokens that a prune can leave of n."""
        return min(1, n)

    def budgets(self, scores: Tensor, valid: Tensor, left: list[list[int]]) -> list[list[int]]:
        """Return how many tokens hold the share p, by layer and row; the host waits for it."""
        return fewest_holding(self.p, scores, valid, left, shared=self.kept == "shared")


def fewest_holding(p: float, scores: Tensor, valid: Tensor, left: list[list[int]], *, shared: bool = False) -> list[list[int]]:
    """Return how many of the best tokens hold the share p of all scores, by layer and row; the host waits for it.

    Args:
        p: in (0, 1].
        scores: at least 0, (layer, batch, head, visual); the head that needs most decides.
        valid: bool, of the same shape.
        left: visual tokens of each layer and row.
        shared: let the mean of the layers decide for all of them.

    >>> import torch
    >>> scores = torch.tensor([[[[1.0, 5.0, 0.0, 4.0]]]])
    >>> [fewest_holding(p, scores, scores >= 0, [[4]]) for p in (0.5, 0.9, 1.0)]
    [[[1]], [[2]], [[3]]]
    """
    scores = scores.masked_fill(~valid, 0.0).double()
    if shared:
        scores = scores.mean(0, keepdim=True).expand_as(scores)
    mass = scores.sort(dim=-1, descending=True).values
    before = mass.cumsum(-1) - mass
    needed = (before < p * mass.sum(-1, keepdim=True)) & (mass > 0)
    counts = needed.sum(-1).amax(-1).tolist()  # (layer, batch): of the head that needs most
    return [[min(n, max(1, count)) for count, n in zip(*of_layer, strict=True)] for of_layer in zip(counts, left, strict=True)]
