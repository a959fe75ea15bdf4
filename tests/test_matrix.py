"""The matrix of decoders and policies: the choice on validation, the shipped grid, and the Pareto front."""

import itertools

import numpy as np
import pandas as pd
import pytest

import prunehal as ph
from prunehal.experiments import Experiment, read_grid, sweep
from prunehal.matrix import POLICIES, chosen_decoders, front, matrix
from prunehal.resources import data_path


@pytest.fixture(scope="module")
def chosen():
    return chosen_decoders(ph.Store.shipped())


def test_the_shipped_grid_holds_what_validation_chose(chosen):
    expected = {
        (decoding, policy)
        for decoding in ("greedy", "beam", "nucleus", *(each.setting for each in chosen.values()))
        for policy in POLICIES.values()
    }
    assert {(each.decoding, each.policy) for each in read_grid(data_path("grids", "decoders_test.toml"))} == expected


def test_a_choice_keeps_the_recall_or_has_the_highest(chosen):
    store, plain = ph.Store.shipped(), Experiment(n_images=200)
    base = store.score(plain).metrics["recall"]
    for choice in chosen.values():
        own = store.score(Experiment(n_images=200, decoding=choice.setting)).metrics
        assert choice.value == own[choice.by]
        assert (own["recall"] >= base - 0.01 - 1e-12) == (choice.by == "chair_i")
        assert choice.split == "validation"


def test_the_matrix_compares_with_greedy_and_with_the_same_decoding(tmp_path, chosen):
    some = {name: chosen[name] for name in ("vcd",)}
    base = Experiment(split="test", n_images=6)
    decodings = ("greedy", "beam", "nucleus", chosen["vcd"].setting)
    pairs = itertools.product(decodings, POLICIES.values())
    store = sweep([base.with_options({"decoding": d, "policy": p}) for d, p in pairs], tmp_path, progress=False)
    table = matrix(store, some, n_images=6, n_resamples=200)
    order = itertools.product(("greedy", "beam", "nucleus", "vcd"), POLICIES)
    assert list(zip(table["decoding"], table["policy"], strict=True)) == list(order)
    assert table.loc[0, [c for c in table if c.startswith(("d_", "equal_", "own_"))]].isna().all()
    chair = {(d, p): 100 * store.score(base.with_options({"decoding": d, "policy": p})).metrics["chair_i"]
             for d, p in itertools.product(decodings, POLICIES.values())}  # fmt: skip
    for line in table.iloc[1:].itertuples():
        cell = line.experiment
        assert line.chair_i == pytest.approx(chair[cell.decoding, cell.policy])
        assert line.d_chair_i == pytest.approx(chair[cell.decoding, cell.policy] - chair["greedy", ph.NoPruning()])
        if line.policy == "no pruning":
            assert np.isnan(line.own_chair_i)
        else:
            assert line.own_chair_i == pytest.approx(chair[cell.decoding, cell.policy] - chair[cell.decoding, ph.NoPruning()])
    assert table["p_holm"].notna().sum() == len(table) - 1


def test_the_front_is_what_no_other_beats():
    rng = np.random.default_rng(0)
    cost, harm = (pd.Series(rng.integers(0, 6, 40), index=range(100, 140)) for _ in range(2))
    for i in cost.index:
        beats = any(cost[j] <= cost[i] and harm[j] <= harm[i] and (cost[j], harm[j]) != (cost[i], harm[i]) for j in cost.index)
        assert front(cost, harm)[i] == (not beats)
