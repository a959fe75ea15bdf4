"""Restrict queries: a cache whose policy hides visual tokens from the newest query of each step, and drops none."""

import functools
from collections.abc import Callable

from torch import Tensor

from prunehal.core.cache import PrunableCache
from prunehal.core.layer import PrunableLayer

__all__ = ["RestrictingCache"]


class RestrictingCache(PrunableCache):
    """Cache K and V of a prompt and what follows, for a policy with ``restricts_from``; made by ``attach``."""

    def focus(self, layer: PrunableLayer) -> Callable[[Tensor], Tensor] | None:
        """Return what hides slots from a layer's newest query in this forward."""
        if not self._observing or self.step < self.policy.restricts_from:
            return None
        return functools.partial(self._hidden, layer)

    def _hidden(self, layer: PrunableLayer, weights: Tensor) -> Tensor:
        # Which slots the newest query must not see, bool (batch, 1 or kv_head, 1, slot), by its weights on all of them.
        report = self._report(weights.detach())
        if self._awaited is layer:
            self._asked.append(report)
        valid = self.table.valid[layer.place, None]
        rows, _ = self._read([report], valid, layer.place)
        keep = self._memory.attended(rows, valid, layer.place, self.step)
        hidden = self.table.visual_slots(layer.place, layer.length, valid & ~keep)
        return hidden[:, :, None].to(weights.device)

    def _finish(self) -> None:
        if self.step >= self.policy.restricts_from and not self._asked:
            raise ValueError(
                f"policy={self.policy!r}: step {self.step} was computed beside the cache, where no query is restricted; expected "
                "a decoder whose tokens are all read through it. Fix: another decoder (OPERA looks ahead), or another policy."
            )
        super()._finish()
