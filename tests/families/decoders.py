"""Decoders that transformers has for text only, tested within LLaVA."""

import transformers
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from families.base import IMAGE, Family
from families.plain import TEXT, TOWER, square_pixels

__all__ = ["DECODERS"]


def lara_mini() -> LlavaForConditionalGeneration:
    kinds = ["linear_attention", "sliding_attention", "linear_attention", "full_attention", "sliding_attention"]
    heads = dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32)
    text = {name: size for name, size in TEXT.items() if name != "intermediate_size"} | dict(num_hidden_layers=5, head_dim=8)
    decoder = transformers.LaraMiniConfig(
        **text, **heads, **experts, layer_types=kinds, sliding_window=14, eos_token_id=None, tie_word_embeddings=False,
        rms_norm_eps=0.1,  # else the norm of a linear layer's almost empty state blows up rounding errors
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER), text_config=decoder, image_token_id=IMAGE, vision_feature_layer=-2
    )
    return LlavaForConditionalGeneration(config)


DECODERS = [
    Family(
        "llava_lara_mini", "LLaVA on Lara Mini", lara_mini, (IMAGE,) * 16, square_pixels,
        decoder=lambda model: [layer for layer in model.model.language_model.layers if hasattr(layer, "self_attn")],
        spread=0.2, unshared="running state", needs="LaraMiniConfig", newer=True,
        remark="linear attention and windows; no positions in the layers of full attention",
    ),
]  # fmt: skip
