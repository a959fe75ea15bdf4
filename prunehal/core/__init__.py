"""The pruning core: ``attention`` observes, ``policy`` decides, ``cache`` acts.

``attach`` is the way in, ``trace`` records. Below them, ``visual`` finds the visual tokens of a prompt, ``selection``
holds the pure functions from scores to kept tokens, ``layer`` stores K and V, and ``table`` knows which slot holds
which token.
"""

from prunehal.core.attach import attach
from prunehal.core.cache import PrunableCache
from prunehal.core.policy import NoPruning, Policy, PruneHal, TopK
from prunehal.core.trace import AttentionTrace

__all__ = ["AttentionTrace", "NoPruning", "Policy", "PrunableCache", "PruneHal", "TopK", "attach"]
