"""The part of a bound's change, against a loop over images and resamples."""

import numpy as np
import pandas as pd
import pytest
from scipy import special

from prunehal.stats.gain import gain_in_f1, part_of_change


def items(seed, shift, n=30):
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(0).integers(2, 6, n)
    return pd.DataFrame({"image_id": range(n), "n_truth": truth, "n_recalled": np.clip(rng.integers(0, 3, n) + shift, 0, truth)})


def pooled(frame, drawn):
    top = bottom = 0
    for i in drawn:
        top, bottom = top + frame["n_recalled"][i], bottom + frame["n_truth"][i]
    return top / bottom


def looped(ours, bound, plain, drawn):
    base = pooled(plain, drawn)
    return (pooled(ours, drawn) - base) / (pooled(bound, drawn) - base)


def test_part_and_interval_are_those_of_a_loop():
    n, resamples = 30, 300
    ours, bound, plain = items(1, 1), items(2, 2), items(3, 0)
    rng = np.random.default_rng(0)
    draws = np.array([looped(ours, bound, plain, drawn) for drawn in rng.integers(0, n, (resamples, n))])
    estimate = looped(ours, bound, plain, range(n))
    left_out = np.array([looped(ours, bound, plain, [j for j in range(n) if j != i]) for i in range(n)])
    influence = left_out.mean() - left_out
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    bias = special.ndtri(((draws < estimate).mean() + (draws <= estimate).mean()) / 2)
    z = bias + special.ndtri([0.025, 0.975])
    ends = np.quantile(draws, special.ndtr(bias + z / (1 - acceleration * z)))
    found = part_of_change(ours, bound, plain, "recall", n_resamples=resamples)
    assert found.estimate == pytest.approx(estimate)
    assert [found.low, found.high] == pytest.approx(ends)


def test_images_are_paired_by_their_id():
    ours, bound, plain = items(1, 1), items(2, 2), items(3, 0)
    mixed = [frame.sample(frac=1, random_state=seed) for seed, frame in enumerate((ours, bound))]
    assert part_of_change(*mixed, plain, "recall", n_resamples=200) == part_of_change(
        ours, bound, plain, "recall", n_resamples=200
    )
    assert part_of_change(bound, bound, plain, "recall", n_resamples=200).low == 1
    assert part_of_change(plain, bound, plain, "recall", n_resamples=200).high == 0


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="bound has 29 images, plain 30, and 29 are in both; expected the same images"):
        part_of_change(items(1, 1), items(2, 2)[1:], items(3, 0), "recall")


def test_the_gain_in_f1_counts_each_object_once():
    """A caption that repeats a true object gains nothing; one that names another does."""
    plain = pd.DataFrame({"image_id": range(30), "n_truth": 4, "n_recalled": [1, 2, 2] * 10, "n_distinct": [3, 3, 4] * 10})
    plain = plain.assign(n_mentions=5, n_hallucinated=2)
    looping = plain.assign(n_mentions=50)
    bound = plain.assign(n_recalled=4, n_distinct=4)
    gain, won = gain_in_f1(looping, bound, plain, n_resamples=200)
    assert gain.estimate == pytest.approx(1 - 2 * 50 / (100 + 120))
    assert won.estimate == 0
    better = plain.assign(n_recalled=plain["n_recalled"] + 1, n_distinct=plain["n_distinct"] + 1)
    _, won = gain_in_f1(better, bound, plain, n_resamples=200)
    assert won.estimate == pytest.approx((2 * 80 / 250 - 2 * 50 / 220) / (1 - 2 * 50 / 220))
    assert gain_in_f1(bound, plain, plain, n_resamples=200)[1] is None
