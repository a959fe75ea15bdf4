"""Families whose decoder counts positions along three axes (M-RoPE): time, height and width."""

import torch
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from families.base import END, IMAGE, START, VIDEO, VOCAB, Family

__all__ = ["MROPE"]

TEXT = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6)
TEXT |= dict(num_key_value_heads=2, max_position_embeddings=512)
TOWER = dict(depth=2, num_heads=4, patch_size=4, spatial_merge_size=2, temporal_patch_size=1)
IDS = dict(image_token_id=IMAGE, video_token_id=VIDEO)
MARKS = IDS | dict(vision_start_token_id=START, vision_end_token_id=END)


def rope(*sections: int, **more: object) -> dict[str, object]:
    """Return the RoPE of a decoder: how many frequencies go to time, height and width."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)} | more


def qwen2_vl() -> PreTrainedModel:
    vision = TOWER | dict(embed_dim=32, hidden_size=48, mlp_ratio=2)
    text = TEXT | dict(rope_parameters=rope(2, 1, 1), bos_token_id=None, eos_token_id=None)
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=vision, text_config=text, **MARKS))


def qwen2_5_vl() -> PreTrainedModel:
    vision = TOWER | dict(hidden_size=32, intermediate_size=48, out_hidden_size=48, window_size=16, fullatt_block_indexes=[1])
    text = TEXT | dict(rope_parameters=rope(2, 1, 1), bos_token_id=None, eos_token_id=None)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=vision, text_config=text, **MARKS))


QWEN3_TOWER = TOWER | dict(hidden_size=32, intermediate_size=48, out_hidden_size=48, num_position_embeddings=64)
DEEPSTACK = QWEN3_TOWER | dict(deepstack_visual_indexes=[0, 1])


def qwen3_vl() -> PreTrainedModel:
    text = TEXT | dict(head_dim=8, rope_parameters=rope(2, 1, 1))
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=DEEPSTACK, text_config=text, **MARKS))


def qwen3_vl_moe() -> PreTrainedModel:
    text = TEXT | dict(head_dim=8, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2)
    text |= dict(rope_parameters=rope(2, 1, 1), tie_word_embeddings=False)
    return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(vision_config=DEEPSTACK, text_config=text, **MARKS))


def qwen3_5() -> PreTrainedModel:
    text = TEXT | dict(head_dim=16, num_hidden_layers=6, layer_types=["linear_attention", "full_attention"] * 3)
    text |= dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4)
    text |= dict(rope_parameters=rope(2, 1, 1, partial_rotary_factor=0.5))
    text |= dict(rms_norm_eps=0.1)  # else the norm of a linear layer's almost empty state blows up rounding errors
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(vision_config=QWEN3_TOWER, text_config=text, **MARKS))


def with_attention(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the layers that keep K and V; the others are linear attention."""
    return [layer for layer in model.model.language_model.layers if hasattr(layer, "self_attn")]


def glm4v() -> PreTrainedModel:
    vision = TOWER | dict(hidden_size=32, image_size=32, out_hidden_size=48, intermediate_size=48)
    text = TEXT | dict(rope_parameters=rope(2, 1, 1, partial_rotary_factor=1.0))
    marks = dict(image_start_token_id=START, image_end_token_id=END, video_start_token_id=93, video_end_token_id=92)
    return Glm4vForConditionalGeneration(Glm4vConfig(vision_config=vision, text_config=text, **IDS, **marks))


def grid_pixels(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n pictures of 8 x 8 patches, which the tower merges to 4 x 4 tokens, and their grids."""
    return {
        "pixel_values": torch.randn(n * 64, 3 * 16, generator=generator),
        "image_grid_thw": torch.tensor([[1, 8, 8]] * n),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


def grid_frames(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n videos of two frames of 4 x 8 patches, merged to 2 x 4 tokens a frame; GLM-4V marks them as images."""
    return {
        "pixel_values_videos": torch.randn(n * 64, 3 * 16, generator=generator),
        "video_grid_thw": torch.tensor([[2, 4, 8]] * n),
        "mm_token_type_ids": torch.isin(ids, torch.tensor([IMAGE, VIDEO])).long() * 2,
    }


def timed_frames(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the same videos for Qwen2.5-VL, whose time axis counts seconds."""
    return grid_frames(n, generator, ids) | {"second_per_grid_ts": torch.ones(n)}


ONE = (START, *(IMAGE,) * 16, END)
FILM = (START, *(VIDEO,) * 16, END)
STAMPED = (41, START, *(VIDEO,) * 8, END, 42, START, *(VIDEO,) * 8, END)  # a time in words before each frame
MROPE = [
    Family(
        "qwen2_vl", "Qwen2-VL", qwen2_vl, ONE, grid_pixels, FILM, grid_frames,
        remark="in the place of Qwen-VL-7B, the fourth model of the paper",
    ),
    Family("qwen2_5_vl", "Qwen2.5-VL", qwen2_5_vl, ONE, grid_pixels, FILM, timed_frames),
    Family("qwen3_vl", "Qwen3-VL", qwen3_vl, ONE, grid_pixels, STAMPED, grid_frames, remark="DeepStack"),
    Family("qwen3_vl_moe", "Qwen3-VL MoE", qwen3_vl_moe, ONE, grid_pixels, STAMPED, grid_frames, remark="mixture of experts"),
    Family(
        "qwen3_5", "Qwen3.5", qwen3_5, ONE, grid_pixels, STAMPED, grid_frames, with_attention,
        spread=0.2, unshared="running state", remark="linear attention between the layers that are pruned",
    ),
    Family(
        "glm4v", "GLM-4V", glm4v, ONE, grid_pixels, (93, *(IMAGE,) * 8, 41, *(IMAGE,) * 8, 42, 92), grid_frames,
        spread=0.15, remark="a video's placeholders are image tokens",
    ),
]  # fmt: skip
