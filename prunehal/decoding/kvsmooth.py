"""KVSmooth: smooth the newest token's K and V towards those of the token before it (Jiang et al., CVPR 2026, arXiv 2602.04268).

After the attention of step t a layer replaces K_t by (1 - lambda) K_t + lambda K_(t-1), and V_t alike. Lambda grows with the
entropy of step t's attention row: an undecided step is smoothed strongly. It is the entropy's rank among the last steps,
bounded to a range around a reference value.

No official code was found, and this follows public descriptions of the method. Where those leave a choice, this module takes:
the entropies of the heads are averaged; K is smoothed after RoPE, as it is cached; K_(t-1) is the smoothed one, so that the
smoothing is recursive; the rank is the number of smaller entropies among the last 15, divided by 15 even before there are 15;
only generated tokens are smoothed, not the prompt; the blocks go up to the last one, block 31 of 32, as published, although a
summary leaves it out. Step t's own attention is that of the unsmoothed K_t and V_t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunehal.core import PrunableCache
from prunehal.core.acting import Acts
from prunehal.core.layer import PrunableLayer
from prunehal.core.listening import Listener, listening
from prunehal.decoding.base import Decoder
from prunehal.decoding.parts.early_layers import check_layers
from prunehal.decoding.values import check_count, check_number

__all__ = ["KVSmooth", "smoothing_weight"]


@dataclass(frozen=True)
class KVSmooth(Decoder):
    """Smooth K and V of each generated token by the entropy of its attention, in each layer and row.

    For greedy search, sampling and beam search, without any further forward. Beside a pruning policy the entropy is that of
    the slots which are left, and a step is smoothed before it prunes. Stock decoding: ref=0 and radius=0.

    A block takes one prompt and what follows it, and refuses a second one; but read with ``prefill_chunk_size=1`` that would look
    like the answer, so attach the method anew for each turn, with the conversation that generate() gets.

    Attributes:
        ref: middle of the range of lambda; 0.9 for LLaVA-1.5.
        radius: half the width of that range; what lies beyond 0 or 1 is cut off. At lambda = 1 the token's own K is lost.
        window: how many earlier entropies the newest one is compared with.
        layers: blocks to smooth; None means block 3 of 32, scaled to the model and rounded up, to the last.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
        >>> cache = ph.attach(model, inputs, ph.PruneHal(r=0.5, t=2))
        >>> with KVSmooth(ref=0.5).on(model, inputs, cache) as options:
        ...     ids = model.generate(**inputs, **cache.options, **options, max_new_tokens=8)
        >>> cache.events["reason"].tolist()[0]
        'forced'
    """

    ref: float = 0.9
    radius: float = 0.2
    window: int = 15
    layers: tuple[int, ...] | None = None

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "llava-1.5": {"ref": 0.9},
        "minigpt-4": {"ref": 0.5},
        "instructblip": {"ref": 0.7},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ref", self.ref, "[0, 1]", "Set ref=0.9, the published value.")
        check_number("radius", self.radius, "[0, 1]", "Set radius=0.2, the published value.")
        check_count("window", self.window, 1, "Set window=15, the published value.")
        if self.layers is not None:
            check_layers(self.layers)
            if not self.layers:
                raise ValueError("layers=(): expected at least one block. For stock decoding leave the decoder out.")

    @contextmanager
    def _attached(
        self, model: torch.nn.Module, inputs: Mapping[str, Tensor], cache: PrunableCache, acts: Acts
    ) -> Iterator[dict[str, Any]]:
        """Attach to the next generate() on this cache; see ``Decoder.on``.

        Raises:
            ValueError: a chosen block keeps no K and V of its own, or the model has fewer blocks; a second prompt arrives inside
                the block.
        """
        ids = inputs.get("input_ids")
        prompt = len(cache.prompt) if ids is None else ids.shape[1]
        smoother = _Smoother(self, cache, self._blocks(model, cache), prompt, acts)
        with listening(cache, smoother):
            yield {}

    def _blocks(self, model: torch.nn.Module, cache: PrunableCache) -> tuple[int, ...]:
        if getattr(model.config.get_text_config(decoder=True), "num_kv_shared_layers", 0):
            raise ValueError(
                f"model={type(model).__name__}: its last layers use K and V of earlier ones in the same step, so that smoothing "
                "would change that step's own attention; expected K and V in each layer. Fix: use another model."
            )
        own, total = [index for index, layer in enumerate(cache.layers) if isinstance(layer, PrunableLayer)], len(cache.layers)
        if self.layers is None:
            return tuple(index for index in own if index >= math.ceil(3 * total / 32))
        check_layers(self.layers, total)
        if not set(self.layers) <= set(own):
            raise ValueError(f"layers={self.layers!r}: expected some of {own}, the layers that cache K and V. Fix: name those.")
        return self.layers


def smoothing_weight(entropy: Tensor, earlier: Tensor, ref: float, radius: float) -> Tensor:
    """Return lambda, (batch,), from each row's entropy and its entropies before.

    Args:
        entropy: of the newest attention row, (batch,).
        earlier: those of the last steps, (batch, window); inf where there was no step yet.
        ref, radius: lambda lies in [ref - radius, ref + radius] and in [0, 1].

    >>> earlier = torch.tensor([[1.0, 2.0, 3.0, torch.inf]])
    >>> [smoothing_weight(torch.tensor([h]), earlier, ref=0.5, radius=0.2).item() for h in (0.0, 2.5, 4.0)]
    [0.30000001192092896, 0.5, 0.699999988079071]
    """
    rank = (earlier < entropy[:, None]).sum(-1) / earlier.shape[-1]
    return rank.clamp(ref - radius, ref + radius)  # a rank lies in [0, 1], and so does what is cut to it


class _Smoother(Listener):
    def __init__(self, setting: KVSmooth, cache: PrunableCache, layers: tuple[int, ...], prompt: int, acts: Acts) -> None:
        self._setting, self._cache, self._prompt = setting, cache, prompt
        self._follow = acts.counted("blocks", _Smoother.follow)  # unbound, so that nothing here holds itself, and with it K and V
        self._seen = {index: cache.layers[index].seen for index in layers}
        self._earlier: dict[int, Tensor] = {}  # (batch, window), the oldest first

    def heard(self, layer: int, weights: Tensor) -> None:
        if layer in self._seen:
            self._follow(self, layer, weights)

    def follow(self, layer: int, weights: Tensor) -> None:
        """Smooth what a block has just cached, unless it belongs to the prompt."""
        stored, setting = self._cache.layers[layer], self._setting
        new, self._seen[layer] = stored.seen - self._seen[layer], stored.seen
        if self._cache.step == 1:  # also after reset()
            self._earlier.pop(layer, None)
        if stored.seen <= self._prompt:  # its last token may come alone
            return
        if new > 1:
            raise ValueError(
                f"cache: a second prompt, {new} tokens, arrived while KVSmooth is attached; expected one prompt and "
                "what follows it. Fix: leave the block after the first generate(), and attach the method anew."
            )
        entropy = torch.special.entr(weights).sum(-1).mean((1, 2))  # (batch,)
        earlier = self._earlier.get(layer)
        if earlier is None:
            earlier = entropy.new_full((len(entropy), setting.window), math.inf)
        weight = smoothing_weight(entropy, earlier, setting.ref, setting.radius)
        self._earlier[layer] = torch.cat([earlier[:, 1:], entropy[:, None]], dim=1)
        _smooth(stored, weight)

    def reordered(self, beam_idx: Tensor) -> None:
        for layer, earlier in self._earlier.items():
            self._earlier[layer] = earlier.index_select(0, beam_idx.to(earlier.device))


def _smooth(stored: PrunableLayer, weight: Tensor) -> None:
    # New tokens stand right of all others in their order, but the slot before the first of them may be any token's: the last
    # one of a prompt that ends in an image may have been dropped. Where it was there is nothing to smooth towards.
    follows = stored.slot_positions()[..., -2] == stored.seen - 2  # (1 or batch, 1 or kv_head)
    weight = (weight[:, None] * follows)[..., None]
    for part in (stored.keys, stored.values):
        part[:, :, -1] = torch.lerp(part[:, :, -1], part[:, :, -2], weight.to(part))
