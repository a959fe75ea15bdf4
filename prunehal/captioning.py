"""Caption many scenes in batches, and keep what the cache observed beside each caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.benchmarks.chair import ChairResult
from prunehal.core import NoPruning, Policy, attach
from prunehal.testbed.model import build_prompt
from prunehal.testbed.scenes import Scene

__all__ = ["Captioned", "caption_scenes", "mention_attention"]


@dataclass(frozen=True)
class Captioned:
    """Captions of a set of scenes under one policy.

    Attributes:
        captions: one line for each scene: image_id, caption, tokens (generated ones, without the end token), prunes, and
            starts (where each token begins in the caption: step m wrote the token that begins at ``starts[m - 1]``).
        events: the prunes: image_id, step, reason, kept.
        steps: the observation: image_id, step, layer, mass, mean, max, entropy, n_visual; empty unless traced.
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
    max_new_tokens: int = 100,
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
        max_new_tokens: longest caption.
        sample_seed: sample with this seed, temperature 1.
        trace: keep the attention statistics of every step and layer.
        progress: show a bar with the time left.

    Raises:
        ValueError: no scene, or a batch size below 1.

    >>> from prunehal import load
    >>> from prunehal.testbed.scenes import scene
    >>> done = caption_scenes(*load(), [scene("test", 0)])
    >>> list(done.captions.columns)
    ['image_id', 'caption', 'tokens', 'prunes', 'starts']
    """
    if not scenes or batch_size < 1:
        raise ValueError(
            f"got {len(scenes)} scenes and batch_size={batch_size}; expected at least one scene and a batch size >= 1"
        )
    policy = NoPruning() if policy is None else policy
    if sample_seed is not None:
        torch.manual_seed(sample_seed)
    captions, events, steps = [], [], []
    for start in tqdm(range(0, len(scenes), batch_size), desc="captions", unit="batch", disable=not progress):
        batch = scenes[start : start + batch_size]
        images = [image for scene in batch for image in scene.tiles(k, clutter)[0]]
        inputs = processor(images=images, text=[build_prompt(k + 1)] * len(batch), return_tensors="pt").to(model.device)
        ids = [scene.image_id for scene in batch]
        cache = attach(model, inputs, policy, seeds=ids, entropy=trace)
        sequences = model.generate(
            **inputs, past_key_values=cache, max_new_tokens=max_new_tokens, do_sample=sample_seed is not None
        )
        prunes = cache.events["row"].value_counts()
        for row, written in enumerate(sequences[:, inputs["input_ids"].shape[1] :].tolist()):
            end = model.generation_config.eos_token_id
            written = written[: written.index(end)] if end in written else written
            text, starts = _token_starts(processor.tokenizer, written)
            captions.append((ids[row], text, len(written), int(prunes.get(row, 0)), starts))
        events.append(_keyed(cache.events, ids))
        if trace:
            steps.append(_keyed(cache.trace.frame(), ids))
    return Captioned(
        pd.DataFrame(captions, columns=["image_id", "caption", "tokens", "prunes", "starts"]),
        pd.concat(events, ignore_index=True),
        pd.concat(steps, ignore_index=True) if trace else pd.DataFrame(),
    )


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
    rows = done.steps[["image_id", "step", "layer", "mass", "entropy"]]
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


def _keyed(frame: pd.DataFrame, ids: list[int]) -> pd.DataFrame:
    image_ids = frame["row"].map(dict(enumerate(ids))).astype("int64")
    return frame.drop(columns="row").assign(image_id=image_ids)[["image_id", *frame.columns.drop("row")]]
