"""What all decoders share: one frozen setting, attached to one call of stock generate() on a pruning cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from prunehal.core import PrunableCache

__all__ = ["Decoder"]


@dataclass(frozen=True)
class Decoder:
    """One published decoding method with its hyper-parameters; subclasses say how it attaches.

        cache = ph.attach(model, inputs, ph.PruneHal(r=0.4, t=3))  # or ph.NoPruning(): the method alone
        with VCD(alpha=1.0).on(model, inputs, cache) as options:
            ids = model.generate(**inputs, past_key_values=cache, **options, max_new_tokens=64)

    Nothing is left on the model or the cache when the block ends, however it ends.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # model family -> published hyper-parameters
    one_input: ClassVar[bool] = False  # whether it takes one input at a time, not a batch
    whole_prompt: ClassVar[bool] = False  # whether it must see all of the prompt, so that no prefill can be shared

    @classmethod
    def preset(cls, name: str, **options: Any) -> Self:
        """Return the published setting of a model family; further options as in the constructor.

        Raises:
            ValueError: the name has no published setting.
        """
        if name not in cls.PRESETS:
            known = ", ".join(map(repr, cls.PRESETS))
            raise ValueError(f"preset={name!r}: expected one of {known}; for another model give {cls.__name__}(...) its values")
        return cls(**{**cls.PRESETS[name], **options})

    @contextmanager
    def on(self, model: torch.nn.Module, inputs: Mapping[str, Tensor], cache: PrunableCache) -> Iterator[dict[str, Any]]:
        """Attach the method to the next generate() on this cache, and yield the options that generate() takes for it.

        Args:
            model: whose generate() will run.
            inputs: what the processor returned, images included (also where generate() gets ``SharedPrefill.inputs``).
            cache: made by ``attach`` (or ``SharedPrefill.attach``) for these inputs; its policy prunes beside the method.

        Raises:
            ValueError: the model, the inputs or the way of decoding do not suit the method.
        """
        raise NotImplementedError
        yield {}
