"""See: one step's attention, as a policy is told of it."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Seen"]


@dataclass(frozen=True)
class Seen:
    """Hold one step as a policy sees it; a batch entry is a pool: a row, or one image of a row.

    Attributes:
        step: m.
        rows: attention of the newest query on the cached visual tokens, (layer, batch, head, visual); 0 where a row holds none.
        value: A_l, as ``Policy.statistic_of`` returned it, (layer, batch).
        entropy: of the rows, in nats, (layer, batch); None unless the policy needs it.

    >>> import torch
    >>> Seen(step=2, rows=torch.full((1, 1, 1, 4), 0.1), value=torch.tensor([[0.1]])).rows.sum().item()
    0.4000000059604645
    """

    step: int
    rows: Tensor
    value: Tensor
    entropy: Tensor | None = None
