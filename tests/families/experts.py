"""Families with positions of three axes and a mixture of experts, or several routes for words and images."""

import torch
from transformers import (
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    PreTrainedModel,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
)

from families.base import END, IMAGE, SLICES, START, VIDEO, Family
from families.mrope import (
    FILM,
    IDS,
    MARKS,
    ONE,
    QWEN3_TOWER,
    STAMPED,
    TEXT,
    TOWER,
    grid_frames,
    grid_pixels,
    rope,
    with_attention,
)

__all__ = ["EXPERTS"]

GLM_TOWER = TOWER | dict(hidden_size=32, image_size=32, out_hidden_size=48, intermediate_size=48)
GLM_MARKS = IDS | dict(image_start_token_id=START, image_end_token_id=END, video_start_token_id=93, video_end_token_id=92)
GLM_FILM = (93, *(IMAGE,) * 8, 41, *(IMAGE,) * 8, 42, 92)


def qwen3_5_moe() -> PreTrainedModel:
    text = TEXT | dict(head_dim=16, num_hidden_layers=6, layer_types=["linear_attention", "full_attention"] * 3)
    text |= dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4)
    text |= dict(moe_intermediate_size=32, shared_expert_intermediate_size=32, num_experts=4, num_experts_per_tok=2)
    text |= dict(rope_parameters=rope(2, 1, 1, partial_rotary_factor=0.5))
    text |= dict(rms_norm_eps=0.1)  # else the norm of a linear layer's almost empty state blows up rounding errors
    text.pop("intermediate_size")
    return Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(vision_config=QWEN3_TOWER, text_config=text, **MARKS))


def glm46v() -> PreTrainedModel:
    text = TEXT | dict(model_type="glm4v_text", rope_parameters=rope(2, 1, 1, partial_rotary_factor=1.0))
    vision = GLM_TOWER | dict(model_type="glm4v_vision")
    return Glm46VForConditionalGeneration(Glm46VConfig(vision_config=vision, text_config=text, **GLM_MARKS))


def glm4v_moe() -> PreTrainedModel:
    text = TEXT | dict(rope_parameters=rope(2, 1, 1, partial_rotary_factor=1.0), head_dim=8)
    text |= dict(moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1)
    text |= dict(first_k_dense_replace=1)
    return Glm4vMoeForConditionalGeneration(Glm4vMoeConfig(vision_config=GLM_TOWER, text_config=text, **GLM_MARKS))


def ernie4_5_vl_moe() -> PreTrainedModel:
    vision = {key: value for key, value in TOWER.items() if key != "temporal_patch_size"}
    vision |= dict(hidden_size=32, intermediate_size=48)
    text = TEXT | dict(rope_parameters=rope(1, 1, 2), moe_intermediate_size=[32, 24], moe_num_experts=4, moe_k=2)
    text |= dict(moe_num_shared_experts=1)
    marks = dict(image_start_token_id=START, image_end_token_id=END, video_start_token_id=93, video_end_token_id=92)
    config = Ernie4_5_VLMoeConfig(vision_config=vision, text_config=text, **IDS, **marks, tie_word_embeddings=False)
    return Ernie4_5_VLMoeForConditionalGeneration(config)


def routed(bring):
    """Return what brings pictures or videos with the kind of each token for the experts, the marks around them included."""

    def pixels(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        marks = torch.tensor([IMAGE, VIDEO, START, END, 93, 92])
        return bring(n, generator, ids) | {"moe_mm_token_type_ids": torch.isin(ids, marks).int()}

    return pixels


def paired_frames(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n videos of four frames of 4 x 8 patches, of which two at a time become 2 x 4 tokens."""
    return {
        "pixel_values_videos": torch.randn(n * 128, 3 * 16, generator=generator),
        "video_grid_thw": torch.tensor([[4, 4, 8]] * n),
        "mm_token_type_ids": (ids == VIDEO).long() * 2,
    }


EXPERTS = [
    Family(
        "qwen3_5_moe", "Qwen3.5 MoE", qwen3_5_moe, ONE, grid_pixels, STAMPED, grid_frames, with_attention,
        spread=0.15, newer=True, unshared="running state",
        remark="linear attention between the layers that are pruned; mixture of experts",
    ),
    Family(
        "glm46v", "GLM-4.6V Flash", glm46v, ONE, grid_pixels, GLM_FILM, grid_frames,
        spread=0.15, newer=True, remark="a video's placeholders are image tokens",
    ),
    Family(
        "glm4v_moe", "GLM-4.5V, GLM-4.6V", glm4v_moe, ONE, grid_pixels, GLM_FILM, grid_frames,
        spread=0.15, newer=True, remark="mixture of experts; a video's placeholders are image tokens",
    ),
    Family(
        "ernie4_5_vl_moe", "ERNIE 4.5 VL", ernie4_5_vl_moe, ONE, routed(grid_pixels), FILM, routed(paired_frames),
        spread=0.18, lacks=() if SLICES else ("parts", "turns"), newer=True,
        remark="words and image tokens have experts of their own",
    ),
]  # fmt: skip
