"""DoLa: contrast the last layer with the early layer that differs most from it (Chuang et al., ICLR 2024, arXiv 2309.03883).

Two places where the public code differs from the paper's text; the default follows the code, options the text:

- The divergence that picks the layer sums KL(M || p) + KL(M || q), M the mean of both; the Jensen-Shannon divergence of the
  paper has the arguments the other way round. The picked layer can differ.
- Early states go through the LM head without the final norm, although the head was trained on normed states.

And where we differ from the code: it averages the divergence over the batch, so that a row's words depend on its neighbours;
here each row picks its own layer. Raw logits are contrasted and cut, then come all processors, as there; the authors advise
``repetition_penalty=1.2``, given to generate().
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
from prunehal.core.listening import Listener, listening
from prunehal.decoding.base import Decoder
from prunehal.decoding.parts.early_layers import LayerReadout, check_layers
from prunehal.decoding.parts.forwards import changing_logits
from prunehal.decoding.parts.plausibility import plausible, renormalised
from prunehal.decoding.values import check_number

__all__ = ["DoLa", "candidates", "divergence"]


@dataclass(frozen=True)
class DoLa(Decoder):
    """Contrast the logits of the last layer with those of a premature one, chosen at each step and in each row.

    For greedy search and sampling; beams are refused, as nothing was published for them and the scores are no probabilities.

    Attributes:
        layers: candidates: "low" or "high", every second layer of the lower or upper half, or hidden states by index (0 are
            the embeddings, k the state after k blocks). One candidate is always taken; the empty tuple is stock decoding.
        relative_top: tokens whose probability in the last layer falls below this fraction of the largest one are out.
        divergence: "released", as the public code computes it, or "js", as the paper writes it.
        norm: apply the final norm to the early states.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
        >>> cache = ph.attach(model, inputs, ph.PruneHal(r=0.5, t=2))
        >>> with DoLa("low").on(model, inputs, cache) as options:
        ...     ids = model.generate(**inputs, **cache.options, **options, max_new_tokens=8)
        >>> cache.events["reason"].tolist()[0]
        'forced'
    """

    layers: str | tuple[int, ...] = "low"
    relative_top: float = 0.1
    divergence: str = "released"
    norm: bool = False

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # for LLaMA; the authors published none for models that see
        "llama, long answers": {"layers": "low"},
        "llama, short answers": {"layers": "high"},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.layers, str) and self.layers not in ("low", "high"):
            raise ValueError(f"layers={self.layers!r}: expected 'low', 'high' or a tuple of integers. Set layers='low'.")
        if not isinstance(self.layers, str):
            check_layers(self.layers)
        check_number("relative_top", self.relative_top, "[0, 1]", "Set relative_top=0.1, or 0 for no cut.")
        if self.divergence not in ("released", "js"):
            raise ValueError(f"divergence={self.divergence!r}: expected 'released' or 'js'. Set divergence='released'.")

    @contextmanager
    def _attached(
        self, model: torch.nn.Module, inputs: Mapping[str, Tensor], cache: PrunableCache, acts: Acts
    ) -> Iterator[dict[str, Any]]:
        """Attach to the next generate() on this cache; see ``Decoder.on``.

        Raises:
            ValueError: the model's layers cannot be read out, it has fewer than asked for or none of that name, or generate()
                searches with beams.
        """
        readout = LayerReadout(model)
        layers = self.layers
        if isinstance(layers, str):
            layers = candidates(layers, readout.layers, readout.tied)
        check_layers(layers, readout.layers)
        if not layers:
            yield {}
            return
        rule = acts.counted("contrast", partial(self._contrasted, readout))
        with readout.watching(layers, cache), changing_logits(model, cache, rule), listening(cache, _NoBeams()):
            yield {}

    def _contrasted(self, readout: LayerReadout, logits: Tensor, tokens: Tensor | None) -> Tensor:
        mature = renormalised(logits)
        early = renormalised(readout.early_logits(self.norm).to(logits.device))  # (layer, batch, vocabulary)
        chosen = divergence(mature, early, self.divergence).argmax(0)  # (batch,)
        picked = early[chosen, torch.arange(len(chosen), device=chosen.device)]
        return plausible(mature, self.relative_top, mature - picked)


def candidates(kind: str, layers: int, tied: bool) -> tuple[int, ...]:
    """Return the candidate layers that transformers' own DoLa took, for a decoder of so many layers.

    With tied embeddings the embedding of the newest token is most similar to that token itself, so that "low" starts later.

    >>> candidates("low", 32, tied=False), candidates("high", 32, tied=False)
    ((0, 2, 4, 6, 8, 10, 12, 14), (16, 18, 20, 22, 24, 26, 28, 30))
    >>> candidates("low", 6, tied=True)
    (2,)

    Raises:
        ValueError: the decoder is so shallow that no layer has that name.
    """
    half = layers // 2 if layers <= 40 else 20
    if kind == "high":
        return tuple(range(layers - half if layers > 40 else half, layers, 2))
    start = 2 if tied and layers > 2 else layers - 1 if tied else 0
    chosen = (start,) if start == layers // 2 else tuple(range(start, half, 2))
    if not chosen:
        raise ValueError(
            f"layers={kind!r}: a decoder of {layers} layers with tied embeddings has no such layer; expected a deeper one. "
            "Fix: layers='high', or a tuple of integers."
        )
    return chosen


def divergence(mature: Tensor, early: Tensor, kind: str) -> Tensor:
    """Return how far the early distributions are from the mature one, (layer, batch).

    Args:
        mature: log-probabilities of the last layer, (batch, vocabulary).
        early: those of the candidates, (layer, batch, vocabulary).
        kind: "released" is KL(M || p) + KL(M || q) with M = (p + q) / 2; "js" is KL(p || M) + KL(q || M), twice the
            Jensen-Shannon divergence by which the paper selects the premature layer.

    >>> p = torch.tensor([[0.5, 0.5]]).log()
    >>> divergence(p, p[None], "js").abs().max() < 1e-6
    tensor(True)
    """
    mean = torch.logaddexp(early, mature) - math.log(2)
    if kind == "released":
        return (mean.exp() * (2 * mean - mature - early)).sum(-1)
    return (mature.exp() * (mature - mean) + early.exp() * (early - mean)).sum(-1)


class _NoBeams(Listener):
    def reordered(self, beam_idx: Tensor) -> None:
        raise ValueError(
            "num_beams: DoLa's scores are differences of log-probabilities, which do not add up over a beam; expected 1. "
            "Fix: leave num_beams out."
        )
