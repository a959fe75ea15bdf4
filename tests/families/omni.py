"""Families that read sound beside pictures and videos; the tests bring them pictures and videos only."""

from types import SimpleNamespace

import torch
import transformers
from transformers import PreTrainedModel

from families.base import END, IMAGE, PAD, START, VIDEO, VOCAB, Family
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


def nemotron_h_omni() -> PreTrainedModel:
    text = transformers.NemotronHConfig(
        vocab_size=VOCAB, hidden_size=48, hybrid_override_pattern="M*EM*-*", num_attention_heads=6, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=512, intermediate_size=64, ssm_state_size=8, mamba_num_heads=4, mamba_head_dim=8,
        n_groups=2, chunk_size=8, n_routed_experts=4, moe_intermediate_size=32, moe_shared_expert_intermediate_size=32,
        num_experts_per_tok=2, pad_token_id=PAD, bos_token_id=None, eos_token_id=None,
        layer_norm_epsilon=0.1,  # else the norm of a Mamba layer's almost empty state blows up rounding errors
    )  # fmt: skip
    vision = dict(model_type="radio", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, patch_size=4, image_size=32)
    vision |= dict(max_img_size=32, mlp_ratio=1.5, num_registers=1, video_temporal_patch_size=2)
    config = transformers.NemotronH_Omni_Reasoning_V3_Config(
        text_config=text, vision_config=vision, audio_config=None, image_token_id=IMAGE, projector_hidden_size=48,
        vision_hidden_size=32,
    )  # fmt: skip
    return transformers.NemotronH_Omni_Reasoning_V3(config)


def nemotron_pixels(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n pictures of 8 x 8 patches, which are shuffled to 4 x 4 tokens, and their grids."""
    pixels = torch.randn(n * 64, 3 * 16, generator=generator)
    return {"pixel_values": pixels, "image_grid_hw": torch.tensor([[8, 8]] * n)}


def timed(bring):
    """Return a maker of the same inputs without token types, which these models find by themselves."""

    def brought(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        given = bring(n, generator, ids)
        more = {"video_second_per_grid": torch.ones(n)} if "video_grid_thw" in given else {}
        return {name: value for name, value in given.items() if name != "mm_token_type_ids"} | more

    return brought


def thinking(model: PreTrainedModel) -> torch.nn.ModuleList:
    """Return the decoder's layers; older versions of transformers keep the towers beside the decoder."""
    return getattr(model.model, "language_model", model.model).layers


OMNI = [
    Family(
        "qwen2_5_omni", "Qwen2.5-Omni (thinker)", qwen2_5_omni, ONE, timed(grid_pixels), FILM, timed(grid_frames), newer=True,
        decoder=thinking,
    ),
    Family(
        "qwen3_omni_moe", "Qwen3-Omni (thinker)", qwen3_omni_moe, ONE, timed(grid_pixels), FILM, timed(grid_frames), newer=True,
        decoder=thinking, remark="DeepStack; mixture of experts",
    ),
    Family(
        "nemotron_h_omni", "Nemotron 3 Omni", nemotron_h_omni, ONE, nemotron_pixels,
        decoder=lambda model: [
            SimpleNamespace(self_attn=layer.mixer)
            for layer in model.language_model.model.layers
            if layer.block_type == "full_attention"
        ],
        spread=0.2, unshared="running state", unread=r"get_output_embeddings\(\) returns None", newer=True,
        remark="Mamba and mixtures of experts between the layers that are pruned",
    ),
]  # fmt: skip
