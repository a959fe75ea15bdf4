"""Faithful mentions that are compared with hallucinated ones: as likely, and at the same place."""

import numpy as np
import pandas as pd
import pytest

from prunehal.stats import clustered, matching


def test_matching_makes_baseline_and_place_alike():
    rng = np.random.default_rng(1)
    bad = rng.random(3000) < 0.2
    mentions = pd.DataFrame({"image_id": np.arange(3000) // 3, "hallucinated": bad})
    mentions["index"] = np.clip(rng.poisson(np.where(bad, 3, 1)), 0, 8)
    mentions["baseline"] = rng.normal(np.where(bad, -1.2, -0.9), 0.3)
    mentions["change"] = 0.2 * mentions["baseline"] - 0.1 * mentions["index"].clip(upper=5)  # nothing but what is matched
    table = matching.balance(mentions)
    apart = (table.loc["hallucinated"] - table.loc["faithful"])[["baseline", "index"]].abs()
    left = (table.loc["hallucinated, matched"] - table.loc["faithful, matched"])[["baseline", "index"]].abs()
    assert (left < 0.1 * apart).all()
    pairs = matching.matched(mentions)
    assert pairs.loc[~pairs["hallucinated"], "weight"].sum() == pytest.approx(pairs["hallucinated"].sum())
    assert not set(pairs.loc[pairs["hallucinated"], "stratum"]) ^ set(pairs.loc[~pairs["hallucinated"], "stratum"])
    images, first = pairs["image_id"].to_numpy(), pairs["hallucinated"].to_numpy()
    raw = clustered.gap(pairs["change"].to_numpy(), images, first)(np.ones((1, 1000))).item()
    same = clustered.matched_gap(pairs["change"].to_numpy(), images, first, pairs["stratum"].to_numpy())(np.ones((1, 1000)))
    assert abs(same.item()) < 0.05 * abs(raw)


def test_matched_mentions_outside_the_range_of_the_hallucinated_have_no_partner():
    bad = np.r_[np.ones(20, bool), np.zeros(22, bool)]
    baseline = np.r_[np.linspace(-2, -1, 20), np.linspace(-2, -1, 20), -2.5, -0.5]
    mentions = pd.DataFrame({"image_id": range(42), "index": 0, "hallucinated": bad, "baseline": baseline})
    assert sorted(set(mentions["baseline"]) - set(matching.matched(mentions)["baseline"])) == [-2.5, -0.5]
