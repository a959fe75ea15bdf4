"""Families in which an image becomes tokens of a codebook, or its raw patches are projected without a tower."""

import inspect

import torch
import transformers
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    Emu3Config,
    Emu3ForConditionalGeneration,
    FuyuConfig,
    FuyuForCausalLM,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedTextConfig,
    MuseGlimmerConfig,
    MuseGlimmerForConditionalGeneration,
    MuseSparkConfig,
    MuseSparkForConditionalGeneration,
    PersimmonConfig,
    PreTrainedModel,
)

from families.base import END, IMAGE, PAD, START, VIDEO, Family
from families.masks import LAYERS
from families.masks import TEXT as WINDOWS
from families.mrope import FILM, IDS, ONE
from families.plain import TEXT, square_pixels
from families.states import film_grids, grids

__all__ = ["CODEBOOKS"]

DRAWN = dict(embed_dim=8, latent_channels=8, base_channels=32, channel_multiplier=[1, 1, 1], num_res_blocks=1)


def chameleon() -> PreTrainedModel:
    words = {"<image>": IMAGE, "<racm3:break>": START, "<eoss>": END}
    words |= {f"IMGIMG{letter}Z": 60 + k for k, letter in enumerate("ABCDEFGH")}
    config = ChameleonConfig(
        **TEXT, vq_config=DRAWN | dict(num_embeddings=8, resolution=16, attn_resolutions=[]), vocabulary_map=words,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return ChameleonForConditionalGeneration(config)


def emu3() -> PreTrainedModel:
    words = {"<image>": IMAGE, "<|extra_200|>": START} | {f"<|visual token {k:06d}|>": 60 + k for k in range(8)}
    drawn = DRAWN | dict(codebook_size=8, embed_dim=4, latent_channels=4, temporal_downsample_factor=1, attn_resolutions=[])
    text = TEXT | dict(attention_dropout=0.0, pad_token_id=PAD, bos_token_id=START, eos_token_id=END)
    config = Emu3Config(vq_config=drawn | dict(hidden_size=32), text_config=text, vocabulary_map=words, tie_word_embeddings=False)
    return Emu3ForConditionalGeneration(config)


def apertus() -> PreTrainedModel:
    drawn = DRAWN | dict(codebook_size=8, attn_resolutions=[], resolution=16)
    sound = dict(codebook_size=8, codebook_dim=8, hidden_size=8, num_filters=2, num_lstm_layers=1, upsampling_ratios=[2])
    text = TEXT | dict(pad_token_id=PAD, bos_token_id=None, eos_token_id=None)
    config = transformers.Apertus1p5Config(
        vision_config=drawn, text_config=text, audio_config=sound, image_token_id=IMAGE, audio_token_id=93,
        image_token_offset=60, audio_token_offset=68, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Apertus1p5ForConditionalGeneration(config)


def sized_squares(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n square pictures of 16 x 16, and their sizes in pixels."""
    return square_pixels(n, generator, ids) | {"image_sizes": torch.tensor([[16, 16]] * n)}


def fuyu() -> PreTrainedModel:
    text = {name: size for name, size in TEXT.items() if name != "num_key_value_heads"}
    text = PersimmonConfig(**text, bos_token_id=None, eos_token_id=None)
    return FuyuForCausalLM(FuyuConfig(text_config=text, patch_size=4, image_size=16, image_token_id=IMAGE))


def other_name() -> str:
    """Return what hinders Fuyu: before transformers 5.21 its pixels had a name of their own."""
    named = "pixel_values" in inspect.signature(FuyuForCausalLM.forward).parameters
    return "" if named else f"transformers {transformers.__version__} calls Fuyu's pixels image_patches"


def raw_patches(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n pictures of 16 raw patches as (row, patch)."""
    return {"pixel_values": torch.randn(len(ids), n // len(ids) * 16, 48, generator=generator)}


def gemma4_unified() -> PreTrainedModel:
    text = Gemma4UnifiedTextConfig(**WINDOWS, layer_types=LAYERS, sliding_window=14, pad_token_id=PAD, rms_norm_eps=1.0)
    vision = dict(patch_size=2, pooling_kernel_size=2, mm_embed_dim=32, mm_posemb_size=16, output_proj_dims=32)
    config = Gemma4UnifiedConfig(
        text_config=text, vision_config=vision, audio_config=None, image_token_id=IMAGE, video_token_id=VIDEO,
        boi_token_id=START, eoi_token_id=END, audio_token_id=93, boa_token_id=92, eoa_token_index=91,
        tie_word_embeddings=False,
    )  # fmt: skip
    return Gemma4UnifiedForConditionalGeneration(config)


def placed_patches(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n pictures of 4 x 4 raw patches, and where each stands."""
    where = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(1)
    return {
        "pixel_values": torch.rand(n, 16, 48, generator=generator),
        "image_position_ids": where.expand(n, -1, -1).clone(),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


MUSE = dict(patch_size=4, pos_emb_height=8, pos_emb_width=8, num_attention_heads=4, num_hidden_layers=2, hidden_size=32)
MUSE |= dict(intermediate_size=48, patch_temporal=1, merge_size=2, layer_types=["window_attention", "full_attention"])
MUSE_TEXT = WINDOWS | dict(layer_types=LAYERS, sliding_window=14, layer_rope_theta=[10000.0, 0] * 2, final_logit_softcapping=20.0)
MUSE_TEXT |= dict(rms_norm_eps=0.1, post_norm_eps=0.1, qk_scale_factor=2.0)  # else norms and sharp scores blow up rounding errors
MUSE_TEXT |= dict(output_multiplier=0.5, bos_token_id=None, eos_token_id=None)


def muse_glimmer() -> PreTrainedModel:
    sizes = dict(out_hidden_size=128, projector_hidden_size=48)
    return MuseGlimmerForConditionalGeneration(MuseGlimmerConfig(vision_config=MUSE, text_config=MUSE_TEXT, **IDS, **sizes))


def muse_spark() -> PreTrainedModel:
    text = MUSE_TEXT | dict(moe_intermediate_size=32, num_local_experts=4, num_experts_per_tok=2, moe_hidden_size=32)
    audio = dict(patch_sizes=[2], hidden_sizes=[8], depths=[1], num_hidden_layers=1, out_hidden_size=48)
    config = MuseSparkConfig(
        vision_config=MUSE, text_config=text, audio_config=audio, **IDS, audio_token_id=93, out_hidden_size=128,
        projector_hidden_size=48,
    )  # fmt: skip
    return MuseSparkForConditionalGeneration(config)


UNREAD = "its LM head and final norm give logits that differ"
CODEBOOKS = [
    Family(
        "chameleon", "Chameleon", chameleon, (START, *(IMAGE,) * 16, END), square_pixels,
        decoder=lambda model: model.model.layers, unread=UNREAD, newer=True,
        remark="an image becomes tokens of a codebook",
    ),
    Family(
        "emu3", "Emu3", emu3, (IMAGE,) * 20, sized_squares, decoder=lambda model: model.model.text_model.layers, newer=True,
        remark="an image becomes tokens of a codebook",
    ),
    Family(
        "apertus1p5", "Apertus 1.5", apertus, (IMAGE,) * 16, sized_squares, functions=("eager",),
        needs="Apertus1p5Config", newer=True,
        remark="an image becomes tokens of a codebook",
    ),
    Family(
        "fuyu", "Fuyu", fuyu, (IMAGE,) * 16, raw_patches, lacks=("chunks", "copies"), unread=UNREAD,
        hindrance=other_name, newer=True, remark="raw patches, without a tower; stock generate() has no beams for it",
    ),
    Family(
        "gemma4_unified", "Gemma 4 Unified", gemma4_unified, ONE, placed_patches, lacks=("chunks",), newer=True,
        remark="raw patches, without a tower; image tokens see each other",
    ),
    Family(
        "muse_glimmer", "Muse Glimmer", muse_glimmer, ONE, grids, FILM, film_grids, unread=UNREAD, newer=True,
        remark="no positions in the layers of full attention",
    ),
    Family(
        "muse_spark", "Muse Spark", muse_spark, ONE, grids, FILM, film_grids, unread=UNREAD, newer=True,
        spread=0.18, remark="mixture of experts; no positions in the layers of full attention",
    ),
]  # fmt: skip
