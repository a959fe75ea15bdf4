"""Unwrap: find the transformers model inside what PEFT, torch.compile or data parallelism made of it."""

import torch
from transformers import GenerationMixin

__all__ = ["unwrapped"]

PARALLEL = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model of transformers inside its wrappers; every other object as it is.

    A wrapper hands generate() on to the model inside, whose own forward then runs: hooks on the wrapper would see nothing. The
    layers of an adapter (LoRA) are part of the model inside.

    Raises:
        ValueError: a PEFT model puts trained tokens in front of the prompt, which moves its visual tokens.

    >>> inner = torch.nn.Linear(2, 2)
    >>> unwrapped(torch.compile(inner)) is inner, unwrapped(torch.nn.DataParallel(inner)) is inner, unwrapped(inner) is inner
    (True, True, True)
    """
    while True:
        if isinstance(inner := model.__dict__.get("_modules", {}).get("_orig_mod"), torch.nn.Module):  # of torch.compile
            model = inner
        elif isinstance(model, PARALLEL):
            model = model.module
        elif hasattr(type(model), "get_base_model") and not isinstance(model, GenerationMixin):  # of PEFT
            if model.active_peft_config.is_prompt_learning:
                raise ValueError(
                    f"model={type(model).__name__}: its adapter ({model.active_peft_config.peft_type.value}) puts trained tokens "
                    "in front of the prompt, so that its visual tokens stand elsewhere than in input_ids; expected an adapter "
                    "within the layers, such as LoRA. Fix: use one of those, or the model without the adapter."
                )
            model = model.get_base_model()
        else:
            return model
