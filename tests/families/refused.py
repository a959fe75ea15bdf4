"""Models that are refused, and why: one small random model for each; the README's list is written from REFUSED."""

from collections.abc import Callable
from dataclasses import dataclass

import transformers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    BloomConfig,
    CLIPVisionConfig,
    DeepseekV3Config,
    FalconConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    GPTNeoConfig,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    Kosmos2_5Config,
    Kosmos2_5ForConditionalGeneration,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MptConfig,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
)

from families import compressed, omni
from families.base import IMAGE, PAD, VOCAB, asks_for_attention
from families.compressed import SMALL, TOWER
from families.qformer import codegen, gptj

__all__ = ["REFUSED", "Refused", "dory"]

CROSS, OWN = (
    "the image is read by cross-attention, its tokens are not in the decoder's KV cache",
    "the decoder has attention code of its own, which is noticed in the first forward",
)
BRIDGE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)


@dataclass(frozen=True)
class Refused:
    """Describe a model that is refused.

    Attributes:
        name: as its makers write it.
        make: builds the model.
        reason: the README's words.
        says: what the message says; a regular expression.
        needs: the class of transformers that it needs, where not every admitted version has it; not to be imported here.
        late: refused at the first forward only, when its attention stays unseen; else by attach().
    """

    name: str
    make: Callable[[], PreTrainedModel]
    reason: str
    says: str
    late: bool = False
    needs: str = ""


def qformer(text: PreTrainedConfig, instructed: bool = False) -> PreTrainedModel:
    config, model = (Blip2Config, Blip2ForConditionalGeneration)
    if instructed:
        config, model = (InstructBlipConfig, InstructBlipForConditionalGeneration)
    return model(
        config(vision_config=TOWER, qformer_config=BRIDGE, text_config=text, num_query_tokens=8, image_token_index=IMAGE)
    )


def t5() -> T5Config:
    return T5Config(vocab_size=VOCAB, d_model=48, d_kv=8, d_ff=64, num_layers=2, num_heads=6)


def florence2() -> PreTrainedModel:
    vision = dict(depths=[1], patch_size=[7], patch_stride=[4], patch_padding=[3], patch_prenorm=[False], embed_dim=[16])
    vision |= dict(num_heads=[2], num_groups=[2], projection_dim=48)
    text = dict(model_type="bart", vocab_size=VOCAB, d_model=48, encoder_layers=1, decoder_layers=1)
    text |= dict(encoder_attention_heads=6, decoder_attention_heads=6, encoder_ffn_dim=64, decoder_ffn_dim=64)
    return Florence2ForConditionalGeneration(Florence2Config(vision_config=vision, text_config=text, image_token_id=IMAGE))


def mllama() -> PreTrainedModel:
    vision = dict(hidden_size=16, num_hidden_layers=2, num_global_layers=1, attention_heads=2, intermediate_size=32)
    vision |= dict(vision_output_dim=32, image_size=16, patch_size=4, intermediate_layers_indices=[0], max_num_tiles=1)
    vision |= dict(supported_aspect_ratios=[[1, 1]])
    text = SMALL | dict(num_key_value_heads=2, cross_attention_layers=[1], pad_token_id=PAD)
    text |= dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    return MllamaForConditionalGeneration(MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE))


def idefics() -> PreTrainedModel:
    vision = dict(embed_dim=32, image_size=16, patch_size=4, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    resampler = dict(resampler_n_latents=4, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=8)
    return IdeficsForVisionText2Text(IdeficsConfig(**SMALL, vision_config=vision, perceiver_config=resampler))


def blip() -> PreTrainedModel:
    return BlipForConditionalGeneration(
        BlipConfig(vision_config=TOWER, text_config=SMALL | dict(encoder_hidden_size=32, bos_token_id=1))
    )


def git() -> PreTrainedModel:
    return GitForCausalLM(GitConfig(vision_config=TOWER, **SMALL))


def kosmos2() -> PreTrainedModel:
    text = dict(vocab_size=VOCAB, embed_dim=48, layers=2, ffn_dim=64, attention_heads=6, pad_token_id=PAD)
    return Kosmos2ForConditionalGeneration(Kosmos2Config(text_config=text, vision_config=TOWER, latent_query_num=8))


def kosmos2_5() -> PreTrainedModel:
    text = dict(vocab_size=VOCAB, embed_dim=48, layers=2, ffn_dim=64, attention_heads=6, pad_token_id=PAD)
    vision = dict(hidden_size=32, patch_embed_hidden_size=48, intermediate_size=48, head_dim=8, num_hidden_layers=1)
    vision |= dict(num_attention_heads=4, max_num_patches=64)
    return Kosmos2_5ForConditionalGeneration(Kosmos2_5Config(text_config=text, vision_config=vision, latent_query_num=8))


def deepseek() -> PreTrainedModel:
    text = DeepseekV3Config(
        **SMALL, num_key_value_heads=6, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=12,
        first_k_dense_replace=2, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
    )  # fmt: skip
    vision = CLIPVisionConfig(**TOWER)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE))


def late(name: str, text: Callable[[], PreTrainedConfig]) -> Refused:
    """Return a model whose decoder does not ask transformers for an attention function."""
    return Refused(
        f"BLIP-2 on {name}", lambda: qformer(text()), OWN, r"layer 0: .*not observed.*attention code of its own", late=True
    )


def dory() -> PreTrainedModel:
    text = transformers.DoryConfig(
        **SMALL | dict(num_hidden_layers=4), num_key_value_heads=2, head_dim=8, n_input_layers=1, n_output_layers=1
    )
    config = LlavaConfig(vision_config=CLIPVisionConfig(**TOWER), text_config=text, image_token_id=IMAGE)
    return LlavaForConditionalGeneration(config)


def unlimited_ocr() -> PreTrainedModel:
    text = SMALL | dict(num_key_value_heads=6, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    sam = dict(hidden_size=32, output_channels=16, num_hidden_layers=1, num_attention_heads=4, image_size=64, patch_size=4)
    sam |= dict(mlp_dim=48, window_size=4, global_attn_indexes=[0], downsample_channels=[16, 32])
    encoder = TOWER | dict(num_hidden_layers=1)
    config = transformers.UnlimitedOcrConfig(
        vision_config=dict(sam_config=sam, encoder_config=encoder), text_config=text, image_token_id=IMAGE
    )
    return transformers.UnlimitedOcrForConditionalGeneration(config)


def qwen2_5_omni() -> PreTrainedModel:
    """Return the whole of Qwen2.5-Omni, without the parts that make sound."""
    thinker = omni.qwen2_5_omni().config
    config = transformers.Qwen2_5OmniConfig(thinker_config=thinker.to_dict(), enable_audio_output=False)
    return transformers.Qwen2_5OmniForConditionalGeneration(config)


class QWenConfig(PreTrainedConfig):
    model_type = "qwen"


class QWenLMHeadModel(PreTrainedModel):
    """Stand in for Qwen-VL-7B, whose class comes with its weights."""

    config: QWenConfig


LATENT = "K and V are cached compressed (multi-head latent attention)"
ENCODER = "is an encoder-decoder, which reads the image by cross-attention"
REFUSED = [
    Refused("BLIP-2 on T5", lambda: qformer(t5()), CROSS, ENCODER),
    Refused(
        "InstructBLIP on T5", lambda: qformer(t5(), True), CROSS, ENCODER
    ),
    Refused("Florence-2", florence2, CROSS, ENCODER),
    Refused("Llama 3.2 Vision (Mllama)", mllama, CROSS, r"cross-attention layers \[1\]"),
    Refused("Idefics", idefics, CROSS, "in cross-attention layers between the others"),
    Refused("BLIP", blip, CROSS, "reads the image by cross-attention"),
    Refused("GIT", git, "the image stands in front of the prompt", "puts the image in front of the prompt by itself"),
    Refused(
        "LLaVA on DeepSeek-V3", deepseek, LATENT, r"deepseek_v3.*multi-head latent attention",
    ),
    Refused(
        "dots3-note", compressed.dots3_note, LATENT, r"dots3_note_text.*multi-head latent attention", needs="Dots3NoteConfig"
    ),
    Refused(
        "Mistral Large 4", compressed.mistral_large4, LATENT, r"mistral_large4_text.*multi-head latent attention",
        needs="MistralLarge4Config",
    ),
    Refused(
        "Hy4 (hy_v4_vl)", compressed.hy_v4_vl, LATENT, r"hy_v4_vl_text.*multi-head latent attention", needs="HYV4VLConfig"
    ),
    Refused(
        "Inkling 2 Mini (inkling2_loop)", compressed.inkling2_loop, "a running state stands beside K and V in one layer",
        r"inkling2_loop_text.*running state beside K and V", needs="Inkling2LoopConfig",
    ),
    Refused(
        "Inkling", compressed.inkling, "a running state stands beside K and V in one layer",
        r"inkling_text.*running state beside K and V",
    ),
    Refused("Kimi K2.5", compressed.kimi_k25, LATENT, r"deepseek_v3.*multi-head latent attention"),
    Refused("GLM-5 Next", compressed.glm5_next, LATENT, r"glm5_next_text.*multi-head latent attention"),
    Refused(
        "MiniMax M3", compressed.minimax_m3, "keys of an indexer are cached beside K and V",
        r"minimax_m3_vl_text.*keys of an indexer",
    ),
    Refused(
        "Diffusion Gemma", compressed.diffusion_gemma, "whole blocks of tokens are written at once",
        r"diffusion_gemma_text.*blocks of tokens at once.*expected one token a step",
    ),
    Refused(
        "Qwen4-Exp", compressed.qwen4_exp, "keys of an indexer are cached beside K and V",
        r"qwen4_exp_text.*keys of an indexer", needs="Qwen4ExpConfig",
    ),
    Refused(
        "Unlimited-OCR", unlimited_ocr, "the prompt and a window of what follows are kept in layers of its own",
        r"unlimited_ocr_text.*the prompt and a window",
    ),
    Refused(
        "Qwen2.5-Omni and Qwen3-Omni as a whole (their `model.thinker` runs)", qwen2_5_omni,
        "generate() hands over to the thinker", r"written by its thinker.*attach\(model\.thinker, \.\.\.\)",
    ),
    Refused(
        "LLaVA on Dory", dory, "some layers run several times in a step", r"dory.*several times.*n_recurrent_loops=2",
        needs="DoryConfig",
    ),
    Refused(
        "Qwen-VL-7B, the fourth model of the paper", lambda: QWenLMHeadModel(QWenConfig()),
        "its code comes with its weights (remote code), which is not run here; use Qwen2-VL instead",
        r"is Qwen-VL.*trust_remote_code.*Qwen2-VL takes its place",
    ),
    late("Falcon", lambda: FalconConfig(**{k: v for k, v in SMALL.items() if k != "intermediate_size"})),
    late("Bloom", lambda: BloomConfig(vocab_size=VOCAB, hidden_size=48, n_layer=2, n_head=6)),
    late("MPT", lambda: MptConfig(vocab_size=VOCAB, d_model=48, n_layers=2, n_heads=6)),
    *(late(name, text) for name, text in {"CodeGen": codegen, "GPT-J": gptj}.items() if not asks_for_attention(text())),
    late(
        "GPT-Neo",
        lambda: GPTNeoConfig(
            vocab_size=VOCAB, hidden_size=48, num_layers=2, num_heads=6, attention_types=[[["global", "local"], 1]]
        ),
    ),
    Refused(
        "Kosmos-2 without `visual_mask`", kosmos2, "its configuration names no placeholder",
        r"names no image_token_id.*pass visual_mask",
    ),
    Refused(
        "Kosmos-2.5 without `visual_mask`", kosmos2_5, "its configuration names no placeholder",
        r"names no image_token_id.*pass visual_mask",
    ),
    Refused("a text-only model", lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), "there is no image", "is a text-only model"),
]  # fmt: skip
