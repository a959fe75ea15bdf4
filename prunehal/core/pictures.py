"""Hash the pixels of the attached images, so that generate() on other images is noticed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["IMAGE_INPUTS", "Pictures", "marks"]

IMAGE_INPUTS = ("pixel_values", "patches", "mm_encoder_outputs")  # parts of the names under which images arrive
_PIXELS = IMAGE_INPUTS[:2]  # of these, those that hold pixels: features that a tower made are not compared
_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_ONCE = 2**22  # values whose integers are held at once: 32 MB


@dataclass(frozen=True)
class Pictures:
    """Hold the marks of the pixels that were attached; no pixel is kept.

    Attributes:
        marks: of each input with pixels, an integer for each entry of its first axis.
        kinds: of the same inputs, dtype and shape after the first axis.
    """

    marks: Mapping[str, Tensor]
    kinds: Mapping[str, tuple[torch.dtype, torch.Size]]

    @classmethod
    def of(cls, inputs: Mapping[str, object]) -> Self:
        """Mark the pixels among what a processor returned."""
        pixels = _pixels(inputs)
        kinds = {name: (value.dtype, value.shape[1:]) for name, value in pixels.items()}
        return cls({name: marks(value) for name, value in pixels.items()}, kinds)

    def same(self, arguments: Mapping[str, object]) -> Tensor | None:
        """Return whether pixels among arguments are those that were attached, a bool tensor; None if none can be compared.

        generate() repeats what belongs to an input for its beams or returned sequences. Pixels of another dtype are not compared.
        """
        same = []
        for name, value in _pixels(arguments).items():
            if name not in self.marks or value.dtype != self.kinds[name][0]:
                continue
            attached, rest = self.marks[name].to(value.device), len(value) % len(self.marks[name])
            if rest or value.shape[1:] != self.kinds[name][1]:
                return torch.tensor(False, device=value.device)
            given, expected = marks(value), attached.repeat_interleave(len(value) // len(attached))
            if value.ndim == 2 and len(given) > len(attached):  # patches of images: each input's are repeated as a whole
                given, expected = given.sort().values, expected.sort().values
            same.append((given == expected).all())
        return torch.stack([one.to(same[0].device) for one in same]).all() if same else None

    @staticmethod
    def among(arguments: Mapping[str, object]) -> bool:
        """Return whether there are pixels among arguments."""
        return bool(_pixels(arguments))


def marks(values: Tensor) -> Tensor:
    """Return an integer for each entry of the first axis, which changes with any bit of it: a hash, exact on every device.

    Only -0.0 counts as 0.0.

    >>> pixels = torch.rand(3, 3, 4, 4)
    >>> torch.equal(marks(pixels)[1:], marks(pixels[1:])), torch.equal(marks(pixels), marks(pixels + 1e-6))
    (True, False)
    """
    bits = values.detach().reshape(len(values), -1).contiguous().view(_WIDTH[values.element_size()])
    total = torch.zeros(len(bits), dtype=torch.int64, device=bits.device)
    width = max(1, _AT_ONCE // max(1, len(bits)))
    for start in range(0, bits.shape[1], width):
        part = bits[:, start : start + width].long()
        part = part.masked_fill(part == torch.iinfo(bits.dtype).min, 0)  # the sign alone: -0.0
        if bits.dtype == torch.int64:  # whose highest bit, times any odd number, is the same: two changed signs would cancel
            part = part ^ ((part >> 32) & 0xFFFFFFFF)
        total += (part * _factors(start, start + part.shape[1], bits.device)).sum(1)  # modulo 2^64, in any order
    return total


def _factors(start: int, end: int, device: torch.device) -> Tensor:
    # Odd numbers without a pattern (the mixing step of SplitMix64), so that values which change places change the sum.
    mixed = torch.arange(start, end, device=device) * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 30)) * -0x40A7B892E31B1A47
    return (mixed ^ (mixed >> 27)) | 1


def _pixels(named: Mapping[str, object]) -> dict[str, Tensor]:
    whole = {name: _whole(value) for name, value in named.items() if any(part in name for part in _PIXELS)}
    return {name: value for name, value in whole.items() if value is not None and value.is_floating_point() and value.numel()}


def _whole(value: object) -> Tensor | None:
    # Images may come as a list, or in a list for each row; those of one size are what a tensor of them is.
    if isinstance(value, Tensor):
        return value
    images = list(_images(value))
    if not images or not all(isinstance(image, Tensor) and image.dtype == images[0].dtype for image in images):
        return None
    images = [image.detach().to(images[0].device) for image in images]
    if all(image.shape == images[0].shape for image in images):
        return torch.stack(images)
    sized = [torch.cat([image.new_tensor(image.shape), image.flatten()]) for image in images]
    return torch.nn.utils.rnn.pad_sequence(sized, batch_first=True)


def _images(value: object) -> Iterator[object]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _images(part)
    else:
        yield value
