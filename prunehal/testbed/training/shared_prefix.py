"""Attention for training: several texts share one visual prefix, and none sees another.

Registered with transformers under the name ATTENTION. Against a dense mask it computes less than half of the scores, and
stays in bfloat16; sdpa's backward is the slow part on a CPU at these sizes.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

__all__ = ["ATTENTION", "row_mask", "shared_prefix_attention"]

ATTENTION = "prunehal_shared_prefix"


def shared_prefix_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None,
    scaling: float, prefix: int = 0, rows: torch.Tensor | None = None, **_: object,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attend within ``[prefix | row 1 | ... | row n]``; the rows have equal lengths and hold one text or several.

    Args:
        module: the attention module; full attention when it is not causal (a vision tower).
        query, key, value: (batch, heads, prefix + n * length, head_dim), as many key as query heads.
        attention_mask: not used; the layout says everything.
        scaling: factor of the scores.
        prefix: tokens that all texts share.
        rows: what is added to the scores within the rows, (batch, n, length, length); see :func:`row_mask`.

    Returns:
        The output (batch, tokens, heads, head_dim), and no weights.
    """
    with torch.autocast(query.device.type, enabled=False):
        dtype = value.dtype
        query, key = (query * scaling).to(dtype), key.to(dtype)
        if not module.is_causal:
            return _weighted(query @ key.mT, value).transpose(1, 2).contiguous(), None
        before = slice(0, prefix)
        outputs = [_weighted(query[:, :, before] @ key[:, :, before].mT + _causal(prefix, query), value[:, :, before])]
        q, k, v = (x[:, :, prefix:].unflatten(2, (rows.shape[1], -1)) for x in (query, key, value))  # (b, h, n, length, d)
        to_prefix = q @ key[:, :, None, before].mT
        to_itself = q @ k.mT + rows[:, None].to(dtype)
        weights = torch.softmax(torch.cat([to_prefix, to_itself], dim=-1), dim=-1)
        words = weights[..., before] @ value[:, :, None, before] + weights[..., prefix:] @ v
        outputs.append(words.flatten(2, 3))
        return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def row_mask(text: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what to add to the scores within rows of texts: nothing where a token may look, else the lowest number.

    A token looks at itself and at earlier tokens of its own text.

    Args:
        text: number of each token's text, (batch, n, length).
        dtype: of the result, (batch, n, length, length).
    """
    hidden = text[..., :, None] != text[..., None, :]
    after = torch.ones(hidden.shape[-2:], dtype=torch.bool, device=text.device).triu(1)
    return torch.zeros(hidden.shape, dtype=dtype, device=text.device).masked_fill_(hidden | after, torch.finfo(dtype).min)


def _weighted(scores: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.softmax(scores, dim=-1) @ value


def _causal(length: int, like: torch.Tensor) -> torch.Tensor:
    return torch.full((length, length), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device).triu(1)


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
