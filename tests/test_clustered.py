"""Clustered: means and differences of the lines of a frame, with its images as the units."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prunehal.stats.clustered import over_images


def made(copies=1, seed=0):
    """Return made-up mentions of 30 images: values that go with the image, and a group."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(30), 4)
    values = rng.normal(size=30)[image] + rng.normal(size=120)
    frame = pd.DataFrame({"image_id": 900 - image, "mass": values, "wrong": np.arange(120) % 4 == rng.integers(0, 4)})
    return pd.concat([frame] * copies, ignore_index=True)


def test_the_mean_and_its_interval_are_those_of_scipy_over_images():
    frame = made()
    found = over_images(frame, "mass", n_resamples=999)
    assert found["estimate"] == pytest.approx(frame["mass"].mean())
    assert (found["n"], found["images"]) == (120, 30)
    of_images = frame.groupby("image_id", sort=False)["mass"].mean().to_numpy()  # four mentions each: their mean is that of all
    theirs = stats.bootstrap(
        (of_images,), np.mean, n_resamples=999, rng=np.random.default_rng(0), method="BCa"
    ).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_difference_is_the_first_group_minus_the_others():
    frame = made()
    means = frame.groupby("wrong")["mass"].mean()
    found = over_images(frame, "mass", frame["wrong"], n_resamples=200)
    assert found["estimate"] == pytest.approx(means[True] - means[False])
    assert found["low"] < found["estimate"] < found["high"]


@pytest.mark.parametrize("split", [False, True])
def test_copies_of_mentions_add_no_knowledge(split):
    one, many = (over_images(frame, "mass", frame["wrong"] if split else None, 300) for frame in (made(), made(copies=9)))
    assert (one["low"], one["high"]) == pytest.approx((many["low"], many["high"]))
    assert many["n"] == 9 * one["n"]


def test_the_degrees_of_freedom_are_those_of_the_smaller_group():
    frame = made()
    few = frame["image_id"] > 897  # three images
    found = over_images(frame, "mass", few, n_resamples=200)
    error = abs(found["estimate"]) / stats.t.isf(found["p"] / 2, 2)
    without = []
    for image in frame["image_id"].unique():
        rest = frame[frame["image_id"] != image]
        means = rest.groupby(few[rest.index])["mass"].mean()
        without.append(means[True] - means[False])
    assert error == pytest.approx(np.std(without) * np.sqrt(29))


@pytest.mark.parametrize("group", [True, False])
def test_a_group_without_lines_is_refused(group):
    frame = made()
    with pytest.raises(ValueError, match=r"groups of 'mass' lie in \[.*expected lines of both"):
        over_images(frame, "mass", pd.Series(group, index=frame.index))
