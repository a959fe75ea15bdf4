"""Figures of the matrix of decoders and policies, in the colours of `prunehal.figures`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from prunehal.figures import COLORS
from prunehal.studies.nb07_decoders.matrix import POLICIES

__all__ = ["CHANGES", "draw_changes", "draw_times", "draw_tried"]

# One colour and one marker for each decoding, everywhere.
_LOOKS = {
    "greedy": ("#444444", "*"),
    "beam": ("#0072B2", "s"),
    "nucleus": ("#56B4E9", "P"),
    "vcd": ("#009E73", "v"),
    "pai": ("#E69F00", "o"),
    "dola": ("#CC79A7", "D"),
    "deco": ("#999999", "X"),
    "kvsmooth": ("#D55E00", "^"),
    "opera": ("#332288", "<"),
    "fastv": ("#A05010", ">"),
}
CHANGES = {  # column of `prunehal.studies.nb07_decoders.matrix.matrix` -> title of its panel
    "d_distinct_chair_i": "distinct CHAIR_i",
    "equal_distinct_chair_i": "distinct CHAIR_i, equal objects",
    "d_chair_i": "CHAIR_i, counts repeats",
    "d_recall": "recall",
}


def draw_tried(axis: Axes, table: pd.DataFrame) -> None:
    """Draw the change of distinct CHAIR_i against that of recall, a point for each setting; the chosen ones are ringed.

    Args:
        axis: where to draw.
        table: what `prunehal.studies.nb07_decoders.in_words.tried` returned.
    """
    for name, part in table.groupby("decoding", sort=False):
        color, marker = _LOOKS[name]
        axis.plot(part["d_recall"], part["d_distinct_chair_i"], marker, color=color, markersize=8, label=name, alpha=0.85)
    for how, line in (("chosen", "-"), ("fallback", ":")):
        best = table[table["choice"] == how]
        ring = {"s": 220, "facecolors": "none", "edgecolors": COLORS["none"], "linestyle": line, "linewidth": 1.5}
        axis.scatter(best["d_recall"], best["d_distinct_chair_i"], **ring)
    for place in (axis.axhline, axis.axvline):
        place(0, color=COLORS["none"], linestyle="--", linewidth=1)
    axis.set_xlabel("change of recall, points (right is better)")


def draw_changes(axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """Draw the changes of CHANGES against greedy decoding without pruning, a panel each, a line for each decoding.

    Args:
        axes: as many as CHANGES, of one height and one figure, which gets a title and a legend.
        table: what `prunehal.studies.nb07_decoders.matrix.matrix` returned.
    """
    order = list(dict.fromkeys(table["decoding"]))
    styles = dict(zip(POLICIES, (("faithful", "o"), ("hallucinated", "s"), ("random", "^")), strict=True))
    for axis, (column, title) in zip(axes, CHANGES.items(), strict=True):
        for number, (policy, (color, marker)) in enumerate(styles.items()):
            part = table[table["policy"] == policy].set_index("decoding").loc[order]
            value = part[column]
            errors = [value - part[f"{column}_low"], part[f"{column}_high"] - value]
            options = {"fmt": marker, "markersize": 5, "capsize": 2, "linewidth": 1.2, "color": COLORS[color], "label": policy}
            axis.errorbar(value, np.arange(len(order)) + 0.24 * (number - 1), xerr=errors, **options)
        axis.axvline(0, color=COLORS["none"], linestyle="--", linewidth=1)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("points, against greedy\nwithout pruning")
    axes[0].set_yticks(np.arange(len(order)), order)
    axes[0].invert_yaxis()
    low, high = (table[f"own_distinct_chair_i_{end}"].dropna() for end in ("low", "high"))
    figure, what = axes[0].figure, "PruneHal raises the distinct CHAIR_i of the same decoding"
    figure.suptitle(f"{what} in {(low > 0).sum()} of {len(low)} cells and lowers it in {(high < 0).sum()}", fontsize=12)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(styles), frameon=False)


def draw_times(axis: Axes, times: pd.DataFrame, where: str) -> None:
    """Draw distinct CHAIR_i against time, with a line from each decoding without pruning to the same with PruneHal.

    Args:
        axis: where to draw.
        times: what `prunehal.studies.nb07_decoders.in_words.timed` returned.
        where: the model that was timed, and in how many rounds.
    """
    for name, part in times.groupby("decoding", sort=False):
        part = part.sort_values("pruned")
        color, marker = _LOOKS[name]
        axis.plot(part["cost"], part["distinct_chair_i"], color=color, linewidth=1, alpha=0.5, zorder=1)
        for line in part.itertuples():
            style = {"fillstyle": "none"} if line.pruned else {"label": name}
            axis.plot(line.cost, line.distinct_chair_i, marker, color=color, markersize=10, markeredgewidth=1.8, **style)
    axis.set(xscale="log", xlabel=f"time of a text of equal length, ratio to stock greedy search\n({where})", ylim=(0, None))
    axis.set_ylabel("distinct CHAIR_i on the test split, %")
    ticks = (0.75, 1, 1.5, 2, 3, 5, 10, 20)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    wide = times.pivot_table(index="decoding", columns="pruned", values="distinct_chair_i")
    axis.set_title(f"Distinct CHAIR_i is higher with PruneHal in {(wide[True] > wide[False]).sum()} of {len(wide)} decodings")
