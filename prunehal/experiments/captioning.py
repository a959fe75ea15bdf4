"""Caption many scenes in batches, and keep what the cache observed beside each caption."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.benchmarks.chair.score import ChairResult
from prunehal.core import NoPruning, Policy, PrunableCache, attach
from prunehal.core.observed import PRUNES
from prunehal.core.visual import generating
from prunehal.models.chat import new_tokens
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.captions import PROMPT
from prunehal.testbed.world.final import FINAL_SPLITS, is_kept_back
from prunehal.testbed.world.scenes import Scene

__all__ = ["Captioned", "caption_batch", "caption_scenes", "mention_attention"]


@dataclass(frozen=True)
class Captioned:
    """Captions of a set of scenes under one policy.

    Attributes:
        captions: one line for each scene: image_id, caption, tokens (generated ones, without the end token), prunes, finished
            (whether the end token came), and starts (where each token begins in the caption: step m wrote the token that begins
            at ``starts[m - 1]``).
        events: the prunes (and returns from a bank) that a caption met: image_id, step, reason, kept.
        steps: the observation: image_id, step, layer, mass, mean, max, n_visual, entropy (if the cache records it), and voted
            (the share of the layers that voted to prune); empty unless traced.
    """

    captions: pd.DataFrame
    events: pd.DataFrame
    steps: pd.DataFrame

    @property
    def texts(self) -> dict[int, str]:
        """Return ``{image_id: caption}``, as ``benchmarks.score`` takes it."""
        return dict(zip(self.captions["image_id"], self.captions["caption"], strict=True))


def caption_scenes(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    scenes: Sequence[Scene],
    policy: Policy | None = None,
    *,
    k: int = 0,
    clutter: bool = False,
    batch_size: int = 50,
    prompt: str = PROMPT,
    max_new_tokens: int = 160,
    sample_seed: int | None = None,
    trace: bool = False,
    progress: bool = False,
) -> Captioned:
    """Caption scenes by stock ``generate()`` with a pruning cache; greedy unless ``sample_seed`` is given.

    Args:
        model, processor: as ``prunehal.load()`` returns them.
        scenes: what to caption.
        policy: when and what to prune; ``NoPruning()`` if left out.
        k, clutter: background tiles around each scene, as in :meth:`Scene.tiles`.
        batch_size: scenes decoded at once; it does not change greedy captions.
        prompt: what is asked; of the testbed's model, ``captions.BRIEF`` gives one short sentence.
        max_new_tokens: longest caption.
        sample_seed: sample with this seed, temperature 1.
        trace: keep the attention statistics of every step and layer.
        progress: show a bar with the time left.

    Raises:
        ValueError: no scene, a batch size below 1, or a scene of the final split that is kept back.

    >>> from prunehal import load
    >>> from prunehal.testbed.world.scenes import scene
    >>> done = caption_scenes(*load(), [scene("test", 0)])
    >>> list(done.captions.columns)
    ['image_id', 'caption', 'tokens', 'prunes', 'finished', 'starts']
    """
    if not scenes or batch_size < 1:
        raise ValueError(
            f"got {len(scenes)} scenes and batch_size={batch_size}; expected at least one scene and a batch size >= 1"
        )
    if kept := [each.image_id for each in scenes if is_kept_back(each.image_id)]:
        raise ValueError(
            f"{len(kept)} scene(s) of the final split are kept back, such as {kept[0]}; expected scenes that have a purpose; "
            f"read those of {' or '.join(FINAL_SPLITS)} by an Experiment"
        )
    policy = NoPruning() if policy is None else policy
    if sample_seed is not None:
        torch.manual_seed(sample_seed)
    parts = []
    for start in tqdm(range(0, len(scenes), batch_size), desc="captions", unit="batch", disable=not progress):
        batch = scenes[start : start + batch_size]
        images = [image for scene in batch for image in scene.tiles(k, clutter)[0]]
        inputs = processor(images=images, text=[build_prompt(k + 1, prompt)] * len(batch), return_tensors="pt").to(model.device)
        ids = [scene.image_id for scene in batch]
        cache = attach(model, inputs, policy, seeds=ids, entropy=trace)
        sampling = {"do_sample": sample_seed is not None, "max_new_tokens": max_new_tokens}
        parts.append(caption_batch(model, processor, inputs, cache, ids, trace=trace, **sampling))
    return Captioned(*(pd.concat(frames, ignore_index=True) for frames in zip(*map(_frames, parts), strict=True)))


def caption_batch(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Mapping[str, Tensor],
    cache: PrunableCache,
    ids: Sequence[Hashable],
    *,
    trace: bool = False,
    **options: object,
) -> Captioned:
    """Run ``generate()`` once, and read texts, prunes and attention of each row; with beams, those of the beam that won.

    Args:
        model, processor: as ``prunehal.load()`` returns them.
        inputs: what generate() gets.
        cache: attached to the prompts of these inputs.
        ids: image id of each row.
        trace: keep the attention statistics of every step and layer.
        **options: of generate().
    """
    made = model.generate(**inputs, **cache.options, return_dict_in_generate=True, **options)
    written = new_tokens(made.sequences, inputs["input_ids"]).tolist()
    ends = generating(model).generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    captions = []
    for image_id, row in zip(ids, written, strict=True):
        end = next((place for place, token in enumerate(row) if token in ends), None)
        text, starts = _token_starts(processor.tokenizer, row[:end])
        captions.append((image_id, text, len(row[:end]), end is not None, starts))
    frame = pd.DataFrame(captions, columns=["image_id", "caption", "tokens", "finished", "starts"])
    # Which row of the cache each token came from: with beam search a text moves between rows.
    beams = getattr(made, "beam_indices", None)
    steps = frame["tokens"] + frame["finished"]  # the step that writes the end token is one too
    came_from = [[row] * n for row, n in enumerate(steps)] if beams is None else beams.tolist()
    origin = pd.DataFrame(
        [
            (image_id, step, row)
            for image_id, n, rows in zip(ids, steps, came_from, strict=True)
            for step, row in enumerate(rows[:n], start=1)
        ],
        columns=["image_id", "step", "row"],
    )
    # A prune after the last step, while other texts go on, changed nothing in this one.
    last = dict(zip(ids, steps, strict=True))
    events = origin.merge(cache.events, on=["step", "row"]).drop(columns="row")
    events = events[events["step"] < events["image_id"].map(last)].reset_index(drop=True)
    prunes = events.loc[events["reason"].isin(PRUNES), "image_id"].value_counts()
    frame.insert(3, "prunes", frame["image_id"].map(prunes).fillna(0).astype(int))
    observed = origin.merge(_observed(cache), on=["step", "row"]).drop(columns="row") if trace else pd.DataFrame()
    return Captioned(frame, events, observed)


def mention_attention(done: Captioned, result: ChairResult) -> pd.DataFrame:
    """Join every object mention with the visual attention at the step that produced it.

    Args:
        done: captions with their trace.
        result: the CHAIR result of the same captions; its mentions carry character spans.

    Returns:
        One line for each mention and layer: image_id, index (of the mention in its caption), node, hallucinated, step (of
        the mention's first token), steps (length of the caption in tokens), layer; mass (attention on all visual tokens)
        and entropy; step_ratio = mass / its mean over all steps of the caption in that layer, the end token's too
        (the paper's comparison), and mention_ratio = mass / its mean over the mentions of the caption in that layer.

    Raises:
        ValueError: the captions were made without ``trace=True``.
    """
    if done.steps.empty:
        raise ValueError("the captions hold no trace; expected caption_scenes(..., trace=True); make them again with it")
    starts = done.captions.set_index("image_id")["starts"]
    mentions = result.mentions[["image_id", "index", "node", "start", "hallucinated"]].copy()
    mentions["step"] = [
        max(i for i, begin in enumerate(starts[image_id]) if begin <= start) + 1
        for image_id, start in zip(mentions["image_id"], mentions["start"], strict=True)
    ]
    mentions["steps"] = mentions["image_id"].map(done.captions.set_index("image_id")["tokens"])
    rows = done.steps[["image_id", "step", "layer", "mass", *done.steps.columns.intersection(["entropy"])]]
    mean = rows.groupby(["image_id", "layer"])["mass"].mean().rename("mean_over_steps").reset_index()
    joined = mentions.drop(columns="start").merge(rows, on=["image_id", "step"]).merge(mean, on=["image_id", "layer"])
    joined["step_ratio"] = joined["mass"] / joined.pop("mean_over_steps")
    joined["mention_ratio"] = joined["mass"] / joined.groupby(["image_id", "layer"])["mass"].transform("mean")
    return joined


def _token_starts(tokenizer, ids: list[int]) -> tuple[str, list[int]]:
    """Return the text of the ids and where in it each token begins, past its leading space."""
    if not ids:
        return "", []
    prefixes = tokenizer.batch_decode([ids[: i + 1] for i in range(len(ids))], skip_special_tokens=True)
    text = prefixes[-1]
    ends = [0, *(len(prefix) for prefix in prefixes)]
    starts = [end + (text[end : end + 1] == " ") for end in ends[:-1]]
    return text, starts


def _observed(cache: PrunableCache) -> pd.DataFrame:
    """Return the trace, with the share of the layers that voted to prune."""
    frame = cache.trace.frame()
    votes = cache.trace.votes()["vote"]
    return frame.assign(voted=votes.groupby([frame["row"], frame["step"]]).transform("mean"))


def _frames(done: Captioned) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    return done.captions, done.events, done.steps
