"""Families whose decoder counts positions one by one, and whose processor cuts a picture into tiles."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    CLIPVisionConfig,
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PerceptionLMConfig,
    PerceptionLMForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from families.base import END, IMAGE, START, VIDEO, Family
from families.plain import TEXT, TOWER

__all__ = ["TILED"]

TILES = 3  # of a picture, the thumbnail included, or frames of a video
MARK = (91, 92, 93)  # the words before the tiles


def anyres_pixels(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n upright pictures of 32 x 20: a thumbnail and 2 x 2 tiles of 16 x 16, and the sizes in pixels."""
    return {"pixel_values": torch.randn(n, 5, 3, 16, 16, generator=generator), "image_sizes": torch.tensor([[32, 20]] * n)}


# Patches of the thumbnail, 2 x 2; and of the tiles, 4 x 4 less the two columns that pad the picture, with an end to each row.
ANYRES = (IMAGE,) * (4 + 4 * (2 + 1))


def llava_next() -> LlavaNextForConditionalGeneration:
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**TOWER | {"patch_size": 8}), text_config=LlamaConfig(**TEXT), image_token_id=IMAGE,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )  # fmt: skip
    return LlavaNextForConditionalGeneration(config)


def llava_onevision() -> LlavaOnevisionForConditionalGeneration:
    vision = SiglipVisionConfig(**TOWER | {"patch_size": 8}, vision_use_head=False)
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )  # fmt: skip
    return LlavaOnevisionForConditionalGeneration(config)


def video_frames(frames: int) -> Callable[[int, Generator, Tensor], dict[str, Tensor]]:
    """Return what brings n videos of so many frames of 16 x 16."""

    def bring(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
        return {"pixel_values_videos": torch.randn(n, frames, 3, 16, 16, generator=generator)}

    return bring


def stacked_tiles(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return the tiles of n pictures, or the frames of n videos, one after another."""
    return {"pixel_values": torch.randn(n * TILES, 3, 16, 16, generator=generator)}


def tiles_by_image(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return the tiles of n pictures as (picture, tile)."""
    return {"pixel_values": torch.randn(n, TILES, 3, 16, 16, generator=generator)}


def frames_by_row(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return the frames of n videos of 4 frames as (row, frame)."""
    return {"pixel_values": torch.randn(len(ids), n // len(ids) * 4, 3, 16, 16, generator=generator)}


def tiles_by_row(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return the tiles of n pictures as (row, tile), with a mask that hides nothing."""
    pixels = torch.randn(len(ids), n // len(ids) * TILES, 3, 16, 16, generator=generator)
    return {"pixel_values": pixels, "pixel_attention_mask": torch.ones_like(pixels[:, :, 0], dtype=torch.long)}


# The tiles' 2 x 2 tokens, each with its word before it.
MARKED = (START, *(token for mark in MARK for token in (mark, *(IMAGE,) * 4)), END)


def internvl() -> InternVLForConditionalGeneration:
    config = InternVLConfig(
        vision_config=TOWER | {"image_size": (16, 16), "patch_size": (4, 4)}, text_config=Qwen2Config(**TEXT),
        image_token_id=IMAGE, tie_word_embeddings=False,
    )  # fmt: skip
    return InternVLForConditionalGeneration(config)


def cohere2() -> Cohere2Config:
    return Cohere2Config(**TEXT, logit_scale=1.0, sliding_window=14, eos_token_id=None, bos_token_id=None)


def aya_vision() -> AyaVisionForConditionalGeneration:
    vision = SiglipVisionConfig(**TOWER, vision_use_head=False)
    return AyaVisionForConditionalGeneration(AyaVisionConfig(vision_config=vision, text_config=cohere2(), image_token_id=IMAGE))


def cohere2_vision() -> Cohere2VisionForConditionalGeneration:
    vision = SiglipVisionConfig(**TOWER, vision_use_head=False)
    config = Cohere2VisionConfig(
        vision_config=vision, text_config=cohere2(), image_token_id=IMAGE, alignment_intermediate_size=64
    )
    return Cohere2VisionForConditionalGeneration(config)


def idefics3() -> Idefics3ForConditionalGeneration:
    return Idefics3ForConditionalGeneration(
        Idefics3Config(vision_config=TOWER, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE)
    )


def smolvlm() -> SmolVLMForConditionalGeneration:
    config = SmolVLMConfig(
        vision_config=TOWER | {"patch_size": 2}, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=4
    )
    return SmolVLMForConditionalGeneration(config)


def perception_lm() -> PerceptionLMForConditionalGeneration:
    vision = CLIPVisionConfig(**TOWER, model_args={"embed_dim": 32})
    config = PerceptionLMConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, video_token_id=VIDEO,
        projector_pooling_ratio=2,
    )  # fmt: skip
    return PerceptionLMForConditionalGeneration(config)


def text_model(model: PreTrainedModel) -> torch.nn.ModuleList:
    return model.model.text_model.layers


TILED = [
    Family(
        "llava_next", "LLaVA-NeXT", llava_next, ANYRES, anyres_pixels, spread=0.18, remark="tiles, unpadded, with row ends"
    ),
    Family(
        "llava_onevision", "LLaVA-OneVision", llava_onevision, ANYRES, anyres_pixels, (VIDEO,) * (12 + 1), video_frames(12),
        remark="tiles, unpadded, with row ends",
    ),
    Family(
        "internvl", "InternVL3", internvl, (START, *(IMAGE,) * 12, END), stacked_tiles, MARKED, stacked_tiles,
        spread=0.16, remark="a video's frames are images",
    ),
    Family(
        "aya_vision", "Aya Vision", aya_vision, MARKED, stacked_tiles,
        remark="no positions in the layers of full attention",
    ),
    Family(
        "cohere2_vision", "Command A Vision", cohere2_vision, MARKED, stacked_tiles,
        remark="no positions in the layers of full attention",
    ),
    Family("idefics3", "Idefics3", idefics3, MARKED, tiles_by_row, decoder=text_model),
    Family(
        "smolvlm", "SmolVLM2", smolvlm, MARKED, tiles_by_row, (91, START, *(IMAGE,) * 4, END) * 4, frames_by_row,
        decoder=text_model, spread=0.16, remark="a video's frames are images",
    ),
    Family(
        "perception_lm", "Perception LM", perception_lm, (IMAGE,) * 12, tiles_by_image, (VIDEO,) * 20, video_frames(5),
        remark="tested with CLIP in the place of its tower, which is timm's",
    ),
]  # fmt: skip
