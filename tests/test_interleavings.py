"""Whatever comes between two steps (beams that change places, copies, reads), each row is as if its tokens were read alone."""

import copy

import models
import torch
from decode import SEED, TOLERANCE
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunehal.core import Accumulated, PruneHal, TopK, attach

ROWS = 3
POLICIES = (
    PruneHal(r=0.6, t=3, factor=1.0),
    PruneHal(r=0.5, t=2, factor=1.0, kept="head", forced_first=False),
    TopK(5, step=3),
    Accumulated(r=0.6, t=2, factor=1.0, wait=2),
)
BEAMS = st.lists(st.integers(0, ROWS - 1), min_size=ROWS, max_size=ROWS)
WORDS = st.lists(st.integers(1, 90), min_size=ROWS, max_size=ROWS, unique=True)
ROUNDS = st.lists(st.tuples(WORDS, st.none() | BEAMS, st.sampled_from([None, "copy", "read"])), min_size=4, max_size=9)


def read(model, cache, **inputs):
    """Return the logits of the newest token, (row, word), of one forward on the cache."""
    with torch.no_grad():
        return model(**inputs, **cache.options, use_cache=True).logits[:, -1]


def alone(model, inputs, policy, tokens):
    """Return the logits after these tokens, one step each, and the cache that read them with nothing in between."""
    cache = attach(model, inputs, policy)
    logits = read(model, cache, **inputs)
    for token in tokens:
        logits = read(model, cache, input_ids=torch.tensor([[token]]))
    return logits[0], cache


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(POLICIES), ROUNDS)
def test_rows_are_as_if_read_alone_under_any_interleaving(policy, rounds):
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    cache = attach(model, inputs, policy)
    logits = read(model, cache, **{name: value.repeat_interleave(ROWS, dim=0) for name, value in inputs.items()})
    tokens = [[] for _ in range(ROWS)]
    for number, (words, beams, between) in enumerate(rounds):
        if beams is not None:
            cache.reorder_cache(torch.tensor(beams))
            logits, tokens = logits[beams], [tokens[row] for row in beams]
        if between == "copy":
            left, cache = cache, copy.deepcopy(cache)
            left.release()  # the copy has K and V of its own
        if between == "read":
            assert cache.step == number + 1
            assert len(cache.events) <= ROWS * getattr(policy, "t", 1)
        logits = read(model, cache, input_ids=torch.tensor(words)[:, None])
        tokens = [[*said, word] for said, word in zip(tokens, words, strict=True)]
    for row in range(ROWS):
        expected, single = alone(model, inputs, policy, tokens[row])
        votes = single.trace.votes()
        if "threshold" in votes:
            assume(not (votes["value"] / votes["threshold"] - 1).abs().min() < 1e-3)  # a vote that rounding may decide
        assert (logits[row] - expected).abs().max() <= TOLERANCE
        for layer in range(4):
            assert cache.kept(layer)[row].tolist() == single.kept(layer)[0].tolist()
