"""Take a pruning cache back to an earlier step of a beam search, exactly, without running the model on the prompt again.

K and V of a token never change after they were computed, so the past is a matter of bookkeeping: one copy of the prompt's K
and V (the beams share them, and pruning would lose them), K and V of every token as it was read, in the row it had then, and
for each step the small state of the pruner: which slots were kept, and what the policy remembered.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from prunehal.core import PrunableCache
from prunehal.core.blocks import BlockLayer
from prunehal.core.memory import PolicyMemory
from prunehal.core.table import VisualTable

__all__ = ["Mark", "Rewinder"]


@dataclass(frozen=True)
class Mark:
    """Hold the state of a pruner after some tokens of the answer were read; no K and V.

    Attributes:
        read: number of those tokens.
        step, events, recorded: steps m observed, prunes so far, steps in the trace.
        done: which rows have ended, (batch,).
        table, memory: which slots hold which tokens, and what the policy remembers.
    """

    read: int
    step: int
    events: tuple[dict, ...]
    recorded: int
    done: Tensor
    table: VisualTable
    memory: PolicyMemory


class Rewinder:
    """Remember what a cache reads from now on, and take it back to any mark."""

    def __init__(self, cache: PrunableCache) -> None:
        """Start right after the prompt was read, when nothing is pruned; all rows hold the same prompt."""
        self._cache = cache
        self._prompt = [_parts(layer, slice(0, 1), slice(None)) for layer in cache.layers]
        self._read: list[list[tuple[Tensor, Tensor]]] = []  # by token and layer

    def note(self) -> None:
        """Remember the token that every row has just read."""
        self._read.append([_parts(layer, slice(None), slice(-1, None)) for layer in self._cache.layers])

    def mark(self) -> Mark:
        """Return the state of the pruner, once a prune that is due is done."""
        cache = self._cache
        cache._settle()
        events = tuple(cache._events)
        table, memory = copy.copy(cache.table), _copied(cache._memory)
        return Mark(len(self._read), cache.step, events, len(cache._trace), cache._done, table, memory)

    def rewind(self, mark: Mark, rows: Tensor) -> None:
        """Take the cache back to a mark.

        Args:
            mark: where to.
            rows: in which row each beam's tokens stood when they were read, (beam, token), ``mark.read`` tokens.
        """
        cache = self._cache
        del self._read[mark.read :]
        cache.table, cache._memory, cache._done = copy.copy(mark.table), _copied(mark.memory), mark.done
        cache.step, cache._events, cache._pending = mark.step, list(mark.events), None
        cache._trace._steps = mark.recorded  # later ones are overwritten
        for place, layer in enumerate(cache.layers):
            past = [[self._read[token][place][part] for token in range(mark.read)] for part in (0, 1)]
            seen = self._prompt[place][0].shape[2] + mark.read
            slots = None if mark.table.positions is None else mark.table.slot_positions(layer.place, seen)
            keys, values = (
                _slots(_line(prompt, tokens, rows), slots) for prompt, tokens in zip(self._prompt[place], past, strict=True)
            )
            BlockLayer.reset(layer)
            BlockLayer.update(layer, keys, values)  # past the observation: these tokens were observed when they were new
            layer.seen = seen


def _parts(layer: BlockLayer, rows: slice, slots: slice) -> tuple[Tensor, Tensor]:
    return layer.keys[rows, :, slots].clone(), layer.values[rows, :, slots].clone()


def _line(prompt: Tensor, tokens: list[Tensor], rows: Tensor) -> Tensor:
    """Put prompt (1, kv_head, position, dim) and tokens (batch, kv_head, 1, dim) together along each beam's descent."""
    rows = rows.to(prompt.device)
    return torch.cat([prompt.expand(len(rows), -1, -1, -1), *(new[rows[:, i]] for i, new in enumerate(tokens))], dim=2)


def _slots(whole: Tensor, positions: Tensor | None) -> Tensor:
    """Take the slots that were stored, (batch, 1 or kv_head, slot), out of K or V of all positions; -1 is a dead slot."""
    if positions is None:
        return whole
    index = positions.to(whole.device).clamp_min(0).expand(-1, whole.shape[1], -1)[..., None]
    return whole.gather(2, index.expand(-1, -1, -1, whole.shape[3]))


def _copied(memory: PolicyMemory) -> PolicyMemory:
    """Copy what changes; tensors are replaced at each step, never written to."""
    copied = copy.copy(memory)
    copied.prunes = list(memory.prunes)
    return copied
