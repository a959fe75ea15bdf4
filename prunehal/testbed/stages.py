"""The three stages that teach the embedded model to see, to map and to write what it sees.

1. tower: the vision tower names what every patch shows;
2. align: the projector maps the tower's features onto symbols: the word embeddings of what each patch shows, plus a code of
   where it stands;
3. captions: projector and decoder learn from pixels; several captions share one visual prefix.

Caption positions are shifted as if background tiles stood before and after the scene's tile, so that prompts of 288 or
576 visual tokens are in distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from prunehal.testbed.captions import LONGEST, PROMPT, write_caption
from prunehal.testbed.model import name_token_ids
from prunehal.testbed.scenes import GRID, scene
from prunehal.testbed.shared_prefix import ATTENTION
from prunehal.testbed.training import Stage
from prunehal.testbed.world import NAMES, SCENES

__all__ = ["Samples", "Testbed", "collate", "make_stages"]

_VISUAL = GRID * GRID
_LABELS = len(NAMES) + len(SCENES)
_OBJECT_WEIGHT = 8.0  # weight of the loss at the words that name objects: the rest is mostly free choice of words
_SHARED = 4  # captions that share one visual prefix


@dataclass(frozen=True)
class Samples(Dataset):
    """Training samples as a pure function of their number: pixels, patch labels, captions, background tiles to pretend."""

    processor: LlavaProcessor
    count: int
    first: int  # number of the first training scene
    captions: int = _SHARED
    split: str = "train"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict:
        if not 0 <= number < self.count:
            raise IndexError(number)
        shown = scene(self.split, self.first + number)
        rng = np.random.default_rng([shown.image_id, 7])
        sample = {
            "labels": torch.from_numpy(shown.patch_labels()),
            "pixels": torch.from_numpy(shown.pixels()).permute(2, 0, 1),
        }
        if self.captions:
            texts = [write_caption(shown, rng) + "</s>" for _ in range(self.captions)]
            sample["captions"] = self.processor.tokenizer(texts, add_special_tokens=False).input_ids
            tiles = 1 if rng.random() < 0.5 else int(rng.integers(2, 6))
            sample["tiles"] = (tiles, int(rng.integers(tiles)))
        return sample


def collate(samples: list[dict]) -> dict:
    """Stack samples: labels (batch, 144), pixels (batch, 3, 96, 96), captions (batch, captions, length) padded with -1."""
    batch = {key: torch.stack([s[key] for s in samples]) for key in ("labels", "pixels")}
    if "captions" in samples[0]:
        length = LONGEST + 1  # always the same, with the end token: a compiled model wants fixed shapes
        batch["captions"] = torch.tensor([[c + [-1] * (length - len(c)) for c in s["captions"]] for s in samples])
        batch["tiles"] = torch.tensor([s["tiles"] for s in samples])
    return batch


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
        self.patch_head = nn.Linear(model.config.vision_config.hidden_size, _LABELS)
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
        self.register_buffer("prompt", torch.tensor(words(PROMPT, add_special_tokens=False).input_ids), persistent=False)
        named = torch.zeros(len(words))
        named[[i for ids in name_token_ids(processor) for i in ids]] = 1.0
        self.register_buffer("names_object", named, persistent=False)  # (vocabulary,)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the tower's features of uint8 pixels (batch, 3, 96, 96) -> (batch, 144, tower)."""
        normal = (pixels.float() / 255 - 0.5) / 0.25
        return self._networks[0](normal).last_hidden_state[:, 1:]

    def symbols(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the symbols of patch labels (batch, 144) -> (batch, 144, hidden): word embeddings plus codes of the place."""
        words = self.model.get_input_embeddings().weight
        return F.embedding(labels, self.spelling @ words) + self.place_code * words.std()

    def tower_loss(self, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
        """Cross-entropy of what each patch shows."""
        with self._mixed():
            logits = self.patch_head(self.features(batch["pixels"])).float()
        labels = batch["labels"]
        shown = labels < len(NAMES)
        right = logits.argmax(-1) == labels
        numbers = {
            "object_patches": float(right[shown].float().mean()),
            "background": float(right[~shown].float().mean()),
        }
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), numbers

    def align_loss(self, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
        """Distance of the projected features from the symbols, relative to the symbols' own spread."""
        with torch.no_grad(), self._mixed():
            features = self.features(batch["pixels"])
            target = self.symbols(batch["labels"]).float()
        with self._mixed():
            projected = self.model.model.multi_modal_projector(features).float()
        return F.mse_loss(projected, target) / target.var(), {}

    def caption_loss(self, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
        """Caption loss from pixels; the tower stays as it is."""
        with torch.no_grad(), self._mixed():
            features = self.features(batch["pixels"])
        with self._mixed():
            visual = self.model.model.multi_modal_projector(features)
        return self._caption_loss(visual, batch)

    def _caption_loss(self, visual: torch.Tensor, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
        captions = batch["captions"]  # (batch, captions, length), -1 where padded
        rows, shared, length = captions.shape
        before = torch.cat([self.prompt.new_tensor([self.model.config.text_config.bos_token_id]), self.prompt])
        embed = self.model.get_input_embeddings()
        start, prompt = embed(before).to(visual.dtype).expand(rows, -1, -1).split([1, len(self.prompt)], dim=1)
        # The prompt's last token predicts each caption's first; every caption is fed without its last token.
        fed = captions[..., :-1].clamp(min=0)
        inputs = torch.cat([start, visual, prompt, embed(fed.flatten(1)).to(visual.dtype)], dim=1)
        prefix = 1 + _VISUAL + len(self.prompt)
        positions = self._positions(batch["tiles"], shared, length - 1)
        with self._mixed():
            hidden = self._networks[1](
                inputs_embeds=inputs, position_ids=positions, use_cache=False, prefix=prefix, shared=shared
            ).last_hidden_state
            first = hidden[:, prefix - 1, None, None].expand(-1, shared, -1, -1)
            rest = hidden[:, prefix:].unflatten(1, (shared, length - 1))
            logits = self.model.lm_head(torch.cat([first, rest], dim=2)).float()  # (batch, captions, length, vocabulary)
        kept = captions >= 0
        losses = F.cross_entropy(logits[kept], captions[kept], reduction="none")
        objects = self.names_object[captions[kept]]
        weights = 1.0 + (_OBJECT_WEIGHT - 1.0) * objects
        detail = {"object_loss": float((losses.detach() * objects).sum() / objects.sum())}
        return (losses * weights).sum() / weights.sum(), detail

    def _positions(self, tiles: torch.Tensor, shared: int, length: int) -> torch.Tensor:
        """Return position ids (batch, prefix + shared * length): each caption goes on from the prompt's end."""
        device = tiles.device
        count, at = tiles[:, :1], tiles[:, 1:]
        visual = 1 + at * _VISUAL + torch.arange(_VISUAL, device=device)
        after = 1 + count * _VISUAL
        prompt = after + torch.arange(len(self.prompt), device=device)
        words = (after + len(self.prompt) + torch.arange(length, device=device)).repeat(1, shared)
        return torch.cat([torch.zeros_like(count), visual, prompt, words], dim=1)

    def _mixed(self):
        return torch.autocast(self.spelling.device.type, torch.bfloat16)


def make_stages(testbed: Testbed, processor: LlavaProcessor, scale: float = 1.0) -> list[Stage]:
    """Return the stages in order. ``scale`` shrinks the number of samples (a dry run, a test)."""

    def samples(count: int, first: int, **kwargs) -> Samples:
        return Samples(processor, max(1, round(count * scale)), first, **kwargs)

    def stage(name: str, modules: list[nn.Module], data: Samples, loss, batch_size: int, muon: float, adam: float) -> Stage:
        size = min(batch_size, len(data))
        return Stage(name, modules, data, collate, loss, size, muon, adam)

    core = testbed.model.model
    return [
        stage("tower", [core.vision_tower, testbed.patch_head], samples(44_000, 0, captions=0),
              testbed.tower_loss, 64, 0.02, 2e-3),
        stage("align", [core.multi_modal_projector], samples(8_000, 2_000_000, captions=0), testbed.align_loss, 64, 0.02, 2e-3),
        stage("captions", [core.language_model, core.multi_modal_projector], samples(30_720, 3_000_000),
              testbed.caption_loss, 16, 0.015, 2e-3),
    ]  # fmt: skip
