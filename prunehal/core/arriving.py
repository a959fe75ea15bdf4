"""Check what arrives in a model's forward on a pruning cache, by a hook, before the forward runs."""

import weakref
from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from prunehal.core.cache import PrunableCache
from prunehal.core.keyword import cache_among
from prunehal.core.pictures import IMAGE_INPUTS
from prunehal.core.visual import generating

__all__ = ["listen", "relied_on"]

AT_EVERY_STEP = {"image_pixel_values"}  # Phi-4 multimodal: passed at every step; they count only where placeholders are

_users: weakref.WeakKeyDictionary[torch.nn.Module, weakref.WeakSet[PrunableCache]] = weakref.WeakKeyDictionary()


def listen(model: torch.nn.Module, cache: PrunableCache | None = None) -> RemovableHandle | None:
    """Hook the model, so that each forward's inputs reach its pruning cache first; return the handle, None if hooked already.

    Args:
        model: whose forwards are checked.
        cache: a new one, which relies on it; held weakly. None: only the hook is wanted.
    """
    decoder = generating(model)
    handle = None
    if _announce not in decoder._forward_pre_hooks.values():
        handle = decoder.register_forward_pre_hook(_announce, with_kwargs=True)
        _users[decoder] = weakref.WeakSet()
    if cache is not None:
        _users.setdefault(decoder, weakref.WeakSet()).add(cache)  # a copied model has the hook already
    return handle


def relied_on(model: torch.nn.Module, apart: Collection[PrunableCache]) -> bool:
    """Return whether a cache that still exists relies on the model's hook, those of ``apart`` left out."""
    left_out = set(map(id, apart))
    return any(id(cache) not in left_out for cache in _users.get(generating(model), ()))


def _announce(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
    cache = cache_among(kwargs)
    if not isinstance(cache, PrunableCache):
        return
    if kwargs.get("use_cache") is False:
        raise _uncached(module)
    ids = kwargs.get("input_ids", args[0] if args else None)
    if cache.get_seq_length() < len(cache.prompt):
        _refuse_checkpointing(module)
        if not cache.running:  # in generate(), which makes features of them, the pixels were compared already
            cache.same_images = cache.prompt.pictures.same(kwargs)
    cache.announce(ids, kwargs.get("inputs_embeds"), _brings_images(cache, ids, kwargs), kwargs.get("position_ids"))


def _uncached(module: torch.nn.Module) -> ValueError:
    name, fix = "use_cache=False", "Fix: leave use_cache out."
    if getattr(getattr(module, "generation_config", None), "use_cache", None) is False:
        name = "generation_config.use_cache=False"
        fix = "Fix: model.generation_config.use_cache = True (training scripts turn it off), or use_cache=True in generate()."
    return ValueError(f"{name}: every step would read the whole prompt anew, and nothing would stay cached; expected True. {fix}")


def _refuse_checkpointing(module: torch.nn.Module) -> None:
    # Checkpointed blocks run without a cache while they train.
    if not module.training:
        return
    if any(part.training and getattr(part, "gradient_checkpointing", False) for part in module.modules()):
        raise ValueError(
            f"model={type(module).__name__}: is in training mode with gradient checkpointing, whose blocks run without a cache; "
            "expected evaluation mode. Fix: model.eval() before generate(), or model.gradient_checkpointing_disable()."
        )


def _brings_images(cache: PrunableCache, ids: Tensor | None, arguments: Mapping[str, object]) -> bool:
    given = {
        name
        for name, value in arguments.items()
        if any(part in name for part in IMAGE_INPUTS) and value is not None and len(value)
    }
    if not given or not given <= AT_EVERY_STEP or ids is None or cache.get_seq_length() < len(cache.prompt):
        return bool(given)
    marks = torch.tensor(cache.prompt.placeholders, device=ids.device)
    return ids.shape[1] > 1 and bool(torch.isin(ids, marks).any())
