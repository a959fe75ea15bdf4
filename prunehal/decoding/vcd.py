"""VCD: contrast with the same prompt on a noised image (Leng et al., CVPR 2024, arXiv 2311.16922).

What a model would say without seeing much is what its language prior says; VCD takes that away from the logits. A branch
reads the same text and mask with noise on the pixels, and each step's logits are contrasted with the branch's.

The public code changes the sampling loop only, so that greedy and beam search run without VCD there, silently; here all
three are contrasted, as the equations say. Where alpha is not set, its 0.5 is in effect; its script for InstructBLIP never
passes alpha on, so that this is so there, and the preset holds the paper's 1. Its POPE script for LLaVA cuts at beta=0.2, the
others at 0.1, the default here.

The branch is never pruned: a policy drops visual tokens by what the main run attends to, and those of the noised image are
not the same ones. Under the plausibility cut, beam search with ``do_sample=True`` may have fewer candidates than it draws.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from prunehal.core import PrunableCache
from prunehal.core.acting import Acts
from prunehal.decoding.base import Decoder
from prunehal.decoding.parts.plausibility import check_beta, plausible
from prunehal.decoding.parts.second_run import Branch, check_unread, contrasting
from prunehal.decoding.values import check_count, check_number

__all__ = ["VCD", "diffusion", "noised"]

STEPS = 1000  # of the diffusion
PIXELS = "pixel_values"  # part of the names of all inputs that hold pixels: videos, the views of a second tower
GRIDS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}  # pixels -> grid of each image's patches


@dataclass(frozen=True)
class VCD(Decoder):
    """Contrast the logits z with those of the noised image, z': (1 + alpha) z - alpha z', on plausible tokens only.

    The paper's contrastive distribution under its adaptive plausibility constraint. alpha=0 with beta=0 is the stock output.

    Attributes:
        alpha: strength of the contrast, at least 0.
        beta: plausibility cut, from z; 0 for none.
        noise_step: how much noise, a step of the diffusion from 0 to 999; 0 is little noise, not none.
        seed: of the noise. It is drawn once for each image (or tile, or frame), from the seed and its own pixels, so that it
            depends neither on the batch nor on the order of the images; what pads a batch gets none. See `noised`.

    >>> import prunehal as ph
    >>> from prunehal.testbed.world.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> cache = ph.attach(model, inputs, ph.NoPruning())
    >>> with VCD(alpha=0.5).on(model, inputs, cache) as options:
    ...     ids = model.generate(**inputs, **cache.options, **options, max_new_tokens=8)
    >>> ids.shape[1] - inputs["input_ids"].shape[1]
    8
    """

    alpha: float = 1.0
    beta: float = 0.1
    noise_step: int = 500
    seed: int = 0

    # Appendix of the paper, and the scripts of the public code.
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"alpha": 1.0, "beta": 0.1, "noise_step": 500} for name in ("llava-1.5", "instructblip", "qwen-vl")
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, "[0, inf)", "Set alpha=1.0, the published value.")
        check_beta(self.beta)
        check_count("noise_step", self.noise_step, 0, "Set noise_step=500, the published value.", most=STEPS - 1)
        check_count("seed", self.seed, 0, "Set seed=0, the default.")

    @contextmanager
    def _attached(
        self, model: torch.nn.Module, inputs: Mapping[str, Tensor], cache: PrunableCache, acts: Acts
    ) -> Iterator[dict[str, Any]]:
        """Attach the method to the next generate(); see `Decoder.on`. What generate() returns as logits are contrasted."""
        check_unread(cache)
        names = [name for name, value in inputs.items() if PIXELS in name and value is not None]
        if not names:
            raise ValueError(
                f"inputs: has keys {sorted(inputs)}; expected 'pixel_values', which VCD puts noise on. "
                "Fix: pass on() what the processor returned, images included."
            )
        if self.alpha == 0 and self.beta == 0:
            yield {}
            return
        noise = {
            name: noised(inputs[name], self.noise_step, self.seed, grid=inputs.get(GRIDS.get(name)), sizes=_sizes(inputs, name))
            for name in names
        }  # fmt: skip
        with contrasting(model, cache, Branch(model, dict(inputs) | noise, cache), acts.counted("contrast", self._contrast)):
            yield {}

    def _contrast(self, logits: Tensor, branch: Tensor) -> Tensor:
        return plausible(logits, self.beta, (1 + self.alpha) * logits - self.alpha * branch)


def diffusion(step: int) -> tuple[float, float]:
    """Return the shares of signal and noise at a step of the paper's forward diffusion: sqrt(a) and sqrt(1 - a).

    The variances are the public code's: a sigmoid ramp from 1e-5 to 5e-3 over 1000 steps.

    >>> [round(share, 5) for share in diffusion(500)]
    [0.86302, 0.50517]
    """
    ramp = torch.linspace(-6, 6, STEPS, dtype=torch.float64, device="cpu").sigmoid() * (0.5e-2 - 1e-5) + 1e-5
    kept = (1 - ramp)[: step + 1].prod()
    return kept.sqrt().item(), (1 - kept).sqrt().item()


def noised(pixels: Tensor, step: int, seed: int = 0, *, grid: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
    """Put Gaussian noise on normalised pixels, in float32 and then back in their dtype.

    What pads a batch stays as it is, since models find it by its zeros, and an image's noise is as if it were alone: blank
    images beside others in their row, patches of zeros at an image's end, and what lies right of and below its size.

    Args:
        pixels: (image, channel, height, width); (row, image or tile or frame, channel, height, width); (image, patch, dim); or
            (patch, dim), the patches of all images one after another, with a grid.
        step: of the diffusion; see `diffusion`.
        seed: of the noise, which is keyed by the seed and by the image's own pixels. Of equal ones in a row (blank tiles, say)
            each draws its own.
        grid: patches of each image in time, height and width, (image, 3), where the pixels are patches; else None.
        sizes: heights and widths of the images within their padding, (row, image, 2); None where there is none.

    >>> images = torch.rand(3, 3, 4, 4)
    >>> torch.equal(noised(images, 500)[1:2], noised(images[1:2], 500))
    True
    """
    signal, share = diffusion(step)
    noisy = pixels.detach().float().cpu().clone(memory_format=torch.contiguous_format)
    for row in _rows(noisy, grid, sizes):
        drawn: Counter[int] = Counter()
        for image in row:
            key = int.from_bytes(hashlib.sha256(image.contiguous().numpy().tobytes()).digest()[:8], "big")
            again = (drawn[key],) if drawn[key] else ()
            draw = np.random.default_rng((seed, key, *again)).standard_normal(image.shape, dtype=np.float32)
            image.copy_(signal * image + share * torch.from_numpy(draw))
            drawn[key] += 1
    return noisy.to(pixels)


def _rows(pixels: Tensor, grid: Tensor | None, sizes: Tensor | None) -> list[list[Tensor]]:
    """Return views of the images of each row, without padding."""
    if grid is not None:
        return [[image] for image in pixels.split(grid.prod(1).tolist())]
    if pixels.ndim == 3:
        return [[image[: int(image.any(1).nonzero().max()) + 1]] for image in pixels if image.any()]
    rows = [[image] for image in pixels]
    if pixels.ndim == 5:
        rows = [list(row) for row in pixels]
    if sizes is not None:
        rows = [
            [image[..., :height, :width] for image, (height, width) in zip(row, size.tolist(), strict=True)]
            for row, size in zip(rows, sizes, strict=True)
        ]
    return [[image for image in row if pixels.ndim != 5 or image.any()] for row in rows]


def _sizes(inputs: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Return how high and wide the images are within their padding, (row, image, 2), where the processor says so."""
    pixels, mask, sizes = inputs[name], inputs.get("pixel_attention_mask"), inputs.get("image_sizes")
    if name != "pixel_values":
        return None
    if pixels.ndim == 5 and mask is not None:  # Idefics and its kin
        return torch.stack([mask.bool().any(3).sum(2), mask.bool().any(2).sum(2)], dim=-1)
    if pixels.ndim == 4 and sizes is not None and len(sizes) == len(pixels):  # Pixtral; elsewhere they are those of the file
        sizes = torch.as_tensor(sizes).cpu()
        return sizes[:, None] if bool((sizes <= torch.tensor(pixels.shape[2:])).all()) else None
    return None
