"""Effects: planted ones come out as an analysis of variance by hand finds them, and the budget is held where it is asked for."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prunehal.stats.effects import design, interactions, main_effects, marginal_means

A, B = {"x": 0.0, "y": 4.0}, {"u": 0.0, "v": 1.0, "w": 5.0}
OFF = (0.3, -0.1, 0.4, -0.6)  # what the four settings of a cell lie off its mean; their sum is 0


def planted(cross=0.0):
    """Return four settings of each combination, with main effects of a and b, and one cell that lies higher."""
    lines = [
        {"a": a, "b": b, "d": A[a] + B[b] + cross * (a == "y" and b == "w") + off} for a, b, off in itertools.product(A, B, OFF)
    ]
    return pd.DataFrame(lines)


def squares(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values)


def explained(table, name):
    """Return the sum of squares between the values of an option of a balanced table."""
    grand = sum(table["d"]) / len(table)
    return sum(len(part) * (sum(part) / len(part) - grand) ** 2 for _, part in table.groupby(name)["d"])


@pytest.mark.parametrize("cross", [0.0, 2.0])
def test_main_effects_are_those_of_an_analysis_of_variance_by_hand(cross):
    table = planted(cross)
    found = main_effects(table, "d", ["a", "b"], ()).set_index("term")
    total = squares(table["d"])
    left, freedom = total - explained(table, "a") - explained(table, "b"), len(table) - 1 - 1 - 2
    p = {}
    for name, levels in (("a", 2), ("b", 3)):
        f = explained(table, name) / (levels - 1) / (left / freedom)
        p[name] = stats.f.sf(f, levels - 1, freedom)
        assert found["share"][name] == pytest.approx(explained(table, name) / total)
        assert found["df"][name] == levels - 1
        assert found["p"][name] == pytest.approx(p[name])
    small, large = sorted(p, key=p.get)
    assert found["p_holm"][small] == pytest.approx(2 * p[small])
    assert found["p_holm"][large] == pytest.approx(max(2 * p[small], p[large]))
    assert found.index.tolist() == sorted(p, key=lambda name: -explained(table, name))


def test_an_interaction_is_what_the_cells_add_to_the_main_effects():
    table = planted(cross=2.0)
    (found,) = interactions(table, "d", ["a", "b"], ()).to_dict("records")
    within = sum(squares(part) for _, part in table.groupby(["a", "b"])["d"])
    own = squares(table["d"]) - within - explained(table, "a") - explained(table, "b")
    assert within == pytest.approx(6 * sum(off**2 for off in OFF))
    f = own / 2 / (within / (len(table) - 6))
    assert {found["first"], found["second"]} == {"a", "b"}
    assert found["share"] == pytest.approx(own / squares(table["d"]))
    assert found["p"] == found["p_holm"] == pytest.approx(stats.f.sf(f, 2, len(table) - 6))
    assert found["p"] < 1e-3
    assert interactions(planted(), "d", ["a", "b"], ())["share"][0] == pytest.approx(0, abs=1e-12)


def test_the_strongest_pair_comes_first_and_all_pairs_are_looked_at():
    table = planted(cross=3.0).assign(c=list("pq") * 12)
    found = interactions(table, "d", ["a", "b", "c"], ())
    assert {found["first"][0], found["second"][0]} == {"a", "b"}
    assert len(found) == 3
    assert found["p_holm"][0] == pytest.approx(3 * found["p"][0])


def test_marginal_means_and_their_intervals_by_hand():
    table = planted()
    found = marginal_means(table, "d", ["a", "b"], (), confidence=0.9)
    left = squares(table["d"]) - explained(table, "a") - explained(table, "b")
    freedom = len(table) - 4
    for line in found.itertuples():
        part = table.loc[table[line.option] == line.value, "d"]
        half = stats.t.ppf(0.95, freedom) * (left / freedom / len(part)) ** 0.5
        assert (line.mean, line.low, line.high) == pytest.approx((part.mean(), part.mean() - half, part.mean() + half))
    assert found[["option", "value"]].to_numpy().tolist() == [["a", "x"], ["a", "y"], ["b", "u"], ["b", "v"], ["b", "w"]]


def test_marginal_means_of_a_pair_are_the_means_of_its_cells():
    table = planted(cross=2.0)
    found = marginal_means(table, "d", ["a", "b"], (), of=["a", "b"])
    cells = table.groupby(["a", "b"])["d"].mean()
    assert len(found) == 6
    for line in found.itertuples():
        assert line.mean == pytest.approx(cells[line.a, line.b])


def test_an_option_that_only_changes_the_budget_explains_nothing_at_equal_budget():
    rng = np.random.default_rng(0)
    kept = np.repeat(["few", "many"], 40)
    visual = np.where(kept == "few", 40, 60) + rng.normal(0, 8, 80)
    table = pd.DataFrame({"kept": kept, "other": list("pqrs") * 20, "visual": visual})
    table["d"] = 30 - 0.4 * table["visual"] + 2 * (table["other"] == "q") + rng.normal(0, 0.5, 80)
    free = main_effects(table, "d", ["kept", "other"], ()).set_index("term")
    held = main_effects(table, "d", ["kept", "other"]).set_index("term")
    assert free["share"]["kept"] > 0.4
    assert held["share"]["kept"] < 0.001
    assert held["p"]["kept"] > 0.05
    assert held["p_holm"]["other"] < 1e-6
    assert held["share"]["visual"] == held["share"].max()
    means = marginal_means(table, "d", ["kept", "other"], of=["other"]).set_index("value")["mean"]
    assert means["q"] - means["p"] == pytest.approx(2, abs=0.4)


def bent(rng, n=200):
    """Settings whose response is a curve of the budget, and whose option changes the budget and nothing else."""
    late = rng.random(n) < 0.5
    visual = rng.uniform(20, 60, n) + 35 * late
    noise = rng.normal(0, 0.3, n)
    return pd.DataFrame({"late": np.where(late, "yes", "no"), "visual": visual, "d": 30 * np.exp(-visual / 20) + noise})


def test_a_budget_that_bends_is_no_effect_of_an_option():
    table = bent(np.random.default_rng(0))
    straight, curve = (main_effects(table, "d", ["late"], degree=n).set_index("term") for n in (1, 3))
    assert straight.loc["late", "p"] < 1e-4  # what a straight line leaves over looks like the option
    assert curve.loc["late", "p"] > 0.05
    assert curve["df"].to_dict() == {"late": 1, "visual": 3}


@pytest.mark.parametrize("degree", [0, 6, 2.5])
def test_another_degree_is_refused(degree):
    with pytest.raises(ValueError, match=f"degree is {degree}, expected 1 to 5"):
        main_effects(bent(np.random.default_rng(0)), "d", ["late"], degree=degree)


def test_a_combination_that_the_table_lacks_gets_no_column():
    table = planted()
    some = table[(table["a"] != "y") | (table["b"] != "w")]
    assert "a=y, b=w" in design(table, ["a", "b"], (), pair=["a", "b"])
    assert "a=y, b=w" not in design(some, ["a", "b"], (), pair=["a", "b"])


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, ["a", "z"], r"the table lacks the column\(s\) z; it has \['a', 'b', 'd'\]"),
        ({"a": "x"}, ["a", "b"], r"a does not vary in the table; expected two values or more; leave it out"),
        ({"d": [None, *range(23)]}, ["a", "b"], r"d lacks values; expected one in each line; fill them"),
    ],
)
@pytest.mark.parametrize("function", [main_effects, interactions, marginal_means])
def test_a_table_that_cannot_be_used_is_named(function, change, options, said):
    with pytest.raises(ValueError, match=said):
        function(planted().assign(**change), "d", options, ())
