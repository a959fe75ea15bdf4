"""A setting: a policy and when it acts, as the notebooks choose and report it; and the same with random tokens."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import NamedTuple

from prunehal.core import Policy
from prunehal.core.informative import Telling
from prunehal.experiments import Experiment

__all__ = ["Setting", "at_random"]

_SAID = ("r", "t", "k", "p", "part", "z")  # options that a label always has


class Setting(NamedTuple):
    """A policy and when it acts; what is chosen and reported, whatever the images.

    >>> from prunehal.core import PruneHal
    >>> Setting(PruneHal(r=0.9, t=1)).on(Experiment(split="test")).name
    'test_prunehal_r0.9_t1'
    >>> Setting(PruneHal(r=0.9, t=1), "first-token").label
    'PruneHal(r = 0.9, t = 1), first-token'
    """

    policy: Policy
    mode: str = "decoding"

    @property
    def label(self) -> str:
        """The policy with the options that are always said or not the defaults, and the mode if it is not decoding."""
        values = {f.name: (getattr(self.policy, f.name), f.default) for f in fields(self.policy) if f.init}
        said = [f"{name} = {value}" for name, (value, usual) in values.items() if name in _SAID or value != usual]
        return f"{type(self.policy).__name__}({', '.join(said)})" + ("" if self.mode == "decoding" else f", {self.mode}")

    def on(self, experiment: Experiment) -> Experiment:
        """Return the experiment with this policy and mode."""
        return replace(experiment, policy=self.policy, mode=self.mode)


def at_random(policy: Policy) -> Policy:
    """Return the policy with as many random tokens: the same in all layers where it keeps the same in all layers.

    >>> from prunehal.core import Accumulated, Informative
    >>> at_random(Informative()).kept, at_random(Accumulated()).kept
    ('shared', 'layer')
    """
    return replace(policy, selection="random", kept="shared" if isinstance(policy, Telling) else policy.kept)
