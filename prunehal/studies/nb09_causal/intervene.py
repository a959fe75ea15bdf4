"""Intervene on attention where a word is chosen, and see how its probability changes: a cause, not only an association.

A mention of a stored caption is written again up to the token before it. That token's query, whose output chooses the word, then
attends to the image otherwise:

* scale: with c times the weight on every visual token before the softmax, so that the odds of visual against text are
  multiplied by c. In heads that look at the image alone, or not at all, that moves little attention.
* move: a share of the attention on text goes to the image in each head, or one of that on the image to the text, and within
  both the weights keep their proportions. So any dose can be reached, in all layers or in half of them.
* withhold: the same share is taken from the text, but goes to the start token, which says nothing; the image keeps what it has.
  What move does beyond this is the doing of the image.
* remove: the visual tokens of one object are hidden.

Nothing else changes, and no later step is touched.

`prunehal.studies.nb09_causal.rows` keeps the rows, and `prunehal.studies.nb09_causal.comparisons` says what they show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.core import NoPruning, SharedPrefill
from prunehal.core.editing import editing
from prunehal.experiments import Experiment, Store
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import scene_of
from prunehal.testbed.world.sprites import load_sprites
from prunehal.testbed.world.world import NAMES

__all__ = ["HALF_MOVES", "MOVES", "REMOVED", "SCALES", "WITHHELD", "Mention", "intervene", "likeness", "mentions_of"]

SCALES = (0.0, 1 / 64, 1 / 8, 1.0, 8.0, 64.0)  # c; 1 changes nothing, 0 is blind
MOVES = (-0.5, -0.25, 0.125, 0.25, 0.5, 1.0)  # share of the attention on text that goes to the image; negative: the other way
HALF_MOVES = (-0.25, 0.25)  # the same in the first half of the layers ("early") or in the second ("late") alone
WITHHELD = (0.125, 0.25, 0.5)  # share of the attention on text that goes to the start token
REMOVED = ("itself", "most alike", "another", "background")


@dataclass(frozen=True)
class Mention:
    """One mention of a caption.

    Attributes:
        image_id, index: which.
        node: the object, by its COCO name.
        hallucinated: whether the scene does not hold it.
        named: the objects that the caption has named before.
        before: tokens of the caption that stand before the mention.
        token: the mention's first token.
    """

    image_id: int
    index: int
    node: str
    hallucinated: bool
    named: tuple[str, ...]
    before: tuple[int, ...]
    token: int


def mentions_of(store: Store, experiment: Experiment, processor: ProcessorMixin) -> list[Mention]:
    """Return the first mention of each object in each caption of an experiment on the testbed.

    Raises:
        FileNotFoundError: rows are missing.

    >>> from prunehal import load
    >>> found = mentions_of(Store.shipped(), Experiment(split="test", n_images=2), load()[1])
    >>> found[0].node, found[0].index
    ('laptop', 0)
    """
    captions = store.captions(experiment).set_index("image_id")["caption"]
    frame = store.mentions(experiment).drop_duplicates(["image_id", "node"])
    found, named = [], {}
    for line in frame.itertuples():
        ids = processor.tokenizer(captions[line.image_id], add_special_tokens=False).input_ids
        before, token = tuple(ids[: line.step - 1]), ids[line.step - 1]
        earlier = named.get(line.image_id, ())
        found.append(Mention(line.image_id, line.index, line.node, bool(line.hallucinated), earlier, before, token))
        named[line.image_id] = (*earlier, line.node)
    return found


def intervene(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    mentions: Sequence[Mention],
    scales: Sequence[float] = SCALES,
    moves: Sequence[float] = MOVES,
    half_moves: Sequence[float] = HALF_MOVES,
    withheld: Sequence[float] = WITHHELD,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the log-probability of each mention's first token under every intervention.

    Args:
        model, processor: the embedded ones.
        mentions: a batch; their scenes are drawn anew.
        scales: factors c on the weight of all visual tokens, in all layers.
        moves: shares in [-1, 1] of the attention on text that move to the image, in all layers; -1 is blind.
        half_moves: the same in half of the layers.
        withheld: shares in (0, 1] of the attention on text, that on the start token aside, that move to the start token.
        seed: of the choice of another object and of background patches.

    Returns:
        One line for each mention and intervention: image_id, index, node, hallucinated; ambiguous (hallucinated, but the token
        also begins the name of an object of the scene); what ("scale", "move", "withhold" or "remove"), part (layers: "all",
        "early" or "late"; or what is removed, as REMOVED names it), dose (nan where removed), patches (removed), mass (attention
        on visual tokens at that query, mean of layers and heads), log_prob (nats), likeliest (of all tokens: the mention's
        "itself"; or one that begins the name of an object of the scene that the caption has not named yet, "new", or has,
        "again"; that of an "absent" object; or "none").

    >>> from prunehal import load
    >>> model, processor = load()
    >>> some = mentions_of(Store.shipped(), Experiment(split="test", n_images=2), processor)[:2]
    >>> frame = intervene(model, processor, some, scales=(0.0, 1.0), moves=(), half_moves=(), withheld=())
    >>> of_first = frame[(frame["what"] == "scale") & (frame["index"] == 0)].set_index("dose")
    >>> bool(of_first["log_prob"][0.0] < of_first["log_prob"][1.0]), float(of_first["mass"][0.0])
    (True, 0.0)
    """
    inputs = _inputs(processor, mentions)
    shared = SharedPrefill(model, inputs.copy())
    visual = inputs["input_ids"] == model.config.image_token_id
    padding = inputs["attention_mask"] == 0
    n_layers = model.config.get_text_config().num_hidden_layers
    halves = {"early": range(n_layers // 2), "late": range(n_layers // 2, n_layers)}
    starts, lines = _first_tokens(processor), []

    def ask(edit, layers: Sequence[int], what: str, part: str, dose: float, removed: Sequence[int | None]) -> None:
        cache_ = shared.attach(NoPruning())
        options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with editing(cache_, layers, edit):
            logits = model.generate(**shared.inputs, **cache_.options, **options).logits[0]
        log_probs = logits.float().log_softmax(-1)
        mass = cache_.trace.frame().groupby("row")["mass"].mean()
        for row, (mention, patches) in enumerate(zip(mentions, removed, strict=True)):
            if patches is None:
                continue
            present = scene_of(mention.image_id).names
            begun = present.intersection(starts.get(mention.token, ()))
            line = {name: getattr(mention, name) for name in ("image_id", "index", "node", "hallucinated")}
            line |= {"ambiguous": mention.hallucinated and bool(begun)}
            line |= {"what": what, "part": part, "dose": dose, "patches": patches, "mass": mass[row]}
            likeliest = _named(int(log_probs[row].argmax()), mention, present, starts)
            lines.append(line | {"log_prob": log_probs[row, mention.token].item(), "likeliest": likeliest})

    for dose in scales:
        ask(_scaled(dose), range(n_layers), "scale", "all", dose, [0] * len(mentions))
    for part, layers, doses in (("all", range(n_layers), moves), *((half, each, half_moves) for half, each in halves.items())):
        for dose in doses:
            ask(_moved(dose, padding), layers, "move", part, dose, [0] * len(mentions))
    start = (~padding).cumsum(dim=1).eq(1) & ~padding
    for dose in withheld:
        ask(_moved(dose, padding, start), range(n_layers), "withhold", "all", dose, [0] * len(mentions))
    for kind in REMOVED:
        patches = [_patches(mention, kind, seed) for mention in mentions]
        hidden = torch.zeros_like(visual)
        for row, marks in enumerate(patches):
            if marks is not None:
                hidden[row, visual[row].nonzero().flatten()[torch.from_numpy(marks)]] = True
        removed = [None if marks is None else int(marks.sum()) for marks in patches]
        ask(_without(hidden), range(n_layers), "remove", kind, math.nan, removed)
    return pd.DataFrame(lines)


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


def _moved(share: float, padding: Tensor, start: Tensor | None = None):
    """Return an edit that moves a share from text to image (from image to text if negative), or from text to the start token."""
    kept = math.log1p(-abs(share)) if abs(share) < 1 else -math.inf  # of the weight of who gives
    taken = math.log(abs(share)) if share else -math.inf

    def edit(scores: Tensor, *, visual: Tensor) -> Tensor:
        size = scores.shape[-1]
        seen = scores.masked_fill(padding[:, None, None, :size], -math.inf)
        giver, taker = (~visual, visual) if share > 0 else (visual, ~visual)
        if start is not None:
            taker = start[:, None, None, :size]
            giver = ~visual & ~taker
        gives, takes = (seen.masked_fill(~side, -math.inf).logsumexp(-1, keepdim=True) for side in (giver, taker))
        # Who takes had weight w and gets w + share g, where g is that of who gives: times 1 + share g / w.
        more = torch.logaddexp(torch.zeros_like(gives), taken + gives - takes)
        return torch.where(taker, scores + more, torch.where(giver, scores + kept, scores))

    return edit


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


def _named(token: int, mention: Mention, present: frozenset[str], starts: dict[int, list[str]]) -> str:
    """Return what a token begins to name, as :func:`intervene` says it."""
    if token == mention.token:
        return "itself"
    nodes = starts.get(token)
    if nodes is None:
        return "none"
    shown = present.intersection(nodes)
    return "absent" if not shown else "new" if shown.difference(mention.named) else "again"


def _first_tokens(processor: ProcessorMixin) -> dict[int, list[str]]:
    """Return ``{token: names of objects that begin with it}``."""
    starts: dict[int, list[str]] = {}
    for name in NAMES:
        starts.setdefault(processor.tokenizer(name, add_special_tokens=False).input_ids[0], []).append(name)
    return starts
