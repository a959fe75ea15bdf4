"""Figures: one style, kept tokens and captions drawn, effects with their intervals, and the panel."""

from prunehal.figures.style import (
    COLORS,
    caption_strip,
    draw_choice,
    draw_doses,
    draw_estimates,
    draw_kept,
    draw_layer_steps,
    draw_ratio_lines,
    draw_votes,
    patch_counts,
    use_style,
)

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
