"""Offsets of M-RoPE positions: models keep that of the newest prompt on their parts, whatever cache the prompt was read into."""

import torch
from torch import Tensor

__all__ = ["offsets_of", "restore_offsets"]


def offsets_of(model: torch.nn.Module) -> list[Tensor | None]:
    """Return the offsets that the parts of a model hold now, in the order of its parts; none for a model without M-RoPE.

    >>> offsets_of(torch.nn.Linear(2, 2))
    []
    """
    return [part.rope_deltas for part in _keepers(model)]


def restore_offsets(model: torch.nn.Module, offsets: list[Tensor | None]) -> None:
    """Give the parts of a model the offsets that `offsets_of` returned; an empty list leaves them as they are."""
    for part, offset in zip(_keepers(model), offsets, strict=False):
        part.rope_deltas = offset


def _keepers(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [part for part in model.modules() if hasattr(part, "rope_deltas")]
