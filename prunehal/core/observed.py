"""Read: what a pruning cache has observed and done, in tables and tensors."""

import pandas as pd
from torch import Tensor
from transformers.cache_utils import Cache

from prunehal.core.acting import Acts
from prunehal.core.editing import ScoreEdit
from prunehal.core.layer import PrunableLayer
from prunehal.core.listening import Listener
from prunehal.core.policy import Policy
from prunehal.core.table import VisualTable
from prunehal.core.trace import AttentionTrace

__all__ = ["PRUNES", "ObservedCache"]

PRUNES = ("forced", "vote")  # reasons of a prune, among those of events


class ObservedCache(Cache):
    """Offer what the user reads from a cache; PrunableCache fills it.

    Attributes:
        policy: what decides.
        step: the number of steps m observed.
        table: which slot holds which token; None before the first forward.
        listeners: who hears of rows and beams; see `prunehal.core.listening`.
        edits: what changes a layer's scores, by its index in the model; see `prunehal.core.editing`.
        methods: decoding methods that are attached, with counts of what they did; see `prunehal.core.acting`.
        running: how many calls of generate() run on the cache now.
        left: why no forward may follow, if the block of a method or of `pruning` has ended too early; else None.
        offsets: of M-RoPE positions, as the newest prompt left them on the parts of the model that keep one.
        same_images: whether the images of the coming forward are the attached ones, a bool tensor; None if that is not known.
        observes_only: whether the policy watches and never prunes; see `prunehal.core.drafting`.
        goes_on: whether the prompt was run before, by a `SharedPrefill`.
    """

    policy: Policy
    step: int
    table: VisualTable | None
    listeners: list[Listener]
    edits: dict[int, ScoreEdit]
    methods: list[Acts]
    running: int
    left: str | None
    offsets: list[Tensor | None]
    same_images: Tensor | None
    observes_only: bool
    goes_on: bool
    _trace: AttentionTrace | None
    _events: list[dict]
    _per_image: bool
    _pruned: list[PrunableLayer]
    _awaited: PrunableLayer | None

    @property
    def events(self) -> pd.DataFrame:
        """Return one line for each prune: row, step (m), reason ("forced" or "vote"), kept (tokens left in each layer).

        With per_image=True also image, counted from 0 in its row.

        The tokens of step m were dropped after its attention was observed: step m + 1 is the first without them.

        Raises:
            RuntimeError: the cache has observed nothing.
        """
        self.check_observed()
        columns = ["row", *(["image"] if self._per_image else []), "step", "reason", "kept"]
        return pd.DataFrame(self._events, columns=columns)

    @property
    def trace(self) -> AttentionTrace:
        """Return the recorded attention.

        Raises:
            RuntimeError: the cache has observed nothing.
        """
        self.check_observed()
        return self._trace

    def kept(self, layer: int, step: int | None = None) -> list[Tensor]:
        """Return the prompt positions of the visual tokens in a layer's cache, sorted, one LongTensor for each row.

        Positions are columns of ``input_ids``, padding included. With kept="head" each tensor is (kv_head, visual).

        Args:
            layer: index of the layer in the model.
            step: look at the cache as step m's attention saw it; None means now. With beams, rows are today's rows.

        Raises:
            RuntimeError: the cache has observed nothing.
            ValueError: no such layer, or a step that did not run.
        """
        self.check_observed()
        places = {each.index: each.place for each in self._pruned}
        if layer not in places:
            raise ValueError(f"layer={layer!r}: expected one of {list(places)}, the layers whose cache is pruned.")
        if step is not None and not 1 <= step <= self.step:
            raise ValueError(f"step={step!r}: expected None or a step from 1 to {self.step}, which ran.")
        rows = self.table.kept(places[layer], step)
        return rows if self.policy.kept == "head" else [heads[0] for heads in rows]

    def check_observed(self) -> None:
        """Raise a RuntimeError if no step of the attached prompt was observed, or if what was observed is no number."""
        if self._awaited is not None:
            self._raise_unobserved()
        if self._trace is None or not len(self._trace):
            raise RuntimeError(
                "the cache has observed nothing: no forward with a complete prompt has run on it; expected one. "
                "Fix: model.generate(**inputs, **cache.options) with the attached inputs, then read the cache."
            )
        self._settle()
        self._trace.check_finite()

    def _raise_unobserved(self) -> None:
        raise RuntimeError(
            f"layer {self._awaited.index}: its K and V were cached but its attention was not observed "
            f"(attn_implementation={self._config._attn_implementation!r}); expected an attention module that calls "
            "transformers' attention interface with the K that the cache returned. A model with attention code of "
            "its own is not supported. Fix: use another model; if a forward was interrupted, attach a new cache."
        )
