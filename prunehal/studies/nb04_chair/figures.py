"""Figures of the captions that OPERA's authors released, in the colours of `prunehal.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from prunehal.benchmarks.chair.released import DECODINGS, LENGTHS, MODELS
from prunehal.benchmarks.chair.score import ChairResult
from prunehal.figures import COLORS

__all__ = ["draw_cuts", "draw_differences", "draw_only", "draw_places", "draw_published"]

_LOOKS = dict(zip(DECODINGS, (("#444444", "o"), ("#E69F00", "s"), ("#0072B2", "^")), strict=True))
_LENGTHS = dict(zip(LENGTHS, (("none", "o"), ("random", "s"), ("faithful", "^")), strict=True))
_PLACES = {"": ("all mentions", "hallucinated", "o", "-"), "distinct_": ("first mention of each object", "faithful", "s", "--")}
_FEWEST = 30  # mentions in a bin that is drawn
_CUTS = {"chair_i": "CHAIR_i, %", "distinct_chair_i": "distinct CHAIR_i, %", "recall": "recall, %"}
_DIFFERENCES = {"chair_i": "CHAIR_i", "distinct_chair_i": "distinct CHAIR_i", "recall": "recall"}


def draw_published(axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """Draw the published numbers and those scored again, a panel for each metric.

    Args:
        axes: two.
        table: columns model, decoding, metric ("chair_s" or "chair_i"), published, re-scored.
    """
    for axis, (metric, part) in zip(axes, table.groupby("metric", sort=False), strict=True):
        places = np.arange(len(part))[::-1]
        axis.hlines(places, part["published"], part["re-scored"], color="#bbbbbb", linewidth=1.2)
        axis.scatter(part["published"], places, marker="o", s=75, facecolor="none", edgecolor=COLORS["none"], label="published")
        axis.scatter(part["re-scored"], places, marker="x", s=45, color=COLORS["faithful"], label="re-scored here")
        axis.set_yticks(places, part["model"] + ", " + part["decoding"])
        axis.set_xlabel({"chair_s": "CHAIR_s, percent of captions", "chair_i": "CHAIR_i, percent of mentions"}[metric])
        axis.grid(axis="y", color="#eeeeee")
    axes[1].legend(loc="lower right")


def draw_places(axes: Sequence[Axes], places: Mapping[str, pd.DataFrame]) -> None:
    """Draw the share of hallucinated mentions, and of absent objects, against their place in the caption, a panel for each model.

    Args:
        axes: one for each model.
        places: name of the model -> what `prunehal.benchmarks.chair.length.rate_by_position` returned.
    """
    for axis, (name, rates) in zip(axes, places.items(), strict=True):
        for before, (label, color, marker, line) in _PLACES.items():
            shown = rates[rates[f"n_{before.rstrip('_') or 'mentions'}"] >= _FEWEST]
            middle = (shown["start"] + shown["stop"]) / 2
            low, high, rate = (100 * shown[f"{before}{column}"] for column in ("low", "high", "rate"))
            axis.fill_between(middle, low, high, color=COLORS[color], alpha=0.15, linewidth=0)
            axis.plot(middle, rate, marker=marker, linestyle=line, markersize=4, color=COLORS[color], label=label)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("place in the caption, words")
    axes[0].set_ylabel("not in the image, percent")
    axes[0].set_ylim(bottom=0)
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)


def draw_cuts(
    axes: np.ndarray, curves: Mapping[tuple[str, str], pd.DataFrame], scored: Mapping[tuple[str, str], ChairResult]
) -> None:
    """Draw CHAIR_i, distinct CHAIR_i and recall of captions that are cut against their length; markers are the uncut captions.

    Args:
        axes: three rows, a column for each model.
        curves: (model, decoding) -> what `prunehal.benchmarks.chair.length.truncation_curve` returned.
        scored: (model, decoding) -> the scores of the uncut captions.
    """
    for (model, name), column in zip(MODELS.items(), axes.T, strict=True):
        for axis, (metric, label) in zip(column, _CUTS.items(), strict=True):
            for decoding, (color, marker) in _LOOKS.items():
                curve, whole = curves[model, decoding], scored[model, decoding].metrics
                curve = curve[curve["words"] < whole["words"]]
                x, y = [*curve["words"], whole["words"]], 100 * np.array([*curve[metric], whole[metric]])
                axis.plot(x, y, color=color, linewidth=1.3)
                axis.scatter(x[-1], y[-1], color=color, marker=marker, s=50, label=DECODINGS[decoding], zorder=3)
            axes[list(_CUTS).index(metric), 0].set_ylabel(label)
        column[0].set_title(name, fontsize=11)
        column[-1].set_xlabel("mean length, words")
    axes[0, 0].legend(loc="upper left", fontsize=9)


def draw_differences(axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """Draw OPERA minus greedy decoding in CHAIR_i, distinct CHAIR_i and recall, with its intervals, a panel each.

    Args:
        axes: three, of one height.
        table: what `prunehal.benchmarks.chair.released.opera_against_greedy` returned.
    """
    for axis, (metric, label) in zip(axes, _DIFFERENCES.items(), strict=True):
        for number, (length, (color, marker)) in enumerate(_LENGTHS.items()):
            part = table[table["length"] == length]
            y = np.arange(len(part))[::-1] + 0.22 * (1 - number)
            errors = [part[metric] - part[f"{metric}_low"], part[f"{metric}_high"] - part[metric]]
            axis.errorbar(part[metric], y, xerr=errors, fmt=marker, color=COLORS[color], capsize=3, label=length)
        axis.axvline(0, color="#999999", linewidth=1, linestyle="--")
        axis.set_xlabel(f"{label}, points")
    axes[0].set_yticks(np.arange(len(MODELS))[::-1], MODELS.values())
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def draw_only(axis: Axes, only: Mapping[str, pd.DataFrame], n_captions: int) -> None:
    """Draw the ten words that one scorer finds most often and the other misses.

    Args:
        axis: where to draw.
        only: name of each of the two scorers -> mentions that only it finds.
        n_captions: of which they are.
    """
    counts = pd.DataFrame({f"only {name}": each["word"].value_counts() for name, each in only.items()}).fillna(0).astype(int)
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index].head(10)
    counts.plot.barh(ax=axis, color=[COLORS["random"], COLORS["faithful"]], width=0.75)
    axis.invert_yaxis()
    axis.set(xlabel=f"mentions in {n_captions:,} captions that one scorer finds and the other misses", ylabel="word")
    axis.legend()
