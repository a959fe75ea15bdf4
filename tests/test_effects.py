"""Effects of options: against analyses of variance worked by hand, and against planted effects of settings and of images."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import prunehal as ph
from prunehal.experiments import changes
from prunehal.experiments.effects import design, explained, interactions, main_effects, marginal_means
from prunehal.experiments.over_images import SharedImages, p_over_images, share_intervals

# Two options, balanced, two settings in each cell. Cell means 1, 3, 5 and 11; each pair lies 1 off its mean. By hand, in 8 rows:
# grand mean 5; a: 2 and 8, sum of squares 8 * 9 = 72; b: 3 and 7, 8 * 4 = 32; a x b: 8 * 1 * ((1 - 3 - 5 + 11) / 4)^2 = 8;
# within cells 8 * 1 = 8; total 120.
BALANCED = pd.DataFrame({"a": list("xxxxyyyy"), "b": list("uuvvuuvv"), "d": [0.0, 2, 2, 4, 4, 6, 10, 12]})


def test_main_effects_are_those_of_the_analysis_of_variance_by_hand():
    found = main_effects(BALANCED, "d", ["a", "b"], ()).set_index("term")
    assert found.loc[["a", "b"], "share"].tolist() == pytest.approx([72 / 120, 32 / 120])
    assert found["df"].tolist() == [1, 1]
    residual = (8 + 8) / 5  # the interaction is in the rest of a model of main effects
    assert found.loc["a", "p"] == pytest.approx(stats.f.sf(72 / residual, 1, 5))
    assert explained(BALANCED, "d", ["a", "b"], ()) == pytest.approx(104 / 120)


def test_an_interaction_is_that_of_the_analysis_of_variance_by_hand():
    (line,) = interactions(BALANCED, "d", ["a", "b"], ()).to_dict("records")
    assert line["share"] == pytest.approx(8 / 120)
    assert line["p"] == pytest.approx(stats.f.sf(8 / (8 / 4), 1, 4))


def test_marginal_means_are_means_where_the_table_is_balanced():
    means = marginal_means(BALANCED, "d", ["a", "b"], ())
    assert means["mean"].tolist() == pytest.approx([2, 8, 3, 7])
    assert marginal_means(BALANCED, "d", ["a", "b"], (), of=["a", "b"])["mean"].tolist() == pytest.approx([1, 3, 5, 11])


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
    table = BALANCED.drop(index=[6, 7])  # y with v
    assert "a=y, b=v" in design(BALANCED, ["a", "b"], (), pair=["a", "b"])
    assert "a=y, b=v" not in design(table, ["a", "b"], (), pair=["a", "b"])
    assert interactions(table, "d", ["a", "b"], ())["p"].tolist() == [1.0]


def planted(rng, image_effect=0.0, setting_effect=0.0, settings=60, images=40):
    """A sample in which option a does something on average, or only on some images by chance; b does nothing."""
    table = pd.DataFrame({"a": rng.permutation(["x", "y"] * (settings // 2)), "b": rng.permutation(["u", "v"] * (settings // 2))})
    is_y = (table["a"] == "y").to_numpy(dtype=float)[:, None]
    does = is_y * (setting_effect + image_effect * rng.normal(size=images)) + rng.normal(0, 0.5, (settings, images))
    budget = rng.uniform(30, 90, (settings, 1)) + rng.normal(0, 2, (settings, images))
    return table, *(pool(values) for values in (does, budget))


def pool(values):
    return lambda weights: weights @ values.T / weights.sum(axis=1, keepdims=True)


def with_response(table, change, budget, images=40):
    even = np.ones((1, images))
    return table.assign(d=change(even)[0], visual=budget(even)[0])


def test_the_share_is_that_of_main_effects():
    table, change, budget = planted(np.random.default_rng(1), setting_effect=0.3)
    over = share_intervals(table, ["a", "b"], change, budget, 40, n_resamples=200).set_index("term")
    whole = main_effects(with_response(table, change, budget), "d", ["a", "b"]).set_index("term")
    assert over["share"].to_dict() == pytest.approx(whole.loc[["a", "b"], "share"].to_dict())
    assert (over["low"] < over["high"]).all()
    assert over["low"].min() >= 0


def test_an_effect_that_all_images_have_is_found_over_images():
    table, change, budget = planted(np.random.default_rng(2), setting_effect=0.5)
    p = p_over_images(table, ["a", "b"], change, budget, 40, ["a", "b"]).set_index("term")["p"]
    assert p["a"] < 1e-4
    assert p["b"] > 0.01


def test_an_effect_of_these_images_alone_passes_the_f_test_but_not_the_test_over_images():
    rng = np.random.default_rng(3)
    draws = [planted(rng, image_effect=2.0) for _ in range(16)]
    over_settings = [main_effects(with_response(*draw), "d", ["a", "b"]).set_index("term").loc["a", "p"] < 0.05 for draw in draws]
    over_images = [p_over_images(draw[0], ["a", "b"], *draw[1:], 40, ["a"])["p"][0] < 0.05 for draw in draws]
    assert np.mean(over_settings) > 0.5
    assert np.mean(over_images) <= 3 / 16  # at a rate of 0.05, more come by chance in 1 of 140 such tests


def test_a_pair_is_tested_beyond_its_main_effects():
    rng = np.random.default_rng(4)
    table, change, budget = planted(rng, setting_effect=0.5)
    both = ((table["a"] == "y") & (table["b"] == "v")).to_numpy(dtype=float)
    p = p_over_images(table, ["a", "b"], change, budget, 40, [("a", "b")])
    more = p_over_images(table, ["a", "b"], lambda w: change(w) + both, budget, 40, [("a", "b")])
    assert p["term"].tolist() == ["a x b"]
    assert p["p"][0] > 0.01
    assert more["p"][0] < 1e-6


def test_a_term_that_the_table_cannot_tell_apart_gets_p_1():
    table, change, budget = planted(np.random.default_rng(5), setting_effect=0.5)
    table = table.assign(c=table["a"])
    assert p_over_images(table, ["a", "c"], change, budget, 40, ["c"])["p"].tolist() == [1.0]


def test_shared_images_give_the_table_of_changes():
    base = ph.Experiment(split="test", n_images=30)
    settings = [ph.Experiment(split="test", n_images=30, policy=ph.PruneHal(r, 3)) for r in (0.4, 0.9)]
    store = ph.Store.shipped()
    both = SharedImages.read(store, settings, base)
    ours, theirs = both.table(["chair_i"], n_resamples=200), changes(store, settings, base, n_resamples=200)
    shared = ["r", "t", "visual", "d_chair_i", "d_chair_i_low", "d_chair_i_high", "d_chair_s", "d_recall", "d_words"]
    pd.testing.assert_frame_equal(ours[shared], theirs[shared])
    weights = np.zeros((1, 30))
    weights[0, :2] = 1, 3  # the second image thrice
    one, two = ([frame.iloc[n]["words"] for n in (0, 1)] for frame in (both.items[0], both.items[1]))
    assert both.change("words")(weights)[0, 0] == pytest.approx((two[0] + 3 * two[1] - one[0] - 3 * one[1]) / 4)


def test_settings_of_other_images_are_refused():
    base = ph.Experiment(split="test", n_images=30)
    with pytest.raises(ValueError, match=r"n_images=20 of .*: the baseline has 30; expected the same images"):
        SharedImages.read(ph.Store.shipped(), [ph.Experiment(split="test", n_images=20, policy=ph.PruneHal())], base)
