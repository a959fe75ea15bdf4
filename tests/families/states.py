"""Families with a running state, of a convolution or of linear attention, between the layers that are pruned."""

import torch
import transformers
from transformers import (
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    PreTrainedModel,
    Qwen3_5TextConfig,
)

from families.base import END, IMAGE, PAD, START, VIDEO, Family
from families.mrope import FILM, IDS, MARKS, ONE, grid_pixels, rope, with_attention
from families.plain import TEXT, TOWER

__all__ = ["STATES"]


def lfm3_vl() -> PreTrainedModel:
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
    vision |= dict(patch_size=4, spatial_merge_size=2, temporal_patch_size=1, layer_types=["conv", "full_attention", "conv"])
    text = transformers.Lfm3Config(
        **TEXT | dict(num_hidden_layers=6), head_dim=8, sliding_window=14, conv_L_cache=3, pad_token_id=PAD, bos_token_id=None,
        eos_token_id=None, layer_types=["conv", "full_attention", "sliding_attention", "conv", "full_attention", "conv"],
    )  # fmt: skip
    config = transformers.Lfm3VlConfig(
        vision_config=vision, text_config=text, **MARKS, projector_hidden_size=48, tie_word_embeddings=False
    )
    return transformers.Lfm3VlForConditionalGeneration(config)


def grids(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n pictures of 8 x 8 patches, which the tower merges to 4 x 4 tokens, and their grids."""
    brought = grid_pixels(n, generator, ids)
    return {name: brought[name] for name in ("pixel_values", "image_grid_thw")}


def film_grids(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n videos of two frames of 4 x 8 patches, merged to 2 x 4 tokens a frame."""
    pixels = torch.randn(n * 64, 3 * 16, generator=generator)
    return {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[2, 4, 8]] * n)}


def linear_text() -> Qwen3_5TextConfig:
    """Return Qwen3.5's decoder, whose every other layer is linear attention; all three axes count the same positions."""
    text = TEXT | dict(head_dim=16, num_hidden_layers=6, layer_types=["linear_attention", "full_attention"] * 3)
    text |= dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4)
    text |= dict(rope_parameters=rope(2, 1, 1, partial_rotary_factor=0.5))
    return Qwen3_5TextConfig(**text, rms_norm_eps=0.1)  # else the norm of an almost empty state blows up rounding errors


def minicpm_ocr() -> PreTrainedModel:
    vision = TOWER | dict(image_size=32)
    config = transformers.MiniCPMOcrConfig(
        vision_config=vision, text_config=linear_text(), **IDS, insert_layer_id=0, tie_word_embeddings=False
    )
    return transformers.MiniCPMOcrForConditionalGeneration(config)


def minicpmv4_6() -> PreTrainedModel:
    vision = TOWER | dict(image_size=32)
    config = MiniCPMV4_6Config(
        vision_config=vision, text_config=linear_text(), **IDS, insert_layer_id=0, tie_word_embeddings=False
    )
    return MiniCPMV4_6ForConditionalGeneration(config)


def packed(tiles: int, kind: str = ""):
    """Return what brings n pictures of so many tiles of 8 x 8 patches, all behind one another on the last axis, and sizes."""

    def pixels(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            f"pixel_values{kind}": torch.randn(1, 3, 4, n * tiles * 8 * 8 * 4, generator=generator),
            f"target_sizes{kind}": torch.tensor([[8, 8]] * n * tiles, dtype=torch.int32),
        }

    return pixels


STATES = [
    Family(
        "lfm3_vl", "LFM3-VL", lfm3_vl, ONE, grids, FILM, film_grids,
        decoder=lambda model: [layer for layer in model.model.language_model.layers if layer.is_attention_layer],
        spread=0.2, newer=True, unshared="running state", needs="Lfm3VlConfig",
        remark="convolutions between the attention layers, which alone are pruned",
    ),
    Family(
        "minicpm_ocr", "MiniCPM-OCR", minicpm_ocr, ONE, packed(1), FILM, packed(1, "_videos"), with_attention,
        spread=0.18, newer=True, unshared="running state", needs="MiniCPMOcrConfig",
        remark="on Qwen3.5: linear attention between the layers that are pruned",
    ),
    Family(
        "minicpmv4_6", "MiniCPM-V 4.6", minicpmv4_6, (START, *(IMAGE,) * 4, END) * 3, packed(3), (START, *(VIDEO,) * 4, END) * 4,
        packed(4, "_videos"), with_attention,
        spread=0.18, newer=True, unshared="running state",
        remark="on Qwen3.5: linear attention between the layers that are pruned",
    ),
]  # fmt: skip
