"""Decide: from attention rows to votes, triggers and kept visual tokens. The paper's method is in `prunehal.core.prunehal`.

Everything here is pure: tensors and numbers in, tensors and numbers out; nothing knows a cache, a model or a layout.
Shapes: ``rows`` and ``scores`` are (layer, batch, head, visual), where ``head`` is 1 unless the kept set is per KV head;
``value``, ``reference`` and ``vote`` are (layer, batch). With per_image=True ``batch`` counts images, not rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from prunehal.core.checks import check_choice, check_count, plain_numbers
from prunehal.core.seen import Seen
from prunehal.core.selection import keep_best, random_scores

__all__ = ["NoPruning", "Policy", "TopK"]


@dataclass(frozen=True)
class Policy:
    """Hold what all policies share. Subclass it and override the few methods that differ.

    A step m goes through ``score`` (what ranks the tokens), ``vote`` and ``triggered`` (when to prune), ``forced``
    (prune without a vote) and, at a prune, ``budget`` and ``choose`` (which tokens stay). ``enter`` keeps the
    reference. ``judge``, ``learn``, ``rank``, ``scores`` and ``budgets`` stand around these, for a policy that needs more:
    they see the whole step, and what they keep may have more axes, (layer, batch, ...) and (layer, batch, n * head, visual).

    Attributes:
        selection: "top" keeps the best-scored tokens; "random" and "lowest" are the controls of the paper.
        kept: one kept set for each "layer", for each KV "head" by its own attention, or one "shared" by all layers.
        beam_state: "own" lets every beam (or returned sequence) decide for itself; "shared" averages the attention over
            the sequences of one input, so that they prune alike.
        seed: of selection="random".
    """

    selection: str = field(default="top", kw_only=True)
    kept: str = field(default="layer", kw_only=True)
    beam_state: str = field(default="own", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    limit: ClassVar[int] = 0  # the largest number of prunes
    needs_entropy: ClassVar[bool] = False  # of each attention row, in ``judge`` and ``learn``
    restricts_from: ClassVar[int | None] = None  # the first step m whose queries see only what ``attended`` says

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_choice(self, "selection", ("top", "random", "lowest"))
        check_choice(self, "kept", ("layer", "shared", "head"))
        check_choice(self, "beam_state", ("own", "shared"))
        check_count(self, "seed", 0, "Set seed=0, the default.")

    def check_prompt(self, numbers: Tensor) -> None:
        """Raise a ValueError if the policy cannot run on prompts whose tokens are in these pools, (batch, prompt); 0 is text."""

    def rank(self, seen: Seen, level: Tensor, previous: Tensor | None) -> Tensor:
        """Return what is kept of the steps so far to rank the tokens; ``level`` as ``judge`` gave it."""
        return self.score(seen.rows, previous)

    def scores(self, ranked: Tensor, numbers: Tensor) -> Tensor:
        """Return the scores (layer, batch, head, visual) from what ``rank`` kept; numbers: of the tokens within their row."""
        return ranked

    def score(self, rows: Tensor, previous: Tensor | None) -> Tensor:
        """Return what ranks the visual tokens; the method ranks by the attention of the latest step.

        Args:
            rows: attention of the newest query on the cached visual tokens, (layer, batch, head, visual); 0 where a row
                holds no token.
            previous: what this method returned one step earlier, for the same tokens in the same order; None at m = 1.
        """
        return rows

    def statistic_of(self, mass: Tensor, n_visual: Tensor) -> Tensor:
        """Return A_l from the attention mass on the visual tokens and their number, each (layer, batch)."""
        return mass / n_visual

    def judge(self, seen: Seen, reference: Tensor, entered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the level that A_l is compared with (nan without one), the threshold and the votes, each (layer, batch)."""
        level = reference.masked_fill(entered == 0, math.nan)
        return level, self.threshold(level), self.vote(seen.value, reference, entered)

    def learn(self, seen: Seen, reference: Tensor, entered: Tensor) -> tuple[Tensor, Tensor]:
        """Let this step enter the reference after its vote; return the new reference and count."""
        return self.enter(seen.value, reference, entered, seen.step)

    def threshold(self, reference: Tensor) -> Tensor:
        """Return the value below which a layer votes, (layer, batch); nan for a policy that takes no votes."""
        return torch.full_like(reference, math.nan)

    def vote(self, value: Tensor, reference: Tensor, entered: Tensor) -> Tensor:
        """Return which layers vote to prune, bool (layer, batch).

        Args:
            value: A_l of this step, (layer, batch).
            reference: the average of the earlier steps, (layer, batch).
            entered: how many steps the reference holds, (batch,); with none there is no vote.
        """
        return (value < self.threshold(reference)) & (entered > 0)

    def triggered(self, vote: Tensor) -> Tensor:
        """Return for which rows the votes (layer, batch) are enough, bool (batch,)."""
        return torch.zeros_like(vote[0])

    def enter(self, value: Tensor, reference: Tensor, entered: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Let this step's value enter the reference; return the new reference and count."""
        return reference + (value - reference) / (entered + 1), entered + 1

    def restarts(self) -> bool:
        """Say whether the reference of a row starts afresh after its prune."""
        return False

    def forced(self, step: int) -> bool:
        """Say whether step m prunes without a vote."""
        return False

    def budget(self, n: int) -> int:
        """Return how many of n visual tokens a prune leaves; n or more means that nothing is dropped."""
        return n

    def budgets(self, scores: Tensor, valid: Tensor, left: list[list[int]]) -> list[list[int]]:
        """Return ``budget`` by layer and row; where it depends on the scores, ``budget`` says the fewest that it may be."""
        return [[self.budget(n) for n in of_layer] for of_layer in left]

    def choose(self, scores: Tensor, valid: Tensor, budget: Tensor, seeds: Sequence[Sequence[int]]) -> Tensor:
        """Mark the visual tokens that stay, bool (layer, batch, head, visual).

        Args:
            scores: (layer, batch, head, visual), as ``score`` returned them.
            valid: bool, of the same shape.
            budget: integers (layer, batch).
            seeds: for each row the numbers that key its random draw, so that it does not depend on the batch around it.
        """
        if self.selection == "random":
            scores = random_scores(valid, [(self.seed, *key) for key in seeds]).to(scores)
        elif self.selection == "lowest":
            scores = -scores
        if self.kept == "shared":
            scores = scores.mean(0, keepdim=True).expand_as(scores)
        return keep_best(scores, valid, budget)


@dataclass(frozen=True)
class NoPruning(Policy):
    """Observe only: the trace is recorded and nothing is dropped.

    >>> NoPruning().budget(576)
    576
    """


@dataclass(frozen=True)
class TopK(Policy):
    """Keep the best k visual tokens once, after the attention of one step (the paper's fixed variant).

    A k of at least the number of visual tokens prunes nothing, and no event is recorded.

    Attributes:
        k: visual tokens to keep in each layer.
        step: the step m after whose attention the tokens are dropped; 1 is the prefill, 2 the first single-token
            forward.

    >>> TopK(36).budget(576)
    36
    """

    k: int
    step: int = field(default=2, kw_only=True)
    limit: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self, "k", 1, "Keep at least one visual token, e.g. k=36; to keep all, use NoPruning().")
        check_count(self, "step", 1, "Set step=2, the default.")

    def forced(self, step: int) -> bool:
        """Say whether step m is the one that prunes."""
        return step == self.step

    def budget(self, n: int) -> int:
        """Return k, or n where that is fewer."""
        return min(self.k, n)
