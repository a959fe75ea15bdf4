"""Families for videos, whose frames are pooled, merged or taken whole; each reads pictures too."""

import inspect

import torch
from torch import Generator, Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    Qwen2Config,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from families.base import END, IMAGE, START, VIDEO, Family
from families.plain import TEXT, TOWER, square_pixels
from families.tiled import ANYRES, anyres_pixels, video_frames

__all__ = ["FILMS"]


def llava_next_video() -> LlavaNextVideoForConditionalGeneration:
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**TOWER | {"patch_size": 8}), text_config=LlamaConfig(**TEXT), image_token_index=IMAGE,
        video_token_index=VIDEO, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )  # fmt: skip
    return LlavaNextVideoForConditionalGeneration(config)


def video_llava() -> VideoLlavaForConditionalGeneration:
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER), text_config=LlamaConfig(**TEXT), image_token_index=IMAGE,
        video_token_index=VIDEO,
    )  # fmt: skip
    return VideoLlavaForConditionalGeneration(config)


def video_llama_3() -> VideoLlama3ForConditionalGeneration:
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, patch_size=4)
    config = VideoLlama3Config(vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE, video_token_id=VIDEO)
    return VideoLlama3ForConditionalGeneration(config)


def whole_pixels(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n pictures of 4 x 4 patches, none of which is merged, their grids and how many patches make a token's side."""
    return {
        "pixel_values": torch.randn(n * 16, 3 * 16, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * n),
        "image_merge_sizes": torch.ones(n, dtype=torch.long),
    }


def merged_frames(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n videos of two frames of 4 x 8 patches, merged to 2 x 4 tokens a frame."""
    return {
        "pixel_values_videos": torch.randn(n * 64, 3 * 16, generator=generator),
        "video_grid_thw": torch.tensor([[2, 4, 8]] * n),
        "video_merge_sizes": torch.full((n,), 2),
    }


def renamed_pixels(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n pictures under the name that Video-LLaVA gives them: pixel_values_images before transformers 5.23."""
    known = inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters
    return {
        "pixel_values" if "pixel_values" in known else "pixel_values_images": square_pixels(n, generator, ids)["pixel_values"]
    }


FILMS = [
    Family(
        "llava_next_video", "LLaVA-NeXT-Video", llava_next_video, ANYRES, anyres_pixels, (VIDEO,) * 12, video_frames(12),
        newer=True, remark="a frame's patches are pooled",
    ),
    Family(
        "video_llava", "Video-LLaVA", video_llava, (IMAGE,) * 16, renamed_pixels, (VIDEO,) * 34, video_frames(2),
        newer=True, remark="a frame keeps its class token; pictures and frames have a tower each",
    ),
    Family(
        "video_llama_3", "VideoLLaMA 3", video_llama_3, (START, *(IMAGE,) * 16, END), whole_pixels,
        (41, START, *(VIDEO,) * 16, END), merged_frames, spread=0.18, newer=True,
        remark="a video's patches are merged, a picture's are not",
    ),
]  # fmt: skip
