"""Models of the table in fp32, and inputs for them."""

import functools
from collections.abc import Sequence

import torch
from families import FAMILIES, IMAGE, IN_FULL, PAD, VIDEO, VOCAB
from families.base import peaked
from transformers import GenerationMixin, PreTrainedModel

__all__ = ["FAMILIES", "IMAGE", "IN_FULL", "PAD", "VIDEO", "VISUAL", "VOCAB", "build", "inputs_for", "rows_of"]

VISUAL = 16  # visual tokens of one image in the families "llava" and "qwen2_5_vl"


@functools.cache
def build(family: str, attn: str = "sdpa", eos: int | None = None) -> PreTrainedModel:
    """Return the model of a family; with equal weights for every attention function and end token."""
    torch.manual_seed(0)
    of = FAMILIES[family]
    model = peaked(of.make(), of.spread).eval()
    model.set_attn_implementation(attn if attn in of.functions else "eager")
    for part in model.modules():
        if isinstance(part, GenerationMixin):  # a model with a Q-Former leaves generate() to its language model
            part.generation_config.eos_token_id, part.generation_config.pad_token_id = eos, PAD
            # Placeholders and padding are no words.
            part.generation_config.suppress_tokens = [token for token in range(VOCAB) if token >= 94]
    return model


def inputs_for(
    family: str, before: Sequence[int] = (3,), after: Sequence[int] = (5,), seed: int = 0, *, images: int = 1, between: int = 4,
    video: bool = False,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Return inputs of len(before) rows, left-padded: ``before`` words, images with words between them, ``after`` words."""
    of, generator = FAMILIES[family], torch.Generator().manual_seed(seed)
    placeholders = torch.tensor(of.video if video else of.image)
    rows = []
    for lead, tail in zip(before, after, strict=True):
        words = torch.randint(1, 90, (lead + tail + (images - 1) * between,), generator=generator)
        parts = words.split([lead, *[between] * (images - 1), tail])
        rows.append(torch.cat([parts[0], *(part for text in parts[1:] for part in (placeholders, text))]))
    width = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.full((width - len(row),), PAD), row]) for row in rows])
    brought = (of.frames if video else of.pixels)(len(rows) * images, generator, ids)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()} | brought


def rows_of(inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Return each row of a batch as inputs of its own, without padding."""
    singles, rows = [], len(inputs["input_ids"])
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        single = {}
        for name, value in inputs.items():
            part = value.chunk(rows, dim=0 if len(value) > 1 else -1)[row]  # else all pictures lie behind one another
            if name.endswith("_token_pooling"):  # counts the patches of all rows
                part = part - part.min()
            single[name] = part[:, mask] if value.shape == inputs["attention_mask"].shape else part
        singles.append(single)
    return singles
