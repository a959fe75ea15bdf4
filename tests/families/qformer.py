"""Families with a Q-Former: a fixed number of its queries stands for an image, and the language model's generate() runs."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
import transformers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    CodeGenConfig,
    GPTJConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipVideoConfig,
    InstructBlipVideoForConditionalGeneration,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from families.base import IMAGE, VIDEO, VOCAB, Family, asks_for_attention

__all__ = ["QFORMER"]

TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4)
BRIDGE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
TEXT = dict(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=4, num_attention_heads=6, max_position_embeddings=512)
LLAMA = TEXT | dict(intermediate_size=64, num_key_value_heads=2)
OPENAI = dict(vocab_size=VOCAB, n_embd=48, n_layer=4, n_positions=512, rotary_dim=4, tie_word_embeddings=False)
QUERIES = 16


def opt() -> OPTConfig:
    return OPTConfig(**TEXT, ffn_dim=64, word_embed_proj_dim=48, dropout=0.0, tie_word_embeddings=False)


def gptj() -> GPTJConfig:
    return GPTJConfig(**OPENAI, n_head=6, bos_token_id=1, eos_token_id=None)


def codegen() -> CodeGenConfig:
    return CodeGenConfig(**OPENAI, n_head=4, bos_token_id=1, eos_token_id=None)


def own_attention(text: Callable[[], PreTrainedConfig]) -> Callable[[], str]:
    """Return the test of whether the decoder has attention code of its own in the installed transformers."""
    said = f"transformers {transformers.__version__}: {text.__name__} has attention code of its own, and is refused"
    return lambda: "" if asks_for_attention(text()) else said


def blip2(text: PreTrainedConfig) -> PreTrainedModel:
    config = Blip2Config(
        vision_config=TOWER, qformer_config=BRIDGE, text_config=text, num_query_tokens=QUERIES, image_token_index=IMAGE
    )
    return Blip2ForConditionalGeneration(config)


def instructblip() -> PreTrainedModel:
    config = InstructBlipConfig(
        vision_config=TOWER, qformer_config=BRIDGE, text_config=LlamaConfig(**LLAMA), num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )  # fmt: skip
    return InstructBlipForConditionalGeneration(config)


def instructblipvideo() -> PreTrainedModel:
    config = InstructBlipVideoConfig(
        vision_config=TOWER, qformer_config=BRIDGE, text_config=LlamaConfig(**LLAMA), num_query_tokens=QUERIES // 2,
        video_token_index=VIDEO,
    )  # fmt: skip
    return InstructBlipVideoForConditionalGeneration(config)


def pictures(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n square pictures of 16 x 16."""
    return {"pixel_values": torch.randn(n, 3, 16, 16, generator=generator)}


def instructed(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n pictures, and for each the instruction that the Q-Former reads too."""
    words = torch.randint(1, 90, (n, 3), generator=generator)
    extra = {"qformer_input_ids": words, "qformer_attention_mask": torch.ones_like(words)}
    return pictures(n, generator, ids) | extra


def filmed(n: int, generator: torch.Generator, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return n videos of four frames."""
    return instructed(n, generator, ids) | {"pixel_values": torch.randn(n, 4, 3, 16, 16, generator=generator)}


def opt_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    return model.language_model.model.decoder.layers


def llama_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    return model.language_model.model.layers


def gptj_layers(model: PreTrainedModel) -> list[SimpleNamespace]:
    """Return the layers under the name of the others: these call their attention attn."""
    return [SimpleNamespace(self_attn=layer.attn) for layer in model.language_model.transformer.h]


ONE, FILM = (IMAGE,) * QUERIES, (VIDEO,) * (QUERIES // 2) * 4
QFORMER = [
    Family(
        "blip-2", "BLIP-2", lambda: blip2(opt()), ONE, pictures, decoder=opt_layers, lacks=("chunks", "parts"), remark="on OPT"
    ),
    *(
        Family(
            f"blip-2_{text.__name__}", f"BLIP-2 on {name}", lambda text=text: blip2(text()), ONE, pictures, decoder=gptj_layers,
            lacks=("chunks", "parts"), hindrance=own_attention(text), unread=r"without \.layers",
            newer=True, remark="refused where transformers still has attention code of its own for it",
        )
        for name, text in {"GPT-J": gptj, "CodeGen": codegen}.items()
    ),
    Family(
        "instructblip",
        "InstructBLIP",
        instructblip,
        ONE,
        instructed,
        decoder=llama_layers,
        spread=0.18,
        lacks=("chunks", "parts"),
        remark="on Llama (Vicuna)",
    ),
    Family(
        "instructblipvideo",
        "InstructBLIP Video",
        instructblipvideo,
        FILM,
        filmed,
        decoder=llama_layers,
        spread=0.18,
        lacks=("chunks", "parts"),
        remark="videos only",
    ),
]  # fmt: skip
