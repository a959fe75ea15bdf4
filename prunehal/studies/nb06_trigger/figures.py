"""Figures of the trigger: when prunes come, and at which steps a majority of the layers votes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from prunehal.figures import COLORS

__all__ = ["draw_kinds", "draw_times", "draw_votes_by_step"]

_LINES = ("-", "--", "-.", ":")
FEWEST = 30  # captions that a step needs to be drawn


def draw_times(axis: Axes, curves: Mapping[str, pd.DataFrame], title: str) -> None:
    """Draw the share of the captions that were pruned by each step, a line for each factor.

    Args:
        axis: where to draw.
        curves: factor -> what `prunehal.studies.nb06_trigger.votes.time_to_prune` returned.
        title: of the axis.

    >>> import matplotlib.pyplot as plt
    >>> draw_times(plt.subplots()[1], {"0.5": pd.DataFrame({"step": [1, 9], "pruned": [0.0, 1.0]})}, "first prune")
    """
    for (name, curve), style in zip(curves.items(), _LINES, strict=False):
        axis.step(curve["step"], 100 * curve["pruned"], where="post", linestyle=style, linewidth=2, label=f"factor {name}")
    axis.set(xlabel="step m (output token)", ylabel="captions, %", title=title, xlim=(1, 100), ylim=(0, 103))
    axis.legend(frameon=False, loc="lower right")


def draw_votes_by_step(axis: Axes, rates: Mapping[str, pd.DataFrame]) -> None:
    """Draw the share of the captions in which a majority votes at each step, a line for each factor.

    Args:
        axis: where to draw.
        rates: factor -> what `prunehal.studies.nb06_trigger.votes.vote_rate` returned; steps of fewer than FEWEST captions are
            left out.

    >>> import matplotlib.pyplot as plt
    >>> draw_votes_by_step(plt.subplots()[1], {"0.5": pd.DataFrame({"step": [2] * 30, "voted": [True] * 30})})
    """
    for (name, rate), style in zip(rates.items(), _LINES, strict=False):
        share = rate.groupby("step")["voted"].agg(["mean", "count"]).query("count >= @FEWEST")
        axis.plot(share.index, 100 * share["mean"], linestyle=style, linewidth=1.8, label=f"factor {name}")
    axis.set(xlabel="step m (output token)", ylabel="captions with a majority, %", ylim=(0, 103))
    axis.set_title("The vote comes more often late in a caption")
    axis.legend(frameon=False, ncols=2, loc="upper center")


def draw_kinds(axis: Axes, kinds: pd.DataFrame, title: str) -> None:
    """Draw shares of steps with a majority as marks with their numbers, a row for each factor.

    Args:
        axis: where to draw.
        kinds: indexed by factor, a column for each kind of step, in percent.
        title: of the axis.

    >>> import matplotlib.pyplot as plt
    >>> draw_kinds(plt.subplots()[1], pd.DataFrame({"names": [0.1], "others": [51.1]}, ["sqrt(r)"]), "title")
    """
    place = np.arange(len(kinds))
    for kind, color, mark in zip(kinds, ("faithful", "random", "accent"), "osD", strict=False):
        axis.plot(kinds[kind], place, mark, color=COLORS[color], markersize=9, label=kind, clip_on=False)
        for value, at in zip(kinds[kind], place, strict=True):
            axis.annotate(f"{value:.1f}", (value, at), (9, 0), textcoords="offset points", va="center", fontsize=10)
    axis.set_yticks(place, kinds.index)
    axis.set(xlabel="steps with a majority, %", ylabel="factor of the threshold", xlim=(0, 103), ylim=(len(kinds) - 0.5, -0.5))
    axis.grid(axis="y", color="#dddddd")
    axis.set_title(title)
    axis.legend(frameon=False, loc="center right")
