"""Figures of effects, by their artists: each estimate at its place, with its interval, in the colour of its group or verdict."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from prunehal.figures import COLORS
from prunehal.figures.effects import KEPT, draw_groups, draw_verdicts


@pytest.fixture
def axes():
    figure, axes = plt.subplots(1, 2)
    yield axes
    plt.close(figure)


def test_groups_stand_side_by_side_with_their_intervals(axes):
    table = pd.DataFrame(
        {
            "at": ["r 0.4", "r 0.4", "r 0.7", "r 0.7"],
            "selection": ["top", "random", "top", "random"],
            "d": [8.0, 1.0, 4.0, 0.0],
            "d_low": [6.0, -1.0, 3.0, -2.0],
            "d_high": [9.0, 2.0, 6.0, 1.0],
        }
    )
    draw_groups(axes[0], table, "d", "points", "at", "selection", colors=KEPT, null="no pruning")
    assert [text.get_text() for text in axes[0].get_xticklabels()] == ["r 0.4", "r 0.7"]
    for container, name in zip(axes[0].containers, ("top", "random"), strict=True):
        point, _, (bars,) = container
        part = table[table["selection"] == name]
        assert (container.get_label(), point.get_color()) == (name, KEPT[name])
        assert point.get_ydata().tolist() == part["d"].tolist()
        assert [segment[:, 1].tolist() for segment in bars.get_segments()] == part[["d_low", "d_high"]].to_numpy().tolist()
    top, random = (container[0].get_xdata() for container in axes[0].containers)
    assert (top < random).all()
    assert (abs(top - [0, 1]) < 0.5).all()
    assert [line.get_label() for line in axes[0].lines if line.get_linestyle() == "--"] == ["no pruning"]


def test_one_group_has_its_own_ends_and_no_legend(axes):
    table = pd.DataFrame({"value": ["1", "2"], "mean": [1.0, 2.0], "low": [0.5, 1.0], "high": [1.5, 4.0]})
    draw_groups(axes[0], table, "mean", "points", "value", ends=("low", "high"))
    ((_, _, (bars,)),) = axes[0].containers
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0.5, 1.5], [1.0, 4.0]]
    assert axes[0].get_legend_handles_labels()[1] == []


def test_each_option_is_drawn_by_its_verdict(axes):
    table = pd.DataFrame({"option": ["kept = shared", "first = decode", "kept = head"]})
    ends = {"": [1.0, 2.0, 3.0], "_low": [0.0, 1.0, 2.0], "_high": [4.0] * 3}
    for metric in ("distinct_chair_i", "recall"):
        table = table.assign(**{f"d_{metric}{end}": values for end, values in ends.items()})
    table["verdict_distinct_chair_i"] = ["lower", "equivalent", "unclear"]
    table["verdict_recall"] = ["higher", "equivalent", "lower"]
    draw_verdicts(axes, table, {"distinct_chair_i": "distinct CHAIR_i", "recall": "recall"}, 1.0)
    assert [text.get_text() for text in axes[0].get_yticklabels()] == table["option"].tolist()
    found = {bar.get_label(): (bar[0].get_ydata().tolist(), to_hex(bar[0].get_color())) for bar in axes[1].containers}
    assert found["higher"] == ([0], COLORS["hallucinated"].lower())
    assert found["lower"] == ([2], COLORS["faithful"].lower())
    assert found["unclear"][0] == []
    assert axes[1].get_xlabel() == "change of recall, points (95% interval)"
