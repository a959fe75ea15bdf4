"""Prune reversibly: what is dropped goes to a bank, from which it returns when it is wanted again."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunehal.core.accumulated import Accumulated
from prunehal.core.checks import check_choice, check_count, refuse

__all__ = ["Bank"]


@dataclass(frozen=True)
class Bank(Accumulated):
    """Prune as `PruneHal` does, but into a bank: the dropped tokens leave the cache and can return, K and V unchanged.

    With back="fall" a majority of votes, which says that attention to what is left has fallen, brings all tokens of the bank
    back instead of pruning again; with an empty bank it prunes, t times at most. With back="key" the newest query is compared
    with the bank's keys too, and banked tokens with more weight than the lowest kept ones change places with them: a layer then
    holds as many tokens as before, those that had the most weight together. It takes effect at the next step. A step that prunes
    swaps nothing.

    Text that was decoded without a token stays as it is when the token returns. Options and defaults are those of PruneHal
    besides; window, wait, content and grid are those of `Accumulated`, to rank by more than the latest step's attention. While
    in the bank a token gathers none. The cache's ``events`` tell of returns too, and ``bank_bytes`` how large the bank is.

    Attributes:
        back: what brings tokens back, "fall" or "key".
        every: with back="key", swap at each so many-th step. 1, since what one query wants suits the next step best and ages.
        store: where the bank is. "device" keeps K and V as they are, so that the device holds as much as without pruning; "cpu"
            moves them to the CPU (with back="key" only V, since K is needed at each step); "int8" leaves them on the device as
            8-bit integers with a scale for each head and token, so that what returns is rounded.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> cache = ph.attach(model, inputs, Bank(r=0.4, t=1))
    >>> ids = model.generate(**inputs, **cache.options, max_new_tokens=16)
    >>> cache.events["reason"].tolist(), len(cache.kept(0)[0])
    (['forced', 'returned'], 144)
    """

    window: int | None = field(default=1, kw_only=True)
    wait: int = field(default=2, kw_only=True)
    back: str = field(default="fall", kw_only=True)
    every: int = field(default=1, kw_only=True)
    store: str = field(default="device", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "back", ("fall", "key"))
        check_choice(self, "store", ("device", "cpu", "int8"))
        check_count(self, "every", 1, "Set every=1, the default.")
        if self.back == "fall" and self.every != 1:
            raise refuse("every", self.every, "1 with back='fall'", "It is of back='key': leave it out.")
        if self.back == "key" and self.selection != "top":
            raise refuse(
                "selection", self.selection, "'top' with back='key'", "Tokens are swapped by their weight: leave it out."
            )

    def swapped(self, weights: Tensor, valid: Tensor, present: Tensor) -> Tensor:
        """Mark as many tokens as are kept, of those with the most weight; of equal weights the kept one wins, then the lower.

        Args:
            weights: of the newest query on kept and banked tokens together, (layer, batch, head, visual).
            valid: bool, which are kept, of the same shape.
            present: bool, which are kept or banked.

        >>> kept = torch.tensor([[[[True, True, False, False]]]])
        >>> Bank(back="key").swapped(torch.tensor([[[[0.1, 0.3, 0.1, 0.2]]]]), kept, torch.ones_like(kept)).flatten().tolist()
        [False, True, False, True]
        """
        if self.kept == "shared":
            weights = weights.mean(0, keepdim=True).expand_as(weights)
        first = valid.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
        scores = weights.masked_fill(~present, -torch.inf).gather(3, first)
        rank = first.gather(3, scores.argsort(dim=-1, descending=True, stable=True)).argsort(dim=-1)
        return (rank < valid.sum(-1, keepdim=True)) & present
