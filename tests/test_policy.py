"""The policies as pure functions: property tests, loop-written twins, and refused settings."""

import math

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunehal.core import NoPruning, PruneHal, TopK
from prunehal.core.selection import fraction_of, keep_best

QUICK = settings(max_examples=60, deadline=None)
# Few distinct values, so that ties are common.
SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), min_size=1, max_size=12)


def kept(scores, budget, valid=None):
    tensor = torch.tensor(scores)[None, None, None]
    valid = torch.ones_like(tensor, dtype=torch.bool) if valid is None else valid
    return keep_best(tensor, valid, torch.tensor([budget]))[0, 0, 0].nonzero().flatten().tolist()


@QUICK
@given(SCORES, st.integers(1, 14))
def test_keep_best_equals_the_loop(scores, budget):
    assert kept(scores, budget) == reference.keep_best(scores, budget)


@QUICK
@given(SCORES, st.integers(1, 12))
def test_no_dropped_token_beats_a_kept_one(scores, budget):
    chosen = kept(scores, budget)
    assert len(chosen) == min(budget, len(scores))
    dropped = [i for i in range(len(scores)) if i not in chosen]
    for low in dropped:
        assert all(scores[low] < scores[i] or (scores[low] == scores[i] and i < low) for i in chosen)


@QUICK
@given(st.permutations(list(range(8))), st.integers(1, 8))
def test_without_ties_the_choice_follows_a_permutation(order, budget):
    values = [0.1 * i for i in range(8)]
    assert sorted(order[i] for i in kept([values[i] for i in order], budget)) == kept(values, budget)


@QUICK
@given(SCORES, st.integers(1, 12), st.integers(1, 12))
def test_choices_are_nested(scores, one, other):
    assert set(kept(scores, min(one, other))) <= set(kept(scores, max(one, other)))


def test_invalid_entries_are_never_kept_and_do_not_count():
    valid = torch.tensor([False, True, True, False, True])[None, None, None]
    assert kept([9.0, 0.1, 0.3, 9.0, 0.2], 2, valid) == [2, 4]


def test_each_row_has_its_own_budget():
    scores = torch.tensor([[[[0.1, 0.2, 0.3]], [[0.3, 0.2, 0.1]]]])
    marks = keep_best(scores, torch.ones_like(scores, dtype=torch.bool), torch.tensor([1, 2]))
    assert marks[0, :, 0].tolist() == [[False, False, True], [True, True, False]]


def test_published_counts():
    policy, counts = PruneHal(r=0.4, t=3), [576]
    for _ in range(policy.limit):
        counts.append(policy.budget(counts[-1]))
    assert counts == [576, 230, 92, 36]


def test_fraction_is_exact_in_hundredths():
    # r is meant as the decimal that was typed: 0.29 * 100 is 29, not 28.
    for hundredths in range(1, 101):
        for n in (1, 2, 10, 32, 36, 100, 144, 256, 300, 576, 1200):
            assert fraction_of(hundredths / 100, n) == max(1, hundredths * n // 100)
            assert fraction_of(hundredths / 100, n, "ceil") == -(-hundredths * n // 100)


@QUICK
@given(
    st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=2, max_size=6),
    st.sampled_from(["mean", "first", "exponential", "previous"]),
    st.sampled_from(["prefill", "decode"]),
)
def test_reference_equals_the_loop(values, kind, first):
    policy = PruneHal(reference=kind, first=first, decay=0.75)
    running, entered = torch.zeros(3, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    for step, value in enumerate(values, start=1):
        history = [row for row in values[: step - 1]][1 if first == "decode" else 0 :]
        column = torch.tensor(value, dtype=torch.float64)[:, None]
        vote = policy.vote(column, running, entered)[:, 0].tolist()
        assert vote == [reference._votes(value[i], [row[i] for row in history], policy) for i in range(3)]
        running, entered = policy.enter(column, running, entered, step)


@pytest.mark.parametrize(
    ("majority", "votes", "expected"),
    [(0.5, 2, False), (0.5, 3, True), (0.25, 1, False), (0.25, 2, True), (1.0, 3, False), (1.0, 4, True)],
)
def test_majority_means_more_than_the_fraction(majority, votes, expected):
    vote = torch.tensor([[i < votes] for i in range(4)])
    assert PruneHal(majority=majority).triggered(vote).tolist() == [expected]


def test_threshold_is_sqrt_r_times_the_reference():
    reference_value = torch.full((2, 1), 0.5)
    assert PruneHal(r=0.64).threshold(reference_value).flatten().tolist() == pytest.approx([0.4, 0.4])
    assert PruneHal(factor=0.5).threshold(reference_value).tolist() == [[0.25], [0.25]]
    assert math.isnan(NoPruning().threshold(reference_value)[0, 0])


def test_forced_prune_is_at_m_2_only():
    assert [PruneHal().forced(step) for step in (1, 2, 3)] == [False, True, False]
    assert not PruneHal(forced_first=False).forced(2)
    assert [TopK(4, step=1).forced(step) for step in (1, 2)] == [True, False]


def test_selections():
    scores = torch.tensor([0.1, 0.4, 0.2, 0.3]).expand(2, 1, 1, 4)
    valid, budget = torch.ones(2, 1, 1, 4, dtype=torch.bool), torch.tensor([2])
    top = TopK(2).choose(scores, valid, budget, [(0, 0)])
    lowest = TopK(2, selection="lowest").choose(scores, valid, budget, [(0, 0)])
    assert top[0, 0, 0].tolist() == [False, True, False, True]
    assert torch.equal(lowest, ~top)


def test_random_selection_depends_on_its_keys_only():
    policy, valid = TopK(3, selection="random"), torch.ones(2, 1, 1, 9, dtype=torch.bool)
    alone = policy.choose(torch.zeros(2, 1, 1, 9), valid, torch.tensor([3]), [(5, 0)])
    assert alone.sum(-1).unique().tolist() == [3]
    wide = torch.cat([torch.zeros(2, 1, 1, 2, dtype=torch.bool), valid], dim=-1)  # padded within a wider batch
    other = torch.ones(2, 1, 1, 11, dtype=torch.bool)
    batch = policy.choose(torch.zeros(2, 2, 1, 11), torch.cat([other, wide], 1), torch.tensor([3, 3]), [(4, 0), (5, 0)])
    assert torch.equal(batch[:, 1, :, 2:], alone[:, 0])
    assert not torch.equal(alone, policy.choose(torch.zeros(2, 1, 1, 9), valid, torch.tensor([3]), [(5, 1)]))


def test_shared_keeps_one_set_in_all_layers():
    scores = torch.tensor([[0.9, 0.5, 0.0], [0.0, 0.5, 0.8]])[:, None, None]
    valid = torch.ones_like(scores, dtype=torch.bool)
    marks = PruneHal(kept="shared").choose(scores, valid, torch.tensor([1]), [(0, 0)])
    assert marks[:, 0, 0].tolist() == [[False, True, False]] * 2


def test_nothing_to_prune():
    assert PruneHal(r=1.0).limit == PruneHal(t=0).limit == NoPruning().limit == 0
    assert TopK(40).budget(16) == 16


def test_presets_are_the_published_settings():
    found = {name: (PruneHal.preset(name).r, PruneHal.preset(name).t) for name in PruneHal.PRESETS}
    assert found == {"llava-1.5": (0.4, 3), "instructblip": (0.7, 2), "qwen-vl": (0.9, 4)}
    assert PruneHal.preset("llava-1.5", rounding="ceil").rounding == "ceil"


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: PruneHal(r=0), ["r=0", "(0, 1]", "r=0.4"]),
        (lambda: PruneHal(r=1.5), ["r=1.5", "(0, 1]"]),
        (lambda: PruneHal(r=float("nan")), ["r=nan", "(0, 1]"]),
        (lambda: PruneHal(r=True), ["r=True"]),
        (lambda: PruneHal(r="0.4"), ["r='0.4'", "number"]),
        (lambda: PruneHal(t=-1), ["t=-1", "at least 0"]),
        (lambda: PruneHal(t=2.5), ["t=2.5", "integer"]),
        (lambda: PruneHal(factor=0), ["factor=0", "factor=None"]),
        (lambda: PruneHal(majority=1.2), ["majority=1.2", "(0, 1]"]),
        (lambda: PruneHal(decay=0), ["decay=0"]),
        (lambda: PruneHal(forced_first="yes"), ["forced_first='yes'", "True or False"]),
        (lambda: PruneHal(statistic="median"), ["statistic='median'", "'mean', 'sum'"]),
        (lambda: PruneHal(first="m2"), ["first='m2'", "'prefill', 'decode'"]),
        (lambda: PruneHal(reference="median"), ["reference='median'", "'previous'"]),
        (lambda: PruneHal(after_prune="stop"), ["after_prune='stop'", "'restart'"]),
        (lambda: PruneHal(rounding="round"), ["rounding='round'", "'ceil'"]),
        (lambda: PruneHal(selection="best"), ["selection='best'", "'lowest'"]),
        (lambda: PruneHal(kept="token"), ["kept='token'", "'shared'"]),
        (lambda: PruneHal(beam_state="none"), ["beam_state='none'", "'own'"]),
        (lambda: PruneHal(seed=-1), ["seed=-1"]),
        (lambda: TopK(0), ["k=0", "at least 1", "NoPruning()"]),
        (lambda: TopK(3, step=0), ["step=0", "step=2"]),
        (lambda: PruneHal.preset("llava"), ["preset='llava'", "'llava-1.5'", "PruneHal(r=0.4, t=3)"]),
    ],
)
def test_bad_settings_name_value_expected_and_fix(make, parts):
    with pytest.raises(ValueError, match="expected") as error:
        make()
    assert all(part in str(error.value) for part in parts), error.value


def test_settings_are_frozen_and_hashable():
    assert len({PruneHal(), PruneHal(r=0.4, t=3), PruneHal(r=0.5)}) == 2
    with pytest.raises(AttributeError):
        PruneHal().r = 0.5
