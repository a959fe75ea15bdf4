"""Figures of effects: points with whiskers, for settings beside each other and for options below each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from prunehal.figures import COLORS

__all__ = ["KEPT", "draw_groups", "draw_verdicts"]

KEPT = {"top": COLORS["faithful"], "random": COLORS["random"], "lowest": COLORS["lowest"]}  # colours of the selections
_MARKERS = "osD^v"
_VERDICTS = {  # colour and marker
    "lower": ("faithful", "v"),
    "higher": ("hallucinated", "^"),
    "equivalent": ("accent", "s"),
    "unclear": ("none", "d"),
}


def draw_groups(
    axis: Axes,
    table: pd.DataFrame,
    value: str,
    label: str,
    x: str,
    group: str | None = None,
    *,
    ends: tuple[str, str] | None = None,
    colors: Mapping[str, str] | None = None,
    null: str | None = None,
) -> None:
    """Draw estimates with their intervals, side by side for the groups at each place of the x axis.

    Args:
        axis: where to draw.
        table: columns x, group, value, and both ends of the interval.
        value: column of the estimates.
        label: of the y axis.
        x: column of the places, drawn in their order in the table.
        group: column of the groups, named in the legend; None draws one group.
        ends: columns of the interval; by default value_low and value_high.
        colors: group -> colour; by default the palette's.
        null: drawn as a dashed line at 0, with this name in the legend.
    """
    low, high = ends or (f"{value}_low", f"{value}_high")
    places = list(dict.fromkeys(table[x]))
    groups = [None] if group is None else list(dict.fromkeys(table[group]))
    for number, name in enumerate(groups):
        part = table if group is None else table[table[group] == name]
        at = [places.index(each) + (number - (len(groups) - 1) / 2) * 0.18 for each in part[x]]
        errors = [part[value] - part[low], part[high] - part[value]]
        style = {"fmt": _MARKERS[number % len(_MARKERS)], "capsize": 3, "label": None if name is None else str(name)}
        axis.errorbar(at, part[value], yerr=errors, color=None if colors is None else colors[name], **style)
    if null is not None:
        axis.axhline(0, color=COLORS["none"], linestyle="--", linewidth=1.2, label=null)
    axis.set_xticks(range(len(places)), [str(each) for each in places])
    axis.set_xlim(-0.5, len(places) - 0.5)
    axis.set_ylabel(label)


def draw_verdicts(axes: Sequence[Axes], table: pd.DataFrame, metrics: Mapping[str, str], margin: float) -> None:
    """Draw the changes of options below each other, one axis for each metric, each in the colour and mark of its verdict.

    Args:
        axes: one for each metric; the first gets the names of the options.
        table: columns option, and for each metric d_, d_..._low, d_..._high and verdict_, as
            `prunehal.studies.nb05_options.compare.one_at_a_time` returns it.
        metrics: metric -> its label.
        margin: points within which a change does not matter, drawn as a grey band.
    """
    for axis, (metric, label) in zip(axes, metrics.items(), strict=True):
        axis.axvspan(-margin, margin, color="0.9", zorder=0, label=f"within {margin:g} point(s) of no change")
        axis.axvline(0, color=COLORS["none"], linestyle="--", linewidth=1.2)
        for verdict, (color, marker) in _VERDICTS.items():
            part = table[table[f"verdict_{metric}"] == verdict]
            d, low, high = (part[f"d_{metric}{end}"] for end in ("", "_low", "_high"))
            style = {"fmt": marker, "capsize": 3, "color": COLORS[color], "label": verdict}
            axis.errorbar(d, part.index, xerr=[d - low, high - d], **style)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.set_xlabel(f"change of {label}, points (95% interval)")
    axes[0].set_yticks(table.index, table["option"])
