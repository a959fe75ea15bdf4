"""Families whose decoder counts positions along three axes (M-RoPE): time, height and width."""

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from families.base import END, IMAGE, START, VIDEO, VOCAB, Family

__all__ = ["MROPE"]


def qwen2_5_vl() -> Qwen2_5_VLForConditionalGeneration:
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
        vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START,
        vision_end_token_id=END, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)


def grid_pixels(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n pictures of 8 x 8 patches, which the tower merges to 4 x 4 tokens, and their grids."""
    return {
        "pixel_values": torch.randn(n * 64, 3 * 16, generator=generator),
        "image_grid_thw": torch.tensor([[1, 8, 8]] * n),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


MROPE = [Family("qwen2_5_vl", "Qwen2.5-VL", qwen2_5_vl, (START, *(IMAGE,) * 16, END), grid_pixels)]
