"""Effects over the images that all settings share: planted effects of settings and of images."""

import numpy as np
import pandas as pd
import pytest

import prunehal as ph
from prunehal.experiments import changes
from prunehal.experiments.compare import METRICS
from prunehal.experiments.over_images import SharedImages, p_over_images, share_intervals
from prunehal.stats.effects import main_effects


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
    changed = [f"d_{metric}" for metric in METRICS]
    shared = ["r", "t", "visual", *METRICS, *changed, "d_chair_i_low", "d_chair_i_high"]
    pd.testing.assert_frame_equal(ours[shared], theirs[shared])
    weights = np.zeros((1, 30))
    weights[0, :2] = 1, 3  # the second image thrice
    one, two = ([frame.iloc[n]["words"] for n in (0, 1)] for frame in (both.items[0], both.items[1]))
    assert both.change("words")(weights)[0, 0] == pytest.approx((two[0] + 3 * two[1] - one[0] - 3 * one[1]) / 4)


def test_settings_of_other_images_are_refused():
    base = ph.Experiment(split="test", n_images=30)
    with pytest.raises(ValueError, match=r"n_images=20 of .*: the baseline has 30; expected the same images"):
        SharedImages.read(ph.Store.shipped(), [ph.Experiment(split="test", n_images=20, policy=ph.PruneHal())], base)
