"""Act: a KV cache for stock ``generate()`` that drops visual tokens when its policy says so.

Two lengths are kept apart. The logical length, the number of tokens seen, is what transformers is told: positions and
masks are made from it, so that a dropped token never shifts a later one. The physical length is the number of slots
stored (``layer``); a table maps slots to positions (``table``).

``forward`` leads each step through the layers, to its vote. The prune itself waits for the next forward (or for a reader),
where generate() has synchronised with the device anyway: one host read a step. Once no row can prune any more nothing is
read; with beams, their new order is.
"""

import copy
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from prunehal.core.acting import Acts
from prunehal.core.discard import as_entries, entries_of
from prunehal.core.editing import ScoreEdit
from prunehal.core.forward import ForwardCache
from prunehal.core.keyword import as_option
from prunehal.core.layer import PrunableLayer
from prunehal.core.listening import Listener
from prunehal.core.memory import PolicyMemory
from prunehal.core.policy import Policy
from prunehal.core.prompt import Prompt
from prunehal.core.table import VisualTable, sent
from prunehal.core.trace import AttentionTrace

__all__ = ["EMPTY", "PrunableCache"]

# Layers that keep no state at all; transformers has them since 5.23.
EMPTY = tuple(kind for kind in (getattr(cache_utils, "DummyLayer", None),) if kind is not None)


class PrunableCache(ForwardCache):
    """Cache K and V of a multimodal prompt and its continuation, and prune its visual tokens by a policy.

    Made by ``attach``; passed to ``generate(**cache.options)``. One cache serves one prompt (batch) and what
    follows it. A second generate() with the longer conversation continues: its prompt is one more step (so is each
    chunk of a chunked one); steps, reference and number of prunes go on; only the first prompt's visual tokens are
    pruned.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> prompt = "<image>Describe this scene in detail."
        >>> inputs = processor(images=scene("test", 0).image(), text=prompt, return_tensors="pt")
        >>> cache = ph.attach(model, inputs, ph.PruneHal(r=0.4, t=3))
        >>> ids = model.generate(**inputs, **cache.options, max_new_tokens=8)
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
        readings: Tensor | None = None,
    ) -> None:
        self.policy, self.exact, self._keep, self._readings = policy, exact, keep, readings
        self._config, self._prompt = config.get_text_config(decoder=True), prompt
        self._seeds = [0] * prompt.rows if seeds is None else list(seeds)
        self._wants_maps, self._per_image, self._wants_entropy = maps, per_image, entropy
        self.listeners: list[Listener] = []
        self.edits: dict[int, ScoreEdit] = {}
        self.methods: list[Acts] = []
        self.observes_only = self.goes_on = False
        self.running = 0
        self._pruned: list[PrunableLayer] = []
        super().__init__(layers=[self._layer(i, stock) for i, stock in enumerate(DynamicCache(config=config).layers)])
        self._forget()

    def _layer(self, index: int, stock: object) -> object:
        if type(stock) in (DynamicLayer, DynamicSlidingWindowLayer):
            self._pruned.append(PrunableLayer(self, index, place=len(self._pruned)))
            return self._pruned[-1]
        if type(stock) in (LinearAttentionLayer, *EMPTY):  # nothing to prune there
            return stock
        raise ValueError(
            f"layer {index}: keeps its state in a {type(stock).__name__}; expected plain attention layers. "
            "Fix: use another model, this one is not supported."
        )

    def _forget(self) -> None:
        self.step, self._released, self._announced = 0, False, False
        self.table: VisualTable | None = None  # made by the first forward, which knows rows, heads and device
        self._trace: AttentionTrace | None = None
        self._moved = False  # whether rows hold beams that came from other rows
        self.left: str | None = None
        self.same_images: Tensor | None = None
        self.offsets: list[Tensor | None] = []
        self._later: list[Tensor | None] = []  # ids of each forward after the prompt, (batch, new); None for embeddings
        self._last: Tensor | None = None  # positions of the newest tokens, as the model counts them, (..., batch or 1)
        self._awaited: PrunableLayer | None = None  # has cached K and V, and not reported yet
        self._observing = False
        self._reports: list[Tensor] = []
        self._asked: list[Tensor] = []  # the same before the policy restricted the queries
        self._faulty: Tensor | None = None  # whether the newest step's attention holds NaN or infinity, (1,)
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
        if self._readings is not None:
            readings = torch.stack([as_entries(self, each.expand(layers, -1, heads, -1)) for each in self._readings[:, :, None]])
            self._memory.start(self.policy.told(readings, self.table.numbers))
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
    def options(self) -> dict[str, Self]:
        """Return the option that passes this cache to ``generate(**inputs, **cache.options)``, under transformers' keyword."""
        return as_option(self)

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

    def chosen(self) -> Tensor:
        """Return which tokens the policy would keep now if every pool were pruned, bool (layer, batch, head, prompt)."""
        pools = list(range(len(self.table.totals)))
        return self.table.marked(self._memory.choose(self.table, pools)[0], len(self._prompt))

    def _settle(self, wanted: list[int] | None = None) -> None:
        """Do the pending prune; ``wanted`` holds the values of ``_asking`` if the caller has read them already."""
        if self._pending is None:
            return
        wanted = torch.cat(self._asking()).tolist() if wanted is None else wanted  # the one host read of a step
        (step, _), self._pending = self._pending, None
        if wanted.pop():
            self._trace.check_finite()
        self._act(step, wanted)

    def _asking(self) -> list[Tensor]:
        # What a pending prune depends on: which pools wish for it, and whether the step's attention holds NaN or infinity.
        return [] if self._pending is None else [self._pending[1], self._faulty.to(self._pending[1])]

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
        wishes = [part.to(beam_idx) for part in self._asking()]
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
        self._moved = True
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
        """Forget everything but the prompt and the policy, for a second run.

        Raises:
            ValueError: the cache goes on from a prompt that `SharedPrefill`, `Draft` or `FirstToken` ran.
        """
        if self.goes_on:
            raise ValueError(
                "reset(): this cache goes on from a prompt that a SharedPrefill ran (or a Draft or FirstToken, which dropped "
                "tokens of it), and would lose it; expected a cache of attach(). Fix: attach() again from the SharedPrefill."
            )
        super().reset()
        self._forget()

    def release(self) -> None:
        """Free K and V; what was observed can still be read, but nothing can follow on this cache."""
        self._settle()
        super().reset()
        self._released = True
