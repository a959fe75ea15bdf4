"""Search for an answer by OPERA's rules, and go back in it; `opera` states the method and attaches it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunehal.core import Listener, PrunableCache
from prunehal.decoding.opera.beams import Beams
from prunehal.decoding.opera.lookahead import LookAhead
from prunehal.decoding.opera.overtrust import by_position, columns, mode, overtrust, penalised, place_to_return_to
from prunehal.decoding.opera.rewinding import Mark, Rewinder

if TYPE_CHECKING:
    from prunehal.decoding.opera.opera import OPERA

__all__ = ["Newest", "Search"]


class Newest(Listener):
    """Keep the attention of the newest token in the last layer."""

    searching = False
    layer: int | None = None
    weights: Tensor

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Say that a search runs inside the block."""
        self.searching = True
        try:
            yield
        finally:
            self.searching = False

    def heard(self, layer: int, weights: Tensor) -> None:
        """Keep what the last layer of a forward says."""
        if not self.searching:
            raise ValueError(
                "generate() runs without the options of OPERA.on(), which would then do nothing; expected them. "
                "Fix: generate(**inputs, **cache.options, **options)."
            )
        self.layer, self.weights = layer, weights

    def row(self, cache: PrunableCache) -> Tensor:
        """Return it over all positions, (beam, position).

        Raises:
            ValueError: nothing was heard, since the block in which the cache is listened to has ended.
        """
        if self.layer is None:
            raise ValueError(
                "options: the block of OPERA.on() that gave them has ended, so that OPERA hears no attention; expected "
                "generate() inside it. Fix: with opera.on(model, inputs, cache) as options: "
                "model.generate(**inputs, **cache.options, **options)."
            )
        layer = cache.layers[self.layer]
        return by_position(self.weights, layer.slot_positions(), layer.seen)


@dataclass
class _Moment:
    """Hold what a search returns to: the state in which some tokens are chosen and the newest of them is not yet read."""

    beams: Beams
    sums: Tensor  # of ln w by column, of the tokens read, (beam, read)
    kwargs: dict[str, Any]  # of the model
    mark: Mark
    rows: Tensor  # where the newest tokens were chosen, (beam,)
    tokens: Tensor  # the newest tokens, (beam,)
    histories: list[tuple[int, ...]]  # of locations, by beam; from the next step on with that step's


class Search:
    """Walk through the answer, forward and sometimes back."""

    def __init__(
        self, opera: OPERA, cache: PrunableCache, newest: Newest, model: torch.nn.Module, beams: Beams, kwargs: dict[str, Any]
    ) -> None:
        self._opera, self._cache, self._newest, self._model = opera, cache, newest, model
        self.beams, self._kwargs = beams, kwargs
        self._prompt = beams.ids.shape[1]
        self._sums = torch.zeros(len(beams.ids), 0, device=beams.ids.device)
        self._histories: list[tuple[int, ...]] = [()] * len(beams.ids)
        self._moments: list[_Moment] = []  # the one at i has i + 1 tokens chosen
        self._ahead: LookAhead | None = None
        self._rewinder: Rewinder | None = None
        self._image: Tensor | None = None  # positions of the visual tokens
        self._rolled: Counter[int] = Counter()
        self._rejected: dict[int, list[Tensor]] = {}  # by token: choices taken back, each (beam, 2)

    def read(self, out: Any) -> Tensor:
        """Take what an ordinary forward gave; return its logits, float32 (beam, vocabulary)."""
        self._kwargs = self._model._update_model_kwargs_for_generation(out, self._kwargs)
        self._entered()
        return out.logits[:, -1].to(self.beams.ids.device, torch.float32, copy=True)

    def _entered(self) -> None:
        if self._rewinder is None:
            self._rewinder = Rewinder(self._cache)
            visual = self._cache.kept(self._cache.layers[0].index, step=1)[0]
            self._image = visual.flatten().unique().to(self.beams.ids.device)
        else:
            self._rewinder.note()
            row = self._newest.row(self._cache).to(self._sums.device)
            self._sums = columns(self._sums, row[:, self._prompt :], self._opera.sigma)
        self._cache._settle()  # candidates are read by what the next token will see

    def weighed(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities to choose from, and the logits behind them; they may belong to an earlier token."""
        opera = self._opera
        candidates = logits.topk(min(opera.candidates, logits.shape[1])).indices
        ids = torch.cat([self.beams.ids, candidates[:, :1]], dim=1)
        inputs = self._model.prepare_inputs_for_generation(ids, next_sequence_length=1, **self._kwargs)
        self._ahead = LookAhead(self._model, self._cache, inputs, candidates)
        window = columns(self._sums[:, None], self._ahead.rows[..., self._prompt :], opera.sigma)
        penalty, locations = overtrust(window, opera.scale)
        found = [mode(of_beam) for of_beam in locations.tolist()]
        self._histories = [(*history, location) for history, location in zip(self._histories, found, strict=True)]
        if self._moments:
            self._moments[-1].histories = self._histories
        location, chosen = mode(found), len(self._moments)
        if location >= opera.warmup:
            limits = {"threshold": opera.threshold, "rolled": self._rolled, "limit": opera.candidates, "chosen": chosen}
            place = place_to_return_to(location, self._histories, **limits)
            if place is not None:
                return self._return_to(place)
        if chosen < opera.warmup:
            penalty = -self._ahead.rows[..., self._image].sum(-1)
        return penalised(logits, candidates, penalty, opera.alpha), logits

    def _return_to(self, place: int) -> tuple[Tensor, Tensor]:
        """Take everything back until the token at ``place`` is to be chosen, and rule out what was chosen there."""
        self._rolled[place] += 1
        taken_back = self._moments[place]
        self._rejected = {at: pairs for at, pairs in self._rejected.items() if at <= place}
        pairs = self._rejected.setdefault(place, [])
        pairs.append(torch.stack([taken_back.rows, taken_back.tokens], dim=1))
        del self._moments[place:]
        moment = self._moments[-1]
        self.beams, self._sums, self._histories = moment.beams, moment.sums, moment.histories
        self._kwargs, self._ahead = dict(moment.kwargs), None
        self._rewinder.rewind(moment.mark, self.beams.parents[:, 1:])
        logits = self.read_chosen()
        rows, tokens = torch.cat(pairs).unbind(1)
        allowed = logits.clone()
        allowed[rows, tokens] = logits.amin(-1)[rows]
        return allowed.log_softmax(-1), logits

    def choose(self, beams: Beams, rows: Tensor, tokens: Tensor) -> bool:
        """Let everything follow the new beams; return whether the search is over."""
        self.beams = beams
        self._cache.reorder_cache(rows)
        self._sums = self._sums[rows]
        self._histories = [self._histories[row] for row in rows.tolist()]
        if not beams.done:
            mark, kwargs = self._rewinder.mark(), dict(self._kwargs)
            self._moments.append(_Moment(beams, self._sums, kwargs, mark, rows, tokens, self._histories))
        return beams.done

    def read_chosen(self) -> Tensor:
        """Read the newest tokens; return the logits after them, (beam, vocabulary)."""
        moment, ahead = self._moments[-1], self._ahead
        places = None if ahead is None else ahead.place_of(moment.rows, moment.tokens)
        if places is None:
            inputs = self._model.prepare_inputs_for_generation(self.beams.ids, next_sequence_length=1, **self._kwargs)
            return self.read(self._model(**inputs, return_dict=True))
        self._kwargs = self._model._update_model_kwargs_for_generation({}, self._kwargs)
        logits = ahead.commit(moment.rows, places)
        self._entered()
        return logits
