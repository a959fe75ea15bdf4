"""Models whose decoder caches something else than K and V of each head, or writes more than one token a step."""

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from families.base import END, IMAGE, PAD, START, VIDEO, VOCAB

__all__ = [
    "SMALL",
    "TOWER",
    "diffusion_gemma",
    "dots3_note",
    "glm5_next",
    "hy_v4_vl",
    "inkling",
    "inkling2_loop",
    "kimi_k25",
    "minimax_m3",
    "mistral_large4",
    "qwen4_exp",
]

TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4)
SMALL = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6)


def latent(config: type[PreTrainedConfig], **more: object) -> PreTrainedConfig:
    """Return a decoder that keeps compressed K and V, and keys of an indexer beside them."""
    sizes = dict(num_key_value_heads=6, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=12)
    sizes |= dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    sizes |= dict(index_topk=8, index_head_dim=16, index_n_heads=2, pad_token_id=PAD)
    return config(**SMALL, **sizes | more)


def dots3_note() -> PreTrainedModel:
    sliding = dict(swa_q_lora_rank=16, swa_kv_lora_rank=24, swa_head_dim=16)  # layers differ, as in the published model
    sliding |= {f"swa_{name}": 6 for name in ("num_attention_heads", "num_key_value_heads")}
    sliding |= dict(swa_qk_nope_head_dim=8, swa_v_head_dim=12)
    text = latent(transformers.Dots3NoteTextConfig, q_lora_rank=16, **sliding)
    tower = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    vision = tower | dict(patch_size=4, mlp_layer_types=["dense"], adapter_in_dim=32, adapter_out_dim=48)
    audio = tower | dict(feature_size=8, downsample_hidden_size=4, adapter_input_size=32, adapter_out_dim=48)
    return transformers.Dots3NoteForConditionalGeneration(
        transformers.Dots3NoteConfig(text_config=text, vision_config=vision, audio_config=audio, image_token_id=IMAGE)
    )


def mistral_large4() -> PreTrainedModel:
    text = latent(transformers.MistralLarge4TextConfig)
    vision = transformers.PixtralVisionConfig(**TOWER)
    config = transformers.MistralLarge4Config(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return transformers.MistralLarge4ForConditionalGeneration(config)


def hy_v4_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = latent(transformers.HYV4VLTextConfig, q_lora_rank=16, rope_parameters=rope)
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, patch_size=4)
    config = transformers.HYV4VLConfig(
        vision_config=vision | dict(out_hidden_size=48, max_image_size=32), text_config=text, image_token_id=IMAGE
    )
    return transformers.HYV4VLForConditionalGeneration(config)


def inkling2_loop() -> PreTrainedModel:
    heads = dict(num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    text = transformers.Inkling2LoopTextConfig(
        **heads, **{f"swa_{name}": size for name, size in heads.items()}, vocab_size=VOCAB, unpadded_vocab_size=VOCAB,
        hidden_size=48, num_hidden_layers=6, d_rel=4, rel_extent=16, moe_intermediate_size=16, n_routed_experts=4,
        num_experts_per_tok=2, n_layers_per_attn_res_block=2, loop_layer_index_start=2, loop_layer_index_end=4, loop_gate_rank=4,
    )  # fmt: skip
    vision = dict(model_type="inkling2_vision", hidden_size=32, num_hidden_layers=1, num_attention_heads=4, patch_size=4)
    vision |= dict(posemb_grid_size=4, projection_hidden_dim=32, text_hidden_size=48)
    config = transformers.Inkling2LoopConfig(text_config=text, vision_config=vision, image_token_id=IMAGE)
    return transformers.Inkling2LoopForConditionalGeneration(config)


def inkling() -> PreTrainedModel:
    heads = dict(num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    text = SMALL | heads | {f"swa_{name}": size for name, size in heads.items()}
    text |= dict(d_rel=4, rel_extent=16, layer_types=["hybrid_sliding", "hybrid"], mlp_layer_types=["dense", "dense"])
    text |= dict(moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, sliding_window_size=14)
    vision = dict(patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    audio = dict(n_mel_bins=4, mel_vocab_size=8)
    config = transformers.InklingConfig(text_config=text, vision_config=vision, audio_config=audio, image_token_id=IMAGE)
    return transformers.InklingForConditionalGeneration(config)


def kimi_k25() -> PreTrainedModel:
    text = latent(transformers.DeepseekV3Config, q_lora_rank=16, first_k_dense_replace=2, n_group=1, topk_group=1)
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, patch_size=4)
    config = transformers.Kimi_K25Config(
        text_config=text, vision_config=vision, projection_hidden_size=32, image_token_id=IMAGE, video_token_id=VIDEO
    )
    return transformers.Kimi_K25ForConditionalGeneration(config)


def glm5_next() -> PreTrainedModel:
    kinds = dict(qk_rope_head_dim=0, layer_types=["linear_attention", "indexed_attention"], mlp_layer_types=["dense", "dense"])
    text = latent(
        transformers.Glm5NextTextConfig, q_lora_rank=16, index_kpool=2, linear_head_dim=8, linear_num_heads=2, hc_mult=2, **kinds
    )
    vision = dict(depth=1, hidden_size=32, intermediate_size=48, num_heads=4, patch_size=4, image_size=32, out_hidden_size=48)
    config = transformers.Glm5NextConfig(
        text_config=text, vision_config=vision | dict(projection_intermediate_size=48), image_token_id=IMAGE
    )
    return transformers.Glm5NextForConditionalGeneration(config)


def minimax_m3() -> PreTrainedModel:
    text = SMALL | dict(num_key_value_heads=2, head_dim=8, rotary_dim=8, num_local_experts=4, num_experts_per_tok=2)
    text |= dict(dense_intermediate_size=48, shared_intermediate_size=48, bos_token_id=None, eos_token_id=None)
    text |= dict(layer_types=["full_attention", "minimax_m3_sparse"], index_n_heads=2, index_head_dim=8, index_block_size=4)
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, patch_size=4, image_size=32)
    config = transformers.MiniMaxM3VLConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE, projector_hidden_size=48
    )
    return transformers.MiniMaxM3SparseForConditionalGeneration(config)


def diffusion_gemma() -> PreTrainedModel:
    text = SMALL | dict(num_key_value_heads=2, head_dim=8, layer_types=["sliding_attention", "full_attention"])
    text |= dict(num_experts=4, top_k_experts=2, moe_intermediate_size=32, pad_token_id=PAD)
    vision = dict(model_type="gemma4_vision", hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    vision |= dict(num_key_value_heads=4, head_dim=8, patch_size=4, pooling_kernel_size=2, position_embedding_size=16)
    config = transformers.DiffusionGemmaConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, boi_token_id=START, eoi_token_id=END, canvas_length=8
    )
    return transformers.DiffusionGemmaForBlockDiffusion(config)


def qwen4_exp() -> PreTrainedModel:
    text = {name: size for name, size in SMALL.items() if name != "intermediate_size"}
    text |= dict(num_key_value_heads=2, head_dim=8, layer_types=["linear_attention", "indexed_attention"], num_experts=4)
    text |= dict(num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16, hc_lowrank=8)
    text |= dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4)
    text |= dict(indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8, indexer_compress_ratio=4)
    text |= dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]})
    vision = dict(depth=1, hidden_size=32, intermediate_size=48, num_heads=4, patch_size=4, out_hidden_size=48)
    config = transformers.Qwen4ExpConfig(text_config=text, vision_config=vision, image_token_id=IMAGE)
    return transformers.Qwen4ExpForConditionalGeneration(config)
