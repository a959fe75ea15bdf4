"""DeCo: let the most confident of the upper layers correct the last one (Wang et al., ICLR 2025, arXiv 2410.11779).

Early layers often know an object's word that the last layer suppresses. Among the candidate words of the last layer, the one
that any upper layer is surest of names the layer; its logits are added, weighted by that certainty.

Where we differ from the public code: it picks one layer for row 0 of a batch, here each row has its own candidates and layer;
returned logits and scores are the corrected ones, and in beam search log-probabilities again. Its script for POPE stops at a
misspelt argument, so that those numbers cannot come from it as it stands. Raw logits are corrected and cut, then come all
processors and warpers, as there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunehal.core import PrunableCache
from prunehal.core.acting import Acts
from prunehal.decoding.base import Decoder
from prunehal.decoding.parts.early_layers import LayerReadout, check_layers
from prunehal.decoding.parts.forwards import changing_logits
from prunehal.decoding.values import check_count, check_number

__all__ = ["DeCo", "candidate_words", "upper_layers"]


@dataclass(frozen=True)
class DeCo(Decoder):
    """Add the logits of the upper layer that is surest of a candidate word, at each step and in each row.

    For greedy search, sampling and beam search. Stock decoding: alpha=0, p_top=1 and k=None.

    Attributes:
        alpha: strength of the correction; the paper's scripts use 0.6, a table of its public notes 0.5.
        p_top: candidates are the shortest list of the most probable words that reaches this mass; 1 keeps them all.
        k: and at most so many of them; None means no limit.
        layers: hidden states to look at (k is the state after k blocks); None means 20 to 28 of 32, scaled to the model.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
        >>> cache = ph.attach(model, inputs, ph.PruneHal(r=0.5, t=2))
        >>> with DeCo().on(model, inputs, cache) as options:
        ...     ids = model.generate(**inputs, **cache.options, **options, max_new_tokens=8)
        >>> cache.events["reason"].tolist()[0]
        'forced'
    """

    alpha: float = 0.6
    p_top: float = 0.9
    k: int | None = 20
    layers: tuple[int, ...] | None = None

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"llava-1.5": {"alpha": 0.6, "p_top": 0.9, "k": 20}}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, "[0, inf)", "Set alpha=0.6, the published value.")
        check_number("p_top", self.p_top, "(0, 1]", "Set p_top=0.9, or 1 for no limit.")
        if self.k is not None:
            check_count("k", self.k, 1, "Set k=20, the published value.", reason=", or None for no limit")
        if self.layers is not None:
            check_layers(self.layers)
            if not self.layers:
                raise ValueError("layers=(): expected at least one layer. For stock decoding leave the decoder out.")

    @contextmanager
    def _attached(
        self, model: torch.nn.Module, inputs: Mapping[str, Tensor], cache: PrunableCache, acts: Acts
    ) -> Iterator[dict[str, Any]]:
        """Attach to the next generate() on this cache; see ``Decoder.on``.

        Raises:
            ValueError: the model's layers cannot be read out, or it has fewer than asked for.
        """
        readout = LayerReadout(model)
        layers = upper_layers(readout.layers) if self.layers is None else self.layers
        check_layers(layers, readout.layers)
        if self.alpha == 0 and self.p_top == 1 and self.k is None:
            yield {}
            return
        rule = acts.counted("correction", partial(self._corrected, readout))
        with readout.watching(layers, cache), changing_logits(model, cache, rule):
            yield {}

    def _corrected(self, readout: LayerReadout, logits: Tensor, tokens: Tensor | None) -> Tensor:
        words = candidate_words(logits.softmax(-1), self.p_top, self.k)  # (batch, vocabulary)
        early = readout.early_logits(normed=True).to(logits.device)  # (layer, batch, vocabulary)
        weight, layer = early.softmax(-1).masked_fill(~words, 0.0).amax(-1).max(0)  # the surest layer of each row, (batch,)
        added = early[layer, torch.arange(len(layer), device=layer.device)]
        return (logits + self.alpha * weight[:, None] * added).masked_fill(~words, -math.inf)


def upper_layers(layers: int) -> tuple[int, ...]:
    """Return the layers 20 to 28 of 32, scaled to a decoder of so many layers.

    >>> upper_layers(32), upper_layers(6)
    ((20, 21, 22, 23, 24, 25, 26, 27, 28), (3, 4, 5))
    """
    return tuple(range(20 * layers // 32, 28 * layers // 32 + 1))


def candidate_words(probabilities: Tensor, p_top: float, k: int | None) -> Tensor:
    """Mark each row's most probable words: the shortest list that reaches the mass p_top, and at most k; bool as the input.

    >>> candidate_words(torch.tensor([[0.1, 0.6, 0.3]]), p_top=0.8, k=20).tolist()
    [[False, True, True]]
    """
    best = probabilities.topk(min(k or probabilities.shape[-1], probabilities.shape[-1]), dim=-1)
    enough = torch.ones_like(best.values, dtype=torch.bool)
    if p_top < 1:  # in floating point a sum reaches 1 before the last word
        enough[:, 1:] = best.values.cumsum(-1)[:, :-1] < p_top
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, best.indices, enough)
