"""Families made for charts, documents and dense pictures: convolutions over the patches, two towers, a table of queries."""

from inspect import signature

import torch
from torch import Generator, Tensor
from transformers import (
    AriaConfig,
    AriaForConditionalGeneration,
    AriaTextConfig,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    GotOcr2Config,
    GotOcr2ForConditionalGeneration,
    GotOcr2VisionConfig,
    Idefics3VisionConfig,
    LlamaConfig,
    PaddleOCRVLConfig,
    PaddleOCRVLForConditionalGeneration,
    Phi4MultimodalConfig,
    Phi4MultimodalForCausalLM,
    QianfanOCRConfig,
    QianfanOCRForConditionalGeneration,
    Qwen2Config,
    Qwen3Config,
    SamVisionConfig,
    SiglipVisionConfig,
    Step3p7Config,
    Step3p7ForConditionalGeneration,
)

from families.base import END, IMAGE, PAD, START, Family
from families.mrope import MARKS, grid_pixels, rope
from families.plain import TEXT, TOWER, square_pixels

__all__ = ["DOCUMENTS"]


def got_ocr2() -> GotOcr2ForConditionalGeneration:
    vision = GotOcr2VisionConfig(
        hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=4, mlp_dim=48,
        window_size=4, global_attn_indexes=[1], initializer_range=0.02,
    )  # fmt: skip
    config = GotOcr2Config(
        vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_index=IMAGE, image_seq_length=16,
        tie_word_embeddings=False,
    )  # fmt: skip
    return GotOcr2ForConditionalGeneration(config)


def deepseek_vl() -> DeepseekVLForConditionalGeneration:
    config = DeepseekVLConfig(
        vision_config=SiglipVisionConfig(**TOWER, vision_use_head=False), text_config=LlamaConfig(**TEXT), image_token_id=IMAGE,
        tie_word_embeddings=False,
    )  # fmt: skip
    return DeepseekVLForConditionalGeneration(config)


def deepseek_vl_hybrid() -> DeepseekVLHybridForConditionalGeneration:
    large = SamVisionConfig(
        hidden_size=32, output_channels=8, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=4, mlp_dim=48,
        window_size=4, global_attn_indexes=[1],
    )  # fmt: skip
    config = DeepseekVLHybridConfig(
        vision_config=SiglipVisionConfig(**TOWER, vision_use_head=False), high_res_vision_config=large,
        text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, tie_word_embeddings=False,
    )  # fmt: skip
    model = DeepseekVLHybridForConditionalGeneration(config)
    torch.nn.init.ones_(model.model.high_res_vision_alpha)  # at its start of zero half of the large tower would be silent
    return model


def aria() -> AriaForConditionalGeneration:
    text = AriaTextConfig(**TEXT, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1, pad_token_id=PAD)
    config = AriaConfig(
        vision_config=Idefics3VisionConfig(**TOWER), text_config=text, image_token_index=IMAGE,
        projector_patch_to_query_dict={16: 12},
    )  # fmt: skip
    return AriaForConditionalGeneration(config)


def phi4_multimodal() -> Phi4MultimodalForCausalLM:
    vision = TOWER | dict(crop_size=16, image_token_id=IMAGE)
    audio = dict(hidden_size=16, intermediate_size=16, num_blocks=1, num_attention_heads=2, ext_pw_out_channel=16)
    audio |= dict(depthwise_separable_out_channel=16, nemo_conv_channels=16, audio_token_id=93, bias_max_distance=4)
    config = Phi4MultimodalConfig(
        **TEXT, vision_config=vision, audio_config=audio, original_max_position_embeddings=512, pad_token_id=PAD,
        bos_token_id=None, eos_token_id=[END],
    )  # fmt: skip
    return Phi4MultimodalForCausalLM(config)


def paddleocr_vl() -> PaddleOCRVLForConditionalGeneration:
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=4)
    config = PaddleOCRVLConfig(
        vision_config=vision, text_config=TEXT | dict(head_dim=8, rope_parameters=rope(2, 1, 1), pad_token_id=PAD), **MARKS,
        tie_word_embeddings=False,
    )  # fmt: skip
    return PaddleOCRVLForConditionalGeneration(config)


def qianfan_ocr() -> QianfanOCRForConditionalGeneration:
    config = QianfanOCRConfig(
        vision_config=TOWER | {"patch_size": 2},
        text_config=Qwen3Config(**TEXT, head_dim=8),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return QianfanOCRForConditionalGeneration(config)


def step3p7() -> Step3p7ForConditionalGeneration:
    text = TEXT | dict(head_dim=8, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, share_expert_dim=32)
    text |= dict(sliding_window=14, layer_types=["sliding_attention", "full_attention"] * 2, pad_token_id=PAD)
    text |= dict(num_sliding_attention_heads=4, moe_layers_enum=[2, 3])
    config = Step3p7Config(
        vision_config=TOWER | dict(max_position_embeddings=256, image_size=64), text_config=text, image_token_id=IMAGE
    )
    return Step3p7ForConditionalGeneration(config)


def patch_pixels(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n pictures of 8 x 8 patches, each patch as a small picture, and their grids."""
    brought = grid_pixels(n, generator, ids)
    return brought | {"pixel_values": brought["pixel_values"].unflatten(1, (3, 4, 4))}


def large_pixels(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n square pictures of 64 x 64, of whose 16 x 16 patches two convolutions make 4 x 4 tokens."""
    return {"pixel_values": torch.randn(n, 3, 64, 64, generator=generator)}


def twofold_pixels(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n pictures of 16 x 16, and the same number of 32 x 32 for the tower of high resolution."""
    large = torch.randn(n, 3, 32, 32, generator=generator)
    return square_pixels(n, generator, ids) | {"high_res_pixel_values": large}


def cropped_pixels(n: int, generator: Generator, ids: Tensor) -> dict[str, Tensor]:
    """Return n wide pictures of 16 x 32: the whole and two crops of 4 x 4 patches, with sizes in pixels and masks of patches."""
    mask = torch.ones(n, 3, 4, 4, dtype=torch.long)
    mask[:, 2, :, 2:] = 0  # the picture ends in the middle of the second crop
    pixels = torch.randn(n, 3, 3, 16, 16, generator=generator)
    return {"image_pixel_values": pixels, "image_sizes": torch.tensor([[16, 32]] * n), "image_attention_mask": mask}


DOCUMENTS = [
    Family(
        "got_ocr2", "GOT-OCR2", got_ocr2, (START, *(IMAGE,) * 16, END), large_pixels, newer=True,
        remark="convolutions over the patches",
    ),
    Family("deepseek_vl", "DeepSeek-VL", deepseek_vl, (IMAGE,) * 16, square_pixels, newer=True),
    Family(
        "deepseek_vl_hybrid", "DeepSeek-VL 7B", deepseek_vl_hybrid, (IMAGE,) * 16, twofold_pixels,
        newer=True, remark="two towers, of low and high resolution",
    ),
    Family(
        "aria", "Aria", aria, (START, *(IMAGE,) * 12, END), square_pixels,
        newer=True, remark="mixture of experts; queries stand for the patches",
    ),
    Family(
        # The crops' 2 x 3 tokens with an end to each row, a mark, and the whole's 2 x 2 with an end to each row.
        "phi4_multimodal", "Phi-4 multimodal", phi4_multimodal, (IMAGE,) * (2 * (3 + 1) + 1 + 2 * (2 + 1)), cropped_pixels,
        decoder=lambda model: model.model.layers, lacks=("chunks",), newer=True,
        remark="the placeholder's id is the vision configuration's",
    ),
    Family(
        "paddleocr_vl", "PaddleOCR-VL", paddleocr_vl, (START, *(IMAGE,) * 16, END), patch_pixels, newer=True,
        # Versions that do not encode the images before generate() repeats its rows repeat single patches.
        lacks=() if "mm_encoder_outputs" in signature(PaddleOCRVLForConditionalGeneration.forward).parameters else ("copies",),
    ),
    Family("qianfan_ocr", "Qianfan-OCR", qianfan_ocr, (START, *(IMAGE,) * 16, END), square_pixels, newer=True),
    Family(
        "step3p7", "Step 3.7 Flash", step3p7, (START, *(IMAGE,) * 16, END), large_pixels, newer=True,
        remark="mixture of experts; windows with fewer heads",
    ),
]  # fmt: skip
