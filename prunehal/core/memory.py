"""Remember, for each pool of visual tokens, what a policy needs from the steps before: history, scores, number of prunes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prunehal.core.policy import Policy
from prunehal.core.seen import Seen
from prunehal.core.table import VisualTable, sent
from prunehal.core.trace import statistics

__all__ = ["PolicyMemory"]


class PolicyMemory:
    """Run a policy over the steps of a batch. A pool is what prunes together: a row, or one image of a row.

    This class knows no cache: attention rows come in, votes and kept tokens go out.

    >>> from prunehal.core.prunehal import PruneHal
    >>> memory = PolicyMemory(PruneHal(r=0.5), layers=1, keys=[(0,)], device="cpu")
    >>> wishes = [memory.vote(torch.full((1, 1, 1, 4), a), torch.tensor([[4]]), step)[2] for step, a in ((1, 0.2), (2, 0.1))]
    >>> [wish.tolist() for wish in wishes]
    [[False], [True]]
    """

    def __init__(
        self, policy: Policy, layers: int, keys: Sequence[Sequence[int]], device: torch.device | str, entropy: bool = False
    ) -> None:
        """Start without any step.

        Args:
            policy: decides.
            layers: number of layers.
            keys: for each pool the numbers that key its random draws.
            device: where the rows lie.
            entropy: let the statistics hold the entropy too.
        """
        self.policy, self._keys, self._entropy = policy, list(keys), entropy
        self.prunes = [0] * len(keys)
        self._reference = torch.zeros(layers, len(keys), device=device)
        self._entered = torch.zeros(len(keys), dtype=torch.long, device=device)
        self._scores: Tensor | None = None

    def start(self, scores: Tensor) -> None:
        """Let the policy find scores, (layer, pool, head, visual), before it sees any step."""
        self._scores = scores

    def attended(self, rows: Tensor, valid: Tensor, layer: int, step: int) -> Tensor:
        """Mark the tokens that a layer's newest query may attend to; rows, valid and the result are (1, pool, head, visual)."""
        before = None if self._scores is None else self._scores[layer, None]
        return self.policy.attended(rows, before, valid, [(*key, step, layer) for key in self._keys])

    def vote(
        self, rows: Tensor, counts: Tensor, step: int, asked: Tensor | None = None, live: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take the attention of step m, and say which pools want to be pruned.

        Args:
            rows: attention of the newest query, (layer, pool, head, visual); 0 where a pool holds no token.
            counts: visual tokens in each pool, (layer, pool).
            step: m.
            asked: the rows before the queries were restricted, where they were; they rank the tokens.
            live: bool (pool,), which pools' scores learn from this step; None: all.

        Returns:
            The statistics (4 or 5, layer, pool), as the trace records them; value, reference, threshold and vote
            (4, layer, pool); and the wishes, bool (pool,).
        """
        policy = self.policy
        summary = statistics(rows, counts, self._entropy or policy.needs_entropy)
        value = policy.statistic_of(summary[0], counts)
        seen = Seen(step, rows if asked is None else asked, value, summary[4] if policy.needs_entropy else None)
        level, threshold, vote = policy.judge(seen, self._reference, self._entered)
        votes = torch.stack([value, level, threshold, vote.to(value)])
        self._reference, self._entered = policy.learn(seen, self._reference, self._entered)
        before, self._scores = self._scores, policy.rank(seen, level, self._scores)
        if live is not None and before is not None:
            self._scores = torch.where(live[:, None, None], self._scores, before)
        wishes = torch.ones_like(self._entered, dtype=torch.bool) if policy.forced(step) else policy.triggered(vote)
        return summary if self._entropy else summary[:4], votes, wishes

    def may_prune(self, pool: int, left: Sequence[int]) -> bool:
        """Say whether a pool can be pruned once more, of which each layer has ``left`` tokens."""
        return self.prunes[pool] < self.policy.limit and any(self.policy.budget(n) < n for n in set(left))

    def choose(self, table: VisualTable, pools: list[int]) -> tuple[Tensor, list[list[int]]]:
        """Mark the tokens that stay when these pools are pruned, bool (layer, pool, head, visual); and count them by layer."""
        keys = [(*key, prunes) for key, prunes in zip(self._keys, self.prunes, strict=True)]
        scores = self.policy.scores(self._scores, table.numbers)
        budgets = self.policy.budgets(scores, table.valid, table.left)
        left = [
            [budget if pool in pools else n for pool, (n, budget) in enumerate(zip(*of_layer, strict=True))]
            for of_layer in zip(table.left, budgets, strict=True)
        ]
        return self.policy.choose(scores, table.valid, sent(left, scores.device), keys), left

    def prune(self, pools: list[int], table: VisualTable, keep: Tensor, left: list[list[int]]) -> None:
        """Note a prune of these pools; the table says in which order the kept tokens will stand."""
        self._scores = table.chosen(keep, left, self._scores)
        self.count(pools)

    def count(self, pools: list[int]) -> None:
        """Note a prune of these pools whose tokens keep their entries."""
        for pool in pools:
            self.prunes[pool] += 1
        if self.policy.restarts():
            self._entered = self._entered.index_fill(0, sent(pools, self._entered.device), 0)

    def reorder(self, index: Tensor, pools: list[int]) -> None:
        """Let the pools follow their beams; index and pools name the same sources."""
        self._reference, self._entered = self._reference.index_select(1, index), self._entered.index_select(0, index)
        self._scores = self._scores.index_select(1, index)
        self.prunes, self._keys = [self.prunes[pool] for pool in pools], [self._keys[pool] for pool in pools]
