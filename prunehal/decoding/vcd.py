"""VCD: contrast with the same prompt on a noised image (Leng et al., CVPR 2024, arXiv 2311.16922).

What a model would say without seeing much is what its language prior says; VCD takes that away from the logits. A branch
reads the same text and mask with noise on the pixels, and each step's logits are contrasted with the branch's.

The public code changes the sampling loop only, so that greedy and beam search run without VCD there, silently; here all
three are contrasted, as the equations say. Its script for InstructBLIP never passes alpha on, so that 0.5 is in effect
there; the preset holds the paper's 1.

The branch is never pruned: a policy drops visual tokens by what the main run attends to, and those of the noised image are
not the same ones. Under the plausibility cut, beam search with ``do_sample=True`` may have fewer candidates than it draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from prunehal.core import PrunableCache
from prunehal.decoding.base import Decoder
from prunehal.decoding.branch import Branch, check_prompt, contrasting
from prunehal.decoding.plausibility import check_beta, plausible

__all__ = ["VCD", "diffusion", "noised"]

STEPS = 1000  # of the diffusion
PIXELS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}  # and what says which patches are an image


@dataclass(frozen=True)
class VCD(Decoder):
    """Contrast the logits z with those of the noised image, z': (1 + alpha) z - alpha z', on plausible tokens only.

    Equations 3 and 4 of the paper. alpha=0 with beta=0 is the stock output.

    Attributes:
        alpha: strength of the contrast, at least 0.
        beta: plausibility cut, from z; 0 for none.
        noise_step: how much noise, a step of the diffusion from 0 to 999; 0 is little noise, not none.
        seed: of the noise. It is drawn once for each image, from the seed and the image's own pixels, so that it depends
            neither on the batch nor on the order of the images.

    >>> import prunehal as ph
    >>> from prunehal.testbed.scenes import scene
    >>> model, processor = ph.load()
    >>> inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    >>> cache = ph.attach(model, inputs, ph.NoPruning())
    >>> with VCD(alpha=0.5).on(model, inputs, cache) as options:
    ...     ids = model.generate(**inputs, past_key_values=cache, **options, max_new_tokens=8)
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
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha={self.alpha!r}: expected a number of at least 0. Set alpha=1.0, the published value.")
        check_beta(self.beta)
        if isinstance(self.noise_step, bool) or not isinstance(self.noise_step, int) or not 0 <= self.noise_step < STEPS:
            raise ValueError(
                f"noise_step={self.noise_step!r}: expected an integer from 0 to {STEPS - 1}. "
                "Set noise_step=500, the published value."
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r}: expected an integer of at least 0. Set seed=0, the default.")

    @contextmanager
    def on(self, model: torch.nn.Module, inputs: Mapping[str, Tensor], cache: PrunableCache) -> Iterator[dict[str, Any]]:
        """Attach the method to the next generate(); see `Decoder.on`. What generate() returns as logits are contrasted."""
        check_prompt(inputs, cache)
        names = [name for name in PIXELS if inputs.get(name) is not None]
        if not names:
            raise ValueError(
                f"inputs: has keys {sorted(inputs)}; expected 'pixel_values', which VCD puts noise on. "
                "Fix: pass on() what the processor returned, images included."
            )
        if self.alpha == 0 and self.beta == 0:
            yield {}
            return
        noise = {
            name: noised(inputs[name], self.noise_step, self.seed, grid=inputs.get(PIXELS[name]))
            for name in names
        }  # fmt: skip
        with contrasting(model, cache, Branch(model, dict(inputs) | noise), self._contrast):
            yield {}

    def _contrast(self, logits: Tensor, branch: Tensor) -> Tensor:
        return plausible(logits, self.beta, (1 + self.alpha) * logits - self.alpha * branch)


def diffusion(step: int) -> tuple[float, float]:
    """Return the shares of signal and noise at a step of the diffusion: sqrt(a) and sqrt(1 - a), equation 2 of the paper.

    The variances are the public code's: a sigmoid ramp from 1e-5 to 5e-3 over 1000 steps.

    >>> [round(share, 5) for share in diffusion(500)]
    [0.86302, 0.50517]
    """
    ramp = torch.linspace(-6, 6, STEPS, dtype=torch.float64, device="cpu").sigmoid() * (0.5e-2 - 1e-5) + 1e-5
    kept = (1 - ramp)[: step + 1].prod()
    return kept.sqrt().item(), (1 - kept).sqrt().item()


def noised(pixels: Tensor, step: int, seed: int = 0, *, grid: Tensor | None = None) -> Tensor:
    """Put Gaussian noise on normalised pixels, in float32 and then back in their dtype.

    Args:
        pixels: (image, ...); or (patch, dim), the patches of all images in a row.
        step: of the diffusion; see `diffusion`.
        seed: of the noise, which is keyed by the seed and by the image's own pixels.
        grid: patches of each image in time, height and width, (image, 3), where the pixels are patches; else None.

    >>> images = torch.rand(3, 3, 4, 4)
    >>> torch.equal(noised(images, 500)[1:2], noised(images[1:2], 500))
    True
    """
    signal, share = diffusion(step)
    sizes = 1 if grid is None else grid.prod(1).tolist()
    images = []
    for image in pixels.split(sizes):
        clean = image.detach().float().cpu().contiguous()
        key = int.from_bytes(hashlib.sha256(clean.numpy().tobytes()).digest()[:8], "big")
        draw = np.random.default_rng((seed, key)).standard_normal(clean.shape, dtype=np.float32)
        images.append(signal * clean + share * torch.from_numpy(draw))
    return torch.cat(images).to(pixels)
