"""Notebook 05's comparisons: verdicts of single options, and kept = "shared" apart for each selection."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import prunehal as ph
from prunehal.experiments.choosing import Graded, choose_by_rule
from prunehal.experiments.contrasts import contrasts
from prunehal.experiments.over_images import SharedImages
from prunehal.files.paths import data_path
from prunehal.stats.testing import paired_p_value
from prunehal.studies.nb05_options import compare as options

STORE = ph.Store.shipped()
EXPERIMENTS = ph.read_grid(data_path("grids", "options.toml"))
VALIDATION = [each for each in EXPERIMENTS if each.split == "validation" and isinstance(each.policy, ph.PruneHal)]
SINGLE = [each for each in VALIDATION if each.n_images == 200]
SAMPLE = [each for each in VALIDATION if each.n_images == 100]


@pytest.fixture(scope="module")
def shared():
    return SharedImages.read(STORE, SAMPLE, replace(SAMPLE[0], policy=ph.NoPruning()))


@pytest.fixture(scope="module")
def drawn(shared):
    return options.sampled(shared, n_resamples=100)


def test_a_single_option_gets_a_verdict_from_its_interval_and_its_corrected_p():
    base = replace(SINGLE[0], policy=ph.PruneHal(0.7, 2))
    wanted = [ph.PruneHal(0.7, 2, selection="random"), ph.PruneHal(0.7, 2, first="decode"), ph.PruneHal(0.7, 2, kept="head")]
    paired = SharedImages.read(STORE, [replace(base, policy=policy) for policy in wanted], base)
    found = options.one_at_a_time(paired, base.policy, 1.0, n_resamples=1000).set_index("option")
    assert found["verdict_distinct_chair_i"].to_dict() == {
        "selection = random": "lower",
        "first = decode": "equivalent",
        "kept = head": "unclear",
    }
    assert found.loc["selection = random", "verdict_recall"] == "higher"
    p = [paired_p_value(paired.items[0], items, "recall") for items in paired.items[1:]]
    assert sorted(found["p_recall"]) == pytest.approx(sorted(p))
    assert found["p_holm_recall"].min() == pytest.approx(3 * min(p))
    wide = options.one_at_a_time(paired, base.policy, 10.0, n_resamples=1000)
    assert set(wide["verdict_distinct_chair_i"]) == {"equivalent"}
    assert wide["images"].max() < found["images"].min()


def test_a_changed_budget_is_named():
    base = replace(SINGLE[0], policy=ph.PruneHal(0.7, 2))
    others = [replace(base, policy=ph.PruneHal(0.7, 2, **each)) for each in ({"forced_first": False}, {"kept": "shared"})]
    found = options.one_at_a_time(SharedImages.read(STORE, others, base), base.policy, 1.0, n_resamples=100)
    assert set(found["named"]) == {"forced_first = False (budget 106%)", "kept = shared"}


def test_a_contrast_is_what_was_planted_within_each_value_of_the_other_option():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"kept": rng.choice(["layer", "shared"], 90), "selection": rng.choice(["top", "lowest", "random"], 90)})
    planted = {"top": -3.0, "lowest": 4.0, "random": 0.0}
    effect = (table["selection"].map(planted) * (table["kept"] == "shared")).to_numpy()[:, None]
    budget = rng.uniform(20, 90, (90, 1)) + rng.normal(0, 1, (90, 40))
    does = effect + 0.1 * budget + rng.normal(0, 1, (90, 40))
    pools = [lambda weights, m=m: weights @ m.T / weights.sum(axis=1, keepdims=True) for m in (does, budget)]
    found = contrasts(table, ["kept", "selection"], *pools, 40, "kept", "layer", "selection").set_index("selection")
    for selection, value in planted.items():
        assert found.loc[selection, "low"] < value < found.loc[selection, "high"]
        assert found.loc[selection, "high"] - found.loc[selection, "low"] < 1.5
        both = table[table["selection"] == selection]["kept"]
        assert found.loc[selection, ["settings", "settings_against"]].tolist() == [(both == k).sum() for k in ("shared", "layer")]
    few = table[~((table["selection"] == "top") & (table["kept"] == "shared"))]
    at = few.index.to_numpy()
    pools = [lambda weights, m=m: weights @ m[at].T / weights.sum(axis=1, keepdims=True) for m in (does, budget)]
    lacking = contrasts(few, ["kept", "selection"], *pools, 40, "kept", "layer", "selection").set_index("selection")
    assert lacking.loc["top", "settings"] == 0
    assert np.isnan(lacking.loc["top", "difference"])
    assert lacking.loc["lowest", "difference"] == pytest.approx(4, abs=1)


def test_a_contrast_needs_a_value_to_compare_with(drawn, shared):
    with pytest.raises(ValueError, match="no setting has kept='all'; expected one of"):
        contrasts(drawn, options.OPTIONS, shared.change("recall"), shared.budget, 100, "kept", "all", "selection")


def test_shared_tokens_are_compared_one_at_a_time_and_within_each_selection(drawn, shared):
    found = options.kept_shared(STORE, SINGLE, shared, drawn, n_resamples=500)
    carry = pd.crosstab(drawn["selection"], drawn["kept"])["shared"]
    assert carry.to_dict() == {"lowest": 12, "random": 9, "top": 4}
    sample = found[found["experiment"] == "sample"]
    assert dict(zip(sample["selection"], sample["settings"], strict=True)) == carry.to_dict()
    alone = found[found["experiment"] != "sample"]
    assert alone["experiment"].tolist() == ["one at a time, r 0.7", "one at a time, r 0.9"]
    assert alone["selection"].unique().tolist() == ["top"]
    items = [STORE.score(replace(SINGLE[0], policy=ph.PruneHal(0.7, 2, kept=kept))).metrics for kept in ("layer", "shared")]
    d = 100 * (items[1]["distinct_chair_i"] - items[0]["distinct_chair_i"])
    assert alone["difference"].iloc[0] == pytest.approx(d)
    assert (found["low"] < found["difference"]).all()
    assert (found["difference"] < found["high"]).all()


def test_options_of_the_sample_are_categories_and_its_ends_are_in_order(drawn):
    assert set(drawn["factor"]) == {"0.25", "0.5", "0.75", "sqrt(r)"}
    assert set(drawn["forced_first"]) == {"True", "False"}
    low, high = (float(part.split()[1]) for part in options.ends(drawn, "recall", "selection").split(", "))
    assert low < high
    assert options.ends(drawn, "recall", "selection").endswith("with random")


def test_the_stored_rows_on_test_are_those_of_the_setting_that_the_sample_chooses(shared):
    results = dict(zip((ph.NoPruning(), *(each.policy for each in SAMPLE)), shared.results, strict=True))
    chosen = choose_by_rule(Graded("validation", results), ph.NoPruning())
    on_test = [each for each in EXPERIMENTS if each.split == "test"]
    assert {each.policy for each in on_test} == {ph.NoPruning(), chosen.setting}
    assert {len(STORE.captions(each)) for each in on_test} == {200}
