"""Find the visual tokens of a prompt, and refuse models whose visual tokens are not in the decoder's KV cache."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import GenerationMixin

from prunehal.core.arguments import end_tokens
from prunehal.core.unsupported import reason_against
from prunehal.core.wrapped import unwrapped

__all__ = ["check_cache_kind", "find_visual_tokens", "generating", "other_cache", "refuse_unsupported", "visual_token_ids"]

# Model types without placeholders in the prompt, and where the image is instead.
ELSEWHERE = {
    "blip": "reads the image by cross-attention",
    "git": "puts the image in front of the prompt by itself, and has attention code of its own",
    "idefics": "reads the image in cross-attention layers between the others",
    "qwen": "is Qwen-VL, whose code comes with its weights (trust_remote_code) and is not run here; Qwen2-VL takes its place",
}


def generating(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model whose forward runs at each step: BLIP-2 and its kin leave generate() to their language model."""
    model = unwrapped(model)
    if getattr(type(model), "generate", None) is GenerationMixin.generate:
        return model
    inner = (getattr(model, name, None) for name in ("language_model", "text_model"))
    inner = [unwrapped(part) for part in inner if isinstance(part, torch.nn.Module)]
    return next((part for part in inner if isinstance(part, GenerationMixin)), model)


def refuse_unsupported(model: torch.nn.Module) -> None:
    """Raise a ValueError that names the reason when the model's visual tokens cannot be pruned from its KV cache."""
    name, config = type(model).__name__, model.config
    text = config.get_text_config(decoder=True)
    advice = "Use a decoder-only model with image placeholders in its prompt, e.g. LLaVA or Qwen2.5-VL."
    if config.is_encoder_decoder or text.is_encoder_decoder:
        raise ValueError(
            f"model={name}: is an encoder-decoder, which reads the image by cross-attention; "
            f"expected visual tokens in the decoder's own KV cache. {advice}"
        )
    if getattr(text, "cross_attention_layers", None):
        raise ValueError(
            f"model={name}: reads the image in cross-attention layers {list(text.cross_attention_layers)}; "
            f"expected visual tokens in the decoder's own KV cache. {advice}"
        )
    if config.model_type in ELSEWHERE:
        raise ValueError(
            f"model={name}: {ELSEWHERE[config.model_type]}; expected visual tokens in the decoder's own KV cache. {advice}"
        )
    if text is config and not hasattr(config, "vision_config") and not visual_token_ids(config):
        raise ValueError(f"model={name}: is a text-only model; expected one that reads images. {advice}")
    if (reason := reason_against(config)) is not None:
        raise ValueError(f"model={name}: {reason}. {advice}")
    implementation = text._attn_implementation or ""
    if implementation == "flex_attention" or implementation.startswith("paged"):
        raise ValueError(
            f"attn_implementation={implementation!r}: its masks or blocks are bound to the full cache; "
            "expected 'sdpa', 'eager' or a flash attention. Fix: model.set_attn_implementation('sdpa')."
        )
    check_cache_kind(
        getattr(getattr(generating(model), "generation_config", None), "cache_implementation", None), "generation_config."
    )


def check_cache_kind(kind: str | None, where: str = "") -> None:
    """Raise a ValueError if a generation setting names another kind of cache than the one that generate() is given.

    "hybrid" is accepted: checkpoints with sliding windows (Gemma 3) still have it, and generate() ignores it.
    """
    if kind not in (None, "hybrid"):
        raise other_cache(kind, where)


def other_cache(kind: str, where: str = "") -> ValueError:
    """Return the error for a generation setting that asks for another kind of cache, with the reason."""
    reasons = {
        "quantized": "a quantized cache stores blocks of tokens under a common scale, of which single ones cannot be dropped",
        "static": "a static cache has a fixed size and cannot shrink",
        "offloaded": "an offloaded cache moves its layers away while the policy looks at all of them",
    }
    reason = next((why for name, why in reasons.items() if name in kind), "it would take the place of the pruning cache")
    fix = f"Fix: model.{where}cache_implementation = None." if where else "Fix: leave cache_implementation out."
    return ValueError(f"{where}cache_implementation={kind!r}: {reason}; expected None. {fix}")


def visual_token_ids(config: object) -> list[int]:
    """Return the ids of the image and video placeholders that the configuration, or its part for the tower, names."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    parts = (config, getattr(config, "vision_config", None))  # Phi-4 multimodal keeps the id with its tower
    ids = {getattr(part, name, None) for part in parts for name in names}
    return sorted(token for token in ids if token is not None)


def find_visual_tokens(
    model: torch.nn.Module, inputs: Mapping[str, Tensor], mask: Tensor | None = None, per_image: bool = False
) -> Tensor:
    """Return in which pool each prompt position is, (batch, prompt) on the CPU: 0 for text, 1 for a row's first pool.

    Only the prompt counts: a model may generate the placeholder's id as an ordinary token later on.

    Args:
        model: the multimodal model.
        inputs: what the processor returned; ``input_ids`` (batch, prompt) and ``attention_mask`` are read.
        mask: bool (batch, prompt), for prompts without placeholders; it is checked and returned. Integers number the
            images, from 1.
        per_image: make one pool of each image, not of each row. An image is a run of placeholders, or a number in mask.

    Raises:
        ValueError: no placeholder id is known, a row has no visual token, or the padding is on the right.
    """
    ids, attention_mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if mask is None:
        if ids is None:
            raise ValueError(
                f"inputs: has keys {sorted(inputs)}; expected 'input_ids' to find the visual tokens in. "
                "Fix: pass visual_mask, bool (batch, prompt), to attach()."
            )
        tokens = visual_token_ids(model.config)
        if not tokens:
            raise ValueError(
                f"model={type(model).__name__}: its config names no image_token_id; expected the placeholder's id. "
                "Fix: set model.config.image_token_id, or pass visual_mask, bool (batch, prompt), to attach()."
            )
        mask = torch.isin(ids, torch.tensor(tokens, device=ids.device))
        expected = f"placeholders with id {' or '.join(map(str, tokens))}"
    else:
        shape = None if ids is None else tuple(ids.shape)
        if mask.ndim != 2 or (shape is not None and tuple(mask.shape) != shape):
            raise ValueError(
                f"visual_mask: has shape {tuple(mask.shape)}; expected (batch, prompt) = {shape or 'two dimensions'}. "
                "Fix: mark each prompt position once, True where it is visual."
            )
        expected = "True (or the image's number) at the visual positions"
    numbered, mask = mask.dtype != torch.bool, mask.cpu().long()
    if int(mask.min()) < 0 or int(mask.max()) > mask.shape[1]:
        raise ValueError(
            f"visual_mask: holds numbers from {int(mask.min())} to {int(mask.max())}; expected each row's images numbered from "
            "1, and 0 for text. Fix: pass bool (batch, prompt), True at the visual positions."
        )
    empty = (~mask.bool().any(dim=1)).nonzero().flatten().tolist()
    if empty or not len(mask):
        raise ValueError(
            f"inputs: the prompt of row {empty} of {len(mask)} has no visual token; expected {expected}. "
            "Fix: call the processor with images, and put its image token into the text."
        )
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise _padded_right("attention_mask: a row ends with padding", "")
    if attention_mask is None and ids is not None and (rows := _rows_ending_in_padding(model, ids)):
        raise _padded_right(
            f"input_ids: row {rows} ends with the padding token, and no attention_mask is given",
            " If it is a token of the text, pass attention_mask.",
        )
    if not per_image:
        return (mask > 0).long()
    visual = mask > 0
    if not numbered:
        starts = visual & ~torch.nn.functional.pad(visual, (1, 0))[:, :-1]
        mask = starts.cumsum(1)
    return mask.masked_fill(~visual, 0)


def _padded_right(what: str, more: str) -> ValueError:
    return ValueError(
        f"{what}; expected padding on the left, so that the last query is a token. "
        f"Fix: processor.tokenizer.padding_side = 'left'.{more}"
    )


def _rows_ending_in_padding(model: torch.nn.Module, ids: Tensor) -> list[int]:
    """Return the rows of a batch without mask whose last token is padding, as far as the model's settings name it."""
    settings = (getattr(generating(model), "generation_config", None), model.config, model.config.get_text_config(decoder=True))
    ends = set(end_tokens([getattr(place, "eos_token_id", None) for place in settings]))
    # generate() pads with the end of text where no padding token is set. That may also end one turn of a conversation, so that it
    # is padding only where another row goes on with text.
    named = (end_tokens([getattr(place, "pad_token_id", None)]) for place in settings)
    padding = next((set(tokens) for tokens in named if tokens), ends)
    padded = torch.isin(ids[:, -1].cpu(), torch.tensor(sorted(padding), dtype=torch.long))
    return padded.nonzero().flatten().tolist() if not (padding & ends and bool(padded.all())) else []
