"""Ask a model in its own words: the chat template of its processor, and the inputs that generate() gets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

__all__ = ["CAPTION_PROMPT", "MOST_NEW_TOKENS", "check_template", "encode", "new_tokens", "render", "to_model"]

# Checkpoints of LLaVA-1.5 that were saved before there were chat templates.
CAPTION_PROMPT = "Please describe this image in detail."
MOST_NEW_TOKENS = 1_000_000  # of a text: more than any context holds
_LLAVA = "USER: {image}\n{prompt} ASSISTANT:"


def check_template(template: str | None) -> None:
    """Raise a ValueError if a template of the user's has no place for the prompt.

    >>> check_template("USER: {image} {prompt} ASSISTANT:")
    """
    if template is not None and "{prompt}" not in template:
        raise ValueError(
            f"template={template!r}: has no {{prompt}}; expected one, and {{image}} where the image stands, e.g. {_LLAVA!r}"
        )
    if template is not None and (strange := set(re.findall(r"\{\w+\}", template)) - {"{prompt}", "{image}"}):
        raise ValueError(
            f"template={template!r}: has {', '.join(sorted(strange))}; expected no other names in braces than {{prompt}} and "
            f"{{image}}, e.g. {_LLAVA!r}. Fix: write {{image}} where the image stands."
        )


def render(processor: ProcessorMixin, text: str, template: str | None = None, model_type: str = "") -> str:
    """Return the whole prompt for one image and one text, with the placeholder that the processor replaces by the image.

    Args:
        processor: of the model.
        text: what is asked.
        template: the user's own, with ``{prompt}`` and ``{image}`` (left out where the processor puts the image by itself, as
            InstructBLIP's does); by default the chat template of the processor or its tokenizer.
        model_type: of the model's configuration; LLaVA ("llava") without a chat template is asked as LLaVA-1.5 was trained.

    Raises:
        ValueError: there is no chat template, or it cannot take an image; the text holds the image's placeholder, which the
            template adds.

    >>> from prunehal import load
    >>> render(load()[1], "Describe this scene in detail.")
    '<image>Describe this scene in detail.'
    """
    check_template(template)
    chat = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if template is None and not chat and model_type == "llava":
        template = _LLAVA
    token = _image_token(processor)
    if token and token in text and (template is None or "{image}" in template or token in template):
        raise ValueError(
            f"prompt={text!r}: holds {token}, the image's placeholder, which the template adds; expected the text alone; leave "
            f"{token} out: it is added by the template"
        )
    if template is not None:
        return template.replace("{image}", _placeholder(processor, template)).replace("{prompt}", text)
    advice = f"expected one that takes an image and a text; give a template (--template), e.g. {_LLAVA!r}"
    if not chat:
        raise ValueError(f"processor={type(processor).__name__}: has no chat template; {advice}")
    asked = {"type": "text", "text": text}
    try:
        rendered = _applied(processor, [{"type": "image"}, asked])
        without = _applied(processor, [asked])
    except Exception as error:  # a template is code of the checkpoint, and may fail in any way
        raise ValueError(f"processor={type(processor).__name__}: its chat template fails ({error}); {advice}") from error
    if rendered == without or text.strip() not in rendered or "{'type': 'image'}" in rendered:
        raise ValueError(f"processor={type(processor).__name__}: its chat template gives {rendered!r}; {advice}")
    return rendered


def encode(
    processor: ProcessorMixin, images: Sequence[Image.Image | Sequence[Image.Image]], prompts: Sequence[str]
) -> dict[str, Tensor]:
    """Return the inputs of a batch, one rendered prompt and its image (or images) for each row, padded on the left.

    >>> from prunehal import load
    >>> from prunehal.testbed.world.scenes import scene
    >>> inputs = encode(load()[1], [scene("test", 0).image()] * 2, ["<image>Describe this scene in detail."] * 2)
    >>> inputs["input_ids"].shape == inputs["attention_mask"].shape == (2, 151)
    True
    """
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
    if tokenizer.bos_token is not None and prompts[0].startswith(tokenizer.bos_token):
        options["add_special_tokens"] = False  # the template has written the first one already
    # One list of images a row: a flat list is read as the images of one row by some processors (Gemma 3).
    inputs = processor(
        images=[list(row) if isinstance(row, Sequence) else [row] for row in images], text=list(prompts), **options
    )
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def to_model(inputs: Mapping[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
    """Move inputs to the model's device, and what is no integer to its data type."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype) for name, value in inputs.items()
    }


def _placeholder(processor: ProcessorMixin, template: str) -> str:
    token = _image_token(processor)
    if token is None and "{image}" in template:
        raise ValueError(
            f"template={template!r}: the processor {type(processor).__name__} does not say which token stands for {{image}}; "
            "expected the token itself; write it into the template"
        )
    return token or ""


def _image_token(processor: ProcessorMixin) -> str | None:
    token = getattr(processor, "image_token", None)
    return getattr(token, "content", token)


def _applied(processor: ProcessorMixin, content: list[dict[str, str]]) -> str:
    own = {} if getattr(processor, "chat_template", None) else {"chat_template": processor.tokenizer.get_chat_template()}
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **own)


def new_tokens(sequences: Tensor, prompt: Tensor) -> Tensor:
    """Return the tokens after the prompt; a model whose generate() starts from embeddings returns those alone.

    >>> new_tokens(torch.tensor([[1, 2, 7, 8]]), torch.tensor([[1, 2]])).tolist()
    [[7, 8]]
    """
    width = prompt.shape[1]
    has_prompt = sequences.shape[1] > width and torch.equal(sequences[:, :width], prompt.to(sequences.device))
    return sequences[:, width if has_prompt else 0 :]
