"""Families that read sound beside pictures and videos; the tests bring them pictures and videos only."""

import torch
import transformers
from transformers import PreTrainedModel

from families.base import END, IMAGE, START, VIDEO, Family
from families.mrope import DEEPSTACK, FILM, ONE, TEXT, grid_frames, grid_pixels, rope

__all__ = ["OMNI"]

SOUND = dict(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, num_mel_bins=8, output_dim=48)
MARKS = dict(audio_start_token_id=90, user_token_id=89, vision_start_token_id=START, vision_end_token_id=END)


def qwen2_5_omni() -> PreTrainedModel:
    vision = dict(depth=2, num_heads=4, patch_size=4, spatial_merge_size=2, temporal_patch_size=1, hidden_size=32)
    vision |= dict(intermediate_size=48, out_hidden_size=48, fullatt_block_indexes=[1], window_size=16)
    config = transformers.Qwen2_5OmniThinkerConfig(
        audio_config=SOUND, vision_config=vision, text_config=TEXT | dict(rope_parameters=rope(2, 1, 1)), **MARKS,
        image_token_index=IMAGE, video_token_index=VIDEO, audio_token_index=93, audio_end_token_id=88,
    )  # fmt: skip
    return transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)


def qwen3_omni_moe() -> PreTrainedModel:
    text = TEXT | dict(head_dim=8, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2)
    config = transformers.Qwen3OmniMoeThinkerConfig(
        audio_config=SOUND | dict(downsample_hidden_size=8), vision_config=DEEPSTACK,
        text_config=text | dict(rope_parameters=rope(2, 1, 1)), **MARKS, image_token_id=IMAGE, video_token_id=VIDEO,
        audio_token_id=93,
    )  # fmt: skip
    return transformers.Qwen3OmniMoeThinkerForConditionalGeneration(config)


def timed(bring):
    """Return a maker of the same inputs without token types, which these models find by themselves."""

    def brought(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        given = bring(n, generator, ids)
        more = {"video_second_per_grid": torch.ones(n)} if "video_grid_thw" in given else {}
        return {name: value for name, value in given.items() if name != "mm_token_type_ids"} | more

    return brought


OMNI = [
    Family(
        "qwen2_5_omni", "Qwen2.5-Omni (thinker)", qwen2_5_omni, ONE, timed(grid_pixels), FILM, timed(grid_frames), newer=True,
        decoder=lambda model: model.model.language_model.layers if hasattr(model.model, "language_model") else model.model.layers,
    ),
    Family(
        "qwen3_omni_moe", "Qwen3-Omni (thinker)", qwen3_omni_moe, ONE, timed(grid_pixels), FILM, timed(grid_frames), newer=True,
        remark="DeepStack; mixture of experts",
    ),
]  # fmt: skip
