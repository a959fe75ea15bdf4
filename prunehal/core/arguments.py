"""Refuse: arguments of attach() of another kind than it takes, before anything runs."""

from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from prunehal.core.checks import refuse

__all__ = ["check_flags", "check_inputs", "check_keep", "check_model", "check_seeds", "end_tokens"]


def check_model(model: object) -> None:
    """Raise a ValueError unless this is a model with a configuration; pipelines and processors are none."""
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise ValueError(
            f"model: got a {type(model).__name__}; expected a multimodal model of transformers. Fix: pass the object whose "
            "generate() runs, as load() or from_pretrained() returns it beside the processor; of a pipeline, pipe.model."
        )


def check_inputs(inputs: object, visual_mask: object) -> None:
    """Raise a ValueError unless ids and masks are tensors (batch, prompt), in the mapping that a processor returns."""
    if not isinstance(inputs, Mapping):
        raise ValueError(
            f"inputs: got a {type(inputs).__name__}; expected the mapping that the processor returns. "
            "Fix: inputs = processor(images=image, text=prompt, return_tensors='pt')."
        )
    for name in ("input_ids", "attention_mask"):
        value = inputs.get(name)
        if value is not None and (not isinstance(value, Tensor) or value.ndim != 2):
            raise ValueError(
                f"inputs: {name} is {_kind(value)}; expected a tensor (batch, prompt). "
                "Fix: processor(..., return_tensors='pt'), or input_ids[None] for a prompt of one row."
            )
    if visual_mask is not None and (not isinstance(visual_mask, Tensor) or visual_mask.is_floating_point()):
        raise ValueError(
            f"visual_mask: is {_kind(visual_mask)}; expected a tensor (batch, prompt), bool or of integers"
            f"{_as_ids(inputs)}. Fix: torch.as_tensor(mask).bool(), True at the visual positions."
        )


def check_flags(**flags: object) -> None:
    """Raise a ValueError unless every option is True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise refuse(name, value, "True or False", f"Fix: {name}=False, the default.")


def check_seeds(seeds: object, rows: int) -> None:
    """Raise a ValueError unless there is one integer of at least 0 for each row."""
    if not hasattr(seeds, "__len__") or not all(isinstance(seed, Integral) and seed >= 0 for seed in seeds):
        fix = f"Fix: seeds=None, or seeds=list(range({rows}))."
        raise refuse("seeds", seeds, "a list of integers of at least 0, one for each row", fix)
    if len(seeds) != rows:
        raise ValueError(
            f"seeds: got {len(seeds)} numbers; expected one for each of the {rows} rows. Fix: seeds=None, or as many."
        )


def check_keep(keep: object) -> None:
    """Raise a ValueError unless this is a tensor with an axis for rows and one for positions."""
    if not isinstance(keep, Tensor) or not 2 <= keep.ndim <= 4:
        raise ValueError(
            f"keep: is {_kind(keep)}; expected a tensor, bool (batch, prompt) or (layer, batch, prompt). "
            "Fix: mark the visual tokens that are to stay, on input_ids."
        )


def end_tokens(given: Sequence[int | Sequence[int] | None]) -> tuple[int, ...]:
    """Return ids, lists of ids and None as a flat tuple of ids.

    Raises:
        ValueError: something else stands among them.

    >>> end_tokens([2, None, [3, 4]])
    (2, 3, 4)
    """
    ends: list[int] = []
    try:
        for token in given:
            ends += [] if token is None else [int(token)] if isinstance(token, Integral) else [int(each) for each in token]
    except (TypeError, ValueError):
        fix = "Fix: end_ids=[processor.tokenizer.eos_token_id]."
        raise refuse("end_ids", given, "a list of token ids, of lists of them, or of None", fix) from None
    return tuple(ends)


def _kind(value: object) -> str:
    return f"a {value.dtype!s} tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _as_ids(inputs: Mapping[str, Tensor]) -> str:
    ids = inputs.get("input_ids")
    return "" if ids is None else f" like input_ids, {tuple(ids.shape)}"
