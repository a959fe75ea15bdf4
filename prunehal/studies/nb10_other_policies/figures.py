"""Figures of policies beyond the paper: changes as lines of a list, what a prune does to A_l, and factors of the threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunehal.experiments.compare import LEVELS, PRIMARY
from prunehal.figures import COLORS
from prunehal.studies.nb12_why_sqrt_r.factor import LAGS

__all__ = ["draw_budget", "draw_equal_budget", "draw_held", "draw_rise", "forest"]

LOOKS = {  # how a setting came about -> color, marker, filled
    "chosen": ("faithful", "s", "full"),
    "fallback": ("hallucinated", "o", "none"),
    "not chosen": ("none", ".", "full"),
    "control": ("none", "D", "none"),
}
_DIRECTION = {"distinct_chair_i": "left is better", "recall": "right is better"}
_MARKS = "osD^v"


def forest(
    table: pd.DataFrame, names: Sequence[str], kinds: Sequence[str], limits: Mapping[str, tuple[float, float]], title: str
) -> Figure:
    """Draw the changes of distinct CHAIR_i and of recall, one line for each setting.

    Args:
        table: with the columns d_distinct_chair_i, d_recall, and their _low and _high, in points.
        names: of the lines, from top to bottom.
        kinds: of each line, one of LOOKS.
        limits: metric -> ends of its axis; an estimate beyond them is an arrow at the edge with its number.
        title: what the figure says.

    >>> line = {f"d_{metric}{end}": 1.0 for metric in PRIMARY for end in ("", "_low", "_high")}
    >>> figure = forest(pd.DataFrame([line]), ["a"], ["chosen"], dict.fromkeys(PRIMARY, (-2, 2)), "title")
    >>> [axis.get_xlabel() for axis in figure.axes][1]
    'change of recall, points (right is better)'
    """
    fig, axes = plt.subplots(1, 2, figsize=(11.5, 1.2 + 0.235 * len(table)), sharey=True)
    place, kinds = np.arange(len(table)), np.array(kinds)
    for axis, metric in zip(axes, PRIMARY, strict=True):
        low, high = limits[metric]
        value = table[f"d_{metric}"].to_numpy()
        ends = np.abs(table[[f"d_{metric}_low", f"d_{metric}_high"]].to_numpy() - value[:, None]).T
        for kind, (color, marker, fill) in LOOKS.items():
            which = (kinds == kind) & (value >= low) & (value <= high)
            look = {"color": COLORS[color], "fmt": marker, "fillstyle": fill, "elinewidth": 1.2, "markersize": 6}
            if (kinds == kind).any():
                axis.errorbar(value[which], place[which], xerr=ends[:, which], label=kind, **look)
        for at in np.flatnonzero((value < low) | (value > high)):
            edge, side = (low, "left") if value[at] < low else (high, "right")
            mark, color = {"left": "<", "right": ">"}[side], COLORS[LOOKS[kinds[at]][0]]
            axis.plot(edge, place[at], mark, color=color, clip_on=False, markersize=6)
            shift = 6 if side == "left" else -6
            axis.annotate(f"{value[at]:+.1f}", (edge, place[at]), (shift, 0), textcoords="offset points", ha=side, va="center",
                          fontsize=8.5, color=color)  # fmt: skip
        axis.axvline(0, color=COLORS["none"], linestyle="--", linewidth=1)
        axis.set(xlim=(low, high), xlabel=f"change of {LEVELS[metric]}, points ({_DIRECTION[metric]})")
        axis.grid(axis="y", color="#eeeeee")
    axes[0].set_yticks(place, names, fontsize=9)
    axes[0].set_ylim(len(table) - 0.4, -0.6)
    fig.suptitle(title)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(LOOKS), frameon=False)
    return fig


def draw_rise(axis: Axes, ways: pd.DataFrame) -> None:
    """Draw the rise of the mean A_l that each prune makes in each layer against the one that the formula predicts.

    Args:
        axis: where to draw.
        ways: indexed by number and layer, with the columns (met, rise) and (predicted, rise), as
            `prunehal.studies.nb12_why_sqrt_r.factor.reached` gives.

    >>> index = pd.MultiIndex.from_tuples([(1, 0), (2, 0)], names=["number", "layer"])
    >>> draw_rise(plt.subplots()[1], pd.DataFrame({("met", "rise"): [2.0, 4.0], ("predicted", "rise"): [2.0, 4.0]}, index))
    """
    for (number, part), color, mark in zip(ways.groupby("number"), _shades(), _MARKS, strict=False):
        axis.plot(part["predicted", "rise"], part["met", "rise"], mark, color=color, label=f"after prune {number}", markersize=7)
    axis.axline((1, 1), slope=1, color=COLORS["none"], linestyle=":", label="as predicted")
    axis.set(xscale="log", yscale="log", xlabel="predicted rise of the mean A_l", ylabel="measured rise")
    ticks = [tick for tick in (1, 1.5, 2, 3, 5, 10, 20) if tick <= 1.1 * ways["met", "rise"].max()]
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        scale.set_ticks([], minor=True)
    axis.set_title("The formula predicts the rise")
    axis.legend(frameon=False)


def draw_held(axis: Axes, held: pd.DataFrame) -> None:
    """Draw the share of the visual attention that the kept tokens hold, from the prune's own step on.

    Args:
        axis: where to draw.
        held: indexed by number and lag, with the columns share and ratio, as fractions.

    >>> index = pd.MultiIndex.from_tuples([(1, 0), (1, 1)], names=["number", "lag"])
    >>> draw_held(plt.subplots()[1], pd.DataFrame({"share": [1.0, 0.7], "ratio": 0.4}, index))
    """
    for (number, part), color, mark in zip(held.groupby("number"), _shades(), _MARKS, strict=False):
        axis.plot(part.index.get_level_values("lag"), 100 * part["share"], mark + "-", color=color, label=f"prune {number}")
        axis.axhline(100 * part["ratio"].mean(), color=color, linestyle="--", linewidth=1)
    axis.set(xlabel="steps after the prune", ylabel="share of the visual attention, %", xticks=range(LAGS + 1), ylim=(0, 105))
    axis.set_title("What the kept tokens hold (dashed: their share of the tokens)")
    axis.legend(frameon=False)


def draw_budget(axis: Axes, points: pd.DataFrame, metric: str = "distinct_chair_i") -> None:
    """Draw the change of a metric against the visual tokens attended to, a mark for each factor.

    Args:
        axis: where to draw.
        points: with the columns name (of the factor), visual, d_metric, d_metric_low and d_metric_high.
        metric: drawn.

    >>> line = {"name": "0.5", "visual": 80.0, "d_recall": -1.0, "d_recall_low": -2.0, "d_recall_high": 0.0}
    >>> draw_budget(plt.subplots()[1], pd.DataFrame([line]), "recall")
    """
    colors = (*_shades(), COLORS["lowest"], COLORS["hallucinated"])
    for (name, part), color, mark in zip(points.groupby("name", sort=True), colors, _MARKS, strict=False):
        ends = [part[f"d_{metric}"] - part[f"d_{metric}_low"], part[f"d_{metric}_high"] - part[f"d_{metric}"]]
        axis.errorbar(part["visual"], part[f"d_{metric}"], ends, fmt=mark, color=color, label=name, capsize=2, markersize=7)
    axis.axhline(0, color=COLORS["none"], linestyle="--", linewidth=1)
    axis.set(xlabel="visual tokens attended to, % of no pruning", ylabel=f"change of {LEVELS[metric]}, points")
    axis.set_title("Fewer tokens, more harm, whatever the factor")
    axis.legend(frameon=False, title="factor")


def draw_equal_budget(axis: Axes, at_equal: Mapping[str, pd.DataFrame]) -> None:
    """Draw what is left of each factor's change against sqrt(r) at an equal number of visual tokens.

    Args:
        axis: where to draw.
        at_equal: metric -> what `prunehal.studies.nb06_trigger.votes.factors_at_equal_budget` returned.

    >>> draw_equal_budget(plt.subplots()[1], {"recall": pd.DataFrame({"factor": [0.5], "difference": 1, "low": 0, "high": 2})})
    """
    for place, (metric, part) in enumerate(at_equal.items()):
        color, mark = (("hallucinated", "o"), ("faithful", "s"))[metric == "recall"]
        ends = [part["difference"] - part["low"], part["high"] - part["difference"]]
        label = f"{LEVELS[metric]} ({'up' if metric == 'recall' else 'down'} is better)"
        x = np.arange(len(part)) + 0.16 * (place - 0.5)
        axis.errorbar(x, part["difference"], ends, fmt=mark, color=COLORS[color], label=label, capsize=3)
        axis.set_xticks(np.arange(len(part)), [f"{factor:g}" for factor in part["factor"]])
    axis.axhline(0, color=COLORS["none"], linestyle="--", linewidth=1)
    axis.set(xlabel="factor", ylabel="difference from sqrt(r), points", title="At an equal number of visual tokens")
    axis.legend(frameon=False)


def _shades() -> tuple[str, str, str]:
    return COLORS["faithful"], COLORS["random"], COLORS["accent"]
