"""Figures, by their artists: what a plot of a choice says of where the choice was made."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from prunehal.benchmarks.chair.score import ChairResult
from prunehal.experiments.choosing import Graded, choose, report
from prunehal.figures import COLORS, draw_choice, draw_doses, draw_estimates


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def graded(split, first, **wrong):
    """Grade settings given as name=hallucinated of 40 mentions in 20 captions."""
    results = {}
    for name, total in wrong.items():
        items = pd.DataFrame({"image_id": np.arange(first, first + 20), "words": 10, "n_mentions": 2, "n_truth": 2})
        items = items.assign(n_recalled=1, n_hallucinated=np.clip(total - 2 * np.arange(20), 0, 2))
        items = items.assign(n_distinct=2, n_absent=items["n_hallucinated"], n_repeats=0, unfinished=False)
        items["hallucinated"] = items["n_hallucinated"] > 0
        metrics = {"chair_i": total / 40, "distinct_chair_i": total / 40, "recall": 0.5, "f1": 0.6, "words": 10.0}
        results[name] = ChairResult("fixed", metrics, items, pd.DataFrame())
    return Graded(split, results)


VALIDATION = graded("validation", 0, none=12, mild=10, hard=2)
TEST = graded("test", 100, none=12, mild=14, hard=8)


def drawn(axis, chosen_on, reported_on, allow=False):
    chosen = choose(chosen_on, baseline="none", allow_test_selection=allow)
    found = report(chosen, reported_on, n_resamples=200)
    draw_choice(axis, chosen_on, found, reported_on, "distinct_chair_i", "distinct CHAIR_i")
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    return found, legend, " ".join(axis.get_title(loc="left").split())


def test_a_choice_on_validation_is_drawn_on_both_splits_and_says_where_it_was_made(axis):
    found, legend, title = drawn(axis, VALIDATION, TEST)
    assert "hard (chosen on validation)" in legend
    assert title == found.note
    assert "CHOSEN ON TEST" not in title
    assert axis.get_xlabel() == "change of distinct CHAIR_i, points, validation split"
    assert axis.get_ylabel() == "change of distinct CHAIR_i, points, test split"
    (others,) = axis.collections[:1]
    assert others.get_offsets().tolist() == [pytest.approx([100 * (10 - 12) / 40, 100 * (14 - 12) / 40])]
    (container,) = axis.containers
    point, _, (bars,) = container
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((-25, -10))
    d = found.differences["distinct_chair_i"]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([100 * d.low, 100 * d.high])


def test_a_choice_takes_another_title(axis):
    found, *_ = drawn(axis, VALIDATION, TEST)
    draw_choice(axis, VALIDATION, found, TEST, "distinct_chair_i", "distinct CHAIR_i", "its own words")
    assert axis.get_title(loc="left") == "its own words"


def test_a_choice_on_test_says_so_in_legend_and_title_and_has_another_colour(axis):
    _, legend, title = drawn(axis, TEST, TEST, allow=True)
    assert "hard (CHOSEN ON TEST)" in legend
    assert "CHOSEN ON TEST, so its gain there is optimistic" in title
    (container,) = axis.containers
    assert container[0].get_color() == COLORS["hallucinated"]


def test_estimates_stand_from_above_with_their_intervals_and_numbers(axis):
    lines = {"low": [0.1, np.nan, -0.4], "estimate": [0.2, np.nan, -0.3], "high": [0.4, np.nan, 0.1], "n": [1200, 3, 40]}
    draw_estimates(axis, pd.DataFrame(lines, index=["first", "few", "last"]), "nats", ["red", "green", "blue"])
    assert [text.get_text() for text in axis.get_yticklabels()] == ["first\nn = 1,200", "last\nn = 40"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]
    points, bars = zip(*[(bar[0], bar[2][0]) for bar in axis.containers], strict=True)
    assert [(point.get_xdata()[0], point.get_ydata()[0], point.get_color()) for point in points] == [
        (0.2, 0, "red"),
        (-0.3, 1, "blue"),
    ]
    ends = [tuple(bar.get_segments()[0][:, 0]) for bar in bars]
    assert ends == [pytest.approx((0.1, 0.4)), pytest.approx((-0.4, 0.1))]


def test_doses_are_drawn_in_order_with_their_intervals(axis):
    curve = pd.DataFrame({"dose": [1.0, -1.0, 0.0], "change": [-0.5, -0.2, 0.0], "low": [-0.9, -0.3, 0], "high": [-0.4, 0.1, 0]})
    draw_doses(axis, curve, "red", "some")
    (container,) = axis.containers
    points, _, (bars,) = container
    assert (container.get_label(), points.get_color()) == ("some", "red")
    assert points.get_xdata().tolist() == [-1, 0, 1]
    assert points.get_ydata().tolist() == [-0.2, 0, -0.5]
    ends = [tuple(segment[:, 1]) for segment in bars.get_segments()]
    assert ends == [pytest.approx((-0.3, 0.1)), pytest.approx((0, 0)), pytest.approx((-0.9, -0.4))]
