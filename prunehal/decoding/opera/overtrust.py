"""Measure over-trust: how strongly all later tokens of an answer look back at one of its tokens (OPERA, arXiv 2311.17911).

Pure functions: tensors and numbers in, tensors and numbers out. The window of an answer of n tokens is the lower triangle of
attention from its tokens (rows) to its tokens (columns); w is its entry times sigma. Column j is scored by

    s_j = scale * prod_{i >= j} w_ij    (the diagonal included),    phi = max_j s_j,

the paper's column-wise product of the scaled window and its over-trust penalty, but for the factor ``scale``.

Every new token multiplies each column by one factor, so that the logarithms of the products, one number for each column, are
all that has to be remembered of the window; and 0 * inf, which the products themselves may meet, cannot occur.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LARGEST", "by_position", "columns", "mode", "overtrust", "penalised", "place_to_return_to"]

LARGEST = 65504.0  # of phi: the largest number of half precision, in which the released code stores it (there inf follows)
BELOW = 999.0  # how far tokens that are no candidates stay below all candidates; the released code puts them at -999


def by_position(weights: Tensor, positions: Tensor, length: int) -> Tensor:
    """Return attention rows over the positions of a sequence: the largest of all heads, with 0 where a token was dropped.

    Args:
        weights: of one query in each row, on the stored slots, (row, kv_head, group, slot).
        positions: of the slots, (1 or row, 1 or kv_head, slot); -1 where a slot is dead.
        length: number of positions.

    Returns:
        (row, position); every row sums to 1.

    >>> weights = torch.tensor([[[[0.2, 0.2, 0.6], [0.1, 0.6, 0.3]]]])  # two heads on three slots
    >>> by_position(weights, torch.tensor([[[0, 2, 3]]]), 4).round(decimals=2)
    tensor([[0.1400, 0.0000, 0.4300, 0.4300]])
    """
    heads = weights.amax(2)
    positions = positions.expand_as(heads)
    heads = heads.masked_fill(positions < 0, 0.0)
    row = heads.new_zeros(*heads.shape[:2], length).scatter_add(2, positions.clamp_min(0), heads).amax(1)
    return row / row.sum(-1, keepdim=True)


def columns(sums: Tensor, row: Tensor, sigma: float) -> Tensor:
    """Let one more row enter the window; return the sum of ln w in each column, (..., n).

    Args:
        sums: of the rows so far, (..., n - 1).
        row: attention of the newest token on the n tokens of the answer, itself included, (..., n).
        sigma: of w.

    >>> sums = columns(torch.zeros(1, 0), torch.tensor([[0.5]]), 2.0)
    >>> columns(sums, torch.tensor([[0.25, 0.5]]), 2.0).exp()
    tensor([[0.5000, 1.0000]])
    """
    return torch.nn.functional.pad(sums, (0, 1)) + (sigma * row).log()


def overtrust(sums: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return phi and where it is reached, each (...); the first of equal columns counts.

    Args:
        sums: of ln w in each column, (..., n).
        scale: of phi.

    >>> phi, location = overtrust(torch.tensor([[0.0, 2.0, 1.0]]), 1.0)
    >>> phi.round(decimals=3).tolist(), location.tolist()
    ([7.388999938964844], [1])
    """
    highest, location = sums.max(-1)
    return (highest + math.log(scale)).exp().clamp_max(LARGEST), location


def penalised(logits: Tensor, candidates: Tensor, penalty: Tensor, alpha: float) -> Tensor:
    """Return log-probabilities in which only the candidates compete, by their penalised logits, (beam, vocabulary).

    All other tokens come after the least probable candidate, at a distance that no sum of candidates makes up for; they fill
    beams only where there are too few candidates, and then in the order of their logits.

    Args:
        logits: (beam, vocabulary).
        candidates: their ids, (beam, candidate).
        penalty: what is taken from their logits, times alpha, (beam, candidate).
        alpha: strength.

    >>> candidates, penalty = torch.tensor([[0, 1]]), torch.tensor([[1.0, 0.0]])
    >>> penalised(torch.tensor([[2.0, 1.0, 0.0]]), candidates, penalty, 1.0).exp()
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    chosen = (logits.gather(1, candidates) - alpha * penalty).log_softmax(-1)
    others = logits - logits.amax(-1, keepdim=True) + chosen.amin(-1, keepdim=True) - BELOW
    return others.scatter(1, candidates, chosen)


def mode(values: Sequence[int]) -> int:
    """Return the most frequent value, and of equally frequent ones the smallest.

    >>> mode([3, 1, 3, 1, 2])
    1
    """
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def place_to_return_to(
    location: int, histories: Sequence[Sequence[int]], threshold: int, rolled: Counter, limit: int, chosen: int
) -> int | None:
    """Return which token of the answer is to be chosen again, counted from 0; None where decoding just goes on.

    It is the one after the over-trusted token, once every beam has seen the maximum there more than ``threshold`` times. After
    ``limit`` returns to it, it is the one before; after as many to that, none.

    Args:
        location: of the over-trusted token.
        histories: for each beam the locations of its steps.
        threshold: r of the method.
        rolled: how often each token was chosen again so far.
        limit: largest number of returns to one token.
        chosen: tokens of the answer that are chosen by now.

    >>> place_to_return_to(2, [[2, 2, 1], [2, 2, 2]], 1, Counter(), 5, chosen=6)
    3
    >>> place_to_return_to(2, [[2, 2, 1], [2, 2, 2]], 2, Counter(), 5, chosen=6) is None
    True
    """
    if location + 1 >= chosen or any(history.count(location) <= threshold for history in histories):
        return None
    return next((place for place in (location + 1, location) if place and rolled[place] < limit), None)
