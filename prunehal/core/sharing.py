"""Run a prompt once and let several policies go on from it: K and V of a prompt do not depend on what is pruned later."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunehal.core.attach import attach
from prunehal.core.blocks import BlockLayer
from prunehal.core.cache import EMPTY, PrunableCache
from prunehal.core.checks import as_count, refuse
from prunehal.core.discard import leave_only
from prunehal.core.given import Keep
from prunehal.core.greedy import FIRST_LOGITS
from prunehal.core.informative import Telling
from prunehal.core.layer import PrunableLayer
from prunehal.core.lens import read_tokens
from prunehal.core.offsets import offsets_of
from prunehal.core.pictures import IMAGE_INPUTS
from prunehal.core.policy import NoPruning, Policy
from prunehal.core.visual import generating
from prunehal.core.wrapped import unwrapped

__all__ = ["SharedPrefill"]


class SharedPrefill:
    """Hold what a prompt (or a batch) left in the KV cache, but for its last token, which every policy reads anew.

    The last token's forward is the step m = 1 of each policy: its attention row is observed, and its logits give the first
    word. So a grid of policies pays for vision tower and prefill once. The prompt is what ``inputs`` held when it was run: ids
    changed in place later change nothing, and pixels changed in place are refused. Where the model keeps positions of its own
    (M-RoPE), each cache brings those of its prompt into generate().

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> prompt = "<image>Describe this scene in detail."
        >>> inputs = processor(images=scene("test", 0).image(), text=prompt, return_tensors="pt")
        >>> shared = ph.SharedPrefill(model, inputs)
        >>> words = {}
        >>> for r in (0.4, 0.9):
        ...     cache = shared.attach(ph.PruneHal(r=r, t=3))
        ...     words[r] = model.generate(**shared.inputs, **cache.options, max_new_tokens=8)
        >>> words[0.4].shape == words[0.9].shape
        True

    Attributes:
        inputs: what generate() gets from now on: the prompt without its images.
    """

    def __init__(self, model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> None:
        """Run the prompt.

        Args:
            model: as ``attach`` takes it.
            inputs: what the processor returned; padded on the left.

        Raises:
            ValueError: as ``attach`` does; the model keeps a state that cannot be cut, or reads the last token differently
                when it comes alone (a prefix whose tokens all see each other, and a window); the prompt ends in an image.
        """
        cache = attach(model, inputs, NoPruning())
        model = unwrapped(model)
        if any(not isinstance(layer, (PrunableLayer, *EMPTY)) for layer in cache.layers):
            raise ValueError(
                f"model: {type(generating(model)).__name__} has layers that keep a running state instead of K and V; expected "
                "attention layers only, whose prompt can be shared. Fix: attach() for each policy."
            )
        if cache.visual_at_end():
            raise ValueError(
                "inputs: the prompt ends in a visual token; expected a text token at the end, which every policy reads anew. "
                "Fix: put the text after the image, or attach() for each policy."
            )
        self._model, self._visual, self._pictures = model, cache.prompt.numbers > 0, cache.prompt.pictures
        self._inputs = self._apart_from(inputs)
        self._readings: Tensor | None = None
        self.inputs = dict(self._inputs)
        whole = self._first_logits(cache)
        self._offsets = offsets_of(model)
        layers = [layer for layer in cache.layers if isinstance(layer, PrunableLayer)]
        self._kept = [tuple(part[:, :, :-1].clone() for part in (layer.keys, layer.values)) for layer in layers]
        text = {name: value for name, value in self._inputs.items() if not any(part in name for part in IMAGE_INPUTS)}
        self.inputs = self._apart_from(text)
        apart = (self._first_logits(SharedPrefill.attach(self, NoPruning())) - whole).abs().max().item()
        allowed = _apart(layers[0].keys.dtype, len(layers)) * max(1.0, whole.abs().max().item())
        if not apart <= allowed:
            raise ValueError(
                f"model: {type(generating(model)).__name__} reads the last token of the prompt differently alone than with the "
                f"prompt (logits differ by {apart:.2g}; expected at most {allowed:.2g}). Fix: attach() for each policy."
            )

    def _apart_from(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # What is changed in place later must not change the prompt. Pixels are marked instead, which needs no memory.
        return {
            name: value.clone() if isinstance(value, Tensor) and name not in self._pictures.marks else value
            for name, value in inputs.items()
        }

    def _first_logits(self, cache: PrunableCache) -> Tensor:
        return self._model.generate(**self.inputs, **cache.options, **FIRST_LOGITS).logits[0]

    def _read(self) -> Tensor:
        """Return the readings of the visual tokens; the prompt is run for them once."""
        if self._readings is None:
            self._readings = read_tokens(self._model, self._inputs, self._visual)
        return self._readings

    def attach(
        self, policy: Policy | None = None, *, copies: int = 1, keep: Tensor | None = None, **options: Any
    ) -> PrunableCache:
        """Make a cache that goes on from the prompt; pass it to ``model.generate(**shared.inputs, **cache.options)``.

        Args:
            policy: as in ``attach``.
            copies: rows that generate() makes of each input: num_beams, or num_return_sequences when sampling.
            keep: drop all visual tokens but these before the last token is read, so that the first word can change: bool
                (batch, prompt), or (layer, batch, prompt). It is no prune of the policy's, and no event. `Keep` drops them at
                its own step instead.
            **options: of ``attach``.

        Raises:
            ValueError: as ``attach`` does; the pixels were changed in place; ``copies`` is no count; ``keep`` has another shape,
                leaves a row without any visual token in a layer, or leaves the layers different tokens where the policy keeps
                the same in all.
        """
        if as_count(copies) is None or copies < 1:
            fix = "Fix: copies=num_beams, or num_return_sequences when sampling."
            raise refuse("copies", copies, "an integer of at least 1, the rows that generate() makes of each input", fix)
        if (same := self._pictures.same(self._inputs)) is not None and not bool(same):
            raise ValueError(
                f"inputs: pixels were changed in place after {type(self).__name__} had run the prompt; expected those of the "
                "prompt, which policies and decoders may read again. Fix: "
                f"{type(self).__name__}(model, inputs) anew for other images, or put them into a new tensor."
            )
        if isinstance(policy, Keep):
            options, keep = options | {"keep": keep}, None
        if isinstance(policy, Telling) and options.get("visual_mask") is None:
            options = {"readings": self._read()} | options
        cache = attach(self._model, self._inputs, policy, **options)
        cache.goes_on = True
        cache.offsets = list(self._offsets)
        layers = [layer for layer in cache.layers if isinstance(layer, PrunableLayer)]
        for layer, parts in zip(layers, self._kept, strict=True):
            keys, values = (part.repeat_interleave(int(copies), dim=0) for part in parts)
            BlockLayer.update(layer, keys, values)  # past the observation: these tokens are no step
        if keep is not None:
            leave_only(cache, keep)
        return cache


def _apart(kind: torch.dtype, layers: int) -> float:
    """Return how far apart two correct runs may put logits, as a share of the largest one.

    Both round every result to the dtype of K, by at most u of its size (u = 2**-8 in bfloat16, 2**-11 in float16), with a
    standard deviation of u / sqrt(3). A layer hands on about 12 such results: of two normalisations, seven projections,
    the attention and two sums. Independent errors of mean 0 add up as the root of their number (Higham
    and Mary 2019), in two runs of n layers to sqrt(2 * 12 * n / 3) u; three such standard deviations are allowed. In float32
    the matrix products may be those of TF32, with u = 2**-11 in the products alone: 1e-3 is allowed.

    >>> round(_apart(torch.bfloat16, 32), 2), round(_apart(torch.float16, 32), 3), _apart(torch.float32, 32)
    (0.19, 0.023, 0.001)
    """
    return max(1e-3, 3 * math.sqrt(8 * layers) * torch.finfo(kind).eps / 2)
