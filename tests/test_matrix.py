"""The matrix of decoders and policies: the choice on validation, the shipped grid, what it says, and the Pareto front."""

import itertools

import numpy as np
import pandas as pd
import pytest

import prunehal as ph
from prunehal.experiments import Experiment, read_grid, sweep
from prunehal.files.paths import data_path
from prunehal.studies.nb07_decoders import in_words as matrix_reading
from prunehal.studies.nb07_decoders import matrix as matrix_module
from prunehal.studies.nb07_decoders.matrix import POLICIES, chosen_decoders, front, matrix


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
        assert (own["recall"] >= base - 0.01 - 1e-12) == (choice.by == "distinct_chair_i")
        assert bool(choice.missed) == (choice.by == "recall")
        assert choice.split == "validation"


def test_a_choice_has_the_lowest_distinct_chair_i_of_those_that_keep_the_recall(chosen):
    store = ph.Store.shipped()
    greedy, *others = read_grid(data_path("grids", "decoders_validation.toml"))
    base = store.score(greedy).metrics["recall"]
    for name, choice in chosen.items():
        tried = {each.decoding: store.score(each).metrics for each in others if matrix_module.name_of(each.decoding) == name}
        keeping = [found["distinct_chair_i"] for found in tried.values() if found["recall"] >= base - 0.01 - 1e-12]
        own = tried[choice.setting]
        assert own["distinct_chair_i"] == min(keeping) if keeping else own["recall"] == max(x["recall"] for x in tried.values())


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
    cells = itertools.product(decodings, POLICIES.values())
    scored = {(d, p): store.score(base.with_options({"decoding": d, "policy": p})).metrics for d, p in cells}
    distinct = {key: 100 * metrics["distinct_chair_i"] for key, metrics in scored.items()}
    for line in table.iloc[1:].itertuples():
        cell = line.experiment
        own, plain = (cell.decoding, cell.policy), (cell.decoding, ph.NoPruning())
        assert (line.chair_i, line.distinct_chair_i) == pytest.approx((100 * scored[own]["chair_i"], distinct[own]))
        assert line.d_distinct_chair_i == pytest.approx(distinct[own] - distinct["greedy", ph.NoPruning()])
        if line.policy == "no pruning":
            assert np.isnan([line.own_distinct_chair_i, line.own_distinct_chair_i_low, line.own_recall_high]).all()
        else:
            assert line.own_distinct_chair_i == pytest.approx(distinct[own] - distinct[plain])
            assert line.own_recall == pytest.approx(100 * (scored[own]["recall"] - scored[plain]["recall"]))
            assert line.own_distinct_chair_i_low <= line.own_distinct_chair_i <= line.own_distinct_chair_i_high
    assert table["p_holm"].notna().sum() == len(table) - 1
    assert (table["p_holm"] >= table["p_distinct_chair_i"])[1:].all()


def test_the_front_is_what_no_other_beats():
    rng = np.random.default_rng(0)
    cost, harm = (pd.Series(rng.integers(0, 6, 40), index=range(100, 140)) for _ in range(2))
    for i in cost.index:
        beats = any(cost[j] <= cost[i] and harm[j] <= harm[i] and (cost[j], harm[j]) != (cost[i], harm[i]) for j in cost.index)
        assert front(cost, harm)[i] == (not beats)


# What the matrix says.


def line(decoding, policy="no pruning", **values):
    """A line of a matrix, made up: a change is given as (estimate, low, high)."""
    names = ("d_chair_i", "d_distinct_chair_i", "d_recall", "equal_distinct_chair_i", "own_distinct_chair_i", "own_recall")
    made = {"decoding": decoding, "policy": policy, "repeats": 7.0, "unfinished": 0.0, "rejected": False}
    made |= dict.fromkeys(("chair_i", "distinct_chair_i", "recall"), 15.0)
    for name in names:
        made |= dict(zip((name, f"{name}_low", f"{name}_high"), values.pop(name, (np.nan,) * 3), strict=True))
    return made | values


def made_up():
    """A matrix of greedy decoding, one decoder that repeats itself, and one that is lower."""
    looping = {"d_chair_i": (-2, -3, -1), "d_distinct_chair_i": (2, -1, 5), "equal_distinct_chair_i": (1, -1, 3)}
    better = {"d_chair_i": (-3, -5, -1), "d_distinct_chair_i": (-3, -5, -1), "equal_distinct_chair_i": (-1, -3, 1)}
    pruned = {"own_distinct_chair_i": (20, 15, 25), "own_recall": (-30, -35, -25), "policy": "PruneHal r = 0.4, t = 3"}
    lines = [
        line("greedy"),
        line("greedy", **pruned, distinct_chair_i=35.0),
        line("kvsmooth", **looping, d_recall=(4, 3, 5), repeats=40.0, unfinished=31.0),
        line("kvsmooth", **pruned, distinct_chair_i=41.0),
        line("opera", **better, d_recall=(-1, -3, 1), rejected=True, distinct_chair_i=12.0),
        line("opera", **pruned, own_chair_i=0, distinct_chair_i=37.0),
    ]
    return pd.DataFrame(lines)


def times_of(table, step=1.0):
    methods = itertools.product(("greedy", "kvsmooth", "opera"), ("no pruning", "PruneHal"))
    ratios = [{"decoding": d, "policy": p, "over_greedy": 9 + step * number} for number, (d, p) in enumerate(methods)]
    return matrix_reading.timed(table, pd.DataFrame(ratios))


def test_a_decoder_that_only_repeats_is_unclear_and_named(chosen):
    table = made_up()
    said = matrix_reading.answer(table, chosen, times_of(table), 1, "llava-0.1b")
    assert "Distinct CHAIR_i of a decoder alone, lower: opera -3.0 [-5.0, -1.0]." in said
    assert "Distinct CHAIR_i of a decoder alone, higher: none." in said
    assert "Distinct CHAIR_i of a decoder alone, unclear: kvsmooth +2.0 [-1.0, 5.0]." in said
    (looping,) = [each for each in said if "repeats" in each]
    assert looping.startswith("kvsmooth repeats 40% of its mentions (greedy 7%) and leaves 31.0% of its captions unfinished")
    assert any("unclear kvsmooth +1.0 [-1.0, 3.0], opera -1.0 [-3.0, 1.0]" in each for each in said)
    pruned = "beside 3 decodings, by uncorrected intervals: distinct CHAIR_i higher in 3, lower in 0, unclear in 0"
    assert any(pruned in each for each in said)
    assert any("(llava-0.1b, 1 round, so without a spread)" in each for each in said)
    assert said[-1] == "Fallbacks, as no setting keeps the recall on validation: vcd, dola, fastv."


def test_tables_for_reading_hold_the_measures_and_mark_fallbacks(chosen):
    table = made_up().replace({"decoding": {"kvsmooth": "vcd"}})
    alone = matrix_reading.alone(table, chosen)
    assert alone.index.tolist() == ["greedy", "vcd (fallback)", "opera"]
    assert alone.loc["opera", "distinct CHAIR_i"] == "-3.0 [-5.0, -1.0]"
    assert alone["verdict"].tolist() == ["", "unclear", "lower"]
    assert matrix_reading.added(table).loc["vcd", ("PruneHal r = 0.4, t = 3", "recall")] == "-30.0 [-35.0, -25.0]"


def test_the_front_asks_for_harm_and_recall_and_not_for_time():
    table = made_up()
    table.loc[table["decoding"] == "opera", "recall"] = 10.0
    first, other = (times_of(table, step).set_index(["decoding", "pruned"])["front"] for step in (1.0, -1.0))
    assert first[first].index.tolist() == [("greedy", False), ("kvsmooth", False), ("opera", False)]
    assert first.equals(other)


def test_every_tried_setting_is_shown_and_one_of_each_decoder_is_marked(chosen):
    table = matrix_reading.tried(ph.Store.shipped(), chosen)
    assert table.groupby("decoding")["choice"].agg(lambda each: (each != "").sum()).to_dict() == {
        "beam": 0, "nucleus": 0, **dict.fromkeys(chosen, 1)}  # fmt: skip
    assert sorted(table.loc[table["choice"] == "fallback", "decoding"]) == ["dola", "fastv", "vcd"]
