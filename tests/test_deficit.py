"""Notebook 01: attention at hallucinated mentions, with the sentence pattern; AUCs counted pair by pair, odds by dummies."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import prunehal as ph
from prunehal.stats.intervals import adjusted_logit
from prunehal.studies.nb01_deficit import compare as deficit
from prunehal.testbed.world.captions import TEMPLATES

TEST, VALIDATION = (ph.Experiment(split=split, n_images=150) for split in ("test", "validation"))


@pytest.fixture(scope="module")
def mentions():
    return deficit.stored_mentions(ph.Store.shipped(), TEST, VALIDATION)


def auc_by_pairs(values, hallucinated):
    """P(value of a faithful mention > that of a hallucinated one), pair by pair."""
    won = [
        1.0 if faithful > wrong else 0.5 if faithful == wrong else 0.0
        for faithful in values[~hallucinated]
        for wrong in values[hallucinated]
    ]
    return sum(won) / len(won)


def test_mentions_are_the_mean_of_the_layers(mentions):
    rows = ph.Store.shipped().mentions(TEST)
    assert len(mentions) == len(rows) / rows["layer"].nunique()
    some = mentions.iloc[17]
    of_it = rows[(rows["image_id"] == some["image_id"]) & (rows["index"] == some["index"])]
    assert some["mass"] == pytest.approx(of_it["mass"].mean())
    assert some["node"] == of_it["node"].iloc[0]
    assert (mentions["late"] == mentions["pattern"].isin(TEMPLATES["late"])).all()


def test_rates_of_templates_are_those_of_the_validation_split(mentions):
    before = deficit.stored_mentions(ph.Store.shipped(), VALIDATION, TEST)
    for pattern, part in mentions.groupby("pattern"):
        seen = [wrong for each, wrong in zip(before["pattern"], before["hallucinated"], strict=True) if each == pattern]
        expected = sum(seen) / len(seen) if seen else before["hallucinated"].mean()
        assert part["template"].to_numpy() == pytest.approx(expected)


def test_aucs_are_those_counted_pair_by_pair(mentions):
    found = deficit.by_pattern(mentions, n_resamples=100)
    wrong, late = mentions["hallucinated"].to_numpy(), mentions["late"].to_numpy()
    mass = mentions["mass"].to_numpy()
    expected = [
        auc_by_pairs(mass, wrong),
        auc_by_pairs(np.where(late, 0.0, 1.0), wrong),
        auc_by_pairs(-mentions["template"].to_numpy(), wrong),
        auc_by_pairs(mass[late], wrong[late]),
        auc_by_pairs(mass[~late], wrong[~late]),
    ]
    assert found["estimate"].tolist() == pytest.approx(expected)
    assert found["hallucinated"].tolist() == [wrong.sum()] * 3 + [wrong[late].sum(), wrong[~late].sum()]
    assert (found["faithful"] + found["hallucinated"]).tolist() == [len(wrong)] * 3 + [late.sum(), (~late).sum()]
    assert (found["low"] < found["estimate"]).all()
    assert (found["estimate"] < found["high"]).all()


def test_the_late_sentence_as_a_covariate_moves_the_odds_towards_1(mentions):
    fits = deficit.adjusted(mentions)
    place, pattern = fits.loc[(deficit.PLACE, "mass")], fits.loc[(deficit.PATTERN, "mass")]
    assert place["odds_ratio"] < pattern["odds_ratio"] < 1
    dummy = mentions.assign(late=[1 if group == "late" else 0 for group in mentions["group"]])
    again = adjusted_logit(dummy, predictors=["mass", "index", "steps", "late"]).set_index("term")
    assert pattern["odds_ratio"] == pytest.approx(again.loc["mass", "odds_ratio"])
    assert {name for name, _ in fits.index} == set(deficit.MODELS)


def made_up(n=4000, effect=0.0, seed=0):
    """Mentions whose attention follows the sentence and, if there is an effect, the truth."""
    rng = np.random.default_rng(seed)
    late = rng.random(n) < 0.3
    wrong = rng.random(n) < np.where(late, 0.6, 0.1)
    mass = rng.normal(0.7 - 0.2 * late - effect * wrong, 0.1)
    return pd.DataFrame(
        {"image_id": np.arange(n) // 5, "index": np.arange(n) % 5, "steps": 80 + np.arange(n) // 5 % 7, "late": late}
        | {"hallucinated": wrong, "mass": mass, "mention_ratio": mass / 0.6, "template": np.where(late, 0.6, 0.1)}
    )


@pytest.mark.parametrize(("effect", "verdict"), [(0.0, "unclear"), (0.1, "lower"), (-0.1, "higher")])
def test_an_association_by_the_sentence_alone_is_called_so(effect, verdict):
    mentions = made_up(effect=effect)
    patterns = deficit.by_pattern(mentions, n_resamples=200)
    lines = deficit.in_words(patterns, deficit.adjusted(mentions), deficit.at_same_place(mentions))
    assert f"with the late sentence as a covariate, too: {verdict}, " in "\n".join(lines)
    within = patterns.loc["attention, within late sentences"]
    assert (within["low"] < 0.5 < within["high"]) == (effect == 0)
    if effect == 0:
        assert patterns.loc["attention, all mentions", "low"] > 0.6


def test_places_are_sorted_by_verdict(mentions):
    found = deficit.at_same_place(made_up(effect=0.3))
    lines = deficit.in_words(deficit.by_pattern(mentions, 100), deficit.adjusted(mentions), found)
    assert lines[-1].endswith("of the same place: lower at 0, 1, 2, 3, 4.")
    assert found.loc[2, ["hallucinated", "faithful"]].sum() == 800
    assert deficit.at_same_place(mentions).index.max() == 7


@pytest.mark.parametrize(("ratio", "found"), [(0.9, "found"), (1.1, "not found"), (1.0, "unclear")])
def test_a_deficit_is_found_where_most_lie_below_the_mean(ratio, found):
    rng = np.random.default_rng(0)
    mentions = made_up(200)
    mentions["step_ratio"] = ratio + 0.05 * np.where(rng.permutation(200) < 112, -1, 1)  # just over half of them lower
    assert (mentions.loc[mentions["hallucinated"], "step_ratio"] < ratio).mean() > 0.5
    said = deficit.below_mean(mentions, "step_ratio")
    assert f"(the paper's wording): {found}." in said
    with pytest.raises(KeyError):
        deficit.below_mean(mentions, "mass")


def test_layers_and_patterns_are_drawn(mentions):
    layers = deficit.by_layer(ph.Store.shipped().mentions(TEST), n_resamples=100)
    assert len(layers) == 12
    part = ph.Store.shipped().mentions(TEST).query("layer == 3")
    expected = auc_by_pairs(part["mass"].to_numpy(), part["hallucinated"].to_numpy())
    assert layers.set_index(["layer", "value"]).loc[(3, "mass"), "auc"] == pytest.approx(expected)
    figure, axes = plt.subplots(1, 2)
    deficit.draw_layers(axes[0], layers)
    patterns = deficit.by_pattern(mentions, n_resamples=100)
    deficit.draw_patterns(axes[1], patterns)
    drawn = [line.get_xdata()[0] for line in axes[1].get_lines() if line.get_marker() == "o"]
    assert drawn == pytest.approx(patterns["estimate"].tolist())
    plt.close(figure)
