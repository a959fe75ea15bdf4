"""Count what a method attached to a cache does, so that one which does nothing is an error and not stock decoding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["Acts"]


class Acts:
    """Count, for each part of an attached method, how often it acted.

    Attributes:
        method: the setting that is attached, a decoder.
        calls: how many calls of generate() have begun on the cache.

    >>> acts = Acts("VCD()")
    >>> double = acts.counted("doubling", lambda x: 2 * x)
    >>> acts.idle(), double(3), acts.idle()
    (['doubling'], 6, [])
    """

    def __init__(self, method: object) -> None:
        self.method, self.calls = method, 0
        self._counts: dict[str, int] = {}

    @property
    def name(self) -> str:
        """Return the method's name."""
        return type(self.method).__name__

    def counted(self, part: str, function: Callable) -> Callable:
        """Return the function, which counts its calls from now on; a call of generate() must not end before the first of them."""
        self._counts[part] = 0

        @functools.wraps(function)
        def acting(*args: Any, **kwargs: Any) -> Any:
            self._counts[part] += 1
            return function(*args, **kwargs)

        return acting

    def idle(self) -> list[str]:
        """Return the parts that have not acted yet."""
        return [part for part, times in self._counts.items() if not times]

    def check(self) -> None:
        """Raise a RuntimeError at the end of a call of generate() in which a part has still not acted."""
        if idle := self.idle():
            raise RuntimeError(
                f"{self.name}: generate() has run without its {' and '.join(idle)}, so that what it returned is not that of "
                f"{self.name}; expected each part to act at least once. Fix: attach it to the very model whose forward runs; a "
                "wrapper or a compiled part of the model may leave out the hooks that the method needs."
            )
