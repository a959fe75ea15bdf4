"""Families whose attention is not plain and causal: windows, whole images, shared K and V, softcaps, attention sinks."""

import functools
import inspect

import torch
import transformers
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    GemmaConfig,
    GptOssConfig,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4TextConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    SiglipVisionConfig,
)
from transformers.models.paligemma import modeling_paligemma

from families.base import END, IMAGE, PAD, START, VIDEO, VOCAB, Family

__all__ = ["MASKS"]

LAYERS = ["sliding_attention", "full_attention"] * 2
TEXT = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=6)
TEXT |= dict(num_key_value_heads=2, head_dim=8, max_position_embeddings=512)
TEXT |= dict(tie_word_embeddings=False)  # tied, a random model repeats its last token
TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, patch_size=4)


def gemma3() -> PreTrainedModel:
    text = Gemma3TextConfig(**TEXT, layer_types=LAYERS, sliding_window=14, query_pre_attn_scalar=8)
    config = Gemma3Config(
        text_config=text, vision_config=SiglipVisionConfig(**TOWER, image_size=32, vision_use_head=False),
        mm_tokens_per_image=16, image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END,
        tie_word_embeddings=False,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config)


def paligemma(text: GemmaConfig | Gemma2Config) -> PreTrainedModel:
    vision = SiglipVisionConfig(**TOWER, image_size=16, vision_use_head=False)
    config = PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE, projection_dim=48, hidden_size=48,
        tie_word_embeddings=False,
    )  # fmt: skip
    return PaliGemmaForConditionalGeneration(config)


def paligemma1() -> PreTrainedModel:
    return paligemma(GemmaConfig(**TEXT))


# Before transformers 5.23 the model leaves the softcap of its logits out, and reading them out is refused.
CAPPED = "final_logit_softcapping" in inspect.getsource(modeling_paligemma)
UNCAPPED = "" if CAPPED else "its LM head and final norm give logits that differ"


def paligemma2() -> PreTrainedModel:
    softcaps = dict(attn_logit_softcapping=5.0, final_logit_softcapping=30.0)
    return paligemma(Gemma2Config(**TEXT, layer_types=LAYERS, sliding_window=14, query_pre_attn_scalar=8, **softcaps))


def gemma4() -> PreTrainedModel:
    text = Gemma4TextConfig(
        **TEXT | dict(num_hidden_layers=6), layer_types=[*LAYERS, *LAYERS[:2]], num_kv_shared_layers=2, sliding_window=14,
        global_head_dim=16, vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=8, pad_token_id=PAD,
        use_bidirectional_attention="vision", rms_norm_eps=1.0,  # norms and sharp scores blow up rounding errors
    )  # fmt: skip
    vision = TOWER | dict(num_key_value_heads=4, head_dim=8, pooling_kernel_size=2, position_embedding_size=16)
    config = Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, image_token_id=IMAGE, video_token_id=VIDEO,
        boi_token_id=START, eoi_token_id=END, audio_token_id=93, boa_token_id=92, eoa_token_index=91,
        tie_word_embeddings=False,
    )  # fmt: skip
    return Gemma4ForConditionalGeneration(config)


def llama4() -> PreTrainedModel:
    text = Llama4TextConfig(
        **TEXT, intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=14, no_rope_layers=[1, 0, 1, 0]
    )
    vision = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vision_output_dim=32, image_size=32,
        patch_size=4, projector_input_dim=32, projector_output_dim=32,
    )  # fmt: skip
    config = Llama4Config(
        vision_config=vision, text_config=text, image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END
    )
    return Llama4ForConditionalGeneration(config)


@functools.cache
def llama4_hindrance() -> str:
    """Return the fault of transformers 5.24.0, whose Llama 4 reads a field that its own language model does not return."""
    try:
        llama4()(input_ids=torch.tensor([[1, 2]]))
    except AttributeError as error:
        if "image_outputs" not in str(error):
            raise
        return f"transformers {transformers.__version__} cannot run Llama 4: {error}"
    return ""


def llava_sinks() -> PreTrainedModel:
    text = GptOssConfig(
        **TEXT, layer_types=LAYERS, sliding_window=14, num_local_experts=4, num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    vision = CLIPVisionConfig(**TOWER, image_size=16)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-2)
    return LlavaForConditionalGeneration(config)


def squares(side: int, **kinds: int):
    """Return a maker of square pictures; ``kinds`` names the token types, and the type of image tokens (text is 0)."""

    def pixels(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        types = {name: (ids == IMAGE).long() * kind for name, kind in kinds.items()}
        return {"pixel_values": torch.randn(n, 3, side, side, generator=generator)} | types

    return pixels


def patches(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n pictures of 8 x 8 patches, which Gemma 4's tower pools to 4 x 4 tokens, and where each patch stands."""
    where = torch.cartesian_prod(torch.arange(8), torch.arange(8)).flip(1)
    return {
        "pixel_values": torch.rand(n, 64, 3 * 16, generator=generator),
        "image_position_ids": where.expand(n, -1, -1).clone(),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


def frames(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n videos of two frames for Gemma 4, each like a picture."""
    pictures = patches(2 * n, generator, ids)
    return {
        "pixel_values_videos": pictures["pixel_values"],
        "video_position_ids": pictures["image_position_ids"],
        "num_frames_per_video": torch.tensor([2] * n),
        "mm_token_type_ids": (ids == VIDEO).long() * 2,
    }


EAGER = ("eager",)  # sdpa has neither softcaps nor sinks
ONE = (START, *(IMAGE,) * 16, END)
FILM = (41, START, *(VIDEO,) * 16, END, 42, START, *(VIDEO,) * 16, END)  # a time in words before each frame
MASKS = [
    Family(
        "gemma3", "Gemma 3", gemma3, ONE, squares(32, token_type_ids=1), remark="image tokens see each other"
    ),
    Family(
        "paligemma", "PaliGemma", paligemma1, ONE, squares(16, token_type_ids=0), spread=0.2,
        remark="the prompt sees all of itself",
    ),
    Family(
        "paligemma2", "PaliGemma 2", paligemma2, ONE, squares(16, token_type_ids=0), functions=EAGER,
        unshared="last token of the prompt differently alone", unread=UNCAPPED, remark="softcap",
    ),
    Family("gemma4", "Gemma 4", gemma4, ONE, patches, FILM, frames, remark="last layers share K and V"),
    Family(
        "llama4", "Llama 4", llama4, ONE, squares(32), decoder=lambda model: model.language_model.model.layers, spread=0.18,
        lacks=("chunks", "parts", "copies"), hindrance=llama4_hindrance,
        remark="stock generate() has no beams for it, and fails altogether in transformers 5.24.0 (its output has no "
        "`image_outputs`): tested with versions in which it runs",
    ),
    Family(
        "llava_sinks", "LLaVA on GPT-OSS", llava_sinks, (IMAGE,) * 16, squares(16), functions=EAGER, spread=0.15,
    ),
]  # fmt: skip
