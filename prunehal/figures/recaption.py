"""One scene captioned under one policy: computed as plain values, then drawn on a figure that the caller owns."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure, SubFigure
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.benchmarks import score
from prunehal.core import Policy, PruneHal, attach
from prunehal.figures import caption_strip, draw_kept, patch_counts
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import Scene

__all__ = ["Prune", "Recaption", "draw", "draw_patches", "recaption"]

PICTURE = 3.3  # inches, with its title
COLUMNS = 4  # pictures in a row: all tokens and the three prunes of the published setting
KEY = (
    "Words: the darker, the more attention on the visual tokens when the word was written (mean of the layers; the caption's "
    "largest is darkest).\nObjects are bold; those in an orange box are hallucinated, those in a blue one are in the scene."
)


@dataclass(frozen=True, eq=False)
class Prune:
    """What one prune left.

    Attributes:
        step: the step m after whose attention the tokens were dropped.
        reason: "forced" or "vote".
        kept: visual tokens left in each layer (the mean of the layers, rounded down).
        counts: layers that still hold each patch, (12, 12).
    """

    step: int
    reason: str
    kept: int
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class Recaption:
    """One scene's caption under one policy, with what is needed to show it.

    Attributes:
        scene: what was captioned.
        policy: what pruned.
        caption: the text.
        spans: where each token stands in the text, (begin, end).
        attention: mass on all cached visual tokens at the step of each token, mean of the layers.
        marks: for each token "faithful" or "hallucinated" if it is part of an object mention, else None.
        prunes: in their order.
        layers: number of layers.
        n_mentions, n_hallucinated: object mentions of the caption, and those of objects that the scene does not hold.
        recall: objects of the scene that the caption names / objects of the scene.
    """

    scene: Scene
    policy: Policy
    caption: str
    spans: tuple[tuple[int, int], ...]
    attention: tuple[float, ...]
    marks: tuple[str | None, ...]
    prunes: tuple[Prune, ...]
    layers: int
    n_mentions: int
    n_hallucinated: int
    recall: float

    @property
    def words(self) -> list[str]:
        """Return the text of each token."""
        return [self.caption[begin:end] for begin, end in self.spans]

    @property
    def setting(self) -> str:
        """Return the policy in words."""
        if not isinstance(self.policy, PruneHal):
            return "no pruning" if self.policy.limit == 0 else str(self.policy)
        factor = "sqrt(r)" if self.policy.factor is None else f"{self.policy.factor:.2f}"
        return f"r = {self.policy.r:g}, t = {self.policy.t}, factor {factor}"

    @property
    def numbers(self) -> str:
        """Return one line: hallucinated mentions, recall, tokens, and when it pruned."""
        steps = f" at m = {', '.join(str(prune.step) for prune in self.prunes)}" if self.prunes else ""
        prunes = f"{len(self.prunes)} prune{'s' * (len(self.prunes) != 1)}{steps}"
        mentions = f"{self.n_hallucinated} of {self.n_mentions} object mentions hallucinated"
        return f"{mentions}, recall {self.recall:.0%}, {len(self.spans)} tokens, {prunes}"


def recaption(
    model: PreTrainedModel, processor: ProcessorMixin, scene: Scene, policy: Policy, *, max_new_tokens: int = 160
) -> Recaption:
    """Caption one scene greedily, score the caption with CHAIR, and keep which patches each prune left.

    The caption is the one that ``caption_scenes`` gives for the same policy.

    Args:
        model, processor: as ``prunehal.load()`` returns them; the tokenizer's tokens are whole words.
        scene: what to caption; its names are the ground truth.
        policy: when and what to prune.
        max_new_tokens: longest caption.

    Raises:
        ValueError: the scene is not one of the testbed, or the policy cannot be used.

    >>> from prunehal import PruneHal, load
    >>> from prunehal.testbed.world.scenes import scene
    >>> done = recaption(*load(), scene("test", 0), PruneHal(r=0.4, t=3))
    >>> done.layers, [prune.kept for prune in done.prunes]
    (6, [57, 22, 8])
    """
    if not isinstance(scene, Scene):
        raise ValueError(f"scene={scene!r}: expected a Scene. Fix: prunehal.testbed.world.scenes.scene('test', 0).")
    inputs = processor(images=scene.image(), text=build_prompt(), return_tensors="pt").to(model.device)
    cache = attach(model, inputs, policy, seeds=[scene.image_id])
    sequence = model.generate(**inputs, **cache.options, max_new_tokens=max_new_tokens, do_sample=False)
    ids = sequence[0, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    ids = ids[: ids.index(end)] if end in ids else ids
    caption = processor.tokenizer.decode(ids, skip_special_tokens=True)
    spans = _spans(caption, [processor.tokenizer.decode([token], skip_special_tokens=True) for token in ids])
    scored = score({scene.image_id: caption}, {scene.image_id: set(scene.names)})
    marks: list[str | None] = [None] * len(spans)
    for mention in scored.mentions.itertuples():
        for number, (begin, stop) in enumerate(spans):
            if begin < mention.end and stop > mention.start:
                marks[number] = "hallucinated" if mention.hallucinated else "faithful"
    layers = model.config.get_text_config().num_hidden_layers
    prunes = []
    for event in cache.events.itertuples():
        after = event.step + 1 if event.step < cache.step else None  # the last step's prune is seen by no later step
        counts = patch_counts([cache.kept(layer, step=after)[0].cpu() for layer in range(layers)])[0]
        prunes.append(Prune(event.step, event.reason, int(counts.sum()) // layers, counts))
    mass = cache.trace.frame().groupby("step")["mass"].mean().to_numpy()[: len(spans)]  # without the end token's step
    counted = scored.metrics
    return Recaption(
        scene, policy, caption, spans, tuple(map(float, mass)), tuple(marks), tuple(prunes), layers,
        counted["n_mentions"], counted["n_hallucinated"], counted["recall"],
    )  # fmt: skip


def draw(figure: Figure, result: Recaption, base: Recaption | None = None) -> None:
    """Draw a result: what each prune left of the picture, and the caption on shades of visual attention.

    Args:
        figure: is cleared and resized.
        result: what to draw.
        base: a second caption of the same scene to write below it, e.g. without pruning.
    """
    captions = [result] if base is None else [result, base]
    rows = _rows(result)
    titles = [textwrap.fill(f"{each.setting}: {each.numbers}", 135) for each in captions]
    lines = [_lines(each.words) + title.count("\n") for each, title in zip(captions, titles, strict=True)]
    heights = [PICTURE * rows, *(0.55 + 0.34 * n for n in lines)]
    figure.clear()
    figure.set_size_inches(11, sum(heights) + 0.5)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_patches(parts[0], result, rows)
    for part, each, title in zip(parts[1:], captions, titles, strict=True):
        axis = part.subplots()
        axis.set_title(title, fontsize=11, loc="left")
        if each.spans:
            marks = {number: mark for number, mark in enumerate(each.marks) if mark}
            caption_strip(axis, each.words, each.attention, marks)
        else:
            axis.text(0, 0.5, "(the caption is empty)")
            axis.set_axis_off()
    figure.supxlabel(KEY, fontsize=10, x=0.01, ha="left")


def draw_patches(figure: Figure, result: Recaption) -> None:
    """Draw the picture with all visual tokens and after each prune; the fewer layers hold a patch, the darker it is.

    Args:
        figure: is cleared and resized.
        result: what to draw.
    """
    figure.clear()
    figure.set_size_inches(11, PICTURE * _rows(result))
    _draw_patches(figure, result, _rows(result))


def _draw_patches(figure: Figure | SubFigure, result: Recaption, rows: int) -> None:
    image, layers = result.scene.image(), result.layers
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    everything = np.full((12, 12), layers)
    draw_kept(axes[0], image, everything, layers, f"all {everything.size} visual tokens")
    for axis, prune in zip(axes[1:], result.prunes, strict=False):
        title = f"after m = {prune.step} ({prune.reason}):\n{prune.kept} left in each layer"
        draw_kept(axis, image, prune.counts, layers, title)
    for axis in axes[len(result.prunes) + 1 :]:
        axis.set_axis_off()


def _rows(result: Recaption) -> int:
    return math.ceil((len(result.prunes) + 1) / COLUMNS)


def _lines(words: list[str]) -> int:
    return max(1, math.ceil(sum(len(word) + 1.5 for word in words) / 95))  # of a caption_strip, about


def _spans(caption: str, words: list[str]) -> tuple[tuple[int, int], ...]:
    # Each token of the vocabulary is a word or a mark, so that they stand in the caption one after the other.
    spans, end = [], 0
    for word in words:
        begin = caption.index(word.strip(), end)
        end = begin + len(word.strip())
        spans.append((begin, end))
    return tuple(spans)
