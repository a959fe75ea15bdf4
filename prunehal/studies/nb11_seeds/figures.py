"""The figure of notebook 11: what each rule changes for each training seed, and what repeats leave open."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunehal.figures import COLORS
from prunehal.studies.nb08_redundancy.rules import ORACLE, PUBLISHED
from prunehal.studies.nb11_seeds.in_words import ALL
from prunehal.studies.nb11_seeds.rows import FAMILIES

__all__ = ["draw_effects"]

_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_NAMES = (PUBLISHED, *FAMILIES, ORACLE)


def draw_effects(table: pd.DataFrame) -> Figure:
    """Draw the changes of recall, of distinct CHAIR_i and of F1, for each seed and for all.

    Args:
        table: what `prunehal.studies.nb11_seeds.in_words.effects` returned. Recall is a point with its interval; the others are
            bars from the smallest to the largest change that the counts allow, with whiskers for the scenes drawn.
    """
    panels = {"d_recall": "recall", "d_distinct_chair_i": "distinct CHAIR_i", "d_f1": "F1 of distinct objects"}
    seeds = list(table["seed"].unique())
    fig, axes = plt.subplots(2, len(panels), figsize=(12.5, 7.4), sharex="col", sharey=True)
    for row, clutter in zip(axes, (False, True), strict=True):
        for axis, (metric, label) in zip(row, panels.items(), strict=True):
            for number, seed in enumerate(seeds):
                part = table[(table["seed"] == seed) & (table["clutter"] == clutter)].set_index("rule").loc[[*_NAMES]]
                place = np.arange(len(_NAMES)) + 0.18 * (number - (len(seeds) - 1) / 2)
                color = COLORS["none"] if seed == ALL else _COLORS[number % len(_COLORS)]
                _draw(axis, part, metric, place, color, "o^sDv"[number % 5], "all seeds" if seed == ALL else f"seed {seed}")
            axis.axvline(0, color=COLORS["none"], linestyle="--", linewidth=1)
            axis.set_title(f"{'cluttered' if clutter else 'clean'} tiles: {label}", fontsize=11)
    for axis in axes[1]:
        axis.set_xlabel("change, points")
    axes[0, 0].set_yticks(range(len(_NAMES)), _NAMES)
    axes[0, 0].invert_yaxis()
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(seeds), frameon=False)
    fig.suptitle("In every seed the published setting loses F1, and standout tokens gain it among clutter, whatever was repeated")
    return fig


def _draw(axis: Axes, part: pd.DataFrame, metric: str, place: np.ndarray, color: str, marker: str, label: str) -> None:
    """Draw one seed's changes: points where they are known, bars where they lie between two ends."""
    low, high = part[f"{metric}_low"], part[f"{metric}_high"]
    if metric in part:
        ends = [part[metric] - low, high - part[metric]]
        axis.errorbar(part[metric], place, xerr=ends, fmt=marker, color=color, capsize=2, markersize=6, label=label)
        return
    axis.hlines(place, low, high, color=color, linewidth=1)
    axis.barh(place, part[f"{metric}_most"] - part[f"{metric}_least"], left=part[f"{metric}_least"], height=0.12, color=color)
