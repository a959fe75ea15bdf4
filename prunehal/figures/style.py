"""Figures of the notebooks: drawn on axes that the caller owns, in one colour-blind safe palette."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from prunehal.experiments.choosing import Graded, Reported
from prunehal.testbed.world.scenes import GRID, PATCH, TILE

__all__ = [
    "COLORS",
    "caption_strip",
    "draw_choice",
    "draw_doses",
    "draw_estimates",
    "draw_kept",
    "draw_layer_steps",
    "draw_ratio_lines",
    "draw_votes",
    "patch_counts",
    "use_style",
]

# Okabe and Ito's palette.
COLORS = {
    "faithful": "#0072B2",
    "hallucinated": "#D55E00",
    "none": "#444444",
    "random": "#E69F00",
    "lowest": "#CC79A7",
    "accent": "#009E73",
}


def use_style() -> None:
    """Set fonts, grid and palette for all figures of a notebook."""
    sns.set_theme(context="notebook", style="ticks", palette=["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"])
    plt.rcParams.update(
        {"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}
    )


def patch_counts(kept: Sequence[Tensor], first: int = 1, tiles: int = 1) -> np.ndarray:
    """Count in how many layers each patch is still cached.

    Args:
        kept: for each layer the prompt positions of one row's cached visual tokens, ``[cache.kept(l)[row] for l in layers]``.
        first: prompt position of the first visual token (1: after the start token).
        tiles: tiles of the prompt.

    Returns:
        Integers (tiles, 12, 12).
    """
    counts = np.zeros(tiles * GRID * GRID, dtype=int)
    for positions in kept:
        counts[np.asarray(positions) - first] += 1
    return counts.reshape(tiles, GRID, GRID)


def draw_kept(axis: Axes, image: Image.Image, counts: np.ndarray, layers: int, title: str = "") -> None:
    """Show an image with its dropped patches darkened: the fewer layers still hold a patch, the darker it is.

    Args:
        axis: where to draw.
        image: the tile, 96 x 96.
        counts: layers that keep each patch, (12, 12).
        layers: number of layers.
        title: of the axis.
    """
    axis.imshow(image, interpolation="nearest", extent=(0, TILE, TILE, 0))
    veil = np.zeros((GRID, GRID, 4))
    veil[..., 3] = 0.88 * (1 - counts / layers)
    axis.imshow(veil, interpolation="nearest", extent=(0, TILE, TILE, 0))
    for edge in range(0, TILE + 1, PATCH):
        axis.axhline(edge, color="white", linewidth=0.25, alpha=0.5)
        axis.axvline(edge, color="white", linewidth=0.25, alpha=0.5)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=11)
    sns.despine(ax=axis, left=True, bottom=True)


def draw_layer_steps(axis: Axes, frame: pd.DataFrame, value: str = "mass", label: str = "attention on visual tokens") -> None:
    """Draw a heatmap layer x step of one caption's trace (columns step, layer and ``value``)."""
    table = frame.pivot_table(index="layer", columns="step", values=value)
    sns.heatmap(table, ax=axis, cmap="viridis", cbar_kws={"label": label}, xticklabels=5)
    axis.invert_yaxis()
    axis.set(xlabel="step m (output token)", ylabel="layer")


def draw_votes(axes: Sequence[Axes], votes: pd.DataFrame, events: pd.DataFrame) -> None:
    """Draw each layer's A_l and threshold over the steps, mark its votes and the prunes.

    Args:
        axes: one axis for each layer.
        votes: ``cache.trace.votes()`` of one row: step, layer, value, threshold, vote.
        events: ``cache.events`` of that row: step, reason.
    """
    for axis, (layer, part) in zip(axes, votes.groupby("layer"), strict=True):
        axis.plot(part["step"], part["value"], color=COLORS["faithful"], linewidth=1.2, label=r"$A_l$")
        axis.plot(
            part["step"],
            part["threshold"],
            color=COLORS["none"],
            linestyle="--",
            linewidth=1.2,
            label=r"$\sqrt{r}\,\bar A_l$",
        )
        voted = part[part["vote"]]
        axis.scatter(voted["step"], voted["value"], s=14, color=COLORS["hallucinated"], zorder=3, label="votes to prune")
        for step, reason in zip(events["step"], events["reason"], strict=True):
            axis.axvline(step, color=COLORS["accent"], linestyle=":" if reason == "forced" else "-", linewidth=1.4)
        axis.set_title(f"layer {layer}", fontsize=11, loc="left")
        axis.set_ylim(bottom=0)


def caption_strip(axis: Axes, tokens: Sequence[str], values: Sequence[float], marks: dict[int, str]) -> None:
    """Write a caption word by word on shades of the attention at its steps; names are boxed in blue, hallucinated ones in orange.

    Args:
        axis: where to write.
        tokens: the caption's tokens.
        values: visual attention at the step of each.
        marks: token number -> "faithful" or "hallucinated", for the tokens that name objects.
    """
    axis.set(xlim=(0, 100), ylim=(0, 1), xticks=[], yticks=[])
    sns.despine(ax=axis, left=True, bottom=True)
    shades = sns.color_palette("Blues", as_cmap=True)
    top = max(values)
    x, line, lines = 0.0, 0, []
    for token in tokens:
        width = 0.95 * len(token) + 1.3
        if x + width > 100:
            x, line = 0.0, line + 1
        lines.append((x, line))
        x += width
    height = 1 / (line + 1)
    for number, (token, value, (x, row)) in enumerate(zip(tokens, values, lines, strict=True)):
        mark = marks.get(number)
        shade = shades(0.75 * value / top)
        edge = COLORS[mark] if mark else "none"
        axis.text(
            x, 1 - (row + 0.5) * height, token, fontsize=10, family="monospace", va="center",
            weight="bold" if mark else "normal", bbox={"facecolor": shade, "edgecolor": edge, "pad": 1.6, "linewidth": 1.6},
        )  # fmt: skip


def draw_ratio_lines(axis: Axes, table: pd.DataFrame, value: str, label: str, baseline: float | None = None) -> None:
    """Draw a metric against the retention ratio r, one line for each t, with its interval as a whisker.

    Args:
        axis: where to draw.
        table: columns r, t, ``value``, and for whiskers ``value + "_low"`` and ``value + "_high"``.
        value: the column.
        label: of the y axis.
        baseline: the value without pruning, drawn as a dashed line.
    """
    for number, (t, part) in enumerate(table.sort_values("r").groupby("t")):
        shift = (number - 1) * 0.008
        low, high = part.get(f"{value}_low"), part.get(f"{value}_high")
        errors = None if low is None else [part[value] - low, high - part[value]]
        axis.errorbar(
            part["r"] + shift,
            part[value],
            yerr=errors,
            marker="o",
            markersize=5,
            capsize=2,
            linewidth=1.3,
            label=f"t = {t}",
        )
    if baseline is not None:
        axis.axhline(baseline, color=COLORS["none"], linestyle="--", linewidth=1.2, label="no pruning")
    axis.set(xlabel="retention ratio r", ylabel=label)


def draw_estimates(axis: Axes, table: pd.DataFrame, label: str, colors: Sequence[str] | None = None) -> None:
    """Draw estimates below each other, each with its interval and the number of mentions that it is from.

    Args:
        axis: where to draw.
        table: one line for each, from above: estimate, low, high, n; its index says what it is of. Lines without an estimate are
            left out.
        label: of the x axis.
        colors: of the lines, as many as the table has; all dark by default.
    """
    colors = [COLORS["none"]] * len(table) if colors is None else list(colors)
    made = table["estimate"].notna().to_numpy()
    table, colors = table[made], [color for color, kept in zip(colors, made, strict=True) if kept]
    for place, (line, color) in enumerate(zip(table.itertuples(), colors, strict=True)):
        errors = [[line.estimate - line.low], [line.high - line.estimate]]
        axis.errorbar([line.estimate], [place], xerr=errors, fmt="o", markersize=6, capsize=3, linewidth=1.4, color=color)
    axis.axvline(0, color=COLORS["none"], linestyle="--", linewidth=1)
    axis.set_yticks(
        range(len(table)), [f"{name}\nn = {n:,}" for name, n in zip(table.index, table["n"], strict=True)], fontsize=10
    )
    axis.set(xlabel=label, ylim=(len(table) - 0.5, -0.5))


def draw_doses(axis: Axes, curve: pd.DataFrame, color: str, label: str, x: str = "dose", fmt: str = "o-", **options) -> None:
    """Draw the response to each dose of one group, with its interval as a whisker, and a dashed line where nothing changes.

    Args:
        axis: where to draw.
        curve: columns ``x``, change, low, high, as `prunehal.studies.nb09_causal.comparisons.curves` gives them.
        color: of line, points and whiskers.
        label: of the group, for a legend.
        x: the column of the x axis.
        fmt: marker and line, in matplotlib's short form.
        options: more of `Axes.errorbar`.
    """
    curve = curve.sort_values(x)
    errors = [curve["change"] - curve["low"], curve["high"] - curve["change"]]
    options = {"capsize": 3, "linewidth": 1.4, "markersize": 5} | options
    axis.errorbar(curve[x], curve["change"], yerr=errors, fmt=fmt, color=color, label=label, **options)
    axis.axhline(0, color=COLORS["none"], linestyle="--", linewidth=0.8, zorder=0)


def draw_choice(
    axis: Axes, chosen_on: Graded, found: Reported, reported_on: Graded, metric: str, label: str, note: str | None = None
) -> None:
    """Draw every setting's change from the baseline on the split that chose against the split that reports.

    Points on the diagonal keep on the second split what they showed on the first. The chosen setting stands out, under the label
    that says where it was chosen, with its interval on the split that reports; its note is the title.

    Args:
        axis: where to draw.
        chosen_on, reported_on: scores of the same settings on the two splits, the baseline among them.
        found: what `prunehal.experiments.choosing.report` gave.
        metric: "distinct_chair_i" or another fraction of `found.differences`, drawn in percentage points.
        label: of the metric.
        note: the title; by default that of ``found``.
    """
    base, best = found.chosen.baseline, found.chosen.setting
    x, y = (
        {setting: 100 * (each.metrics[metric] - graded.results[base].metrics[metric]) for setting, each in graded.results.items()}
        for graded in (chosen_on, reported_on)
    )
    others = [setting for setting in x if setting not in (base, best)]
    d = found.differences[metric]
    whiskers = [[100 * (d.estimate - d.low)], [100 * (d.high - d.estimate)]]
    axis.axhline(0, color=COLORS["none"], linewidth=0.8, alpha=0.6)
    axis.axvline(0, color=COLORS["none"], linewidth=0.8, alpha=0.6)
    axis.axline((0, 0), slope=1, color=COLORS["none"], linestyle=":", linewidth=1.2, label="as on the split that chose")
    axis.scatter(
        [x[each] for each in others], [y[each] for each in others], s=36, color=COLORS["faithful"], label="other settings"
    )
    color = COLORS["hallucinated"] if found.selected_on_test else COLORS["accent"]
    axis.errorbar([x[best]], [y[best]], whiskers, fmt="D", markersize=8, capsize=4, color=color, zorder=3, label=found.label)
    names = (chosen_on.split, reported_on.split)
    axis.set(**{f"{way}label": f"change of {label}, points, {name} split" for way, name in zip("xy", names, strict=True)})
    axis.set_title(textwrap.fill(found.note if note is None else note, 72), fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=10)
