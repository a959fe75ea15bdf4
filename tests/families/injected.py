"""Families whose image features do not simply take the place of the placeholders' embeddings."""

import torch
import transformers
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    Gemma3nAudioConfig,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma3nTextConfig,
    Gemma3nVisionConfig,
    Granite4VisionConfig,
    Granite4VisionForConditionalGeneration,
    Molmo2Config,
    Molmo2ForConditionalGeneration,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from families.base import END, IMAGE, PAD, START, VOCAB, Family
from families.masks import LAYERS
from families.plain import TEXT, TOWER, square_pixels
from families.tiled import ANYRES, TILES, anyres_pixels, text_model

__all__ = ["INJECTED"]

MARKS = (START, END, 93, 92, 91)  # Ovis2's words around an image, which have embeddings of the visual vocabulary


def ovis2() -> PreTrainedModel:
    vision = TOWER | dict(image_size=32, hidden_stride=2, vocab_size=40, num_visual_indicator_tokens=len(MARKS))
    config = Ovis2Config(
        vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE, visual_indicator_token_ids=list(MARKS),
        vocab_size=VOCAB, hidden_size=48, tie_word_embeddings=False,
    )  # fmt: skip
    return Ovis2ForConditionalGeneration(config)


def molmo2() -> PreTrainedModel:
    heads = dict(num_attention_heads=4, num_key_value_heads=4, head_dim=8)
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, image_size=[32, 32], patch_size=4) | heads
    adapter = dict(hidden_size=32, intermediate_size=48, text_hidden_size=48, vision_feature_layer=[1, 0]) | heads
    text = TEXT | dict(head_dim=8, additional_vocab_size=8)
    config = Molmo2Config(
        vision_config=vision, adapter_config=adapter, text_config=text, image_patch_id=IMAGE, image_start_token_id=START,
        image_end_token_id=END, low_res_image_start_token_id=93, frame_start_token_id=92, frame_end_token_id=91,
    )  # fmt: skip
    return Molmo2ForConditionalGeneration(config)


def pooled(kind: str, crops: int):
    """Return what brings n pictures or videos of so many crops of 8 x 8 patches, four of which are pooled to a token."""

    def pixels(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        patches = torch.arange(n * crops * 64).view(n * crops, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 4)
        grid = [4, 4, 4 * (crops - 1), 4] if kind == "image" else [crops, 4, 4]
        return {
            "pixel_values" if kind == "image" else "pixel_values_videos": torch.randn(n * crops, 64, 48, generator=generator),
            f"{kind}_token_pooling": patches,
            f"{kind}_grids": torch.tensor([grid] * n),
            "mm_token_type_ids": (ids == IMAGE).long(),
        }

    return pixels


class PatchesConfig(Gemma3nVisionConfig):
    model_type = "patches"


class Patches(PreTrainedModel):
    """Stand in for Gemma 3n's tower, which is timm's: one convolution, so that any attention function suits it."""

    config: PatchesConfig
    _supports_sdpa = True

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__(config)
        self.embedding = torch.nn.Conv2d(3, config.hidden_size, 4, 4)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **options: object) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.embedding(pixel_values))


AutoModel.register(PatchesConfig, Patches)


def gemma3n() -> PreTrainedModel:
    text = Gemma3nTextConfig(
        **TEXT | dict(num_hidden_layers=6), head_dim=8, layer_types=[*LAYERS, *LAYERS[:2]], num_kv_shared_layers=2,
        sliding_window=14, vocab_size_per_layer_input=IMAGE - 1, hidden_size_per_layer_input=8, pad_token_id=PAD,
        altup_num_inputs=2, laurel_rank=8, activation_sparsity_pattern=[0.5, 0.0] * 3, rms_norm_eps=1.0,
    )  # fmt: skip
    audio = Gemma3nAudioConfig(
        hidden_size=16, vocab_size=8, vocab_offset=VOCAB, input_feat_size=8, conf_num_attention_heads=2,
        conf_num_hidden_layers=1, sscp_conv_channel_size=(4, 4),
    )  # fmt: skip
    config = Gemma3nConfig(
        text_config=text, vision_config=PatchesConfig(hidden_size=32, vocab_size=2, vocab_offset=IMAGE - 1),
        audio_config=audio, vision_soft_tokens_per_image=16, image_token_id=IMAGE, audio_token_id=VOCAB, boi_token_id=START,
        eoi_token_id=END, boa_token_id=93, eoa_token_id=92, tie_word_embeddings=False,
    )  # fmt: skip
    return Gemma3nForConditionalGeneration(config)


def granite4_vision() -> PreTrainedModel:
    vision = CLIPVisionConfig(**TOWER | dict(hidden_size=64))  # its Q-Formers have one head for each 64
    bridge = dict(num_hidden_layers=1, intermediate_size=48, cross_attention_frequency=1, use_qformer_text_input=False)
    config = Granite4VisionConfig(
        vision_config=vision, text_config=TEXT | dict(attention_multiplier=0.35, logits_scaling=1.0), image_token_index=IMAGE,
        qformer_config=bridge, downsample_rate="1/2", deepstack_layer_map=[[-2, 0], [-1, 1]], spatial_vision_layer=-1,
        spatial_target_layers=[2, 3], image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]], projector_dropout=0.0,
    )  # fmt: skip
    return Granite4VisionForConditionalGeneration(config)


def granite_docling() -> PreTrainedModel:
    vision = TOWER | dict(out_hidden_size=48, scale_factor=2, use_fine_route=False, deepstack_visual_indexes=[0, 1])
    text = TEXT | dict(embedding_multiplier=2.0, residual_multiplier=0.8, attention_multiplier=0.35, logits_scaling=1.0)
    text |= dict(pad_token_id=PAD, bos_token_id=None, eos_token_id=None)
    config = transformers.GraniteDoclingConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, pad_token_id=PAD, tie_word_embeddings=False
    )
    return transformers.GraniteDoclingForConditionalGeneration(config)


def tiles_by_row(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tiles of n pictures as (row, tile), and that all of them are real ones."""
    pixels = torch.randn(len(ids), n // len(ids) * TILES, 3, 16, 16, generator=generator)
    return {"pixel_values": pixels, "pixel_attention_mask": torch.ones(pixels.shape[:2], dtype=torch.bool)}


def wide_pixels(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n square pictures of 32 x 32."""
    return {"pixel_values": torch.randn(n, 3, 32, 32, generator=generator)}


TILED = (START, *(token for mark in (93, 92, 91) for token in (mark, *(IMAGE,) * 4)), END)
INJECTED = [
    Family(
        "ovis2", "Ovis2", ovis2, (START, *(IMAGE,) * 16, END, 93), wide_pixels, spread=0.18, lacks=("chunks",), newer=True,
        remark="features are mixtures of a visual vocabulary",
    ),
    Family(
        "molmo2", "Molmo2", molmo2, (93, *(IMAGE,) * 16, END, START, *(IMAGE,) * 16, END), pooled("image", 2),
        (92, *(IMAGE,) * 16, 91, 41, 92, *(IMAGE,) * 16, 91), pooled("video", 2), spread=0.16, newer=True,
        remark="features are added to the placeholder's embedding; image tokens see each other",
    ),
    Family(
        "gemma3n", "Gemma 3n", gemma3n, (START, *(IMAGE,) * 16, END), square_pixels, newer=True,
        unread="its LM head and final norm give logits that differ",
        remark="last layers share K and V; tested with a convolution in the place of its tower, which is timm's",
    ),
    Family(
        "granite4_vision", "Granite 4 Vision", granite4_vision, ANYRES, anyres_pixels, spread=0.15, lacks=("chunks",), newer=True,
        remark="features enter several layers; tiles, unpadded, with row ends",
    ),
    Family(
        "granite_docling", "Granite Docling", granite_docling, TILED, tiles_by_row, decoder=text_model, spread=0.2,
        needs="GraniteDoclingConfig", newer=True, remark="features enter several layers",
    ),
]  # fmt: skip
