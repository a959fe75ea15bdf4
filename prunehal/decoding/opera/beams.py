"""Keep the beams of one input by the rules of stock generate(), as values that a search can return to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from transformers import GenerationConfig

__all__ = ["Beams", "Hypothesis", "Rules"]

NEVER = -1e9  # the score of a beam that is to lose against every other, as in generate()


@dataclass(frozen=True)
class Rules:
    """Hold what generate() was told about beams.

    Attributes:
        beams: their number.
        prompt: tokens of the prompt.
        longest: tokens of the longest sequence, prompt included.
        ends: number of ids that end a sequence.
        length_penalty, early_stopping: as in generate().
    """

    beams: int
    prompt: int
    longest: int
    ends: int
    length_penalty: float
    early_stopping: bool | str

    @classmethod
    def of(cls, config: GenerationConfig, prompt: int) -> Self:
        """Read the rules from a prepared generation config."""
        ends = 0 if config.eos_token_id is None else torch.as_tensor(config.eos_token_id).numel()
        return cls(config.num_beams, prompt, config.max_length, ends, config.length_penalty, config.early_stopping)


class Hypothesis(NamedTuple):
    """Hold a sequence that may be returned: score, ids (length,), parents (generated,), and whether it has really ended."""

    score: float
    ids: Tensor
    parents: Tensor
    ended: bool


@dataclass(frozen=True)
class Beams:
    """Hold the running beams, best first, and the best sequences that have ended.

    Attributes:
        ids: (beam, length), prompt included.
        scores: sums of log-probabilities, (beam,).
        parents: from which row each generated token was chosen, along the beam's line of descent, (beam, generated).
        ended: as many hypotheses as beams, best first.
        done: whether the search is over.
    """

    ids: Tensor
    scores: Tensor
    parents: Tensor
    ended: tuple[Hypothesis, ...]
    done: bool = False

    @classmethod
    def start(cls, ids: Tensor) -> Self:
        """Return equal beams of the prompt, (beam, prompt), of which only the first counts."""
        scores = torch.full((len(ids),), NEVER, device=ids.device)
        scores[0] = 0.0
        parents = ids[:, :0]
        return cls(ids, scores, parents, (Hypothesis(NEVER, ids[0], parents[0], False),) * len(ids))

    def advance(self, log_probs: Tensor, stops: Callable[[Tensor], Tensor], rules: Rules) -> tuple[Self, Tensor, Tensor]:
        """Choose the next token of every beam.

        Args:
            log_probs: of the next token, as the processors returned them, (beam, vocabulary).
            stops: says which of the sequences (row, length) end, bool (row,).
            rules: of the search.

        Returns:
            The new beams; the rows they come from, (beam,); their tokens, (beam,).
        """
        beams, vocabulary = log_probs.shape
        # So many that enough go on even if all the best ones end.
        scores, flat = (log_probs + self.scores[:, None]).flatten().topk(max(2, 1 + rules.ends) * beams)
        rows, tokens = flat // vocabulary, flat % vocabulary
        ids = torch.cat([self.ids[rows], tokens[:, None]], dim=1)
        parents = torch.cat([self.parents[rows], rows[:, None]], dim=1)
        stopped = stops(ids)
        running, order = (scores + stopped * NEVER).topk(beams)

        generated = parents.shape[1]
        ended = list(self.ended)
        if not (rules.early_stopping is True and all(each.ended for each in ended)):
            final = (scores / generated**rules.length_penalty).tolist()
            best = zip(final[:beams], stopped[:beams].tolist(), ids, parents, strict=False)
            ended += [Hypothesis(score, *sequence, True) for score, stop, *sequence in best if stop]
        ended = tuple(sorted(ended, key=lambda each: -each.score)[:beams])  # stable: of equals, the earlier
        done = bool(stopped.all()) or _over(running[0].item(), ended, generated, rules)
        after = type(self)(ids[order], running, parents[order], ended, done)
        return after, rows[order], tokens[order]


def _over(best: float, ended: tuple[Hypothesis, ...], generated: int, rules: Rules) -> bool:
    """Say whether no running beam can get among the best that have ended, or none is allowed to."""
    full = all(each.ended for each in ended)
    if full and rules.early_stopping is True:
        return True
    if rules.early_stopping == "never" and rules.length_penalty > 0:
        generated = rules.longest - rules.prompt
    worst = ended[-1].score if full else NEVER
    return best / generated**rules.length_penalty <= worst
