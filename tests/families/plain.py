"""Families whose decoder counts positions one by one."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig

from families.base import IMAGE, VOCAB, Family

__all__ = ["PLAIN", "TEXT"]

# A decoder of four layers with grouped KV heads; families that name other keys bring their own.
TEXT = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=4)
TEXT |= dict(num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512)


def llava(window: int | None = None) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    decoder = LlamaConfig(**TEXT) if window is None else MistralConfig(**TEXT, sliding_window=window)
    config = LlavaConfig(vision_config=vision, text_config=decoder, image_token_id=IMAGE, vision_feature_layer=-2)
    return LlavaForConditionalGeneration(config)


def square_pixels(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n square pictures of 16 x 16."""
    return {"pixel_values": torch.randn(n, 3, 16, 16, generator=generator)}


PLAIN = [
    Family("llava", "LLaVA-1.5", llava, (IMAGE,) * 16, square_pixels),
    Family("llava_window", "LLaVA on Mistral", lambda: llava(window=14), (IMAGE,) * 16, square_pixels, remark="sliding window"),
]
