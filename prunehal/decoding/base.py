"""What all decoders share: one frozen setting, attached to one call of stock generate() on a pruning cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from prunehal.core import PrunableCache
from prunehal.core.acting import Acts
from prunehal.core.checks import plain_numbers
from prunehal.core.wrapped import unwrapped
from prunehal.decoding.parts.forwards import guarding

__all__ = ["BlockOptions", "Decoder"]


@dataclass(frozen=True)
class Decoder:
    """One published decoding method with its hyper-parameters; subclasses say how it attaches.

        cache = ph.attach(model, inputs, ph.PruneHal(r=0.4, t=3))  # or ph.NoPruning(): the method alone
        with VCD(alpha=1.0).on(model, inputs, cache) as options:
            ids = model.generate(**inputs, **cache.options, **options, max_new_tokens=64)

    Nothing is left on the model or the cache when the block ends, however it ends.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # model family -> published hyper-parameters
    one_input: ClassVar[bool] = False  # whether it takes one input at a time, not a batch
    whole_prompt: ClassVar[bool] = False  # whether it must see all of the prompt, so that no prefill can be shared
    baseline: ClassVar[bool] = False  # whether it only prunes, and may stand beside a method that changes what is said
    alone: ClassVar[bool] = False  # whether nothing may stand beside it

    def __post_init__(self) -> None:
        plain_numbers(self)

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
            inputs: what the processor returned, images included (also where generate() gets ``SharedPrefill.inputs``); on a
                cache that has read its prompt, the longer conversation that generate() will get.
            cache: made by ``attach`` (or ``SharedPrefill.attach``) for these inputs; its policy prunes beside the method.

        Raises:
            ValueError: the model, the inputs or the way of decoding do not suit the method; the cache is no pruning cache, was
                attached to another model, prompt or image, or has a method already; inside the block, the model runs on another
                cache or with another attention_mask.
            RuntimeError: generate() has ended without a part of the method; the block ends while it runs in another thread.
                Options used after the block are a ValueError, and a cache on which nothing ran inside it takes no forward.
        """
        model, name = unwrapped(model), type(self).__name__
        _check_cache(model, cache)
        _check_prompt(inputs, cache)
        with ExitStack() as block:
            acts = block.enter_context(_standing(self, cache))
            acts.mask = inputs.get("attention_mask")
            block.enter_context(guarding(model, cache, name))
            options = BlockOptions(name, block.enter_context(self._attached(model, inputs, cache, acts)))
            block.callback(options.end)
            yield options
            _leave(cache, acts)

    @contextmanager
    def _attached(
        self, model: torch.nn.Module, inputs: Mapping[str, Tensor], cache: PrunableCache, acts: Acts
    ) -> Iterator[dict[str, Any]]:
        """Attach the method, once model, inputs and cache are known to belong together; ``acts`` counts what its parts do."""
        raise NotImplementedError
        yield {}


def _check_cache(model: torch.nn.Module, cache: PrunableCache) -> None:
    if not isinstance(cache, PrunableCache):
        raise ValueError(
            f"cache: got a {type(cache).__name__}; expected what attach() returns. "
            "Fix: cache = attach(model, inputs, policy), with NoPruning() for the method alone."
        )
    if cache.config is not model.config.get_text_config(decoder=True):
        raise ValueError(
            f"model={type(model).__name__}: is not the one that the cache was attached to; expected the same object. "
            "Fix: pass the same model to attach() and on()."
        )


def _check_prompt(inputs: Mapping[str, Tensor], cache: PrunableCache) -> None:
    """Refuse inputs that are not the cache's prompt, or on a cache that has read it, no longer conversation."""
    _check_ids(inputs, cache)
    same_images = cache.prompt.pictures.same(inputs)
    if same_images is not None and not bool(same_images):
        raise ValueError(
            "pixel_values: the images in on() are others than those given to attach(); expected the attached ones. "
            "Fix: pass the same inputs to attach(), on() and generate()."
        )


def _check_ids(inputs: Mapping[str, Tensor], cache: PrunableCache) -> None:
    ids, attached, seen = inputs.get("input_ids"), cache.prompt.ids, cache.get_seq_length()
    if ids is None or attached is None:
        return
    ids, attached = ids.cpu(), attached.cpu()
    later = seen >= attached.shape[1]
    start, copies = ids[:, : attached.shape[1]] if later else ids, len(ids) // len(attached) if later else 1
    if not torch.equal(start, attached.repeat_interleave(copies, dim=0)):
        raise ValueError(
            f"inputs: on() got input_ids {tuple(ids.shape)} that are not the {tuple(attached.shape)} of the cache; expected the "
            "same prompt. Fix: pass the same inputs to attach() and on()."
        )
    if later and ids.shape[1] <= seen:
        raise ValueError(
            f"cache: has read {seen} tokens already, and on() got inputs of {ids.shape[1]}; expected the longer conversation "
            "that generate() is to go on with. Fix: pass that to on(), or attach() a new cache for another run."
        )


class BlockOptions(dict):
    """Hold the options of generate() for a method; to use them after its block has ended is an error.

    >>> options = BlockOptions("VCD", {"num_beams": 2})
    >>> dict(**options)
    {'num_beams': 2}
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self._block = _Lasting(name)
        super().__init__({key: self._block.bound(value) if callable(value) else value for key, value in options.items()})

    def end(self) -> None:
        """Refuse every use from now on, copies that were made in time included where they hold a function."""
        self._block.ended = True

    def _used(self) -> None:
        self._block.check()

    # What ``generate(**options)`` and ``options | {...}`` read.

    def keys(self):
        """Return the names of the options, which ``**options`` reads."""
        self._used()
        return super().keys()

    def __iter__(self):
        self._used()
        return super().__iter__()

    def __getitem__(self, name: str) -> Any:
        self._used()
        return super().__getitem__(name)

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        self._used()
        return super().__or__(other)


class _Lasting:
    """Hold whether a block still lasts; a class apart from BlockOptions, whose functions refer to it."""

    def __init__(self, name: str) -> None:
        self._name, self.ended = name, False

    def check(self) -> None:
        if self.ended:
            raise ValueError(
                f"options: the block of {self._name}.on() that gave them has ended, and generate() would run without "
                f"{self._name}; {_inside(self._name)}"
            )

    def bound(self, function: Callable) -> Callable:
        """Return the function with a check before each call: after the end of the block it is a ValueError."""

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            self.check()
            return function(*args, **kwargs)

        return inside


def _inside(name: str) -> str:
    return (
        f"expected generate() inside it. Fix: with {name}(...).on(model, inputs, cache) as options: "
        "ids = model.generate(**inputs, **cache.options, **options)."
    )


def _leave(cache: PrunableCache, acts: Acts) -> None:
    """Refuse what would follow on a cache whose block ended before its method could act, or while generate() runs in a thread."""
    name = acts.name
    if cache.running:
        cache.left = (
            f"cache: the block of {name}.on() has ended while generate() ran on its cache in another thread; expected generate() "
            "to end inside it. Fix: read the streamer to its end inside the block, and join the thread there."
        )
        raise RuntimeError(cache.left)
    if acts.idle() and not acts.calls:
        cache.left = (
            f"cache: the block of {name}.on() ended before anything ran on its cache, which would now run without {name}; "
            f"{_inside(name)}"
        )


@contextmanager
def _standing(method: Decoder, cache: PrunableCache) -> Iterator[Acts]:
    """Note a method on the cache for as long as the block lasts, if it may stand beside those that are there."""
    for other in (acts.method for acts in cache.methods):
        if other.alone or method.alone or other.baseline == method.baseline:
            raise ValueError(
                f"cache: {type(other).__name__} is attached, and {type(method).__name__} would not stand beside it; expected one "
                "method at a time (FastV goes with every other one but OPERA). Fix: leave its block first."
            )
    acts, cache.left = Acts(method), None
    cache.methods.append(acts)
    try:
        yield acts
    finally:
        cache.methods.remove(acts)
