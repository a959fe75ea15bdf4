"""Votes at names: counts and bounds by hand, differences and odds against pandas and statsmodels, and the words that follow."""

import re

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from prunehal.studies.nb06_trigger.at_names import FEWEST, singles_out, votes_at_names

N_IMAGES = 40


def made(of_hallucinated, of_faithful, of_others, seed=0):
    """Return made-up steps of images, of which given shares have a vote: hallucinated names, faithful ones, other words."""
    rng, kinds = np.random.default_rng(seed), np.array([0] * 6 + [1] * 10 + [2] * 44)
    shares = np.array([of_hallucinated, of_faithful, of_others])[kinds]
    each = {"step": np.arange(2, 62), "names_object": kinds < 2, "hallucinated": kinds == 0}
    images = [pd.DataFrame({"image_id": n, "voted": rng.random(60) < shares} | each) for n in range(N_IMAGES)]
    steps = [rng.permutation(frame["step"]) for frame in images]
    return pd.concat([frame.assign(step=step) for frame, step in zip(images, steps, strict=True)], ignore_index=True)


def test_without_votes_at_names_there_are_counts_and_bounds_but_no_odds():
    rate = made(0, 0, 0.5)
    line = votes_at_names(rate, n_resamples=300)
    assert [line[name] for name in ("hallucinated", "faithful", "other")] == [240, 400, 1760]
    assert [line[f"votes_{name}"] for name in ("hallucinated", "faithful")] == [0, 0]
    assert line["votes_other"] == rate["voted"].sum()
    assert line["highest_hallucinated"] == pytest.approx(100 * (1 - 0.025 ** (1 / 240)))  # Clopper and Pearson at 0 of n
    assert line["highest_faithful"] == pytest.approx(100 * (1 - 0.025 ** (1 / 400)))
    assert line["gap"] == pytest.approx(-100 * rate["voted"].sum() / 1760)
    assert line["gap_low"] < line["gap"] < line["gap_high"] < 0
    assert np.isnan([line["odds_ratio"], line["p"]]).all()
    assert singles_out(line).startswith("No: words that name no object")


def test_the_odds_are_those_of_hallucinated_against_faithful_names_with_the_step_held():
    rate = made(0.8, 0.2, 0.3)
    line = votes_at_names(rate, n_resamples=300)
    names = rate[rate["names_object"]]
    x = sm.add_constant(names[["hallucinated", "step"]].astype(float))
    family, structure = sm.families.Binomial(), sm.cov_struct.Exchangeable()
    fit = sm.GEE(names["voted"].astype(float), x, groups=names["image_id"], family=family, cov_struct=structure).fit()
    low, high = np.exp(fit.conf_int().loc["hallucinated"])
    expected = [np.exp(fit.params["hallucinated"]), low, high, fit.pvalues["hallucinated"]]
    assert [line[name] for name in ("odds_ratio", "odds_low", "odds_high", "p")] == pytest.approx(expected, rel=1e-4)
    shares = rate.groupby(["names_object", "hallucinated"])["voted"].mean()
    assert line["gap"] == pytest.approx(100 * (shares[True, True] - shares[False, False]))
    assert singles_out(line).startswith("Yes: hallucinated names")


@pytest.mark.parametrize("few", [FEWEST - 1, FEWEST])
def test_a_model_needs_ten_votes_at_names(few):
    rate = made(0, 0, 0.5)
    names = rate.index[rate["names_object"]]
    rate.loc[np.random.default_rng(3).choice(names, few, replace=False), "voted"] = True
    assert np.isnan(votes_at_names(rate, n_resamples=300)["odds_ratio"]) == (few < FEWEST)


@pytest.mark.parametrize(
    ("gap", "odds_low", "says"),
    [
        ((-3, -1), 2.0, "No: .* draw the vote more .* hallucinated names, though these draw it more often than faithful ones$"),
        ((-3, -1), 0.9, "No: .* draw the vote more often than hallucinated names$"),
        ((-3, 1), 2.0, "Unclear"),
        ((1, 3), 0.9, "Unclear"),
        ((1, 3), np.nan, "Unclear"),
        ((1, 3), 1.1, "Yes"),
    ],
)
def test_the_words_follow_the_intervals(gap, odds_low, says):
    assert re.match(says, singles_out({"gap_low": gap[0], "gap_high": gap[1], "odds_low": odds_low}))
