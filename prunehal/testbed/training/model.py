"""The embedded model's architecture, tokenizer and processor: real LLaVA classes of transformers, small.

A CLIP vision tower (patch 8, 96 x 96 pixels: 144 visual tokens), a two-layer projector, a Llama decoder.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BatchFeature,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from prunehal.testbed.world.captions import PROMPT
from prunehal.testbed.world.questions import is_there, known_prompts, known_words
from prunehal.testbed.world.scenes import PATCH, TILE
from prunehal.testbed.world.world import NAMES

__all__ = ["IMAGE_TOKEN", "LlavaProcessor", "build_model", "build_processor", "build_prompt", "name_token_ids"]

IMAGE_TOKEN = "<image>"
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", IMAGE_TOKEN)
_MARKS = (".", ",", "?")
_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class LlavaProcessor(transformers.LlavaProcessor):
    """Stock LLaVA's processor, which also checks that a prompt has placeholders and is one of the embedded model's training.

    It has the stock class's name, so that what it saves is loaded as stock.
    """

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **options: Any) -> BatchFeature:
        """Return the inputs that the stock processor makes.

        Raises:
            ValueError: a prompt for images has no ``<image>``.
        """
        for prompt in [text] if isinstance(text, str) else text or ():
            if images is not None and IMAGE_TOKEN not in prompt:
                raise ValueError(
                    f"text={prompt!r}: has no {IMAGE_TOKEN}; expected one where each image stands; write "
                    f"{IMAGE_TOKEN + PROMPT!r}, or use processor.apply_chat_template"
                )
            if not prompt.replace(IMAGE_TOKEN, "").strip().startswith(known_prompts()):
                first = known_prompts()
                shown = ", ".join(map(repr, (*first[:2], is_there("dog"), first[2 + len(NAMES)], first[-1])))
                warnings.warn(
                    f"text={prompt!r}: the embedded model was trained on other prompts and may write nothing, or nonsense; "
                    f"expected one such as {shown}",
                    stacklevel=2,
                )
        return super().__call__(images, text, **options)


def build_prompt(tiles: int = 1, text: str = PROMPT) -> str:
    """Return the prompt for a scene of that many tiles; the processor expands each ``<image>`` to 144 placeholders.

    >>> build_prompt(2)
    '<image><image>Describe this scene in detail.'
    """
    return IMAGE_TOKEN * tiles + text


def build_processor() -> LlavaProcessor:
    """Build the processor: word-level tokenizer of the caption grammar, and CLIP's image processor."""
    words = [*_SPECIAL, *_MARKS, *(f"▁{word}" for word in known_words() if word not in _MARKS)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        padding_side="left", extra_special_tokens={"image_token": IMAGE_TOKEN}, model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    images = CLIPImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_mean=_MEAN, image_std=_STD
    )
    return LlavaProcessor(
        image_processor=images, tokenizer=fast, patch_size=PATCH, num_additional_image_tokens=1,
        vision_feature_select_strategy="default", image_token=IMAGE_TOKEN,
        chat_template="{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}",
    )  # fmt: skip


def build_model(processor: LlavaProcessor, seed: int = 0) -> LlavaForConditionalGeneration:
    """Build the untrained model, 3.3 million parameters.

    The start matters more than the size at this scale. An orthogonal value projection with its transpose as the output
    projection passes on what is attended to, which with tied embeddings is to copy it; query = key attends to what is alike.
    Embeddings begin at the scale that they would grow to: else they leave the symbols that the projector was aligned with.
    """
    tokenizer = processor.tokenizer
    tower = CLIPVisionConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4, image_size=TILE,
        patch_size=PATCH, projection_dim=128, hidden_act="gelu",
    )  # fmt: skip
    decoder = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=2048, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower, text_config=decoder, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1, vision_feature_select_strategy="default", image_seq_length=(TILE // PATCH) ** 2,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        nn.init.orthogonal_(attention.v_proj.weight)
        attention.o_proj.weight.data.copy_(attention.v_proj.weight.T)
        nn.init.normal_(attention.q_proj.weight, std=attention.q_proj.in_features**-0.5)
        attention.k_proj.weight.data.copy_(attention.q_proj.weight)
    nn.init.normal_(model.get_input_embeddings().weight, std=1.0)
    nn.init.constant_(model.model.language_model.norm.weight, 0.1)
    generation = model.generation_config
    generation.do_sample, generation.max_new_tokens = False, 160
    generation.eos_token_id, generation.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    generation.bos_token_id = tokenizer.bos_token_id
    return model


def name_token_ids(processor: LlavaProcessor) -> list[list[int]]:
    """Return the token ids of every category name, in the order of NAMES."""
    return [processor.tokenizer(name, add_special_tokens=False).input_ids for name in NAMES]
