"""The pruning core: ``attention`` observes, ``policy`` decides, ``cache`` acts.

``attach`` is the way in, ``pruning`` the way in where other code calls generate(), and ``SharedPrefill`` the one for many
policies on one prompt. ``trace`` records, ``observed`` offers what can be read afterwards, ``listening`` gives every step's
attention to other code, and ``editing`` lets that change scores. The method of the paper is ``prunehal``. Below them,
``arguments`` refuses what is no argument of ``attach``, ``visual`` finds the visual tokens of a prompt, ``prompt`` checks that
generate() gets the one that was attached (``calls`` looks at generate() itself, ``arriving`` at each forward, and ``pictures``
hashes the pixels), ``wrapped`` finds the model inside PEFT or torch.compile, ``acting`` checks that the parts of a decoding
method act, ``keyword`` names the argument by which a cache is passed, ``greedy`` the settings of calls inside the package, and
``offsets`` those of M-RoPE positions. ``memory`` keeps what the policy needs from earlier steps, ``selection`` holds the pure
functions from scores to kept tokens, ``blocks`` stores K and V, ``layer`` adds the slots and their mask, and ``table`` knows
which slot holds which token. ``forward`` is the part of the cache that observes. ``restricting`` is the cache for ``StepTopK``
(``reversible``), and ``banking`` that for ``Bank`` (``bank``): its ``bank_table`` knows which token is in the bank, and its
``vault`` holds K and V there. ``lens`` reads the visual tokens through the model's head, for ``Informative`` and ``Standout``
(``informative``).
"""

from prunehal.core.accumulated import Accumulated
from prunehal.core.attach import attach
from prunehal.core.bank import Bank
from prunehal.core.cache import PrunableCache
from prunehal.core.drafting import Draft, FirstToken
from prunehal.core.given import Keep
from prunehal.core.informative import Informative, Standout
from prunehal.core.listening import Listener, listening
from prunehal.core.policy import NoPruning, Policy, TopK
from prunehal.core.prunehal import PruneHal
from prunehal.core.pruning import PruningRun, pruning
from prunehal.core.reversible import StepTopK
from prunehal.core.robust import RobustVote
from prunehal.core.share import MassShare
from prunehal.core.sharing import SharedPrefill
from prunehal.core.trace import AttentionTrace

__all__ = [
    "Accumulated",
    "AttentionTrace",
    "Bank",
    "Draft",
    "FirstToken",
    "Informative",
    "Keep",
    "Listener",
    "MassShare",
    "NoPruning",
    "Policy",
    "PrunableCache",
    "PruneHal",
    "PruningRun",
    "RobustVote",
    "SharedPrefill",
    "Standout",
    "StepTopK",
    "TopK",
    "attach",
    "listening",
    "pruning",
]
