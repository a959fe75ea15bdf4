"""Figures of notebook 08: what redundancy, and each way of selecting among redundant tokens, changes.

Every function draws one figure and returns it. Rules have the same colour and marker in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from prunehal.figures import COLORS, draw_kept
from prunehal.studies.nb08_redundancy.rules import ORACLE, PUBLISHED
from prunehal.studies.nb08_redundancy.tables import THREE, cell_name

__all__ = [
    "STYLE",
    "draw_attention",
    "draw_by_patches",
    "draw_example",
    "draw_kept_share",
    "draw_lengths",
    "draw_levels",
    "draw_responses",
    "draw_shares",
]

STYLE = {  # rule -> colour, marker; told apart without colours, too
    PUBLISHED: ("#D55E00", "s"),
    "one step": ("#A05010", "o"),
    "random": ("#E69F00", "X"),
    "per step, nothing lost": ("#0072B2", "D"),
    "accumulated steps": ("#56B4E9", "P"),
    "draft, then prune": ("#009E73", "^"),
    "informative tokens": ("#332288", "v"),
    "standout tokens": ("#CC79A7", "p"),
    ORACLE: ("#444444", "*"),
}
KINDS = {"clean": ("faithful", "o"), "cluttered": ("hallucinated", "s"), "positions only": ("none", "^")}
_TICKS = ([0, 1, 2, 3], ["0", "1", "3", "7"])


def draw_levels(levels: pd.DataFrame) -> Figure:
    """Draw the scores without pruning against the number of tiles, as `prunehal.studies.nb08_redundancy.rules.levels` returns
    them."""
    labels = {"distinct_chair_i": "distinct CHAIR_i, %", "recall": "recall, %", "repeats": "repeats, % of mentions"}
    fig, axes = plt.subplots(1, len(labels), figsize=(11, 3.7))
    for axis, (metric, label) in zip(axes, labels.items(), strict=True):
        for number, (kind, (color, marker)) in enumerate(KINDS.items()):
            part = levels[(levels["kind"] == kind) | ((levels["tiles"] == 0) & (kind != "positions only"))].sort_values("tiles")
            place = np.log2(part["tiles"] + 1) + 0.06 * (number - 1)
            axis.errorbar(place, part[metric], yerr=_ends(part, metric), **_line(COLORS[color], marker), label=kind)
        axis.set_xticks([0, 1, 2, 3], ["0\n144", "1\n288", "3\n576", "7\n1152"])
        axis.set(xlabel="background tiles, visual tokens", ylabel=label)
    axes[0].legend(frameon=False)
    fig.suptitle("Without pruning: clutter raises hallucination, clean tiles change little")
    return fig


def draw_attention(seen: pd.DataFrame) -> Figure:
    """Draw the attention on visual tokens, and the share of it on objects, of rows without pruning of
    `prunehal.studies.nb08_redundancy.evidence`."""
    fig, axes = plt.subplots(1, 2, figsize=(10.5, 4))
    labels = {"mass": "attention on visual tokens", "share": "share of it on objects"}
    for axis, (value, label) in zip(axes, labels.items(), strict=True):
        for clutter, (kind, (color, marker)) in enumerate(list(KINDS.items())[:2]):
            part = seen[(seen["clutter"] == bool(clutter)) | (seen["tiles"] == 0)]
            for steps, line, name in (("mentions", "-", "names of objects"), ("others", ":", "other steps")):
                groups = part.groupby("tiles")[f"at_{steps}_{value}"]
                style = {"fmt": f"{marker}{line}", "color": COLORS[color], "capsize": 2}
                style["fillstyle"] = "full" if steps == "mentions" else "none"
                mean, error = groups.mean(), 1.96 * groups.sem()
                axis.errorbar(np.log2(mean.index + 1), mean, yerr=error, label=f"{kind}, {name}", **style)
        axis.set_xticks(*_TICKS)
        axis.set(xlabel="background tiles", ylabel=label, ylim=(0, 1))
    patches = seen.groupby("tiles")["objects"].mean()
    axes[1].plot(np.log2(patches.index + 1), patches, "--", color=COLORS["none"], label="share of the tokens")
    fig.legend(*axes[1].get_legend_handles_labels(), loc="outside right center", frameon=False)
    fig.suptitle("Clutter draws attention off the objects, clean tiles hardly do")
    return fig


def draw_kept_share(kept: pd.DataFrame, error: pd.DataFrame) -> Figure:
    """Draw the share of the object patches kept against that of all visual tokens.

    Args:
        kept, error: means and half widths of their intervals, indexed by clutter and rule: kept, kept_objects.
    """
    fig, axes = plt.subplots(1, 2, figsize=(10.5, 4.4), sharey=True)
    for axis, (tiles, clutter) in zip(axes, THREE, strict=True):
        for name, (color, marker) in STYLE.items():
            x, y = kept.loc[(clutter, name)]
            ends = dict(zip(("xerr", "yerr"), error.loc[(clutter, name)], strict=True))
            axis.errorbar(x, y, **ends, fmt=marker, color=color, markersize=8, label=name, linestyle="none")
        axis.plot([0, 1], [0, 1], "--", color=COLORS["none"], linewidth=1)
        axis.set(xlabel="share of all visual tokens kept", title=cell_name(tiles, clutter), xlim=(0, 1.02), ylim=(0, 1.05))
    axes[0].set_ylabel("share of the object patches kept")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, title="dashed: no preference")
    fig.suptitle("Informative and standout tokens keep most of the objects, the published setting drops them")
    return fig


def draw_example(pictures: Sequence[Image.Image], left: Mapping[str, np.ndarray], layers: int) -> Figure:
    """Draw what is left of a scene and of one background tile under several rules.

    Args:
        pictures: the tiles, the scene first.
        left: rule -> layers that keep each patch, (tile, 12, 12).
        layers: of the model.
    """
    fig, axes = plt.subplots(1, 2 * len(left), figsize=(3.4 * len(left), 2.3))
    for pair, (name, counts) in zip(axes.reshape(-1, 2), left.items(), strict=True):
        for axis, number, title in zip(pair, (0, 1), (f"{name}:\nthe scene", "\na cluttered tile"), strict=True):
            draw_kept(axis, pictures[number], counts[number], layers, title)
    fig.suptitle("Left at the end of a caption (darker: held by fewer layers)", fontsize=12)
    return fig


def draw_responses(table: pd.DataFrame) -> Figure:
    """Draw what each rule changes in each cell, as `prunehal.studies.nb08_redundancy.rules.responses` returns it."""
    panels = {"d_distinct_chair_i": "distinct CHAIR_i", "d_recall": "recall", "d_repeats": "repeats"}
    fig, axes = plt.subplots(2, len(panels), figsize=(11, 6.4), sharex=True, sharey="col")
    for row, (_, clutter) in zip(axes, THREE, strict=True):
        part = table[(table["clutter"] == clutter) | (table["tiles"] == 0)]
        for axis, (metric, label) in zip(row, panels.items(), strict=True):
            for number, (name, (color, marker)) in enumerate(STYLE.items()):
                line = part[part["rule"] == name].sort_values("tiles")
                place = np.log2(line["tiles"] + 1) + 0.06 * (number - 4)
                axis.errorbar(place, line[metric], yerr=_ends(line, metric), **_line(color, marker), label=name)
            _zero(axis)
            axis.set_title(f"{'cluttered' if clutter else 'clean'} tiles: {label}", fontsize=11)
            axis.set_xticks(*_TICKS)
    for axis in axes[1]:
        axis.set_xlabel("background tiles")
    for axis in axes[:, 0]:
        axis.set_ylabel("change, points")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=10)
    fig.suptitle("Informative and standout tokens lower hallucination among cluttered tiles, no rule is seen to among clean ones")
    return fig


def draw_shares(won: pd.DataFrame) -> Figure:
    """Draw the share of the oracle's gain that each rule wins, in the cells with a gain, of `redundancy_tables.shares`."""
    useful = won.dropna(subset="won")
    cells, names = list(useful.groupby(["clutter", "tiles"], sort=True).groups), [name for name in STYLE if name != ORACLE]
    width = max(6, 3.1 * len(cells) + 2)
    fig, axes = plt.subplots(1, max(1, len(cells)), figsize=(width, 4), sharey=True, sharex=True, squeeze=False)
    for axis, (clutter, tiles) in zip(axes[0], cells, strict=False):
        part = useful[(useful["clutter"] == clutter) & (useful["tiles"] == tiles)].set_index("rule").loc[names]
        for place, (name, line) in enumerate(part.iterrows()):
            ends = [[line["won"] - line["won_low"]], [line["won_high"] - line["won"]]]
            color, marker = STYLE[name]
            axis.errorbar(line["won"], place, xerr=ends, fmt=marker, color=color, capsize=2, markersize=7)
        for value in (0, 0.5, 1):
            axis.axvline(value, color=COLORS["none"], linestyle="--" if value == 0.5 else "-", linewidth=0.8)
        axis.set(title=cell_name(tiles, clutter), xlabel="share of the oracle's gain in F1", xlim=(-2, 1.5))
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    fig.suptitle("Standout and informative tokens win about half of the oracle's gain or more, the others nothing")
    return fig


def draw_lengths(table: pd.DataFrame, trained: Sequence[int]) -> Figure:
    """Draw the changes against the length of captions, of `prunehal.studies.nb08_redundancy.tables.lengths`.

    Args:
        table: the changes.
        trained: words of captions of the training split; the band spans their 5th to 95th percentile.
    """
    fig, axes = plt.subplots(2, 2, figsize=(9.5, 6.2), sharex=True, sharey="row")
    panels = [(metric, clutter) for metric in ("distinct_chair_i", "recall") for _, clutter in THREE]
    for axis, (metric, clutter) in zip(axes.flat, panels, strict=True):
        for number, (name, line) in enumerate(table[table["clutter"] == clutter].groupby("rule", sort=False)):
            place = line["base_words"] + 0.5 * (number - 2)
            axis.errorbar(place, line[f"d_{metric}"], yerr=_ends(line, f"d_{metric}"), **_line(*STYLE[name]), label=name)
        _zero(axis)
        axis.axvspan(*np.percentile(trained, [5, 95]), color="#DDDDDD", zorder=0)
    for axis, cell in zip(axes[0], THREE, strict=True):
        axis.set_title(cell_name(*cell))
    for axis in axes[1]:
        axis.set_xlabel("words in a caption without pruning")
    for axis, name in zip(axes[:, 0], ("distinct CHAIR_i", "recall"), strict=True):
        axis.set_ylabel(f"change of {name}, points")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    fig.suptitle("Informative and standout tokens help among clutter in captions of every length")
    return fig


def draw_by_patches(table: pd.DataFrame) -> Figure:
    """Draw the change of recall of objects on few and on many patches, of
    `prunehal.studies.nb08_redundancy.tables.by_patches`."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, sharex=True)
    names = list(STYLE)
    for axis, (tiles, clutter) in zip(axes, THREE, strict=True):
        for number, (kind, marker, color) in enumerate((("local", "o", "accent"), ("spread", "s", "faithful"))):
            part = table[(table["clutter"] == clutter) & (table["evidence"] == kind)].set_index("rule").loc[names]
            place = np.arange(len(names)) + 0.2 * (number - 0.5)
            style = {"fmt": marker, "capsize": 2, "color": COLORS[color], "label": kind}
            axis.errorbar(part["d_recall"], place, xerr=_ends(part, "d_recall"), **style)
        axis.axvline(0, color=COLORS["none"], linestyle="--", linewidth=1)
        axis.set(xlabel="change of recall, points", title=cell_name(tiles, clutter))
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[1].legend(frameon=False, title="evidence")
    fig.suptitle("Objects on few patches and on many: the published setting loses both")
    return fig


def _ends(table: pd.DataFrame, metric: str) -> list[pd.Series]:
    """Return the lengths of whiskers below and above."""
    return [table[metric] - table[f"{metric}_low"], table[f"{metric}_high"] - table[metric]]


def _line(color: str, marker: str) -> dict[str, Any]:
    return {"fmt": f"{marker}-", "capsize": 2, "color": color, "linewidth": 1.1, "markersize": 6}


def _zero(axis: Axes) -> None:
    axis.axhline(0, color=COLORS["none"], linestyle="--", linewidth=1)
