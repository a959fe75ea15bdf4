"""Act: a KV cache for stock ``generate()`` that drops visual tokens when its policy says so.

Two lengths are kept apart. The logical length, the number of tokens seen, is what transformers is told: positions and
masks are made from it, so that a dropped token never shifts a later one. The physical length is the number of slots
stored (``layer``); a table maps slots to positions (``table``).

A step runs through the layers: each ``update`` appends K and V, the wrapped attention reports the newest query's row,
and the last report completes the step's vote. The prune itself waits for the next forward (or for a reader), where
generate() has synchronised with the device anyway: one host read a step. Once no row can prune any more
nothing is read; with beams, their new order is.
"""

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from prunehal.core.attention import Aside
from prunehal.core.discard import entries_of
from prunehal.core.editing import ScoreEdit
from prunehal.core.layer import PrunableLayer
from prunehal.core.listening import Listener
from prunehal.core.memory import PolicyMemory
from prunehal.core.observed import ObservedCache
from prunehal.core.policy import Policy
from prunehal.core.prompt import Prompt
from prunehal.core.selection import averaged
from prunehal.core.table import VisualTable, sent
from prunehal.core.trace import AttentionTrace

__all__ = ["PrunableCache"]


class PrunableCache(ObservedCache):
    """Cache K and V of a multimodal prompt and its continuation, and prune its visual tokens by a policy.

    Made by ``attach``; passed to ``generate(past_key_values=...)``. One cache serves one prompt (batch) and what
    follows it. A second generate() with the longer conversation continues: its prompt is one more step (so is each
    chunk of a chunked one); steps, reference and number of prunes go on; only the first prompt's visual tokens are
    pruned.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.scenes import scene
        >>> model, processor = ph.load()
        >>> prompt = "<image>Describe this scene in detail."
        >>> inputs = processor(images=scene("test", 0).image(), text=prompt, return_tensors="pt")
        >>> cache = ph.attach(model, inputs, ph.PruneHal(r=0.4, t=3))
        >>> ids = model.generate(**inputs, past_key_values=cache, max_new_tokens=8)
        >>> cache.events["reason"].tolist()[0]
        'forced'
        >>> [len(positions) for positions in cache.kept(0, step=2)]
        [144]
    """

    _kind_of_table: ClassVar[type[VisualTable]] = VisualTable

    def __init__(
        self,
        config: PreTrainedConfig,
        prompt: Prompt,
        policy: Policy,
        *,
        seeds: Sequence[int] | None = None,
        exact: bool = False,
        maps: bool = False,
        per_image: bool = False,
        entropy: bool = False,
        keep: Tensor | None = None,
    ) -> None:
        self.policy, self.exact, self._keep = policy, exact, keep
        self._config, self._prompt = config.get_text_config(decoder=True), prompt
        self._seeds = [0] * prompt.rows if seeds is None else list(seeds)
        self._wants_maps, self._per_image, self._wants_entropy = maps, per_image, entropy
        self.listeners: list[Listener] = []
        self.edits: dict[int, ScoreEdit] = {}
        self.methods: list[object] = []
        self.observes_only = False
        self._pruned: list[PrunableLayer] = []
        super().__init__(layers=[self._layer(i, stock) for i, stock in enumerate(DynamicCache(config=config).layers)])
        self._forget()

    def _layer(self, index: int, stock: object) -> object:
        if type(stock) in (DynamicLayer, DynamicSlidingWindowLayer):
            self._pruned.append(PrunableLayer(self, index, place=len(self._pruned)))
            return self._pruned[-1]
        if type(stock) in (LinearAttentionLayer, DummyLayer):  # nothing to prune there
            return stock
        raise ValueError(
            f"layer {index}: keeps its state in a {type(stock).__name__}; expected plain attention layers. "
            "Fix: use another model, this one is not supported."
        )

    def _forget(self) -> None:
        self.step, self._released, self._announced = 0, False, False
        self.table: VisualTable | None = None  # made by the first forward, which knows rows, heads and device
        self._trace: AttentionTrace | None = None
        self._awaited: PrunableLayer | None = None  # has cached K and V, and not reported yet
        self._observing = False
        self._reports: list[Tensor] = []
        self._asked: list[Tensor] = []  # the same before the policy restricted the queries
        self._pending: tuple[int, Tensor] | None = None  # step, and which pools wish to be pruned
        self._events: list[dict] = []

    def __deepcopy__(self, memo: dict) -> Self:
        """Copy, with layers that belong to the copy."""
        copied = memo[id(self)] = type(self).__new__(type(self))
        memo[id(self._config)] = self._config  # by which it is known whose cache this is
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        for layer in copied._pruned:
            layer.belong(copied)
        return copied

    def _allocate(self, key: Tensor) -> None:
        batch, self._kv_heads = key.shape[:2]
        self._copies = self._prompt.copies(batch)
        numbers = self._prompt.numbers.repeat_interleave(self._copies, dim=0)
        heads, layers = self._kv_heads if self.policy.kept == "head" else 1, len(self._pruned)
        device = key.device
        self.table = self._kind_of_table(numbers, layers, heads, device)
        # What keys a random draw: the row's seed, and the image's number where a row has several pools.
        images = [(image,) for image in range(self.table.pools)] if self._per_image else [()]
        keys = [(seed, *image) for seed in self._seeds for _ in range(self._copies) for image in images]
        self._memory = PolicyMemory(self.policy, layers, keys, device, self._wants_entropy)
        if self._keep is not None:
            self._memory.start(entries_of(self, self._keep).float())
        self._done = torch.zeros(batch, dtype=torch.bool, device=device)
        self._ends = sent(list(self._prompt.end_ids), device).long()
        width = self.table.width if self._wants_maps else None
        self._trace = AttentionTrace(
            [layer.index for layer in self._pruned],
            batch,
            device,
            pools=self.table.pools,
            visual=width,
            per_image=self._per_image,
            entropy=self._wants_entropy,
        )

    @property
    def config(self) -> PreTrainedConfig:
        """Return the configuration of the text decoder whose K and V these are."""
        return self._config

    @property
    def prompt(self) -> Prompt:
        """Return what was attached: the prompt's ids, and which of them are visual."""
        return self._prompt

    def visual_at_end(self) -> bool:
        """Say whether a prompt ends in a visual token."""
        return bool((self._prompt.numbers[:, -1] > 0).any())

    # Observation: the way of one forward through the layers.

    def announce(self, input_ids: Tensor | None, embeddings: Tensor | None, brings_images: bool) -> None:
        """Check the model's inputs before a forward, and see which rows have ended; called by attach()'s hook.

        Raises:
            ValueError: the prompt is not the one that was attached, or a later prompt brings new images.
        """
        self._refuse_if_released()
        self._announced = True
        seen = self.get_seq_length()
        if seen < len(self._prompt):
            if input_ids is not None:
                self._prompt.check_ids(input_ids, seen)
            elif embeddings is not None:
                self._prompt.check_embeddings(embeddings, seen)
        elif brings_images:
            raise ValueError(
                "pixel_values: a later prompt brings images, which this cache does not know; expected text only. "
                "Fix: leave out pixel_values, or attach a new cache to the whole conversation."
            )
        elif input_ids is None or input_ids.shape[1] > 1:
            self._done = torch.zeros_like(self._done)  # a new prompt: every row goes on
        else:
            self._settle()  # the pending step is one that these rows still ran
            self._done = self._done | torch.isin(input_ids[:, 0].to(self._ends.device), self._ends)

    def _refuse_if_released(self) -> None:
        if self._released:
            raise ValueError(
                "past_key_values: K and V of this cache were freed; expected a cache that still holds them. "
                "Fix: pruning(..., keep_kv=True) for a second turn, or reset() the cache for a run from the start."
            )

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
        if not self._announced:
            raise RuntimeError(
                "past_key_values: a forward arrived that attach() did not see coming; expected one through the model that was "
                "attached. Fix: attach() the very object whose generate() runs, and anew after a pruning() block."
            )
        self._announced = False
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
        if not self.observes_only and any(self._may_act(pool, left) for pool, left in enumerate(zip(*table.left, strict=True))):
            self._pending = (self.step, wishes & live)

    def _may_act(self, pool: int, left: Sequence[int]) -> bool:
        # Whether a wish of this pool, of which each layer holds so many tokens, could change anything.
        return self._memory.may_prune(pool, left)

    # Pruning.

    def chosen(self) -> Tensor:
        """Return which tokens the policy would keep now if every pool were pruned, bool (layer, batch, head, prompt)."""
        pools = list(range(len(self.table.totals)))
        return self.table.marked(self._memory.choose(self.table, pools)[0], len(self._prompt))

    def _settle(self, wanted: list[int] | None = None) -> None:
        """Do the pending prune; ``wanted`` are the pending wishes where the caller has read them already."""
        if self._pending is None:
            return
        (step, wishes), self._pending = self._pending, None
        self._act(step, wishes.tolist() if wanted is None else wanted)  # the one host read of a step

    def _act(self, step: int, wanted: list[int]) -> None:
        left = zip(*self.table.left, strict=True)  # for each pool its tokens by layer
        pools = [pool for pool, of_pool in enumerate(left) if wanted[pool] and self._memory.may_prune(pool, of_pool)]
        if pools:
            self._prune(step, pools)

    def _prune(self, step: int, pools: list[int]) -> None:
        table = self.table
        keep, left = self._memory.choose(table, pools)
        pools = [pool for pool in pools if any(now[pool] < n[pool] for now, n in zip(left, table.left, strict=True))]
        if not pools:
            return
        self._memory.prune(pools, table, keep, left)
        slots = table.drop(keep, left, step, self._pruned[0].seen)
        for layer, remaining in zip(self._pruned, slots, strict=True):
            layer.take(remaining)
        for pool in pools:
            self._events.append(self._event(pool, step, "forced" if self.policy.forced(step) else "vote"))

    def _event(self, pool: int, step: int, reason: str) -> dict:
        row, image = divmod(pool, self.table.pools)
        kept = [of_layer[pool] for of_layer in self.table.left]
        return {"row": row, "image": image, "step": step, "reason": reason, "kept": kept}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let every row's K, V and state follow its beam; a pending prune is done first, by the rows that voted."""
        wishes = [] if self._pending is None else [self._pending[1].to(beam_idx)]
        read = torch.cat([beam_idx, *wishes]).tolist()  # together, so that the step has one host read
        rows = read[: len(beam_idx)]
        self._settle(read[len(rows) :])
        self._move(beam_idx, rows)
        for listener in self.listeners:
            listener.reordered(beam_idx)

    def _move(self, beam_idx: Tensor, rows: list[int]) -> None:
        moved = [row for row, source in enumerate(rows) if row != source]
        if not moved:
            return
        # Until a prune the beams of one input have the same prompt in their rows, so that only later slots need to move.
        within = all(row // self._copies == source // self._copies for row, source in enumerate(rows))
        first = len(self._prompt) if within and self.table.positions is None else 0
        index = beam_idx.to(self._done.device)
        to, source = sent(moved, index.device), sent([rows[row] for row in moved], index.device)
        for layer in self.layers:
            if isinstance(layer, PrunableLayer):
                layer.move(to, source, first)
            else:
                layer.reorder_cache(beam_idx)
        self.table.reorder(index, rows)
        self._memory.reorder(self.table.of_rows(index), self.table.numbers_of_rows(rows))
        self._done = self._done.index_select(0, index)

    def reset(self) -> None:
        """Forget everything but the prompt and the policy, for a second run."""
        super().reset()
        self._forget()

    def release(self) -> None:
        """Free K and V; what was observed can still be read, but nothing can follow on this cache."""
        self._settle()
        super().reset()
        self._released = True
