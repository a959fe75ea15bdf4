"""Act: a KV cache for stock ``generate()`` that drops visual tokens when its policy says so.

Two lengths are kept apart. The logical length, the number of tokens seen, is what transformers is told: positions and
masks are made from it, so that a dropped token never shifts a later one. The physical length is the number of slots
stored (``layer``); a table maps slots to positions (``table``).

A step runs through the layers: each ``update`` appends K and V, the wrapped attention reports the newest query's row,
and the last report completes the step's vote. The prune itself waits for the next forward (or for a reader), where
generate()
has synchronised with the device anyway: one host read a step, and none once no row can prune any more.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, DummyLayer, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from prunehal.core.layer import PrunableLayer
from prunehal.core.policy import Policy
from prunehal.core.selection import averaged
from prunehal.core.table import VisualTable
from prunehal.core.trace import AttentionTrace, statistics

__all__ = ["PrunableCache"]


class PrunableCache(Cache):
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

    def __init__(
        self,
        config: PreTrainedConfig,
        visual_mask: Tensor,
        policy: Policy,
        *,
        prompt_ids: Tensor | None = None,
        end_ids: Sequence[int] = (),
        seeds: Sequence[int] | None = None,
        exact: bool = False,
        maps: bool = False,
    ) -> None:
        self.policy, self.exact = policy, exact
        self._config = config.get_text_config(decoder=True)
        self._visual, self._prompt_ids, self._end_ids = visual_mask, prompt_ids, list(end_ids)
        self._seeds = [0] * len(visual_mask) if seeds is None else list(seeds)
        self._wants_maps = maps
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
        self.step = 0
        self.table: VisualTable | None = None  # made by the first forward, which knows rows, heads and device
        self._trace: AttentionTrace | None = None
        self._awaited: PrunableLayer | None = None  # has cached K and V, and not reported yet
        self._observing = False
        self._reports: list[Tensor] = []
        self._pending: tuple[int, Tensor] | None = None  # step, and which rows want to prune
        self._scores: Tensor | None = None
        self._events: list[dict] = []

    def _allocate(self, key: Tensor) -> None:
        inputs, (batch, kv_heads), device = len(self._visual), key.shape[:2], key.device
        if batch % inputs:
            raise ValueError(
                f"batch={batch}: generate() runs {batch} rows, but the cache was attached to inputs of {inputs}; "
                f"expected {inputs} or a multiple of it. Fix: pass the same inputs to attach() and generate()."
            )
        self._copies = batch // inputs  # generate() repeats each input for its beams or returned sequences
        visual = self._visual.to(device).repeat_interleave(self._copies, dim=0)
        self.table = VisualTable(visual, len(self._pruned), kv_heads if self.policy.kept == "head" else 1)
        self._row_seeds = [seed for seed in self._seeds for _ in range(self._copies)]
        self._prunes = [0] * batch
        self._ends = torch.tensor(self._end_ids, dtype=torch.long, device=device)
        self._done = torch.zeros(batch, dtype=torch.bool, device=device)
        self._reference = torch.zeros(len(self._pruned), batch, device=device)
        self._entered = torch.zeros(batch, dtype=torch.long, device=device)
        width = self.table.width if self._wants_maps else None
        self._trace = AttentionTrace([layer.index for layer in self._pruned], batch, device, width)

    # Observation: the way of one forward through the layers.

    def announce(self, input_ids: Tensor | None, brings_images: bool) -> None:
        """Check the model's inputs before a forward, and see which rows have ended; called by attach()'s hook.

        Raises:
            ValueError: the prompt is not the one that was attached, or a later prompt brings new images.
        """
        seen, length = self.get_seq_length(), self._visual.shape[1]
        if seen < length:
            if input_ids is not None and self._prompt_ids is not None:
                self._check_prompt(input_ids, seen)
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

    def _check_prompt(self, input_ids: Tensor, seen: int) -> None:
        expected = self._prompt_ids[:, seen : seen + input_ids.shape[1]].to(input_ids.device)
        expected = expected.repeat_interleave(max(1, len(input_ids) // len(expected)), dim=0)
        if not torch.equal(input_ids[:, : expected.shape[1]], expected):
            raise ValueError(
                f"input_ids: the prompt in generate(), {tuple(input_ids.shape)} from position {seen}, is not the one "
                f"expected from attach(), {tuple(self._prompt_ids.shape)}. Fix: pass the same inputs to attach() and "
                "generate(), and attach a new cache for each prompt."
            )
        if input_ids.shape[1] > expected.shape[1]:
            raise ValueError(
                f"input_ids: {seen + input_ids.shape[1]} tokens arrive at once, but the attached prompt has "
                f"{self._prompt_ids.shape[1]}; expected generated tokens one by one. Fix: leave out assistant_model "
                "and prompt_lookup_num_tokens, or attach to the longer prompt."
            )

    def enter(self, layer: PrunableLayer, key: Tensor) -> None:
        """Let a layer begin its part of a forward, with the K of its new tokens."""
        self._raise_if_unobserved()
        if layer is self._pruned[0]:
            self._begin(layer.seen, key)
        self._awaited = layer

    def _begin(self, seen: int, key: Tensor) -> None:
        if self.table is None:
            self._allocate(key)
        self._settle()
        length, end, rows = self._visual.shape[1], seen + key.shape[2], len(self._prunes)
        if seen < length < end or len(key) != rows:
            raise ValueError(
                f"prompt: {len(key)} rows with {end} tokens arrived; expected the attached {rows} rows with {length} "
                "tokens. Fix: pass the same inputs to attach() and generate()."
            )
        # One query does not mean decoding: the last chunk of a prompt may be one token. The tokens seen decide.
        self._observing = end >= length
        self.step += self._observing
        self._reports = []

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
        weights = weights.mean(2) if self.policy.kept == "head" else weights.mean((1, 2))[:, None]
        self._reports.append(self.table.read(weights, layer.place))  # (batch, head, visual)
        if len(self._reports) == len(self._pruned):
            self._finish()

    def _finish(self) -> None:
        device, policy, table = self._reference.device, self.policy, self.table
        rows = torch.stack([report.to(device) for report in self._reports])  # (layer, batch, head, visual)
        self._reports = []
        if min(table.left) < rows.shape[-1]:
            rows = rows.masked_fill(~table.valid, 0.0)
        live = ~self._done
        if policy.beam_state == "shared" and self._copies > 1:
            rows, live = averaged(rows, live, self._copies)
        summary = statistics(rows, table.counts)
        value = policy.statistic_of(summary[0], table.counts)
        vote = policy.vote(value, self._reference, self._entered)
        reference = self._reference.masked_fill(self._entered == 0, float("nan"))
        votes = torch.stack([value, reference, policy.threshold(reference), vote.to(value)])
        self._trace.record(summary, votes, live, table.scattered(rows) if self._wants_maps else None)
        self._reference, self._entered = policy.enter(value, self._reference, self._entered, self.step)
        self._scores = policy.score(rows, self._scores)
        if any(self._may_prune(row) for row in range(len(self._prunes))):
            wants = torch.ones_like(live) if policy.forced(self.step) else policy.triggered(vote)
            self._pending = (self.step, wants & live)

    # Pruning.

    def _may_prune(self, row: int) -> bool:
        left = self.table.left[row]
        return self._prunes[row] < self.policy.limit and self.policy.budget(left) < left

    def _settle(self) -> None:
        if self._pending is None:
            return
        (step, wants), self._pending = self._pending, None
        rows = [row for row, wanted in enumerate(wants.tolist()) if wanted and self._may_prune(row)]
        if rows:
            self._prune(step, rows)

    def _prune(self, step: int, rows: list[int]) -> None:
        table, policy = self.table, self.policy
        left = [policy.budget(n) if row in rows else n for row, n in enumerate(table.left)]
        keys = list(zip(self._row_seeds, self._prunes, strict=True))
        keep = policy.choose(self._scores, table.valid, torch.tensor(left, device=self._scores.device), keys)
        self._scores = table.chosen(keep, left, self._scores)
        slots = table.drop(keep, left, step, self._pruned[0].seen)
        for layer, remaining in zip(self._pruned, slots, strict=True):
            layer.take(remaining)
        reason = "forced" if policy.forced(step) else "vote"
        for row in rows:
            self._prunes[row] += 1
            kept = [left[row]] * len(self._pruned)
            self._events.append({"row": row, "step": step, "reason": reason, "kept": kept})
        if policy.restarts():
            self._entered = self._entered.index_fill(0, torch.tensor(rows, device=self._entered.device), 0)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let every row's K, V and state follow its beam; a pending prune is done first, by the rows that voted."""
        self._settle()
        super().reorder_cache(beam_idx)
        index, rows = beam_idx.to(self._done.device), beam_idx.tolist()
        self.table.reorder(index, rows)
        self._reference, self._scores = self._reference.index_select(1, index), self._scores.index_select(1, index)
        self._done, self._entered = self._done.index_select(0, index), self._entered.index_select(0, index)
        self._prunes, self._row_seeds = [self._prunes[row] for row in rows], [self._row_seeds[row] for row in rows]

    def reset(self) -> None:
        """Forget everything but the prompt and the policy, for a second run."""
        super().reset()
        self._forget()

    # What the user reads.

    @property
    def events(self) -> pd.DataFrame:
        """Return one line for each prune: row, step (m), reason ("forced" or "vote"), kept (tokens left in each layer).

        The tokens of step m were dropped after its attention was observed: step m + 1 is the first without them.

        Raises:
            RuntimeError: the cache has observed nothing.
        """
        self._ready()
        return pd.DataFrame(self._events, columns=["row", "step", "reason", "kept"])

    @property
    def trace(self) -> AttentionTrace:
        """Return the recorded attention.

        Raises:
            RuntimeError: the cache has observed nothing.
        """
        self._ready()
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
        self._ready()
        places = {each.index: each.place for each in self._pruned}
        if layer not in places:
            raise ValueError(f"layer={layer!r}: expected one of {list(places)}, the layers whose cache is pruned.")
        if step is not None and not 1 <= step <= self.step:
            raise ValueError(f"step={step!r}: expected None or a step from 1 to {self.step}, which ran.")
        rows = self.table.kept(places[layer], step)
        return rows if self.policy.kept == "head" else [heads[0] for heads in rows]

    def _ready(self) -> None:
        self._raise_if_unobserved()
        if self._trace is None or not len(self._trace):
            raise RuntimeError(
                "the cache has observed nothing: no forward with a complete prompt has run on it; expected one. "
                "Fix: model.generate(**inputs, past_key_values=cache) with the attached inputs, then read the cache."
            )
        self._settle()

    def _raise_if_unobserved(self) -> None:
        if self._awaited is not None:
            raise RuntimeError(
                f"layer {self._awaited.index}: its K and V were cached but its attention was not observed "
                f"(attn_implementation={self._config._attn_implementation!r}); expected an attention module that calls "
                "transformers' attention interface with the K that the cache returned. A model with attention code of "
                "its own is not supported. Fix: use another model; if a forward was interrupted, attach a new cache."
            )
