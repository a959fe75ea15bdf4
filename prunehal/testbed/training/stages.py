"""The four stages that teach the embedded model to see, to map and to write what it sees.

1. tower: the vision tower names what every patch shows, and the traits of the object that it belongs to;
2. align: the projector maps the tower's features onto symbols: the word embeddings of what each patch shows and of its traits,
   plus a code of where it stands; the tower learns with it, as it has to keep what the symbols say, its places above all;
3. captions: projector and decoder learn from pixels; several texts share one visual prefix. Late samples also teach not to name
   again what a text has named;
4. distinct: the same once more from a fresh rate, and naming again weighs more.

Caption positions are shifted as if background tiles stood before and after the scene's tile, so that prompts of 288 or
576 visual tokens are in distribution.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from prunehal.testbed.training.loop import Stage
from prunehal.testbed.training.model import name_token_ids
from prunehal.testbed.training.samples import Samples, collate
from prunehal.testbed.training.shared_prefix import ATTENTION, row_mask
from prunehal.testbed.world.captions import ADJECTIVES, PLACES
from prunehal.testbed.world.scenes import GRID
from prunehal.testbed.world.world import NAMES, SCENES

__all__ = ["LARGEST_SCALE", "Testbed", "make_stages", "repeats", "said_before"]

LARGEST_SCALE = 25  # factor on the number of samples; with more, the scenes of one stage would reach those of the next
_VISUAL = GRID * GRID
_LABELS = len(NAMES) + len(SCENES)
_TRAITS = (3, 3, 3, 2)  # values of each trait of an object: column, row, size, faint
_WEIGHT = 8.0  # of the loss at names of objects, places, yes and no: the rest is mostly free choice of words
_AGAIN_WEIGHT = 2.0  # of the unlikelihood of naming again in the last stage
_ADJECTIVE_WEIGHT = 2.0  # of the loss at sizes and faintness
_TRAIT_WEIGHT = 0.2  # of the loss at each trait
_TRAIT_SHARE = 0.5  # of each trait's word in a symbol, beside the name


class Testbed(nn.Module):
    """The model under training with the two heads that only training needs, and the losses of the stages."""

    __test__ = False  # its name begins as a test's does; pytest must not collect it

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor, compiled: bool = False):
        super().__init__()
        model.set_attn_implementation(ATTENTION)
        self.model = model
        core = model.model
        # In a tuple, so that the compiled twins are no submodules: checkpoints keep the plain names.
        self._networks = (core.vision_tower, core.language_model)
        if compiled:
            self._networks = tuple(torch.compile(network) for network in self._networks)
        self.patch_head = nn.Linear(model.config.vision_config.hidden_size, _LABELS + sum(_TRAITS))
        words = processor.tokenizer
        phrases = [words(kind.phrase.split(maxsplit=1)[1], add_special_tokens=False).input_ids for kind in SCENES]
        spelled = name_token_ids(processor) + phrases
        table = torch.zeros(_LABELS, len(words))
        for label, ids in enumerate(spelled):
            table[label, ids] = 1.0 / len(ids)
        self.register_buffer("spelling", table, persistent=False)  # (labels, vocabulary)
        row, column = torch.randn(2, GRID, model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(1))
        place_code = (row[:, None] + column[None]).flatten(0, 1) / 2
        self.register_buffer("place_code", place_code, persistent=False)  # (144, hidden)
        self.register_buffer("trait_words", _trait_words(processor), persistent=False)  # (column, row, size, faint; vocabulary)
        named, yes_no = torch.zeros(2, len(words))
        named[[i for ids in name_token_ids(processor) for i in ids]] = 1.0
        yes_no[words("Yes No", add_special_tokens=False).input_ids] = 1.0
        self.register_buffer("names_object", named, persistent=False)  # (vocabulary,)
        self.register_buffer("yes_no", yes_no, persistent=False)
        weight = torch.ones(len(words))
        weight[(named + yes_no + self.trait_words.sum((0, 1, 2, 3))) > 0] = _WEIGHT
        weight[[words.convert_tokens_to_ids(f"▁{word}") for kinds in ADJECTIVES for word in kinds]] = _ADJECTIVE_WEIGHT
        self.register_buffer("weight", weight, persistent=False)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the tower's features of uint8 pixels (batch, 3, 96, 96) -> (batch, 144, tower)."""
        normal = (pixels.float() / 255 - 0.5) / 0.25
        return self._networks[0](normal).last_hidden_state[:, 1:]

    def symbols(self, labels: torch.Tensor, traits: torch.Tensor) -> torch.Tensor:
        """Return the symbols of patches, (batch, 144, hidden): embeddings of the words for what they show, codes of their place.

        Args:
            labels: what each patch shows, (batch, 144).
            traits: those of the object that it belongs to, (batch, 144, 4), -1 for the background.
        """
        words = self.model.get_input_embeddings().weight
        column, row, size, faint = traits.clamp(min=0).unbind(-1)
        said = self.trait_words[column, row, size, faint] @ words * (traits[..., :1] >= 0)
        return F.embedding(labels, self.spelling @ words) + said + self.place_code * words.std()

    def tower_loss(self, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
        """Cross-entropy of what each patch shows, and of the traits of its object."""
        with self._mixed():
            features = self.features(batch["pixels"])
        return self._patch_loss(features, batch)

    def align_loss(self, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
        """The tower's loss, and the distance of its projected features from the symbols, relative to the symbols' own spread.

        Objects and background weigh the same.
        """
        with self._mixed():
            features = self.features(batch["pixels"])
            projected = self.model.model.multi_modal_projector(features).float()
        with torch.no_grad():
            target = self.symbols(batch["labels"], batch["traits"]).float()
        shown = batch["labels"] < len(NAMES)
        objects, background = (F.mse_loss(projected[where], target[where]) / target[where].var() for where in (shown, ~shown))
        loss, numbers = self._patch_loss(features, batch)
        return loss + objects + background, numbers | {"objects": float(objects.detach()), "rest": float(background.detach())}

    def _patch_loss(self, features: torch.Tensor, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
        with self._mixed():
            logits = self.patch_head(features).float()
        logits, *said = logits.flatten(0, 1).split([_LABELS, *_TRAITS], dim=-1)
        labels, traits = batch["labels"].flatten(), batch["traits"].flatten(0, 1)
        shown = labels < len(NAMES)
        right = logits.argmax(-1) == labels
        numbers = {
            "object_patches": float(right[shown].float().mean()),
            "background": float(right[~shown].float().mean()),
        }
        loss = F.cross_entropy(logits, labels)
        for trait, (name, given) in enumerate(zip(("column", "row", "size", "faint"), said, strict=True)):
            loss = loss + _TRAIT_WEIGHT * F.cross_entropy(given[shown], traits[shown, trait])
            numbers[name] = float((given.argmax(-1) == traits[:, trait])[shown].float().mean())
        return loss, numbers

    def caption_loss(self, batch: dict, again: float = 1.0) -> tuple[torch.Tensor, dict[str, float]]:
        """Caption loss from pixels; the tower stays as it is. ``again`` weighs the unlikelihood of naming again."""
        with torch.no_grad(), self._mixed():
            features = self.features(batch["pixels"])
        with self._mixed():
            visual = self.model.model.multi_modal_projector(features)
        return self._caption_loss(visual, batch, again)

    def _caption_loss(self, visual: torch.Tensor, batch: dict, again: float = 1.0) -> tuple[torch.Tensor, dict[str, float]]:
        tokens, targets = batch["tokens"], batch["targets"]  # (batch, rows, length)
        embed = self.model.get_input_embeddings()
        start = tokens.new_full((len(tokens), 1), self.model.config.text_config.bos_token_id)
        inputs = torch.cat([embed(start).to(visual.dtype), visual, embed(tokens.flatten(1)).to(visual.dtype)], dim=1)
        prefix = 1 + _VISUAL
        with self._mixed():
            hidden = self._networks[1](
                inputs_embeds=inputs, position_ids=self._positions(batch), use_cache=False, prefix=prefix,
                rows=row_mask(batch["text"], visual.dtype),
            ).last_hidden_state  # fmt: skip
            kept = targets.flatten(1) >= 0
            logits = self.model.lm_head(hidden[:, prefix:][kept]).float()
        expected = targets.flatten(1)[kept]
        losses = F.cross_entropy(logits, expected, reduction="none")
        weights, objects, answers = self.weight[expected], self.names_object[expected], self.yes_no[expected]
        said = said_before(tokens, batch["text"], self.names_object).flatten(1, 2)[kept]
        unlikely, repeated = repeats(logits, said, expected)
        late = batch["late"][:, None].expand(kept.shape)[kept]
        right = (logits.argmax(-1) == expected).float()
        detail = {
            "object_loss": float((losses.detach() * objects).sum() / objects.sum()),
            "repeats": float((repeated.detach() * objects).sum() / objects.sum()),
            "answers": float((right * answers).sum() / answers.sum().clamp(min=1)),
        }
        return ((losses + again * unlikely * objects * late) * weights).sum() / weights.sum(), detail

    def _positions(self, batch: dict) -> torch.Tensor:
        """Return position ids (batch, prefix + rows * length): each text goes on from the last visual token."""
        count, at = batch["tiles"][:, :1], batch["tiles"][:, 1:]
        visual = 1 + at * _VISUAL + torch.arange(_VISUAL, device=count.device)
        words = 1 + count * _VISUAL + batch["places"].flatten(1)
        return torch.cat([torch.zeros_like(count), visual, words], dim=1)

    def _mixed(self):
        return torch.autocast(self.spelling.device.type, torch.bfloat16)


def _trait_words(processor: LlavaProcessor) -> torch.Tensor:
    """Return the share of each word in what a symbol says of its object's traits, (3, 3, 3, 2, vocabulary)."""
    words = processor.tokenizer
    table = torch.zeros(*_TRAITS, len(words))
    for row, places in enumerate(PLACES):
        for column, place in enumerate(places):
            ids = words(place.split(" the ")[1], add_special_tokens=False).input_ids
            table[column, row, :, :, ids] += _TRAIT_SHARE
    for axis, kinds in zip((2, 3), ADJECTIVES, strict=True):
        for value, word in enumerate(kinds):
            table.select(axis, value)[..., words.convert_tokens_to_ids(f"▁{word}")] += _TRAIT_SHARE
    return table


def said_before(tokens: torch.Tensor, text: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
    """Mark the tokens of names that a text holds up to each of its places, bool (batch, rows, length, vocabulary).

    Args:
        tokens, text: of packed rows, (batch, rows, length).
        names: 1 for tokens of names, (vocabulary,).

    >>> said_before(torch.tensor([[[1, 0, 2]]]), torch.tensor([[[0, 0, 0]]]), torch.tensor([0.0, 1.0, 1.0]))[0, 0].int().tolist()
    [[0, 1, 0], [0, 1, 0], [0, 1, 1]]
    """
    length = tokens.shape[-1]
    same = (text[..., :, None] == text[..., None, :]) & torch.ones(length, length, dtype=torch.bool, device=text.device).tril()
    held = F.one_hot(tokens, len(names)).float() * names
    return same.float() @ held > 0


def repeats(logits: torch.Tensor, said: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the unlikelihood of naming again what was named, and the probability of it, each (position,).

    Source: Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", arXiv 1908.04319: -log(1 - p), summed over
    the tokens that shall not come. What is expected may come.

    Args:
        logits: (position, vocabulary).
        said: bool, of the same shape; see :func:`said_before`.
        expected: (position,).
    """
    probability = logits.softmax(-1) * said.scatter(-1, expected[:, None], False)
    return -torch.log1p(-probability.clamp(max=0.999)).sum(-1), probability.sum(-1)


def make_stages(testbed: Testbed, processor: LlavaProcessor, scale: float = 1.0) -> list[Stage]:
    """Return the stages in order. ``scale`` shrinks the number of samples (a dry run, a test)."""

    def samples(count: int, first: int, **kwargs) -> Samples:
        return Samples(processor, max(1, round(count * scale)), first, **kwargs)

    def stage(name: str, modules: list[nn.Module], data: Samples, loss, batch_size: int, muon: float, adam: float) -> Stage:
        size = min(batch_size, len(data))
        return Stage(name, modules, data, collate, loss, size, muon, adam)

    core = testbed.model.model
    return [
        stage("tower", [core.vision_tower, testbed.patch_head], samples(57_600, 0, texts=False),
              testbed.tower_loss, 64, 0.02, 2e-3),
        stage("align", [core.vision_tower, testbed.patch_head, core.multi_modal_projector],
              samples(19_200, 2_000_000, texts=False), testbed.align_loss, 64, 0.015, 2e-3),
        stage("captions", [core.language_model, core.multi_modal_projector], samples(40_000, 3_000_000),
              testbed.caption_loss, 8, 0.015, 2e-3),
        stage("distinct", [core.language_model, core.multi_modal_projector], samples(24_000, 4_000_000, late_from=0.0),
              partial(testbed.caption_loss, again=_AGAIN_WEIGHT), 8, 0.012, 1.6e-3),
    ]  # fmt: skip
