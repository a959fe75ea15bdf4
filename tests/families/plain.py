"""Families whose decoder counts positions one by one, and whose processor hands a picture over whole."""

import torch
from torch import Generator, Tensor
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedConfig,
    Qwen2Config,
    ResNetConfig,
    ResNetModel,
    Siglip2VisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from families.base import END, IMAGE, START, VOCAB, Family

__all__ = ["PLAIN", "TEXT", "TOWER"]

# A decoder of four layers with grouped KV heads; families that name other keys bring their own.
TEXT = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=4)
TEXT |= dict(num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512)
# A vision tower that reads a picture of 16 x 16 as 4 x 4 patches.
TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4)

ROW = 90  # the word that ends a row of a picture


def square_pixels(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n square pictures of 16 x 16."""
    return {"pixel_values": torch.randn(n, 3, 16, 16, generator=generator)}


def llava(decoder: PreTrainedConfig) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(**TOWER)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=decoder, image_token_id=IMAGE, vision_feature_layer=-2)
    )


def vipllava() -> VipLlavaForConditionalGeneration:
    vision, decoder = CLIPVisionConfig(**TOWER), LlamaConfig(**TEXT)
    return VipLlavaForConditionalGeneration(
        VipLlavaConfig(vision_config=vision, text_config=decoder, image_token_id=IMAGE, vision_feature_layers=(-2, -1))
    )


def idefics2() -> Idefics2ForConditionalGeneration:
    perceiver = dict(hidden_size=48, resampler_n_latents=12, resampler_depth=1, resampler_n_heads=4, resampler_head_dim=8)
    config = Idefics2Config(
        vision_config=TOWER, perceiver_config=perceiver | {"num_key_value_heads": 2}, text_config=MistralConfig(**TEXT),
        image_token_id=IMAGE,
    )  # fmt: skip
    return Idefics2ForConditionalGeneration(config)


def idefics2_pixels(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n pictures as (row, picture), each padded on the right by a column of patches."""
    mask = torch.ones(len(ids), n // len(ids), 16, 16, dtype=torch.long)
    mask[..., 12:] = 0
    pixels = torch.randn(*mask.shape[:2], 3, 16, 16, generator=generator) * mask[:, :, None]
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def mistral3() -> Mistral3ForConditionalGeneration:
    vision = PixtralVisionConfig(**TOWER | {"image_size": 32})
    config = Mistral3Config(
        vision_config=vision, text_config=MistralConfig(**TEXT, sliding_window=None), image_token_id=IMAGE,
        tie_word_embeddings=False,
    )  # fmt: skip
    return Mistral3ForConditionalGeneration(config)


def mistral3_pixels(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n pictures of 4 x 8 patches, which are merged to 2 x 4 tokens, and their sizes in pixels."""
    return {"pixel_values": torch.randn(n, 3, 16, 32, generator=generator), "image_sizes": torch.tensor([[16, 32]] * n)}


def lfm2_vl() -> Lfm2VlForConditionalGeneration:
    vision = Siglip2VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, patch_size=4, num_patches=16
    )
    decoder = Lfm2Config(
        **TEXT | {"num_hidden_layers": 5}, block_multiple_of=8, full_attn_idxs=[1, 3, 4], eos_token_id=None, bos_token_id=None
    )
    config = Lfm2VlConfig(vision_config=vision, text_config=decoder, image_token_id=IMAGE, projector_hidden_size=48)
    return Lfm2VlForConditionalGeneration(config)


def lfm2_vl_pixels(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n pictures of 6 x 8 patches, padded to 50 and later merged to 3 x 4 tokens; with their shapes and masks."""
    mask = torch.ones(n, 50, dtype=torch.long)
    mask[:, 48:] = 0
    pixels = torch.randn(n, 50, 3 * 16, generator=generator) * mask[..., None]
    return {"pixel_values": pixels, "spatial_shapes": torch.tensor([[6, 8]] * n), "pixel_attention_mask": mask}


class ConvolutionsConfig(ResNetConfig):
    model_type = "convolutions"


class Convolutions(ResNetModel):
    """Stand in for FastVLM's tower, which is timm's; a ResNet has no attention, so that any attention function suits it."""

    config: ConvolutionsConfig
    _supports_sdpa = True


AutoModel.register(ConvolutionsConfig, Convolutions)


def fast_vlm() -> FastVlmForConditionalGeneration:
    vision = ConvolutionsConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", hidden_size=32)
    config = FastVlmConfig(vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE)
    return FastVlmForConditionalGeneration(config)


def fast_vlm_pixels(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n square pictures of 32 x 32, of which the tower makes maps of 4 x 4."""
    return {"pixel_values": torch.randn(n, 3, 32, 32, generator=generator)}


PLAIN = [
    Family("llava", "LLaVA-1.5", lambda: llava(LlamaConfig(**TEXT)), (IMAGE,) * 16, square_pixels),
    Family(
        "llava_window", "LLaVA on Mistral", lambda: llava(MistralConfig(**TEXT, sliding_window=14)), (IMAGE,) * 16,
        square_pixels, spread=0.2,
    ),
    Family("vipllava", "ViP-LLaVA", vipllava, (IMAGE,) * 16, square_pixels, remark="features of several vision layers"),
    Family(
        "idefics2", "Idefics2", idefics2, (START, *(IMAGE,) * 12, START), idefics2_pixels,
        decoder=lambda model: model.model.text_model.layers, spread=0.14, remark="a resampler's latents stand for the image",
    ),
    Family(
        "mistral3", "Mistral 3.1, Pixtral", mistral3, (*(IMAGE,) * 4, ROW, *(IMAGE,) * 4, END), mistral3_pixels,
        spread=0.18, remark="a word ends each row of the image",
    ),
    Family(
        "lfm2_vl", "LFM2-VL", lfm2_vl, (START, *(IMAGE,) * 12, END), lfm2_vl_pixels,
        decoder=lambda model: [layer for layer in model.model.language_model.layers if layer.is_attention_layer],
        spread=0.15, unshared="running state", remark="convolutions between the attention layers, which alone are pruned",
    ),
    Family(
        "fast_vlm", "FastVLM", fast_vlm, (IMAGE,) * 16, fast_vlm_pixels,
        spread=0.18, remark="tested with a ResNet in the place of its tower, which is timm's",
    ),
]  # fmt: skip
