"""FastV: drop the image tokens that are attended least while the prompt is read (Chen et al., ECCV 2024, arXiv 2403.06764).

Not a decoder but a baseline of pruning: entering block K, the image tokens with the lowest attention in block K - 1 (mean of
the heads, last row) are dropped from blocks K, K + 1, ...; blocks before keep them all. Kept tokens keep their positions.

What a dropped token would have computed in those blocks reaches nobody, so that hiding its columns there is exact, in padded
batches too. That is done here: its K and V leave the cache as soon as the prompt is read, and memory and decoding are those
of the shorter cache; the prompt itself is read at full cost. Cutting the hidden states, as the public code does, saves time
there too; it is not done here.

The released code chooses once where it uses a cache, and anew at each step where it does not; here it chooses once. Row 0 of
a batch decides for all rows there; here each row decides for itself. Where the image stands is written into that code as a
number; here the prompt says it. The version in lmms-eval runs block K - 1 twice on one cache; here every block runs once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunehal.core import PrunableCache
from prunehal.core.acting import Acts
from prunehal.core.discard import discard
from prunehal.core.keyword import cache_among
from prunehal.core.layer import PrunableLayer
from prunehal.core.listening import Listener, listening
from prunehal.core.selection import keep_best
from prunehal.core.table import sent
from prunehal.decoding.base import Decoder
from prunehal.decoding.parts.early_layers import decoder_of
from prunehal.decoding.values import check_count, check_number

__all__ = ["FastV", "hidden_mask", "kept_count"]


@dataclass(frozen=True)
class FastV(Decoder):
    """Drop image tokens from block K on, by the attention of the block before; in any way of decoding.

    A policy of the cache prunes what is left: it votes by each layer's own number of tokens, from the first step on, and a
    prune leaves each layer its fraction. With ``per_image=True`` each image keeps its share. Stock decoding: ratio=0.

    Attributes:
        block: K, counted from 0, so that K blocks see all tokens.
        ratio: R, the fraction of the image tokens that is dropped; round((1 - R) N) stay, at least one.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
        >>> cache = ph.attach(model, inputs, ph.NoPruning())
        >>> with FastV(block=2, ratio=0.75).on(model, inputs, cache) as options:
        ...     ids = model.generate(**inputs, **cache.options, **options, max_new_tokens=8)
        >>> [len(cache.kept(layer)[0]) for layer in range(6)]
        [144, 144, 36, 36, 36, 36]
    """

    block: int = 2
    ratio: float = 0.5

    whole_prompt: ClassVar[bool] = True
    baseline: ClassVar[bool] = True

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "llava-1.5": {"block": 2, "ratio": 0.5},
        "llava-1.5, transformers demo": {"block": 3, "ratio": 0.75},
        "llava-1.5, lmms-eval": {"block": 3, "ratio": 0.5},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("block", self.block, 1, "Set block=2.", reason=", since the block before ranks the tokens")
        check_number("ratio", self.ratio, "[0, 1)", "Set ratio=0.5, the published value.")

    @contextmanager
    def _attached(
        self, model: torch.nn.Module, inputs: Mapping[str, Tensor], cache: PrunableCache, acts: Acts
    ) -> Iterator[dict[str, Any]]:
        """Attach to the next generate() on this cache; see ``Decoder.on``.

        Raises:
            ValueError: the model has not so many blocks, or some without K and V of their own; the cache holds tokens already
                (a shared prefill), or its policy keeps one set for all layers; the prompt comes in chunks.
        """
        blocks = decoder_of(model).layers
        self._check(model, len(blocks), cache)
        if self.ratio == 0:
            yield {}
            return
        dropping = _Dropping(self, cache, len(blocks), acts)
        with ExitStack() as hooks, listening(cache, dropping):
            for block in blocks[self.block :]:
                hooks.callback(block.register_forward_pre_hook(dropping.hide, with_kwargs=True).remove)
            yield {}

    def _check(self, model: torch.nn.Module, blocks: int, cache: PrunableCache) -> None:
        name, text = type(model).__name__, model.config.get_text_config(decoder=True)
        if self.block >= blocks:
            raise ValueError(f"block={self.block}: expected 1 to {blocks - 1}; the decoder of {name} has {blocks} blocks.")
        shared = getattr(text, "num_kv_shared_layers", 0)
        if shared or len(cache.layers) != blocks or not all(isinstance(layer, PrunableLayer) for layer in cache.layers):
            raise ValueError(
                f"model={name}: some of its blocks keep no K and V of their own, from which a token could be dropped; expected "
                "attention with its own K and V in every block. Fix: use another model, e.g. LLaVA or Qwen2.5-VL."
            )
        if cache.get_seq_length():
            raise ValueError(
                f"cache: holds {cache.get_seq_length()} tokens, which the blocks from {self.block} on have read with all image "
                "tokens; expected an empty cache. Fix: attach() for each run, not SharedPrefill."
            )
        if cache.policy.kept == "shared":
            raise ValueError(
                "policy: kept='shared' keeps the same tokens in all layers, but these hold different ones here; expected "
                "kept='layer' or 'head'. Fix: set it."
            )


def kept_count(ratio: float, n: int) -> int:
    """Return how many of n image tokens stay when the fraction ``ratio`` is dropped, at least 1.

    >>> [kept_count(ratio, 576) for ratio in (0.25, 0.5, 0.75)]
    [432, 288, 144]
    """
    return max(1, round(round((1 - ratio) * n, 9)))


def hidden_mask(mask: Tensor | None, hidden: Tensor, flash: bool) -> Tensor:
    """Return the mask of a prompt with some columns hidden, in the kind it came in.

    A hidden token still sees itself, so that its own row, which nobody reads, stays finite.

    Args:
        mask: bool (True = visible) or additive, (batch or 1, 1 or head, position, position); (batch, position) for flash
            attention; None means plain causal attention.
        hidden: bool (batch, position).
        flash: whether flash attention reads it.

    >>> hidden_mask(None, torch.tensor([[False, True, False]]), flash=False).int()[0, 0].tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    size = hidden.shape[1]
    if flash and (mask is None or mask.ndim == 2):
        return (torch.ones_like(hidden) if mask is None else mask.bool()) & ~hidden
    hidden = hidden[:, None, None] & ~torch.eye(size, dtype=torch.bool, device=hidden.device)
    if mask is None:
        return torch.ones(size, size, dtype=torch.bool, device=hidden.device).tril() & ~hidden
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


class _Dropping(Listener):
    def __init__(self, setting: FastV, cache: PrunableCache, blocks: int, acts: Acts) -> None:
        self._setting, self._cache, self._blocks = setting, cache, blocks
        # Unbound, so that nothing here holds itself, and with it K and V.
        self._choose, self._mask = acts.counted("choice", _Dropping.choose), acts.counted("masks", _Dropping.mask)
        self._keep: Tensor | None = None  # (layer, pool, head, visual)
        self._hidden: Tensor | None = None  # (batch, position)
        self._masks: list[tuple[Tensor | None, Tensor]] = []  # of the prompt: as given, and with columns hidden

    def heard(self, layer: int, weights: Tensor) -> None:
        if self._cache.step != 1:
            return
        if layer == self._setting.block - 1:
            self._choose(self, weights)
        if layer == self._blocks - 1:
            discard(self._cache, self._keep)
            self._masks.clear()

    def choose(self, weights: Tensor) -> None:
        """Choose what stays, by the newest query's weights in the block before."""
        table, block = self._cache.table, self._setting.block
        row = weights.mean((1, 2))[:, None].to(table.valid.device)  # (batch, 1, position)
        scores = table.read([row.expand(-1, table.valid.shape[2], -1)] * self._blocks)
        budget = [list(of_layer) for of_layer in table.left]
        budget[block:] = [[kept_count(self._setting.ratio, n) if n else 0 for n in of_layer] for of_layer in budget[block:]]
        self._keep = keep_best(scores, table.valid, sent(budget, scores.device))
        self._hidden = ~table.marked(self._keep, row.shape[-1])[-1, :, 0] & table.marked(table.valid, row.shape[-1])[-1, :, 0]

    def hide(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        cache = self._cache
        if cache_among(kwargs) not in (None, cache) or cache.step > 1:
            return None
        states = args[0] if args else kwargs["hidden_states"]
        if cache.step == 0:
            raise ValueError(
                f"prefill_chunk_size: a part of the prompt, {states.shape[1]} tokens, arrived alone; expected the whole prompt, "
                "since its last token ranks the image tokens. Fix: leave prefill_chunk_size out."
            )
        flash = "flash" in (module.self_attn.config._attn_implementation or "")
        mask = self._mask(self, kwargs.get("attention_mask"), states.device, flash)
        return args, kwargs | {"attention_mask": mask}

    def mask(self, mask: Tensor | None, device: torch.device, flash: bool) -> Tensor:
        """Return a block's mask with the columns of what was dropped hidden."""
        made = next((hiding for given, hiding in self._masks if given is mask), None)  # blocks share one, or one for each kind
        if made is None:
            made = hidden_mask(mask, self._hidden.to(device if mask is None else mask.device), flash)
            self._masks.append((mask, made))
        return made
