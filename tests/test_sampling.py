"""Keyed sampling: draws follow the nucleus's probabilities, and depend on seed, image and step alone."""

import math

import pytest
import torch
from scipy import stats

from prunehal.experiments.sampling import KeyedSampling

LOGITS = [2.0, 1.5, 0.5, 0.0, -1.0, -3.0]


def nucleus(logits, top_p):
    """Work out, token by token, the renormalised probabilities of the smallest set that holds top_p."""
    total = sum(math.exp(value) for value in logits)
    chances = {token: math.exp(value) / total for token, value in enumerate(logits)}
    kept, held = [], 0.0
    for token in sorted(chances, key=lambda token: -chances[token]):
        if held >= top_p:
            break
        kept.append(token)
        held += chances[token]
    return [chances[token] / held if token in kept else 0.0 for token in chances]


def drawn(keys, seed=0, step=0, prompt=3, logits=LOGITS, top_p=0.9):
    sampling = KeyedSampling(keys, seed, prompt, top_p)
    scores = torch.tensor([logits] * len(keys))
    return sampling(torch.zeros(len(keys), prompt + step, dtype=torch.long), scores).argmax(1).tolist()


@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
def test_draws_follow_the_nucleus(top_p):
    expected = nucleus(LOGITS, top_p)
    n = 4000
    counts = [0] * len(LOGITS)
    for token in drawn(range(n), top_p=top_p):
        counts[token] += 1
    assert all(count == 0 for count, chance in zip(counts, expected, strict=True) if chance == 0)
    inside = [(count, n * chance) for count, chance in zip(counts, expected, strict=True) if chance]
    assert stats.chisquare(*zip(*inside, strict=True)).pvalue > 1e-3


def test_the_largest_always_wins_where_the_nucleus_holds_it_alone():
    assert set(drawn(range(50), logits=[9.0, 0.0, 0.0])) == {0}


def test_a_draw_depends_on_its_own_image_only():
    keys = list(range(40))
    together = drawn(keys)
    assert together == [token for key in keys for token in drawn([key])]
    assert together[::-1] == drawn(keys[::-1])
    assert len(set(together)) > 1
    assert drawn([7] * 5) == [drawn([7])[0]] * 5


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 1}], ids=repr)
def test_seed_and_step_draw_anew(other):
    keys = range(200)
    first, second = drawn(keys), drawn(keys, **other)
    agreeing = sum(a == b for a, b in zip(first, second, strict=True)) / 200
    by_chance = sum(chance**2 for chance in nucleus(LOGITS, 0.9))
    assert abs(agreeing - by_chance) < 4 * math.sqrt(by_chance * (1 - by_chance) / 200)


def test_the_length_of_the_prompt_does_not_matter():
    assert drawn(range(50), prompt=3, step=2) == drawn(range(50), prompt=40, step=2)


def test_names_of_images_are_keys_too():
    assert drawn(["a", "b", 3], step=5) == [drawn([key], step=5)[0] for key in ("a", "b", 3)]


def test_draws_are_the_same_on_every_machine():
    assert "".join(map(str, drawn(range(30)))) == "101102010011002001110020121000"


def test_half_precision_is_drawn_in_float():
    sampling = KeyedSampling([1, 2], 0, 1)
    scores = torch.tensor([LOGITS] * 2)
    ids = torch.zeros(2, 1, dtype=torch.long)
    noisy = sampling(ids, scores.to(torch.bfloat16))
    assert noisy.dtype == torch.float32
    assert torch.equal(noisy, sampling(ids, scores))
