"""The keyword under which transformers takes a cache: ``cache`` since 5.24, ``past_key_values`` before.

transformers 5.24.0 renamed it in generate(), in every forward, in what they return and in the functions that make masks. The old
name is still taken by generate() until 6.0.0 and by forwards until 5.40.0. All code of the package that passes a
cache on, or looks for one among the arguments of a forward, uses this module.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin

__all__ = ["KEYWORD", "as_option", "cache_among"]

# The keyword of the installed transformers, taken from the method that passes generate()'s arguments on to the model.
KEYWORD = "cache" if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"


def as_option(cache: Cache) -> dict[str, Cache]:
    """Return ``{keyword: cache}``, for ``model.generate(**inputs, **as_option(cache))`` on every supported transformers.

    >>> from transformers import DynamicCache
    >>> list(as_option(DynamicCache())) == [KEYWORD]
    True
    """
    return {KEYWORD: cache}


def cache_among(arguments: Mapping[str, Any]) -> Any:
    """Return the cache among the named arguments of a forward or of generate(), under either name; None if there is none.

    >>> cache_among({"cache": None, "past_key_values": 1}), cache_among({"cache": 2}), cache_among({"input_ids": 3})
    (1, 2, None)
    """
    given = arguments.get("cache")
    return arguments.get("past_key_values") if given is None else given
