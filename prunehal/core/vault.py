"""Store the K and V of one layer's banked tokens: as they are, in the CPU's memory, or as 8-bit integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunehal.core.blocks import picked
from prunehal.core.table import sent

if TYPE_CHECKING:
    from prunehal.core.bank_table import Exchange
    from prunehal.core.layer import PrunableLayer

__all__ = ["Vault", "decoded", "encoded"]

Parts = tuple[Tensor, ...]  # of K or V: itself, or integers and scales; each (batch, kv_head, slot, ...)


def encoded(whole: Tensor, store: str) -> Parts:
    """Return K or V, (batch, kv_head, slot, dim), as the store keeps it.

    "int8" rounds to 127 steps of one scale for each head and token, so that no number moves by more than half of it.

    >>> integers, scale = encoded(torch.tensor([[[[1.27, -0.634]]]]), "int8")
    >>> integers.flatten().tolist(), round(scale.item(), 4)
    ([127, -63], 0.01)
    """
    if store == "cpu":
        return (whole.to("cpu"),)
    if store == "int8":
        exact = whole.float()
        scale = exact.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
        return (exact / scale).round().clamp(-127, 127).to(torch.int8), scale
    return (whole,)


def decoded(parts: Parts, like: Tensor) -> Tensor:
    """Return K or V as it can be attended to, with the device and dtype of another tensor."""
    whole, *scale = parts
    return (whole * scale[0] if scale else whole).to(like)


class Vault:
    """Hold the K and V that one layer has in the bank, and exchange them with those of the layer."""

    def __init__(self, store: str, compared: bool) -> None:
        """Start empty.

        Args:
            store: "device", "cpu" or "int8".
            compared: K is needed at each step, so that "cpu" moves V alone.
        """
        self._stores = ("device" if compared and store == "cpu" else store, store)
        self._parts: tuple[Parts, Parts] | None = None

    def exchange(self, layer: PrunableLayer, moves: Exchange) -> None:
        """Let tokens go from the layer to the bank and back; the layer frees what it gives away."""
        stored = layer.keys, layer.values
        if self._parts is None:
            self._parts = tuple(encoded(part[:, :, :0], store) for part, store in zip(stored, self._stores, strict=True))
        back = [
            decoded(tuple(picked(part, moves.back) for part in parts), own)
            for parts, own in zip(self._parts, stored, strict=True)
        ]
        came = [encoded(picked(own, moves.away), store) for own, store in zip(stored, self._stores, strict=True)]
        self._parts = tuple(
            tuple(picked(torch.cat([old, new], dim=2), moves.banked) for old, new in zip(parts, news, strict=True))
            for parts, news in zip(self._parts, came, strict=True)
        )
        layer.insert(*back, moves.stored)

    def keys(self, like: Tensor) -> Tensor:
        """Return K of the bank's slots, (batch, kv_head, slot, dim), with the device and dtype of another tensor."""
        return decoded(self._parts[0], like)

    def reorder(self, rows: list[int]) -> None:
        """Let the rows follow their beams."""
        if self._parts is not None:
            self._parts = tuple(tuple(part.index_select(0, sent(rows, part.device)) for part in parts) for parts in self._parts)

    def nbytes(self) -> int:
        """Return the memory that the bank takes, wherever it is, with dead slots and scales."""
        return sum(part.untyped_storage().nbytes() for parts in self._parts or () for part in parts)
