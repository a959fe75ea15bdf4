"""Observe: lead one forward through the layers of a pruning cache, and hand its attention rows to the policy.

A step runs through the layers: each ``update`` appends K and V, the wrapped attention reports the newest query's row, and the
last report completes the step's vote. What the vote asks for waits; ``cache`` does it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from prunehal.core.attention import Aside
from prunehal.core.layer import PrunableLayer
from prunehal.core.observed import ObservedCache
from prunehal.core.selection import averaged

__all__ = ["ForwardCache"]


class ForwardCache(ObservedCache):
    """Follow each forward of a run, step by step; a base of PrunableCache, which prunes."""

    def announce(
        self, input_ids: Tensor | None, embeddings: Tensor | None, brings_images: bool, positions: Tensor | None = None
    ) -> None:
        """Check the model's inputs before a forward, and see which rows have ended; called by attach()'s hook.

        Args:
            input_ids: (batch, new), or None with embeddings.
            embeddings: (batch, new, hidden), or None with ids.
            brings_images: whether images come with them.
            positions: of the new tokens, (..., batch or 1, new); None where the model counts by itself.

        Raises:
            ValueError: the prompt is not the one that was attached, or a later one does not go on from what the cache holds.
        """
        self._refuse_if_released()
        self._refuse_if_left()
        self._announced = True
        seen = self.get_seq_length()
        same_images, self.same_images = self.same_images, None
        if seen < len(self._prompt):
            if input_ids is not None:
                self._prompt.check_ids(input_ids, seen, brings_images, same_images)
            elif embeddings is not None:
                self._prompt.check_images(same_images)
                self._prompt.check_embeddings(embeddings, seen)
        elif input_ids is not None and input_ids.shape[1] == 1 and not brings_images:
            self._settle()  # the pending step is one that these rows still ran
            self._done = self._done | torch.isin(input_ids[:, 0].to(self._ends.device), self._ends)
        else:
            given = embeddings if input_ids is None else input_ids
            self._refuse_other_rows(given)
            self._refuse_other_start(positions, seen)
            self._prompt.check_later(given, seen, brings_images)
            self._done = torch.zeros_like(self._done)  # a new prompt: every row goes on
        self._last = None if positions is None else positions[..., -1]
        if seen >= len(self._prompt):
            self._later.append(input_ids)

    def check_history(self, ids: Tensor, mask: Tensor | None) -> None:
        """Raise a ValueError unless a conversation begins with the tokens that the cache has read; the host waits once.

        Args:
            ids: as many tokens of the conversation as the cache has read, (batch, seen).
            mask: which of them count, bool or 0 and 1, (batch, seen): padding may be written otherwise; None: all.
        """
        known = self._known()
        if known is None or len(ids) != len(known):
            return  # embeddings, which have no ids; or rows that are refused when they arrive
        ids = ids[:, : known.shape[1]]
        other = known.to(ids.device) != ids
        if mask is not None:
            other = other & mask[:, : ids.shape[1]].to(ids.device).bool()
        if places := other.any(0).nonzero().flatten().tolist():
            seen = self.get_seq_length()
            if seen < len(self._prompt):
                raise self._prompt.other(ids, 0)
            raise self._prompt.again(f"another token stands at position {places[0]} of the conversation", seen)

    def _known(self) -> Tensor | None:
        # The tokens that were read, (batch, token), as far as they are known: embeddings have no ids, beams change places.
        if self._prompt.ids is None or self._moved:
            return None
        seen, later, held = self.get_seq_length(), self._later, self._pruned[0].keys
        copies = 1 if held is None else len(held) // self._prompt.rows
        known = self._prompt.ids[:, :seen].repeat_interleave(copies, dim=0)
        if seen <= len(self._prompt) or any(ids is None for ids in later):
            return known
        whole = torch.cat([known, *(ids.to(known.device) for ids in later)], dim=1)
        return whole if whole.shape[1] == seen else known

    @contextmanager
    def called(self) -> Iterator[None]:
        """Count a call of generate() on this cache while it runs, and check afterwards that every attached method has acted.

        Raises:
            RuntimeError: at its end, a part of a method has not acted, or the attention that was observed holds NaN or infinity.
        """
        for acts in self.methods:
            acts.calls += 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
        for acts in self.methods:
            acts.check()
        if self._trace is not None:
            self._trace.check_finite()  # the one host read of a call

    def _refuse_other_rows(self, given: Tensor) -> None:
        if self._moved:
            raise ValueError(
                "cache: beam search has moved the rows of this cache, which hold its last beams and not the sequences "
                "that it returned; expected a later prompt after greedy search or sampling only. Fix: attach a new cache to the "
                "whole conversation."
            )
        if len(given) != len(self._done):
            raise ValueError(
                f"input_ids: a later prompt of {len(given)} rows arrives, and this cache holds {len(self._done)}; expected as "
                "many. Fix: pass the conversation of every row that generate() returned, or attach a new cache to the whole one."
            )

    def _refuse_other_start(self, positions: Tensor | None, seen: int) -> None:
        # Stock generate() cuts a conversation that is shorter than the cache anywhere; its positions tell.
        if positions is None or self._last is None or not positions.shape[-1]:
            return
        start, end = positions[..., 0], self._last.to(positions.device)
        start, end = (each.reshape(-1, each.shape[-1]).amin(0) for each in (start, end))  # M-RoPE has axes before the rows
        if bool((start <= end).all()):  # a row that ended early has padding behind it, which a mask may hide
            raise self._prompt.again(f"a prompt starts at position {int(start.min())}", seen)

    def _refuse_if_released(self) -> None:
        if self._released:
            raise ValueError(
                "cache: its K and V were freed; expected a cache that still holds them. "
                "Fix: pruning(..., keep_kv=True) for a second turn, or reset() the cache for a run from the start."
            )

    def _refuse_if_left(self) -> None:
        if self.left is not None:
            raise RuntimeError(self.left)

    def enter(self, layer: PrunableLayer, key: Tensor) -> None:
        """Let a layer begin its part of a forward, with the K of its new tokens."""
        if self._awaited is not None:
            self._raise_unobserved()
        if layer is self._pruned[0]:
            self._begin(layer.seen, key)
        elif layer.seen + key.shape[2] != self._pruned[0].seen:
            raise RuntimeError(
                f"layer {layer.index}: holds {layer.seen} tokens, and the first one {self._pruned[0].seen - key.shape[2]}; "
                "expected as many: an earlier forward was interrupted. Fix: attach a new cache."
            )
        if self.policy.kept == "head" and key.shape[1] != self._kv_heads:
            raise ValueError(
                f"kept='head': layer {layer.index} has {key.shape[1]} KV heads and the first one {self._kv_heads}; expected "
                "the same number in all layers. Fix: kept='layer'."
            )
        self._awaited = layer

    def _begin(self, seen: int, key: Tensor) -> None:
        self._refuse_if_released()
        self._refuse_if_left()
        if not self._announced:
            raise RuntimeError(
                "cache: a forward arrived without the hook that attach() puts on the model; expected one through the model "
                "that attach() was given. Fix: attach() the very object whose generate() runs, and anew after a pruning() block."
            )
        self._announced = False
        held = len(self._pruned[0].keys) if self._pruned[0].is_initialized else len(key)
        if held != len(key) and seen < len(self._prompt):
            raise ValueError(
                f"copies={held // self._prompt.rows}: this cache was made for {held} rows, and generate() runs {len(key)}; "
                "expected as many. Fix: SharedPrefill.attach(policy, copies=num_beams), or num_return_sequences when sampling."
            )
        if self.table is None:
            self._allocate(key)
        self._settle()
        self._prompt.check_size(key, seen, len(self._done))
        # One query does not mean decoding: the last chunk of a prompt may be one token. The tokens seen decide.
        self._observing = seen + key.shape[2] >= len(self._prompt)
        self.step += self._observing
        self._reports, self._asked = [], []

    def wants_row(self, layer: PrunableLayer) -> bool:
        """Say whether the layer is to report this forward's row."""
        return self._observing and self._awaited is layer

    def leave(self, layer: PrunableLayer, weights: Tensor | None) -> None:
        """Let a layer end its part of a forward, with the newest query's weights, (batch, kv_head, group, slot)."""
        if self._awaited is not layer:
            return  # another layer that shares this one's K, and only uses it
        self._awaited = None
        if not self._observing:
            return
        weights = weights.detach()
        self._reports.append(self._report(weights))
        for listener in self.listeners:
            listener.heard(layer.index, weights)
        if len(self._reports) == len(self._pruned):
            self._finish()

    def focus(self, layer: PrunableLayer) -> Callable[[Tensor], Tensor] | None:
        """Return what hides slots from a layer's newest query; None here, see `prunehal.core.restricting`."""
        return None

    def aside(self, layer: PrunableLayer, mask: Tensor | None, window: int | None) -> Aside | None:
        """Return keys that a layer's newest query is compared with; None here, see `prunehal.core.banking`."""
        return None

    def _report(self, weights: Tensor) -> Tensor:
        report = weights.mean(2) if self.policy.kept == "head" else weights.mean((1, 2))[:, None]
        return report.to(self._done.device)  # (batch, head, slot)

    def _read(self, reports: list[Tensor], valid: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        # The rows (layer, pool, head, visual), and which pools have not ended, (pool,).
        table = self.table
        rows = table.read(reports, first)
        if min(map(min, table.left)) < rows.shape[-1]:
            rows = rows.masked_fill(~valid, 0.0)
        live = self._live()
        if self.policy.beam_state == "shared" and self._copies > 1:
            return averaged(rows, live, self._copies, table.pools)
        return rows, live

    def _live(self) -> Tensor:
        live, table = ~self._done, self.table
        return live if table.pools == 1 else live.repeat_interleave(table.pools) & (table.counts[0] > 0)

    def _finish(self) -> None:
        table = self.table
        rows, live = self._read(self._reports, table.valid)
        asked = self._read(self._asked, table.valid)[0] if self._asked else None
        self._reports, self._asked = [], []
        present = self._live()
        learning = live if self.observes_only else None  # what is not pruned by itself must not learn from padding
        summary, votes, wishes = self._memory.vote(rows, table.counts, self.step, asked, learning)
        self._trace.record(summary, votes, present, table.scattered(rows) if self._wants_maps else None)
        self._faulty = (present & ~summary[0].isfinite()).any()[None]
        if not self.observes_only and any(self._may_act(pool, left) for pool, left in enumerate(zip(*table.left, strict=True))):
            self._pending = (self.step, wishes & live)

    def _may_act(self, pool: int, left: Sequence[int]) -> bool:
        # Whether a wish of this pool, of which each layer holds so many tokens, could change anything.
        return self._memory.may_prune(pool, left)
