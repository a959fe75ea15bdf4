"""Intervene on attention where a word is chosen, and see how its probability changes: a cause, not only an association.

A mention of a stored caption is written again up to the token before it. That token's query, whose output chooses the word, then
attends to the image otherwise: with c times the weight on every visual token before the softmax (the odds of visual against
text are multiplied by c), or without the visual tokens of one object. Nothing else changes, and no later step is touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.core import NoPruning, SharedPrefill
from prunehal.core.editing import editing
from prunehal.experiments import Experiment, Store
from prunehal.loading import load
from prunehal.resources import written
from prunehal.testbed.model import build_prompt
from prunehal.testbed.scenes import scene_of
from prunehal.testbed.sprites import load_sprites
from prunehal.testbed.world import NAMES

__all__ = ["DOSES", "REMOVED", "Mention", "intervene", "likeness", "measure", "mentions_of"]

DOSES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # c; 1 changes nothing, 0 is blind
REMOVED = ("itself", "most alike", "another", "background")


@dataclass(frozen=True)
class Mention:
    """One mention of a caption.

    Attributes:
        image_id, index: which.
        node: the object, by its COCO name.
        hallucinated: whether the scene does not hold it.
        before: tokens of the caption that stand before the mention.
        token: the mention's first token.
    """

    image_id: int
    index: int
    node: str
    hallucinated: bool
    before: tuple[int, ...]
    token: int


def mentions_of(store: Store, experiment: Experiment, processor: ProcessorMixin) -> list[Mention]:
    """Return the first mention of each object in each caption of an experiment on the testbed.

    Raises:
        FileNotFoundError: rows are missing.

    >>> found = mentions_of(Store.shipped(), Experiment(split="test", n_images=2), load()[1])
    >>> found[0].node, found[0].index
    ('book', 0)
    """
    captions = store.captions(experiment).set_index("image_id")["caption"]
    frame = store.mentions(experiment).drop_duplicates(["image_id", "node"])
    found = []
    for line in frame.itertuples():
        ids = processor.tokenizer(captions[line.image_id], add_special_tokens=False).input_ids
        before, token = tuple(ids[: line.step - 1]), ids[line.step - 1]
        found.append(Mention(line.image_id, line.index, line.node, bool(line.hallucinated), before, token))
    return found


def intervene(
    model: PreTrainedModel, processor: ProcessorMixin, mentions: Sequence[Mention], doses: Sequence[float] = DOSES, seed: int = 0
) -> pd.DataFrame:
    """Return the log-probability of each mention's first token under every intervention.

    Args:
        model, processor: the embedded ones.
        mentions: a batch; their scenes are drawn anew.
        doses: factors c on the weight of all visual tokens.
        seed: of the choice of another object and of background patches.

    Returns:
        One line for each mention and intervention: image_id, index, node, hallucinated, likeness (largest, to an object of the
        scene), what ("scale", or "remove" with object as REMOVED names it), dose (nan where removed), removed (patches),
        log_prob (nats), top (the object whose name begins with the likeliest token, else "") and top_present.

    >>> model, processor = load()
    >>> some = mentions_of(Store.shipped(), Experiment(split="test", n_images=2), processor)[:2]
    >>> frame = intervene(model, processor, some, doses=(0.0, 1.0))
    >>> log_prob = frame[(frame["what"] == "scale") & (frame["index"] == 0)].set_index("dose")["log_prob"]
    >>> bool(log_prob[0.0] < log_prob[1.0])
    True
    """
    inputs = _inputs(processor, mentions)
    shared = SharedPrefill(model, inputs.copy())
    visual = inputs["input_ids"] == model.config.image_token_id
    starts, lines = _first_tokens(processor), []

    def ask(edit, what: str, dose: float, objects: Sequence[str | None], removed: Sequence[int]) -> None:
        cache_ = shared.attach(NoPruning())
        options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with editing(cache_, range(model.config.get_text_config().num_hidden_layers), edit):
            logits = model.generate(**shared.inputs, past_key_values=cache_, **options).logits[0]
        log_probs = logits.float().log_softmax(-1)
        for row, (mention, name, patches) in enumerate(zip(mentions, objects, removed, strict=True)):
            if name is None:
                continue
            present = scene_of(mention.image_id).names
            nodes = starts.get(int(log_probs[row].argmax()), ())
            line = {name: getattr(mention, name) for name in ("image_id", "index", "node", "hallucinated")}
            line |= {"likeness": max(likeness(mention.node, other) for other in present)}
            line |= {"what": what, "object": name, "dose": dose, "removed": patches}
            line |= {"log_prob": log_probs[row, mention.token].item()}
            lines.append(line | {"top": nodes[0] if nodes else "", "top_present": any(node in present for node in nodes)})

    for dose in doses:
        ask(_scaled(dose), "scale", dose, [""] * len(mentions), [0] * len(mentions))
    for kind in REMOVED:
        patches = [_patches(mention, kind, seed) for mention in mentions]
        hidden = torch.zeros_like(visual)
        for row, marks in enumerate(patches):
            if marks is not None:
                hidden[row, visual[row].nonzero().flatten()[torch.from_numpy(marks)]] = True
        names = [None if marks is None else kind for marks in patches]
        ask(_without(hidden), "remove", math.nan, names, [0 if marks is None else int(marks.sum()) for marks in patches])
    return pd.DataFrame(lines)


def measure(out: Path, n_images: int = 1000, batch_size: int = 50, progress: bool = True) -> pd.DataFrame:
    """Intervene at every first mention of the stored captions of the test split, and write the rows.

    Args:
        out: compressed CSV file.
        n_images: captions of so many scenes.
        batch_size: mentions at once; mentions of like length together.
        progress: show a bar with the time left.

    Raises:
        FileNotFoundError: the captions are not stored.
    """
    model, processor = load()
    mentions = mentions_of(Store.shipped(), Experiment(split="test", n_images=n_images), processor)
    mentions.sort(key=lambda mention: len(mention.before))
    parts = [mentions[start : start + batch_size] for start in range(0, len(mentions), batch_size)]
    bar = tqdm(parts, desc="interventions", unit="batch", disable=not progress)
    frame = pd.concat([intervene(model, processor, part) for part in bar], ignore_index=True)
    frame = frame.sort_values(["image_id", "index"], kind="stable", ignore_index=True)
    with written(out) as part:
        frame.round(4).to_csv(part, index=False, compression={"method": "gzip", "mtime": 0})
    return frame


@cache
def likeness(name: str, other: str) -> float:
    """Return how alike two objects look: the correlation of their sprites' pixels, 24 x 24 on grey.

    >>> likeness("dog", "dog"), likeness("orange", "apple") > likeness("orange", "fork")
    (1.0, True)
    """
    if name == other:
        return 1.0
    flat = []
    for each in (name, other):
        sprite = load_sprites()[each, 24].astype(float)
        alpha = sprite[..., 3:] / 255
        flat.append((sprite[..., :3] * alpha + 128 * (1 - alpha)).ravel())
    return float(np.corrcoef(*flat)[0, 1])


def _scaled(dose: float):
    shift = math.log(dose) if dose else -math.inf
    return lambda scores, *, visual: scores + torch.zeros_like(scores).masked_fill(visual, shift)


def _without(hidden: Tensor):
    # Nothing was dropped, so that slots are positions; hidden is bool (batch, position).
    return lambda scores, *, visual: scores.masked_fill(hidden[:, None, None, : scores.shape[-1]], -math.inf)


def _patches(mention: Mention, kind: str, seed: int) -> np.ndarray | None:
    """Return which patches of the scene an intervention removes, bool (patch,); None where there is no such object."""
    scene = scene_of(mention.image_id)
    labels, rng = scene.patch_labels(), np.random.default_rng([seed, mention.image_id, mention.index])
    of = {name: labels == NAMES.index(name) for name in sorted(scene.names)}
    of = {name: marks for name, marks in of.items() if marks.any()}  # another may hide all of it
    others = sorted((name for name in of if name != mention.node), key=lambda name: likeness(mention.node, name))
    if kind == "itself":
        return of.get(mention.node)
    if kind == "most alike":
        return of[others[-1]] if others and mention.hallucinated else None
    if kind == "another":
        others = others[:-1] if mention.hallucinated else others
        return of[others[rng.integers(len(others))]] if others else None
    background = np.flatnonzero(labels >= len(NAMES))
    like = of.get(mention.node) if not mention.hallucinated else of[others[-1]] if others else None
    if like is None or like.sum() > len(background):
        return None
    marks = np.zeros_like(labels, dtype=bool)
    marks[rng.choice(background, int(like.sum()), replace=False)] = True
    return marks


def _inputs(processor: ProcessorMixin, mentions: Sequence[Mention]) -> dict[str, Tensor]:
    """Return what the model reads: prompt and caption up to each mention, padded on the left."""
    images = [scene_of(mention.image_id).image() for mention in mentions]
    inputs = processor(images=images, text=[build_prompt()] * len(mentions), return_tensors="pt")
    longest = max(len(mention.before) for mention in mentions)
    pad, rows = processor.tokenizer.pad_token_id, []
    for prompt, mention in zip(inputs["input_ids"], mentions, strict=True):
        room = prompt.new_full((longest - len(mention.before),), pad)
        rows.append(torch.cat([room, prompt, prompt.new_tensor(mention.before)]))
    ids = torch.stack(rows)
    return {"input_ids": ids, "attention_mask": (ids != pad).long(), "pixel_values": inputs["pixel_values"]}


def _first_tokens(processor: ProcessorMixin) -> dict[int, list[str]]:
    """Return ``{token: names of objects that begin with it}``."""
    starts: dict[int, list[str]] = {}
    for name in NAMES:
        starts.setdefault(processor.tokenizer(name, add_special_tokens=False).input_ids[0], []).append(name)
    return starts
