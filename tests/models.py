"""Small random models with peaked attention, in fp32, and inputs for them.

At the usual initializer_range of 0.02 attention is flat and a wrong position goes unnoticed; at 0.22 the same mistake
moves the logits by far more than any tolerance here.
"""

import functools

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

__all__ = ["IMAGE", "PAD", "VISUAL", "build", "inputs_for", "llava", "qwen2_5_vl", "rows_of", "two_images"]

IMAGE, PAD, VOCAB = 99, 97, 100
VISUAL = 16  # visual tokens of one image, in both models


@functools.cache
def build(family: str, attn: str = "sdpa", eos: int | None = None):
    """Return the model of a family; with equal weights for every attention function and end token."""
    make = {"llava": llava, "llava_window": functools.partial(llava, window=14), "qwen2_5_vl": qwen2_5_vl}[family]
    model = make().eval()
    model.set_attn_implementation(attn)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = eos, PAD
    # Placeholders and padding are no words.
    model.generation_config.suppress_tokens = [PAD, IMAGE, 96, 95, 94]
    return model


def llava(window: int | None = None) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    sizes = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=4)
    sizes |= dict(num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512)
    decoder = LlamaConfig(**sizes) if window is None else MistralConfig(**sizes, sliding_window=window)
    config = LlavaConfig(vision_config=vision, text_config=decoder, image_token_id=IMAGE, vision_feature_layer=-2)
    return _peaked(LlavaForConditionalGeneration(config))


def qwen2_5_vl() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    vision = dict(
        depth=2, hidden_size=32, intermediate_size=48, num_heads=4, out_hidden_size=48, patch_size=4,
        spatial_merge_size=2, temporal_patch_size=1, window_size=16, fullatt_block_indexes=[1],
    )  # fmt: skip
    text = dict(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    )  # fmt: skip
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=96, vision_start_token_id=95,
        vision_end_token_id=94, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return _peaked(Qwen2_5_VLForConditionalGeneration(config))


def _peaked(model):
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "norm" not in name:
            # Peaked attention, but logits of about unit size, so that 1e-5 is a tolerance for both.
            torch.nn.init.normal_(parameter, std=0.1 if "lm_head" in name else 0.22)
    return model


def two_images(inputs: dict[str, torch.Tensor], words: int = 4) -> dict[str, torch.Tensor]:
    """Return LLaVA inputs with a second image and some words before the last three tokens of each row."""
    ids = inputs["input_ids"]
    image = torch.full((len(ids), VISUAL), IMAGE)
    text = torch.arange(len(ids) * words).reshape(len(ids), words) + 1
    ids = torch.cat([ids[:, :-3], text, image, ids[:, -3:]], dim=1)
    pixels = torch.stack([inputs["pixel_values"], inputs["pixel_values"].flip(3)], dim=1).flatten(0, 1)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "pixel_values": pixels}


def inputs_for(family: str, before=(3,), after=(5,), seed: int = 0) -> dict[str, torch.Tensor]:
    """Return inputs of len(before) rows, left-padded: ``before`` text tokens, an image, ``after`` text tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for lead, tail in zip(before, after, strict=True):
        words = torch.randint(1, 90, (lead + tail,), generator=generator)
        start, end = (torch.tensor([95]), torch.tensor([94])) if family == "qwen2_5_vl" else (words[:0], words[:0])
        rows.append(torch.cat([words[:lead], start, torch.full((VISUAL,), IMAGE), end, words[lead:]]))
    width = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.full((width - len(row),), PAD), row]) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    if family != "qwen2_5_vl":
        inputs["pixel_values"] = torch.randn(len(rows), 3, 16, 16, generator=generator)
    else:
        inputs["pixel_values"] = torch.randn(len(rows) * VISUAL * 4, 3 * 16, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, 8, 8]] * len(rows))
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    return inputs


def rows_of(inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Return each row of a batch as inputs of its own, without padding."""
    singles = []
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        single = {name: value.unflatten(0, (len(inputs["input_ids"]), -1))[row] for name, value in inputs.items()}
        for name in {"input_ids", "attention_mask", "mm_token_type_ids"} & set(inputs):
            single[name] = single[name][:, mask]
        singles.append(single)
    return singles
