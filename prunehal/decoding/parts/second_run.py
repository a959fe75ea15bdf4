"""Run the same model a second time beside generate(), on other inputs and a cache of its own: what contrastive decoders need.

The branch reads its prompt by stock generate(), with one new token, so that positions, masks and image features are those
that the library makes of such inputs. From then on it reads the token that each row of the main run has just read, at
positions of its own: its prompt may be shorter. Its cache is a stock DynamicCache, which no policy prunes and no listener
hears; it follows the beams of the main run, because the branch listens to the main cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from prunehal.core import Listener, PrunableCache, listening
from prunehal.core.greedy import FIRST_LOGITS
from prunehal.core.keyword import as_option
from prunehal.core.offsets import offsets_of, restore_offsets
from prunehal.core.visual import generating
from prunehal.decoding.parts.forwards import beside, changing_logits

__all__ = ["Branch", "check_unread", "contrasting"]

ANEW = "Fix: attach() a new cache to the whole conversation, and attach the method to that."
# What a forward of the prompt says about its tokens; each new token adds one entry.
BY_TOKEN = ("position_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class Branch(Listener):
    """Hold a second run of a model, row by row beside the main one.

    Attributes:
        logits: of the newest token, (batch, vocabulary), float32.
        cache: the branch's own K and V.
    """

    def __init__(self, model: torch.nn.Module, inputs: Mapping[str, Tensor], main: PrunableCache) -> None:
        """Run the branch's prompt.

        Args:
            model: whose generate() takes the inputs.
            inputs: of the branch; as many rows as the main run has before generate() repeats them, padded on the left.
            main: cache of the main run.
        """
        self._model, self.cache = generating(model), DynamicCache(config=model.config.get_text_config(decoder=True))
        beside(self.cache, main)
        self._prompt: dict[str, Any] = {}
        hook = self._model.register_forward_pre_hook(self._note, with_kwargs=True)
        options = {**as_option(self.cache), **FIRST_LOGITS}
        try:
            with _positions_kept(self._model):
                # By way of the class: the object's own generate() may be replaced, as inside pruning().
                self.logits = type(model).generate(model, **inputs, **options).logits[0].float()
        finally:
            hook.remove()

    def _note(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._prompt = {name: kwargs[name] for name in BY_TOKEN if kwargs.get(name) is not None}

    def expand(self, rows: int) -> None:
        """Repeat every row as often as generate() does for its beams or returned sequences, until there are ``rows``.

        Raises:
            ValueError: rows is no multiple of the branch's rows.
        """
        copies, rest = divmod(rows, len(self.logits))
        if rest or not copies:
            raise ValueError(
                f"inputs: the method was attached to inputs of {len(self.logits)} rows, and generate() runs {rows}; expected as "
                "many or a multiple. Fix: pass the same inputs to on() and generate()."
            )
        if copies > 1:
            # Not batch_repeat_interleave, which layers with a running state do not have.
            self.reordered(torch.arange(len(self.logits)).repeat_interleave(copies))

    def read(self, tokens: Tensor) -> None:
        """Read one token a row, (batch, 1), and set ``logits`` to what follows it."""
        new = {"position_ids": self._last("position_ids", 1), "attention_mask": None}
        if (mask := self._prompt.get("attention_mask")) is not None:
            self._prompt["attention_mask"] = new["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if "token_type_ids" in self._prompt:
            new["token_type_ids"] = self._last("token_type_ids", 0)
        if "mm_token_type_ids" in self._prompt:
            new["mm_token_type_ids"] = torch.zeros_like(tokens)
        new = {name: value for name, value in new.items() if value is not None}
        with torch.no_grad():
            output = self._model(input_ids=tokens, **as_option(self.cache), use_cache=True, return_dict=True, **new)
        if "position_ids" in new:
            self._prompt["position_ids"] = new["position_ids"]
        self.logits = output.logits[:, -1].float()

    def _last(self, name: str, more: int) -> Tensor | None:
        values = self._prompt.get(name)
        return None if values is None else values[..., -1:] + more

    def reordered(self, beam_idx: Tensor) -> None:
        """Follow the beams of the main run."""
        self.cache.reorder_cache(beam_idx)
        self._take(beam_idx)

    def _take(self, rows: Tensor) -> None:
        batch = len(self.logits)
        self.logits = self.logits.index_select(0, rows.to(self.logits.device))
        for name, value in self._prompt.items():
            axis = value.ndim - 2  # M-RoPE has an axis (or several) in front of the rows
            if value.shape[axis] == batch:  # positions without padding may stand once for all rows
                self._prompt[name] = value.index_select(axis, rows.to(value.device))


@contextmanager
def _positions_kept(model: torch.nn.Module) -> Iterator[None]:
    offsets = offsets_of(model)  # of the main run, which needs its own
    try:
        yield
    finally:
        restore_offsets(model, offsets)


@contextmanager
def contrasting(
    model: torch.nn.Module, cache: PrunableCache, branch: Branch, combine: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Let every forward of the main run return logits combined with the branch's; see `changing_logits`.

    Args:
        model: whose generate() runs inside.
        cache: of the main run.
        branch: reads beside it.
        combine: takes the logits of the main run and of the branch, float32 (batch, vocabulary), and returns new ones,
            with -inf where a token is cut.
    """
    started = False

    def rule(logits: Tensor, tokens: Tensor | None) -> Tensor:
        nonlocal started
        if not started:
            branch.expand(len(logits))
        elif tokens is None or tokens.shape[1] != 1 or cache.step == 1:
            raise ValueError(
                "cache: a second prompt arrived while the method is attached (or the first one again, after reset()); "
                f"expected one prompt and what follows it. {ANEW}"
            )
        else:
            branch.read(tokens)
        started = True
        return combine(logits, branch.logits.to(logits.device))

    with changing_logits(model, cache, rule), listening(cache, branch):
        yield


def check_unread(cache: PrunableCache) -> None:
    """Refuse a cache whose prompt was read: a branch could not catch up with what followed.

    Raises:
        ValueError: the cache holds the whole prompt.
    """
    if (seen := cache.get_seq_length()) >= len(cache.prompt):
        raise ValueError(
            f"cache: has read {seen} tokens, the whole prompt of {len(cache.prompt)}, which the branch has not; expected a cache "
            f"whose prompt is still to be read. {ANEW}"
        )
