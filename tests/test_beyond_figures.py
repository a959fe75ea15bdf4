"""Figures of policies beyond the paper and of the trigger: what is drawn are the numbers that were given."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from prunehal.studies.nb06_trigger.figures import draw_kinds, draw_times, draw_votes_by_step
from prunehal.studies.nb10_other_policies.figures import draw_budget, draw_equal_budget, draw_held, draw_rise, forest
from prunehal.studies.nb12_why_sqrt_r.in_words import equal_budget, reach

LIMITS = {"distinct_chair_i": (-4, 8), "recall": (-14, 3)}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def changes(values):
    """Return lines with a change of distinct CHAIR_i and of recall, and intervals of a point to the left and two to the right."""
    lines = []
    for distinct, recall in values:
        line = {}
        for metric, value in (("distinct_chair_i", distinct), ("recall", recall)):
            line |= {f"d_{metric}": value, f"d_{metric}_low": value - 1, f"d_{metric}_high": value + 2}
        lines.append(line)
    return pd.DataFrame(lines)


def drawn(axis):
    """Return kind -> the points of the series of an axis that have error bars."""
    return {bar.get_label(): bar.lines[0].get_xydata().tolist() for bar in axis.containers}


def test_each_setting_stands_on_its_line_with_its_interval():
    figure = forest(changes([(1.0, -2.0), (2.0, -3.0), (-1.0, 0.5)]), list("abc"), ["chosen", "fallback", "chosen"], LIMITS, "so")
    left, right = figure.axes
    assert drawn(left) == {"chosen": [[1.0, 0], [-1.0, 2]], "fallback": [[2.0, 1]]}
    assert drawn(right) == {"chosen": [[-2.0, 0], [0.5, 2]], "fallback": [[-3.0, 1]]}
    bars = left.containers[0].lines[2][0].get_segments()
    assert [part[:, 0].tolist() for part in bars] == [[0.0, 3.0], [-2.0, 1.0]]
    assert [label.get_text() for label in left.get_yticklabels()] == list("abc")
    assert left.yaxis_inverted()
    assert "left is better" in left.get_xlabel()
    assert "right is better" in right.get_xlabel()


def test_what_lies_further_out_is_an_arrow_with_its_number():
    figure = forest(changes([(29.1, -32.6), (1.0, -1.0)]), list("ab"), ["control", "chosen"], LIMITS, "so")
    for axis, edge, mark, number in zip(figure.axes, (8, -14), "><", ("+29.1", "-32.6"), strict=True):
        assert drawn(axis)["control"] == []
        arrows = [line for line in axis.lines if line.get_marker() == mark]
        assert [arrow.get_xydata().tolist() for arrow in arrows] == [[[edge, 0]]]
        assert [text.get_text() for text in axis.texts] == [number]


def test_rises_and_shares_are_those_given():
    index = pd.MultiIndex.from_product([[1, 2], [0, 1]], names=["number", "layer"])
    ways = pd.DataFrame({("met", "rise"): [2.0, 2.2, 4.0, 4.4], ("predicted", "rise"): [2.1, 2.2, 4.1, 4.4]}, index)
    axis = plt.subplots()[1]
    draw_rise(axis, ways)
    assert [line.get_xydata().tolist() for line in axis.lines[:2]] == [[[2.1, 2.0], [2.2, 2.2]], [[4.1, 4.0], [4.4, 4.4]]]
    axis = plt.subplots()[1]
    draw_held(
        axis, pd.DataFrame({"share": [1.0, 0.7, 0.6, 0.3], "ratio": [0.4, 0.4, 0.16, 0.16]}, index.set_names(["number", "lag"]))
    )
    assert axis.lines[0].get_xydata().tolist() == [[0, 100], [1, 70]]
    assert axis.lines[3].get_ydata()[0] == pytest.approx(16)


def test_factors_are_drawn_at_their_budget_and_difference():
    points = changes([(1.0, -2.0), (2.0, -3.0)]).assign(name=["0.5", "sqrt(r)"], visual=[80.0, 60.0])
    axis = plt.subplots()[1]
    draw_budget(axis, points)
    assert drawn(axis) == {"0.5": [[80.0, 1.0]], "sqrt(r)": [[60.0, 2.0]]}
    axis = plt.subplots()[1]
    lines = pd.DataFrame({"factor": [0.1, 0.5], "difference": [1.0, 2.0], "low": [0.0, 1.5], "high": [1.5, 4.0]})
    draw_equal_budget(axis, {"distinct_chair_i": lines, "recall": lines.assign(difference=[-1.0, -2.0], low=-3.0, high=0.0)})
    assert [np.array(part)[:, 1].tolist() for part in drawn(axis).values()] == [[1.0, 2.0], [-1.0, -2.0]]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.1", "0.5"]


def test_the_words_on_factors_follow_the_intervals():
    lines = pd.DataFrame({"factor": [0.1, 0.5, 0.95], "difference": [-2, 0, 3], "low": [-3, -1, 0.1], "high": [-0.1, 1, 5]})
    assert [said.split(": ")[1].split(",")[0] for said in equal_budget(lines, 0.5)[:3]] == ["lower", "unclear", "higher"]
    held = pd.DataFrame({"share": [0.9, 0.5], "ratio": 0.25}, pd.MultiIndex.from_tuples([(1, 0), (1, 1)]))
    said = reach({"rise": 2.0, "reached": 0.5, "low": 0.4, "high": 0.6}, {"reached": 0.3}, held)
    assert said[0] == "The 25% of the tokens that stay hold 90% of the visual attention at the prune, 50% a step later."
    assert "by 2.00: 50% [40%, 60%] of the way to 1 / r; random tokens reach 30%" in said[1]
    assert said[2].endswith("0.71; sqrt(r) = 0.50.")


def test_times_and_votes_are_drawn_in_percent():
    axis = plt.subplots()[1]
    draw_times(axis, {"0.5": pd.DataFrame({"step": [1, 9], "pruned": [0.0, 0.5]})}, "first prune")
    assert axis.lines[0].get_xydata().tolist() == [[1, 0], [9, 50]]
    axis = plt.subplots()[1]
    rate = pd.DataFrame({"step": [2] * 40 + [3] * 29, "voted": ([True] + [False] * 3) * 10 + [True] * 29})
    draw_votes_by_step(axis, {"0.5": rate})
    assert axis.lines[0].get_xydata().tolist() == [[2, 25]]  # step 3 has too few captions
    axis = plt.subplots()[1]
    draw_kinds(axis, pd.DataFrame({"names": [0.0, 0.1], "others": [51.1, 20.0]}, ["sqrt(r)", "0.5"]), "title")
    assert [line.get_xdata().tolist() for line in axis.lines] == [[0.0, 0.1], [51.1, 20.0]]
    assert [text.get_text() for text in axis.texts] == ["0.0", "0.1", "51.1", "20.0"]
    assert mpl.colors.to_hex(axis.lines[0].get_color()) != mpl.colors.to_hex(axis.lines[1].get_color())
