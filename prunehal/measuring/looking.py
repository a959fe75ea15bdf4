"""How a testbed model's attention on its image differs from that of a real multimodal LLM, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from prunehal.benchmarks.chair.score import ChairResult
from prunehal.experiments.captioning import Captioned, mention_attention
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.captions import PROMPT
from prunehal.testbed.world.scenes import Scene

__all__ = ["looks", "start_token_share", "whole_heads"]


def looks(done: Captioned, result: ChairResult, heads: int) -> dict[str, float]:
    """Return statistics of the attention on visual tokens in captions that were made without pruning.

    Args:
        done: captions with their trace.
        result: the CHAIR result of the same captions.
        heads: attention heads of a layer, over which a mass is the mean.

    Returns:
        whole (the share that :func:`whole_heads` returns, of the masses of all steps and layers), steps (mean mass of all steps),
        faithful and hallucinated (mean mass at the mentions of each kind; nan where there are none), over_steps (mass at a
        mention / mean of all steps of its caption, mean of the layers and the mentions) and least_over_steps (the smallest of
        any mention).

    Raises:
        ValueError: the captions were made without ``trace=True``.

    >>> from prunehal import caption_scenes, load
    >>> from prunehal.benchmarks import ground_truth_testbed, score
    >>> from prunehal.testbed.world.scenes import scene
    >>> done = caption_scenes(*load(), [scene("test", 0)], trace=True)
    >>> looks(done, score(done.texts, ground_truth_testbed()), heads=4)["over_steps"] > 1.5
    True
    """
    rows = mention_attention(done, result)
    keys = ["image_id", "index", "hallucinated"]
    mentions = rows.groupby(keys, as_index=False)[["mass", "step_ratio"]].mean()
    wrong = mentions["hallucinated"]
    return {
        "whole": whole_heads(done.steps["mass"], heads)[0],
        "steps": float(done.steps["mass"].mean()),
        "faithful": float(mentions.loc[~wrong, "mass"].mean()),
        "hallucinated": float(mentions.loc[wrong, "mass"].mean()),
        "over_steps": float(mentions["step_ratio"].mean()),
        "least_over_steps": float(mentions["step_ratio"].min()),
    }


def whole_heads(mass: ArrayLike, n_heads: int, within: float = 0.02) -> tuple[float, float]:
    """Return the share of attention masses that lie near a multiple of 1 / heads, and the share that chance would give.

    The mass of a layer is the mean over its heads. Where each head looks at the image wholly or not at all, it
    counts heads.

    Args:
        mass: attention on all visual tokens, means over the heads of a layer, in [0, 1].
        n_heads: of a layer.
        within: what counts as near.

    Returns:
        The share of the masses within that of 0, 1 / n_heads, ..., 1; and that of masses spread evenly over [0, 1].

    >>> whole_heads([0.0, 0.26, 0.6, 1.0], 4)
    (0.75, 0.16)
    """
    steps = np.asarray(mass, dtype=float) * n_heads
    near = np.abs(steps - steps.round()) <= within * n_heads
    return float(near.mean()), 2 * within * n_heads


@torch.no_grad()
def start_token_share(model, processor, scenes: Sequence[Scene], captions: Mapping[int, str]) -> float:
    """Return the share of attention on the start token at the steps of captions, mean of heads, layers, steps and captions.

    Large models park much attention there (an attention sink).

    Args:
        model, processor: as ``prunehal.load(attn_implementation="eager")`` returns them; other implementations return no weights.
        scenes: what was captioned.
        captions: image_id -> caption.

    >>> from prunehal import load
    >>> from prunehal.testbed.world.scenes import scene
    >>> text = {scene("test", 0).image_id: "The image shows a farm."}
    >>> start_token_share(*load(attn_implementation="eager"), [scene("test", 0)], text) < 0.1
    True
    """
    shares = []
    for each in scenes:
        text = f"{build_prompt(1, PROMPT)} {captions[each.image_id]}"
        inputs = processor(images=each.image(), text=text, return_tensors="pt").to(model.device)
        first = processor(images=each.image(), text=build_prompt(1, PROMPT), return_tensors="pt")["input_ids"].shape[1] - 1
        layers = model(**inputs, output_attentions=True).attentions  # (1, head, query, slot) each
        shares.append(torch.stack([weights[0, :, first:, 0].float().mean() for weights in layers]).mean())
    return float(torch.stack(shares).mean())
