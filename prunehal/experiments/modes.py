"""When a policy acts: while decoding, before the first token, or after a draft; and what goes together with what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunehal.core import Bank, Keep
from prunehal.core.informative import Telling
from prunehal.decoding.base import Decoder
from prunehal.decoding.fastv import FastV
from prunehal.decoding.opera.opera import OPERA

if TYPE_CHECKING:
    from prunehal.experiments.experiment import Experiment

__all__ = ["MODES", "check_mode"]

MODES = ("decoding", "first-token", "draft")

# Options that say when a policy prunes while decoding; no other mode asks it.
_WHEN = ("factor", "majority", "forced_first", "step", "wait", "z", "least", "like")


def check_mode(experiment: Experiment) -> None:
    """Raise a ValueError for a mode that is none, or that policy, decoding or length of an experiment do not go with."""
    mode, policy, decoding = experiment.mode, experiment.policy, experiment.decoding
    keeps, banks = isinstance(policy, Keep), isinstance(policy, Bank)
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(map(repr, MODES))}")
    restricts, reads = banks or policy.restricts_from is not None, isinstance(policy, Telling)
    if (restricts and isinstance(decoding, OPERA)) or ((keeps or reads) and isinstance(decoding, FastV)):
        why = "OPERA looks ahead beside the cache" if restricts else "FastV drops tokens of its own that are to be kept"
        raise ValueError(f"policy={policy!r}, decoding={decoding!r}: {why}; expected another decoding, or another policy")
    if mode == "decoding":
        return
    if isinstance(decoding, Decoder):
        raise ValueError(
            f"mode={mode!r}, decoding={decoding!r}: a mitigation decoder runs with mode='decoding' only; expected "
            "'greedy', 'beam' or 'nucleus'"
        )
    if policy.limit == 0 or banks:
        why = "nothing returns there" if banks else "never prunes"
        raise ValueError(f"mode={mode!r}, policy={policy!r}: {why}; expected one that chooses tokens, e.g. TopK(36)")
    if mode == "draft" and experiment.min_new_tokens:
        raise ValueError(
            f"min_new_tokens={experiment.min_new_tokens}, mode='draft': the draft ends where the model ends it; expected 0"
        )
    if reads and mode == "draft":
        raise ValueError(
            f"mode='draft', policy={policy!r}: it reads the prompt and nothing of a draft; expected mode='first-token' or "
            "mode='decoding'"
        )
    if keeps and (mode == "draft" or policy != Keep()):
        raise ValueError(
            f"mode={mode!r}, policy={policy!r}: what it keeps is given; expected mode='first-token' and Keep(), or "
            "mode='decoding'"
        )
    unused = [name for name in _WHEN if getattr(policy, name, None) != getattr(type(policy), name, None)]
    if unused:
        raise ValueError(
            f"mode={mode!r}, policy={policy!r}: {', '.join(unused)} says when to prune, which the mode does; "
            "expected the default, so that equal experiments have one key"
        )
