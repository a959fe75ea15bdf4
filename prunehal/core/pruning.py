"""Prune inside code that calls generate() itself, such as a pipeline: a context manager around ``attach``."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers.generation.streamers import BaseStreamer

from prunehal.core.arguments import check_flags, check_model
from prunehal.core.arriving import listen, relied_on
from prunehal.core.attach import attach
from prunehal.core.cache import PrunableCache
from prunehal.core.calls import ending
from prunehal.core.checks import refuse
from prunehal.core.keyword import KEYWORD, cache_among
from prunehal.core.policy import Policy
from prunehal.core.visual import check_cache_kind
from prunehal.core.wrapped import unwrapped

__all__ = ["PruningRun", "pruning"]

ENDS = ("eos_token_id", "pad_token_id")


@dataclass
class PruningRun:
    """Hold what was observed inside ``pruning``.

    Attributes:
        caches: one for each call of generate(), in order; each with its ``events``, ``kept`` and ``trace``.
        calls: how often generate() was called, calls that were refused or brought a pruning cache included.
    """

    caches: list[PrunableCache] = field(default_factory=list)
    calls: int = 0


@contextmanager
def pruning(
    model: torch.nn.Module,
    policy: Policy | None = None,
    *,
    exact: bool = False,
    maps: bool = False,
    entropy: bool = False,
    per_image: bool = False,
    keep_kv: bool = False,
) -> Iterator[PruningRun]:
    """Let every ``model.generate()`` inside the block run on a pruning cache of its own.

    The model's ``generate`` is replaced while the block runs, on this one object, and put back whatever happens. A call
    that brings a pruning cache (``**cache.options``) goes on with that one, as a second turn does.

    Args:
        model: the multimodal model whose generate() is called somewhere inside.
        policy, exact, maps, entropy, per_image: as in :func:`prunehal.attach`.
        keep_kv: keep K and V of every call, for a second turn on its cache; by default they are freed as soon as the
            call returns, so that a long run does not fill the memory.

    Yields:
        The run, whose ``caches`` grow by one with each call.

    Raises:
        RuntimeError: the block stands inside another one for the same model, a call left its cache unused, or the block ends
            without any call of this model's generate(), so that nothing was pruned, or while one still runs in another thread.
        ValueError: the policy is none, or an option neither True nor False; a call brings another cache, or its inputs cannot be
            used; see :func:`prunehal.attach`.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> prompt = "<image>Describe this scene in detail."
        >>> inputs = processor(images=scene("test", 0).image(), text=prompt, return_tensors="pt")
        >>> with ph.pruning(model, ph.PruneHal(r=0.4, t=3)) as run:
        ...     ids = model.generate(**inputs, max_new_tokens=8)
        >>> run.caches[0].events["reason"].tolist()[0]
        'forced'
    """
    if policy is not None and not isinstance(policy, Policy):
        fix = "Fix: pruning(model, PruneHal(r=0.4, t=3))."
        raise refuse("policy", policy, "PruneHal(...), TopK(k), NoPruning() or None", fix)
    check_flags(exact=exact, maps=maps, entropy=entropy, per_image=per_image, keep_kv=keep_kv)
    check_model(model)
    model = unwrapped(model)
    stock = model.generate
    if getattr(stock, "_prunehal", False):
        raise RuntimeError(
            f"pruning({type(model).__name__}): generate() of this model is pruned already; expected one block at a time. "
            "Fix: leave the outer block first, or give both what they need in one policy."
        )
    run, hook, block = PruningRun(), listen(model), _Block(type(model).__name__)
    replaced = model.__dict__.get("generate")
    options = {"policy": policy, "exact": exact, "maps": maps, "entropy": entropy, "per_image": per_image}
    model.generate = _pruned(model, stock, run, block, keep_kv, **options)
    try:
        yield run
    finally:
        cut_off = block.end(run.caches)
        # A second turn after the block is to be seen too, and so is a cache of attach() that found this block's hook.
        if hook is not None and not keep_kv and not relied_on(model, run.caches):
            hook.remove()
        if replaced is None:
            del model.generate
        else:
            model.generate = replaced
    if cut_off:
        raise RuntimeError(cut_off)
    if block.failure is not None:
        raise RuntimeError(
            f"pruning({type(model).__name__}): a generate() of the block has failed in another thread, so that its streamer "
            f"ended before the text was whole: {block.failure}"
        ) from block.failure
    if not run.calls:
        raise RuntimeError(
            f"pruning({type(model).__name__}): the block ends after 0 calls of generate() of this model, so nothing was pruned; "
            "expected at least one. Fix: give pruning() the very object whose generate() runs inside (of a pipeline: pipe.model; "
            "a copy is another object), or leave the block out where nothing is generated. A thread counts once its generate() "
            "has begun: read its streamer, or join it, inside the block."
        )


class _Block:
    """Count the calls of generate() that run in a block, in whatever thread."""

    def __init__(self, name: str) -> None:
        self._name, self._thread, self._lock = name, threading.get_ident(), threading.Lock()
        self._running, self._ended = 0, False
        self.failure: BaseException | None = None  # of a call in another thread that feeds a streamer

    @contextmanager
    def call(self, streamer: BaseStreamer | None) -> Iterator[None]:
        """Count a call as running; if it fails, end its streamer, whose reader would wait for ever."""
        with self._lock:
            self._running += 1
        try:
            with ending(streamer):
                self.refuse_if_ended()
                yield
        except BaseException as error:
            if streamer is not None and threading.get_ident() != self._thread:
                self.failure = error
            raise
        finally:
            with self._lock:
                self._running -= 1

    def refuse_if_ended(self) -> None:
        """Raise a RuntimeError if the block has ended, so that nothing would be pruned."""
        if self._ended:
            raise RuntimeError(self._cut_off())

    def end(self, caches: Sequence[PrunableCache]) -> str | None:
        """End the block, and with it the calls that still run; return what is wrong if there are any."""
        with self._lock:
            self._ended, running = True, self._running
        if not running:
            return None
        for cache in caches:
            if cache.running or not cache.step:
                cache.left = self._cut_off()
        return self._cut_off()

    def _cut_off(self) -> str:
        return (
            f"pruning({self._name}): the block has ended while a generate() of it runs in another thread, which is stopped; "
            "expected generate() to end inside it. Fix: read the streamer to its end inside the block, and join the thread there."
        )


def _pruned(
    model: torch.nn.Module, stock: Callable, run: PruningRun, block: _Block, keep_kv: bool, **options: object
) -> Callable:
    positional = list(inspect.signature(stock).parameters)

    @functools.wraps(stock)
    def generate(*args: object, **kwargs: object) -> object:
        run.calls += 1
        given = dict(zip(positional, args, strict=False)) | kwargs
        with block.call(given.get("streamer")):
            return call(given, args, kwargs)

    def call(given: dict[str, object], args: tuple, kwargs: dict[str, object]) -> object:
        cache = cache_among(given)
        if isinstance(cache, PrunableCache):
            return stock(*args, **kwargs)
        if cache is not None:
            raise ValueError(
                f"{KEYWORD}: got a {type(cache).__name__} inside pruning(); expected none, or a cache of run.caches. "
                f"Fix: leave {KEYWORD} out."
            )
        check_cache_kind(given.get("cache_implementation"))
        inputs = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        if "inputs" in inputs:
            inputs["input_ids"] = inputs.pop("inputs")
        ends = [getattr(given.get("generation_config"), name, None) for name in ENDS] + [given.get(name) for name in ENDS]
        cache = attach(model, inputs, end_ids=ends, **options)
        run.caches.append(cache)
        block.refuse_if_ended()
        try:
            result = stock(*args, **kwargs | cache.options)
            cache.check_observed()
        finally:
            if not keep_kv:
                cache.release()
        return result

    generate._prunehal = True
    return generate
