"""Select: from scores to the visual tokens that stay; pure functions, which the policies put together."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["ROUNDING_GUARD", "averaged", "fraction_of", "keep_best", "random_scores"]

ROUNDING_GUARD = 1e-9  # 0.7 * 10 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996: both are meant exactly


def fraction_of(r: float, n: int, rounding: str = "floor") -> int:
    """Return how many of n visual tokens the fraction r keeps: floor (or ceil) of r * n, at least 1.

    >>> [fraction_of(0.4, n) for n in (576, 230, 92)]
    [230, 92, 36]
    """
    exact = r * n
    whole = math.ceil(exact - ROUNDING_GUARD) if rounding == "ceil" else math.floor(exact + ROUNDING_GUARD)
    return min(n, max(1, whole))


def keep_best(scores: Tensor, valid: Tensor, budget: Tensor) -> Tensor:
    """Mark the ``budget`` best-scored valid entries of each row; of equal scores the lower position wins.

    Args:
        scores: (layer, batch, head, visual).
        valid: bool, broadcastable to scores; False where a row holds no visual token.
        budget: integers (layer, batch) or (batch,), how many to keep in each row.

    Returns:
        bool (layer, batch, head, visual).

    >>> keep_best(torch.tensor([[[[1.0, 3.0, 3.0, 2.0]]]]), torch.tensor(True), torch.tensor([2])).tolist()
    [[[[False, True, True, False]]]]
    """
    scores = scores.masked_fill(~valid, -math.inf)
    order = scores.sort(dim=-1, descending=True, stable=True).indices  # stable: equal scores stay in position order
    rank = order.argsort(dim=-1)
    return (rank < budget[..., None, None]) & valid


def random_scores(valid: Tensor, keys: Sequence[Sequence[int]]) -> Tensor:
    """Draw scores, (layer, batch, head, visual), for each row from its own key and its own number of tokens.

    Neither the rows beside it nor padding to their width moves the numbers, so that a row draws alike in every batch.

    >>> valid = torch.tensor([[[[False, True, True]], [[True, True, True]]]])
    >>> batch, alone = random_scores(valid, [(0, 1), (0, 2)]), random_scores(valid[:, :1, :, 1:], [(0, 1)])
    >>> torch.equal(batch[:, :1, :, 1:], alone)
    True
    """
    scores = torch.zeros(valid.shape, device="cpu")
    valid = valid.cpu()
    for row, key in enumerate(keys):
        mine = valid[:, row]
        scores[:, row][mine] = torch.from_numpy(np.random.default_rng(key).random(int(mine.sum()))).float()
    return scores


def averaged(rows: Tensor, live: Tensor, copies: int, pools: int = 1) -> tuple[Tensor, Tensor]:
    """Give the sequences of one input (its beams, for instance) their common mean, over those that have not ended.

    Args:
        rows: (layer, pool, head, visual), where each input's ``copies`` sequences follow each other in the batch.
        live: bool (pool,), False where a sequence has ended.
        copies: sequences of each input.
        pools: pools of each sequence.

    Returns:
        The rows, and which of them have a live sequence in their input.

    >>> averaged(torch.tensor([[[[1.0]], [[3.0]]]]), torch.tensor([True, True]), 2)[0].flatten().tolist()
    [2.0, 2.0]
    """
    alive = live.unflatten(0, (-1, copies, pools))
    weight = alive.to(rows) / alive.sum(1, keepdim=True).clamp_min(1)
    by_input = rows.unflatten(1, (-1, copies, pools))
    mean = (by_input * weight[None, ..., None, None]).sum(2, keepdim=True).expand_as(by_input).flatten(1, 3)
    return mean, alive.any(1, keepdim=True).expand_as(alive).flatten()
