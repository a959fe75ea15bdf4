"""Families whose tower reads a grid of patches of any shape, on decoders of plain attention, windows or running states."""

import torch
from transformers import (
    CohereCompassConfig,
    CohereCompassForConditionalGeneration,
    Cosmos3EdgeConfig,
    Cosmos3EdgeForConditionalGeneration,
    Cosmos3OmniConfig,
    Cosmos3OmniForConditionalGeneration,
    DeepseekOcr2Config,
    DeepseekOcr2ForConditionalGeneration,
    Exaone4_5_Config,
    Exaone4_5_ForConditionalGeneration,
    Exaone4Config,
    GlmOcrConfig,
    GlmOcrForConditionalGeneration,
    HyperCLOVAXConfig,
    HyperCLOVAXVisionV2Config,
    HyperCLOVAXVisionV2ForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
    LightOnOcrConfig,
    LightOnOcrForConditionalGeneration,
    LlamaConfig,
    MiniCPMV4_7Config,
    MiniCPMV4_7ForConditionalGeneration,
    PixtralVisionConfig,
    PreTrainedModel,
    Qwen3Config,
)

from families.base import END, IMAGE, START, VIDEO, Family
from families.experts import GLM_FILM, GLM_MARKS, GLM_TOWER
from families.mrope import (
    DEEPSTACK,
    FILM,
    IDS,
    MARKS,
    ONE,
    STAMPED,
    TOWER,
    grid_frames,
    grid_pixels,
    rope,
    with_attention,
)
from families.mrope import TEXT as AXES
from families.plain import TEXT, square_pixels
from families.plain import TOWER as SQUARE
from families.states import film_grids, grids, linear_text, packed

__all__ = ["GRIDS"]


def glm_ocr() -> PreTrainedModel:
    text = AXES | dict(rope_parameters=rope(2, 1, 1, partial_rotary_factor=1.0))
    return GlmOcrForConditionalGeneration(GlmOcrConfig(vision_config=GLM_TOWER, text_config=text, **GLM_MARKS))


def lighton_ocr() -> PreTrainedModel:
    vision = PixtralVisionConfig(**SQUARE | dict(image_size=32))
    config = LightOnOcrConfig(
        vision_config=vision, text_config=Qwen3Config(**TEXT, head_dim=8), image_token_id=IMAGE, tie_word_embeddings=False
    )
    return LightOnOcrForConditionalGeneration(config)


def sized_pixels(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n pictures of 8 x 8 patches, which are merged to 4 x 4 tokens, and their sizes in pixels."""
    return {"pixel_values": torch.randn(n, 3, 32, 32, generator=generator), "image_sizes": torch.tensor([[32, 32]] * n)}


def exaone4_5() -> PreTrainedModel:
    vision = TOWER | dict(hidden_size=32, intermediate_size=48, out_hidden_size=48, window_size=16, fullatt_block_indexes=[1])
    text = Exaone4Config(
        **TEXT, head_dim=8, sliding_window=14, layer_types=["sliding_attention", "full_attention"] * 2, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    config = Exaone4_5_Config(vision_config=vision | dict(num_key_value_heads=2), text_config=text, **IDS)
    return Exaone4_5_ForConditionalGeneration(config)


def cosmos3_omni() -> PreTrainedModel:
    text = AXES | dict(head_dim=8, rope_parameters=rope(2, 1, 1))
    config = Cosmos3OmniConfig(vision_config=DEEPSTACK, text_config=text, **MARKS)
    return Cosmos3OmniForConditionalGeneration(config)


def cosmos3_edge() -> PreTrainedModel:
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, patch_size=4)
    text = AXES | dict(head_dim=8, rope_parameters=rope(2, 1, 1), pad_token_id=None, bos_token_id=None, eos_token_id=None)
    config = Cosmos3EdgeConfig(
        vision_config=vision | dict(num_patches=64, spatial_merge_size=2), text_config=text, projector_hidden_size=48, **MARKS
    )
    return Cosmos3EdgeForConditionalGeneration(config)


def cohere_compass() -> PreTrainedModel:
    kinds = {kind: rope(2, 1, 1) for kind in ("sliding_attention", "full_attention")}
    text = AXES | dict(rope_parameters=kinds, sliding_window=14, logit_scale=1.0)
    text |= dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"], tie_word_embeddings=False)
    text |= dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)
    config = CohereCompassConfig(vision_config=DEEPSTACK, text_config=text, **MARKS)
    return CohereCompassForConditionalGeneration(config)


def hyperclovax() -> PreTrainedModel:
    vision = TOWER | dict(hidden_size=32, intermediate_size=48, out_hidden_size=48, window_size=16, fullatt_block_indexes=[1])
    text = HyperCLOVAXConfig(**TEXT, head_dim=8, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    config = HyperCLOVAXVisionV2Config(
        vision_config=vision | dict(model_type="qwen2_5_vl_vision"), text_config=text, **IDS, tie_word_embeddings=False
    )
    return HyperCLOVAXVisionV2ForConditionalGeneration(config)


def janus() -> PreTrainedModel:
    vision = SQUARE | dict(mlp_ratio=1.5, projection_dim=48, num_image_tokens=16)
    drawn = dict(embed_dim=8, num_embeddings=16, latent_channels=8, base_channels=32, channel_multiplier=[1], num_res_blocks=1)
    config = JanusConfig(
        vision_config=vision, vq_config=drawn | dict(projection_dim=48, image_token_embed_dim=48),
        text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, tie_word_embeddings=False,
    )  # fmt: skip
    return JanusForConditionalGeneration(config)


def deepseek_ocr2() -> PreTrainedModel:
    sam = dict(hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=4)
    sam |= dict(window_size=2, global_attn_indexes=[1], downsample_channels=[16, 32], initializer_range=0.02, mlp_ratio=1.5)
    encoder = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
    text = TEXT | dict(moe_intermediate_size=32, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=1)
    text |= dict(topk_group=1, mlp_layer_types=["dense", *["sparse"] * 3], bos_token_id=None, eos_token_id=None)
    config = DeepseekOcr2Config(
        vision_config=dict(sam_config=sam, encoder_config=encoder | dict(vocab_size=8)), text_config=text, image_token_id=IMAGE
    )
    model = DeepseekOcr2ForConditionalGeneration(config)
    model.model.vision_tower.query_768_resolution = torch.nn.Embedding(15, 32)  # 144 in the code, whatever the configuration
    return model


def large_pixels(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n square pictures of 64 x 64."""
    return {"pixel_values": torch.randn(n, 3, 64, 64, generator=generator)}


def minicpmv4_7() -> PreTrainedModel:
    marks = dict(image_start_id=START, image_end_id=END, slice_start_id=93, slice_end_id=92, newline_id=91)
    config = MiniCPMV4_7Config(
        vision_config=SQUARE | dict(image_size=32), text_config=linear_text(), **IDS, **marks, insert_layer_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    return MiniCPMV4_7ForConditionalGeneration(config)


def typed(bring, kind: int):
    """Return what brings pictures or videos with the kind of each token: 1 for images, 2 for videos."""

    def pixels(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return bring(n, generator, ids) | {"mm_token_type_ids": (ids == (IMAGE if kind == 1 else VIDEO)).long() * kind}

    return pixels


# A thumbnail, and 1 x 2 tiles in a row of their own.
CROPS = (START, *(IMAGE,) * 4, END, 93, *(IMAGE,) * 4, 92, 93, *(IMAGE,) * 4, 92)
GRIDS = [
    Family(
        "glm_ocr", "GLM-OCR", glm_ocr, ONE, grid_pixels, GLM_FILM, grid_frames,
        spread=0.15, newer=True, remark="a video's placeholders are image tokens",
    ),
    Family("lighton_ocr", "LightOnOCR", lighton_ocr, ONE, sized_pixels, spread=0.16, newer=True),
    Family(
        "exaone4_5", "EXAONE 4.5", exaone4_5, ONE, grids, FILM, film_grids, spread=0.18, newer=True,
        remark="no positions in the layers of full attention",
    ),
    Family("cosmos3_omni", "Cosmos 3 Omni", cosmos3_omni, ONE, grid_pixels, STAMPED, grid_frames, newer=True, remark="DeepStack"),
    Family("cosmos3_edge", "Cosmos 3 Edge", cosmos3_edge, ONE, grid_pixels, STAMPED, grid_frames, spread=0.18, newer=True),
    Family(
        "cohere_compass", "Cohere Compass", cohere_compass, ONE, grid_pixels, STAMPED, grid_frames, spread=0.18, newer=True,
        remark="DeepStack",
    ),
    Family("hyperclovax_vision_v2", "HyperCLOVA X Vision", hyperclovax, ONE, grids, FILM, film_grids, spread=0.18, newer=True),
    Family(
        "deepseek_ocr2", "DeepSeek-OCR 2", deepseek_ocr2, (IMAGE,) * 16, large_pixels, spread=0.18, newer=True,
        remark="learned queries stand for the image, and a word ends it; mixture of experts",
    ),
    Family("janus", "Janus", janus, (START, *(IMAGE,) * 16, END), square_pixels, spread=0.18, newer=True),
    Family(
        "minicpmv4_7", "MiniCPM-V 4.7", minicpmv4_7, CROPS, typed(packed(3), 1), (START, *(VIDEO,) * 4, END) * 4,
        typed(packed(4, "_videos"), 2), with_attention, spread=0.18, newer=True, unshared="running state",
        remark="on Qwen3.5: linear attention between the layers that are pruned",
    ),
]  # fmt: skip
