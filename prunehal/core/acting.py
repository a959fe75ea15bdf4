"""Count how often the parts of an attached decoding method act: one that never acts is an error, not silently stock decoding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Acts"]


class Acts:
    """Count, for each part of an attached method, how often it acted.

    Attributes:
        method: the setting that is attached, a decoder.
        calls: how many calls of generate() have begun on the cache.
        mask: the attention_mask that the method was attached with, (batch, prompt); None where every token counts.

    >>> acts = Acts("VCD()")
    >>> double = acts.counted("doubling", lambda x: 2 * x)
    >>> acts.idle(), double(3), acts.idle()
    (['doubling'], 6, [])
    """

    def __init__(self, method: object) -> None:
        self.method, self.calls = method, 0
        self.mask: Tensor | None = None
        self._counts: dict[str, int] = {}

    @property
    def name(self) -> str:
        """Return the method's name."""
        return type(self.method).__name__

    def counted(self, part: str, function: Callable) -> Callable:
        """Return the function with its calls counted from now on; there must be one before generate() ends."""
        self._counts[part] = 0

        @functools.wraps(function)
        def acting(*args: Any, **kwargs: Any) -> Any:
            self._counts[part] += 1
            return function(*args, **kwargs)

        return acting

    def idle(self) -> list[str]:
        """Return the parts that have not acted yet."""
        return [part for part, times in self._counts.items() if not times]

    def check_mask(self, ids: Tensor, mask: Tensor | None) -> None:
        """Raise a ValueError if generate() gets ids (batch, prompt) with another attention_mask than the method did."""
        ours, theirs = (torch.ones_like(ids) if each is None else each.to(ids.device) for each in (self.mask, mask))
        if ours.shape == theirs.shape == ids.shape and not torch.equal(ours.bool(), theirs.bool()):
            row = int((ours.bool() != theirs.bool()).any(1).nonzero()[0])
            raise ValueError(
                f"attention_mask: of row {row}, {self.name}.on() got one with {int(ours[row].sum())} tokens that count, and "
                f"generate() one with {int(theirs[row].sum())}, or at other places; expected the same. "
                "Fix: pass the same inputs to on() and generate()."
            )

    def check(self) -> None:
        """Raise a RuntimeError at the end of a call of generate() in which a part has still not acted."""
        if idle := self.idle():
            raise RuntimeError(
                f"{self.name}: generate() has run without its {' and '.join(idle)}, so that its output is not that of "
                f"{self.name}; expected each part to act at least once. Fix: attach it to the model object whose forward runs; a "
                "wrapper or a compiled part of the model may leave out the hooks that the method needs."
            )
