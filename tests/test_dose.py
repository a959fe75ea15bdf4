"""Dose and response: against loops, and on rows whose answer is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
import reference_dose
from made_up_doses import made_up
from scipy import stats

from prunehal.stats import clustered
from prunehal.studies.nb09_causal import comparisons as dose
from prunehal.studies.nb09_causal.intervene import MOVES, SCALES, WITHHELD, likeness
from prunehal.studies.nb09_causal.kinds_of_words import KINDS, count_kinds, kinds_of, look_alike_from
from prunehal.studies.nb09_causal.rows import interventions
from prunehal.testbed.world.scenes import scene_of
from prunehal.testbed.world.world import COMPANIONS, NAMES


def random_mentions(seed, n=60, n_images=12):
    rng = np.random.default_rng(seed)
    images = np.sort(np.r_[np.arange(n_images), rng.integers(0, n_images, n - n_images)])
    return rng.normal(size=n), images, rng.random(n) < 0.4, rng.integers(0, 5, n), rng.integers(0, 3, (4, n_images))


@pytest.mark.parametrize("seed", range(5))
def test_means_and_gaps_are_those_of_loops(seed):
    values, images, first, strata, weights = random_mentions(seed)
    mean, gap = clustered.mean(values, images), clustered.gap(values, images, first)
    matched = clustered.matched_gap(values, images, first, strata)
    for row, by_mean, by_gap, by_match in zip(weights, mean(weights), gap(weights), matched(weights), strict=True):
        assert by_mean == pytest.approx(reference_dose.mean(values, images, row))
        groups = [reference_dose.mean(values[group], images[group], row) for group in (first, ~first)]
        assert by_gap == pytest.approx(groups[0] - groups[1])
        assert by_match == pytest.approx(reference_dose.matched_gap(values, images, first, strata, row))


def test_strata_without_a_partner_say_nothing():
    values, images, first = np.array([1.0, 2.0, 3.0]), np.array([0, 0, 1]), np.array([True, False, True])
    found = clustered.matched_gap(values, images, first, np.array([0, 1, 2]))(np.ones((1, 2)))
    assert np.isnan(found).all()


def test_the_error_is_a_jackknife_over_images():
    values, images, first, strata, _ = random_mentions(7)
    statistic = clustered.matched_gap(values, images, first, strata)
    found = clustered.estimate(statistic, 12, len(values), n_resamples=200)
    error = reference_dose.jackknife_error(lambda w: reference_dose.matched_gap(values, images, first, strata, w), 12)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(found["estimate"]) / error, 11))
    assert found["low"] < found["estimate"] < found["high"]


def test_one_mention_an_image_is_a_t_test():
    values = np.random.default_rng(0).normal(0.3, 1, 40)
    found = clustered.estimate(clustered.mean(values, np.arange(40)), 40, 40, n_resamples=200)
    assert found["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


@pytest.mark.parametrize("value", [1.0, 0.1, -0.3])  # the mean of many 0.1 leaves rounding for a spread
def test_a_change_without_spread_has_no_p_value(value):
    images = np.r_[np.arange(40), np.arange(0, 40, 3)]
    found = clustered.estimate(clustered.mean(np.full(len(images), value), images), 40, len(images), n_resamples=200)
    assert found["estimate"] == pytest.approx(value)
    assert np.isnan(found["p"])
    none = clustered.estimate(clustered.mean(np.zeros(40), np.arange(40)), 40, 40, n_resamples=200)
    assert (none["estimate"], none["p"]) == (0.0, 1.0)


def test_a_difference_has_the_degrees_of_freedom_of_the_smaller_group():
    rng = np.random.default_rng(3)
    first = np.arange(100) < 12
    values = rng.normal(np.where(first, 0.8, 0.0), 1)
    table = pd.DataFrame({"image_id": np.arange(100), "change": values})
    gap = clustered.gap(values, np.arange(100), first)
    for found in (
        clustered.estimate(gap, 100, 100, n_resamples=200, n_smaller=12),
        dose._estimate(table, pd.Series(first), n_resamples=200),
        dose._estimate(table, pd.Series(~first), n_resamples=200),
    ):
        error = reference_dose.jackknife_error(lambda w: reference_dose.matched_gap(values, range(100), first, first * 0, w), 100)
        assert found["p"] == pytest.approx(2 * stats.t.sf(abs(found["estimate"]) / error, 11))
        welch = stats.ttest_ind(values[first], values[~first], equal_var=False)
        assert welch.pvalue < found["p"] < 1.3 * welch.pvalue


@pytest.fixture(scope="module")
def found():
    return dose.responses(made_up())


def test_changes_are_from_the_same_mention_left_as_it_was(found):
    assert not found["ambiguous"].any()
    assert found["image_id"].nunique() == 40
    assert len(found.drop_duplicates(["image_id", "index"])) == 40 * 3 - 1
    some = found[(found["what"] == "move") & (found["dose"] == 0.25) & (found["part"] == "all")]
    np.testing.assert_allclose(some["change"], np.where(some["hallucinated"], -0.2, -0.1), rtol=0.011)
    moves = found[(found["what"] == "move") & (found["part"] == "all")]
    assert sorted(moves["dose"].unique()) == sorted([*MOVES, -1.0, 0.0])
    assert moves.loc[moves["dose"] == 0, "change"].eq(0).all()
    np.testing.assert_allclose(moves.loc[moves["dose"] == -1, "change"], -3)


def test_a_slope_is_that_of_a_loop_and_leaves_blindness_out(found):
    rows = found[found["what"] == "scale"].assign(log_prob=lambda x: x["log_prob"] + 0.1 * np.sin(9 * x["dose"]))
    found = rows.assign(change=rows["log_prob"] - rows["baseline"])
    slopes = dose.slopes(found).set_index(["image_id", "index"])["change"]
    assert len(slopes) == len(found) / len(SCALES)
    for key, part in list(found.groupby(["image_id", "index"]))[::17]:
        expected = reference_dose.slope(dict(zip(part["dose"], part["log_prob"], strict=True)))
        assert slopes[key] == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_move_is_split_into_what_follows_its_sign_and_what_does_not(found, share):
    parts = dose.signed(found, share)
    assert len(parts) == 40 * 3 - 1
    by = np.where(parts["hallucinated"], 1, 0.5) * share
    np.testing.assert_allclose(parts["odd"], -0.6 * by, rtol=0.011)
    np.testing.assert_allclose(parts["even"], -0.2 * by, rtol=0.011)
    np.testing.assert_allclose(parts["odd"] + parts["even"], parts["change"])


def test_slopes_hold_nothing_that_is_the_same_for_both_directions(found):
    even = found.assign(change=np.where(found["dose"] > 0, np.log2(found["dose"].clip(lower=1e-9)) ** 2, np.nan))
    np.testing.assert_allclose(dose.slopes(even)["change"], 0, atol=1e-12)


def test_the_slope_says_over_which_factors_it_is_fitted():
    assert f"c = 1/{1 / min(c for c in SCALES if c):g} to {max(SCALES):g}" in dose.SLOPE
    assert 2.0 not in SCALES  # no dose doubles the odds


def test_curves_hold_each_dose_of_each_group_that_is_large_enough(found):
    groups = {"bad": found["hallucinated"], "few": found["image_id"] < found["image_id"].min() + dose.FEWEST // 3}
    table = dose.curves(found, groups, n_resamples=200)
    assert set(table["group"]) == {"bad"}
    line = table.set_index(["what", "dose"]).loc[("move", 0.25)]
    assert (line["n"], line["change"]) == (39, pytest.approx(-0.2))
    assert line[["new", "again", "absent"]].tolist() == pytest.approx([10 / 39, 10 / 39, 0])
    assert len(table) == len(SCALES) + len(MOVES) + 2 + len(WITHHELD)


def test_comparisons_say_what_was_put_in(found):
    table = dose.comparisons(found, n_resamples=200)
    estimates = table["estimate"].astype(float)
    expected = {
        (dose.SLOPE, "hallucinated"): -0.05,
        (dose.SLOPE, "hallucinated - faithful, matched"): -0.025,
        (dose.MOVED, "faithful"): -0.1,
        (dose.MOVED, "hallucinated - faithful"): -0.1,
        (dose.MOVED, "hallucinated: likeliest is an object of the scene not named before"): 10 / 39,
        (dose.MOVED, "hallucinated: not named before - named before"): 0.0,
        (f"{dose.MOVED}, early layers", "hallucinated"): 0.0,
        (f"{dose.MOVED}, late layers", "hallucinated"): -1.0,
        (dose.SIGNED, "hallucinated"): -0.15,
        (dose.SIGNED, "faithful"): -0.075,
        (dose.SIGNED, "hallucinated - faithful, matched"): -0.075,
        (dose.SIGN_FREE, "hallucinated"): -0.05,
        (dose.SIGN_FREE, "faithful"): -0.025,
        (dose.WITHHELD, "hallucinated"): -0.05,
        ("to the image rather than to the start token", "hallucinated"): -0.15,
        ("to the image rather than to the start token", "faithful"): -0.075,
        (dose.BACK, "hallucinated"): 0.1,
        (dose.BACK, "faithful"): 0.05,
        (dose.MOVED, f"hallucinated: {dose.LIKELIEST['itself']}"): 19 / 39,
        (dose.MOVED, f"hallucinated: {dose.LIKELIEST['absent']}"): 0.0,
        (dose.MOVED, dose.NEW_OR_ABSENT): 10 / 39,
        (dose.MOVED, dose.ABSENT_NOW): 0.0,
        (dose.BACK, dose.ABSENT_NOW): 0.2,
        (dose.BACK_OR_TO, dose.ABSENT_NOW): 0.2,
        ("itself removed", "faithful"): -2.0,
        ("another removed", "hallucinated"): 0.0,
        ("background removed", "hallucinated"): -0.1,
        (dose.RATHER, "hallucinated"): -1.4,
    }
    for key, value in expected.items():
        assert estimates[key] == pytest.approx(value, abs=1e-3 if "matched" in key[1] else 1e-9), key
    groups = {"hallucinated": found["hallucinated"]} | {kind: found["hallucinated"] & (found["kind"] == kind) for kind in KINDS}
    for group, members in groups.items():
        part = found[members & (found["part"] == "most alike")]
        for name, value in (("most alike", -1.5), ("background", -0.1), ("another", 0.0)):
            line = table.loc[(f"{name} removed", group)]
            assert line["n"] == len(part)
            if len(part) < dose.FEWEST:
                assert np.isnan(line["estimate"])
            else:
                assert line["estimate"] == pytest.approx(value, abs=0.01)
    assert sum(table.loc[(dose.MOVED, kind), "n"] for kind in KINDS) == table.loc[(dose.MOVED, "hallucinated"), "n"]
    assert estimates[dose.RATHER, "neither"] == pytest.approx(-1.4, abs=0.01)
    assert table.index.is_unique
    made, share = table["p"].notna(), table["unit"] == "share"
    assert table.loc[~made, "p_holm"].isna().all()
    assert (table.loc[~made, "estimate"].notna() == share[~made]).all()
    assert not made[share].any()
    assert not table.loc[~made, "rejected"].any()
    assert np.isnan(estimates["background removed", "faithful"])  # no such rows
    assert (table.loc[made, "p_holm"] >= table.loc[made, "p"]).all()
    assert table.loc[(dose.MOVED, "hallucinated"), "rejected"]
    assert not table.loc[(f"{dose.MOVED}, early layers", "hallucinated"), "rejected"]


def test_kinds_follow_the_stated_rule():
    pairs = [likeness(*pair) for pair in itertools.combinations(NAMES, 2)]
    assert np.mean([value >= look_alike_from() for value in pairs]) == pytest.approx(0.05, abs=0.001)
    rows = interventions(n_images=150)
    rows = rows[(rows["what"] == "scale") & (rows["dose"] == 1)].reset_index(drop=True)
    kinds = kinds_of(rows)
    for line, kind in list(zip(rows.itertuples(), kinds.itertuples(), strict=True))[::5]:
        others = scene_of(line.image_id).names - {line.node}
        alike = any(likeness(line.node, other) >= look_alike_from() for other in others)
        usual = line.node in scene_of(line.image_id).type.objects
        assert kind.kind == {(True, False): "prior-driven", (False, True): "look-alike", (True, True): "both"}.get(
            (usual, alike), "neither"
        )
        before = rows[(rows["image_id"] == line.image_id) & (rows["index"] < line.index)]["node"]
        assert kind.habit == any(COMPANIONS.get(name, ("",))[0] == line.node for name in before)
    assert set(kinds["kind"]) == set(KINDS)
    table = count_kinds(rows.join(kinds))
    assert list(table.index) == list(KINDS)
    assert table["mentions"].sum() == rows["hallucinated"].sum()
    assert (table["habit"] <= table["mentions"]).all()
    assert count_kinds(rows.join(kinds)[:0]).sum().tolist() == [0, 0]
