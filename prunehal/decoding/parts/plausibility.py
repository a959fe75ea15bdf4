"""Keep plausible tokens only: the cut that contrastive decoders put on their scores, from the uncontrasted ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunehal.decoding.values import check_number

__all__ = ["check_beta", "plausible", "renormalised"]


def check_beta(beta: float) -> None:
    """Refuse what is no strength of the plausibility cut.

    Raises:
        ValueError: beta does not lie in [0, 1].
    """
    check_number("beta", beta, "[0, 1]", "Set beta=0.1, the usual value, or 0 for no cut.")


def plausible(logits: Tensor, beta: float, scores: Tensor | None = None) -> Tensor:
    """Put -inf in place of every token whose probability falls below beta times that of the most probable token.

    The adaptive plausibility constraint of contrastive decoding (Li et al. 2023), which VCD and PAI take over, and DoLa under
    another name: p(v) >= beta max_w p(w). It needs no softmax: the normaliser is the same on both sides, so it is
    z(v) >= max_w z(w) + ln(beta).

    Args:
        logits: logits or log-probabilities that decide, (batch, vocabulary); -inf marks what is out already.
        beta: strength; 0 keeps all tokens, 1 only the most probable.
        scores: what is cut, in the shape of the logits; None means the logits.

    Returns:
        The scores with -inf in place of implausible tokens, (batch, vocabulary).

    >>> plausible(torch.tensor([[2.0, 1.0, -1.0]]), 0.1)
    tensor([[2., 1., -inf]])
    """
    scores = logits if scores is None else scores
    if beta == 0:  # ln(0)
        return scores
    bound = logits.amax(dim=-1, keepdim=True) + math.log(beta)
    return scores.masked_fill(logits < bound, -math.inf)


def renormalised(scores: Tensor) -> Tensor:
    """Return the log-softmax in float32, (batch, vocabulary); beam search adds what processors return as it stands.

    >>> renormalised(torch.tensor([[2.0, 2.0, -torch.inf]])).exp()
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    return torch.log_softmax(scores.float(), dim=-1)
