"""Ranges of distinct CHAIR_i: equal to the smallest and largest value over all ways in which captions can have repeated."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from prunehal.benchmarks import score
from prunehal.stats import distinct_bounds
from prunehal.stats.bootstrap import Interval
from prunehal.stats.distinct_bounds import ENDS, Bounds, at_end, bounded, difference_bounds, level_bounds, share_bounds
from prunehal.stats.pooled import METRICS

CAPTIONS = {  # condition -> (n_hallucinated, n_recalled, n_mentions, n_truth) of each caption
    "base": [(3, 2, 6, 4), (0, 3, 3, 3), (2, 1, 4, 4)],
    "ours": [(4, 1, 5, 4), (1, 3, 5, 3), (0, 2, 2, 4)],
    "oracle": [(2, 4, 7, 4), (0, 3, 4, 3), (1, 4, 5, 4)],
}


def frame(condition):
    rows = pd.DataFrame(CAPTIONS[condition], columns=["n_hallucinated", "n_recalled", "n_mentions", "n_truth"])
    return rows.assign(image_id=range(len(rows)))


def every(condition, metric):
    """Return the metric for each way in which absent objects can have been repeated, by loops."""
    captions = CAPTIONS[condition]
    ways = product(*([0] if not wrong else range(1, wrong + 1) for wrong, *_ in captions))
    found = []
    for absents in ways:
        absent, recalled = sum(absents), sum(each[1] for each in captions)
        mentions, truth = sum(each[2] for each in captions), sum(each[3] for each in captions)
        found.append(
            {
                "distinct_chair_i": absent / (absent + recalled),
                "repeats": (mentions - absent - recalled) / mentions,
                "f1": 2 * recalled / (absent + recalled + truth),
            }[metric]
        )
    return found


@pytest.mark.parametrize("metric", ["distinct_chair_i", "repeats", "f1"])
@pytest.mark.parametrize("condition", CAPTIONS)
def test_levels_lie_between_the_ends_of_all_repetitions(condition, metric):
    found = every(condition, metric)
    assert level_bounds(bounded(frame(condition)), metric) == pytest.approx((min(found), max(found)))


@pytest.fixture
def bare(monkeypatch):
    """Make intervals of a width that is known, so that ends can be told from estimates."""

    def fake(items_a, items_b, metric, n_resamples):
        values = [distinct_bounds._pooled(each, metric) for each in (items_a, items_b)]
        d = values[1] - values[0]
        return Interval(d, d - 0.01, d + 0.02, 3)

    def share(ours, bound, plain, metric, *, n_resamples):
        o, x, b = (distinct_bounds._pooled(each, metric) for each in (ours, bound, plain))
        value = (o - b) / (x - b)
        return Interval(value, value - 0.01, value + 0.02, 3)

    monkeypatch.setattr(distinct_bounds, "paired_bootstrap", fake)
    monkeypatch.setattr(distinct_bounds, "part_of_change", share)


@pytest.mark.parametrize("metric", ["distinct_chair_i", "f1"])
@pytest.mark.usefixtures("bare")
def test_differences_lie_between_the_ends_of_all_repetitions(metric):
    found = [b - a for a, b in product(every("base", metric), every("ours", metric))]
    given = difference_bounds(bounded(frame("base")), bounded(frame("ours")), metric)
    assert (given.least, given.most) == pytest.approx((min(found), max(found)))
    assert (given.low, given.high) == pytest.approx((min(found) - 0.01, max(found) + 0.02))


@pytest.mark.usefixtures("bare")
def test_shares_lie_between_the_ends_of_all_repetitions():
    ways = product(*(every(each, "f1") for each in ("ours", "oracle", "base")))
    found = [(o - b) / (x - b) for o, x, b in ways]
    given = share_bounds(*(bounded(frame(each)) for each in ("ours", "oracle", "base")))
    assert (given.least, given.most) == pytest.approx((min(found), max(found)))
    assert share_bounds(*(bounded(frame(each)) for each in ("oracle", "base", "oracle"))) is None


def test_the_ends_hold_the_texts_of_captions():
    """Scored texts lie within the range of their own counts, at the ends where nothing or everything was repeated."""
    texts = {1: "A dog, a dog and a bus.", 2: "A cup, a cup, a tv and a cat.", 3: "A bench, a bench and a bench."}
    result = score(texts, {1: {"dog"}, 2: {"cat"}, 3: {"cat"}})
    items = result.items[["image_id", "n_mentions", "n_hallucinated", "n_recalled", "n_truth"]]
    least, most = level_bounds(bounded(items), "distinct_chair_i")
    assert (least, most) == pytest.approx((3 / 5, 7 / 9))
    assert result.metrics["distinct_chair_i"] == pytest.approx(4 / 6)
    assert least < result.metrics["distinct_chair_i"] < most
    known = at_end(bounded(items), "most")["n_repeats"]
    assert known.tolist() == [1, 0, 0]  # the second dog; of absent objects nothing is known


def test_counted_objects_leave_no_range():
    rows = frame("ours").assign(n_absent=[2, 1, 0])
    assert level_bounds(bounded(rows), "distinct_chair_i") == pytest.approx((3 / 9, 3 / 9))
    for end in ENDS:
        assert at_end(bounded(rows), end)["n_distinct"].tolist() == [3, 4, 2]


def test_the_interval_of_a_range_covers_both_ends_and_decides():
    rng = np.random.default_rng(0)
    base = pd.DataFrame({"image_id": range(60), "n_hallucinated": rng.integers(0, 2, 60), "n_recalled": 4, "n_mentions": 6})
    ours = base.assign(n_hallucinated=rng.integers(3, 6, 60), n_recalled=1)
    found = difference_bounds(bounded(base), bounded(ours), "distinct_chair_i", 300)
    assert found.low < found.least < found.most < found.high
    assert found.verdict == "higher"
    assert difference_bounds(bounded(ours), bounded(base), "distinct_chair_i", 300).verdict == "lower"
    assert Bounds(-0.1, 0.1, -0.2, 0.2).verdict == "unclear"
    assert set(METRICS["distinct_chair_i"][0]) == {"n_absent"}
