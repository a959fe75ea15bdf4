"""The method of the paper (arXiv 2510.19183): vote when visual attention falls below its average, and keep the best-attended."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from prunehal.core.checks import check_choice, check_count, check_flag, check_fraction, refuse
from prunehal.core.policy import Policy
from prunehal.core.selection import ROUNDING_GUARD, fraction_of

__all__ = ["PruneHal"]


@dataclass(frozen=True)
class PruneHal(Policy):
    """Prune when visual attention falls (arXiv 2510.19183): one frozen setting of the method.

    A step m that follows m = 1 compares A_l, the mean attention on layer l's cached visual tokens, with the average of the
    earlier steps. Layer l votes when A_l < factor * average; when a majority votes and fewer than t prunes were done,
    every layer keeps the fraction r of its visual tokens. Step m = 2 prunes without a vote. What the paper's public text
    leaves open is an option; the default is this project's reading of it.

    Attributes:
        r: fraction of the visual tokens that a prune keeps; 1 prunes nothing.
        t: largest number of prunes, the forced one included; 0 prunes nothing.
        factor: of the vote's threshold; None means sqrt(r).
        majority: a prune needs the votes of more than this fraction of the layers (all of them at 1).
        forced_first: prune at m = 2 without a vote.
        statistic: "mean" attention for each remaining visual token, or "sum", the mass on all of them.
        first: where the reference starts: "prefill" (m = 1) or "decode" (m = 2).
        reference: what A_l is compared with: the "mean" of all earlier steps, the "first" step only, the "exponential"
            mean, or the "previous" step.
        decay: weight of the old value in the exponential mean.
        after_prune: the reference goes on ("continue") or starts afresh with the next step ("restart").
        rounding: of r * n, "floor" or "ceil"; at least one token stays.

    >>> PruneHal(r=0.4, t=3).budget(576)
    230
    """

    r: float = 0.4
    t: int = 3
    factor: float | None = field(default=None, kw_only=True)
    majority: float = field(default=0.5, kw_only=True)
    forced_first: bool = field(default=True, kw_only=True)
    statistic: str = field(default="mean", kw_only=True)
    first: str = field(default="prefill", kw_only=True)
    reference: str = field(default="mean", kw_only=True)
    decay: float = field(default=0.9, kw_only=True)
    after_prune: str = field(default="continue", kw_only=True)
    rounding: str = field(default="floor", kw_only=True)

    # (r, t) published with arXiv 2510.19183v1, as quoted in its public reviews (OpenReview sMjESVShz3).
    PRESETS: ClassVar[dict[str, tuple[float, int]]] = {
        "llava-1.5": (0.4, 3),  # LLaVA-1.5, 7B and 13B
        "instructblip": (0.7, 2),  # InstructBLIP-7B
        "qwen-vl": (0.9, 4),  # Qwen-VL-7B, whose code comes with its weights and is refused by attach(); use it with Qwen2-VL
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "r", "r is the fraction of visual tokens that stays, e.g. r=0.4.")
        check_count(self, "t", 0, "t is the largest number of prunes, e.g. t=3; t=0 prunes nothing.")
        if self.factor is not None:
            check_fraction(self, "factor", "Leave factor=None for sqrt(r).")
        check_fraction(self, "majority", "Set majority=0.5 for more than half of the layers.")
        check_fraction(self, "decay", "Set decay=0.9, the default.")
        check_flag(self, "forced_first", "Set forced_first=True, the default.")
        check_choice(self, "statistic", ("mean", "sum"))
        check_choice(self, "first", ("prefill", "decode"))
        check_choice(self, "reference", ("mean", "first", "exponential", "previous"))
        check_choice(self, "after_prune", ("continue", "restart"))
        check_choice(self, "rounding", ("floor", "ceil"))

    @classmethod
    def preset(cls, name: str, **options: object) -> Self:
        """Return the published setting of a model family; further options as in the constructor.

        "qwen-vl" is that of Qwen-VL-7B, whose code comes with its weights (trust_remote_code); `attach` refuses it. The nearest
        model that runs is Qwen2-VL, for which nothing is published: there the setting is a start, not a result.

        Raises:
            ValueError: the name has no published setting.

        >>> PruneHal.preset("instructblip").r
        0.7
        """
        if name not in cls.PRESETS:
            known = ", ".join(map(repr, cls.PRESETS))
            raise refuse("preset", name, f"one of {known}", "For another model give PruneHal(r=0.4, t=3).")
        r, t = cls.PRESETS[name]
        return cls(r, t, **options)

    @property
    def limit(self) -> int:
        """Return the largest number of prunes of one row."""
        return self.t if self.r < 1 else 0

    def statistic_of(self, mass: Tensor, n_visual: Tensor) -> Tensor:
        """Return A_l, step 1 of the algorithm: the mean over the cached visual tokens (or their sum)."""
        return mass if self.statistic == "sum" else mass / n_visual

    def threshold(self, reference: Tensor) -> Tensor:
        """Return sqrt(r) * Abar_l, step 2 of the algorithm (or factor * Abar_l)."""
        return reference * (math.sqrt(self.r) if self.factor is None else self.factor)

    def triggered(self, vote: Tensor) -> Tensor:
        """Return for which rows a majority of the layers votes, step 2 of the algorithm."""
        layers = len(vote)
        needed = min(layers, math.floor(self.majority * layers + ROUNDING_GUARD) + 1)
        return vote.sum(0) >= needed

    def enter(self, value: Tensor, reference: Tensor, entered: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Let A_l enter the reference, step 1 of the algorithm; it does so after its own comparison."""
        if step == 1 and self.first == "decode":
            return reference, entered
        if self.reference == "mean":
            new = reference + (value - reference) / (entered + 1)
        elif self.reference == "first":
            new = reference
        elif self.reference == "exponential":
            new = self.decay * reference + (1 - self.decay) * value
        else:
            new = value
        return torch.where(entered > 0, new, value), entered + 1

    def restarts(self) -> bool:
        """Say whether the reference of a row starts afresh after its prune."""
        return self.after_prune == "restart"

    def forced(self, step: int) -> bool:
        """Say whether step m is the forced first prune, m = 2."""
        return self.forced_first and step == 2

    def budget(self, n: int) -> int:
        """Return the number of tokens that a prune leaves of n, step 3 of the algorithm."""
        return fraction_of(self.r, n, self.rounding)
