"""Load a LoRA adapter, or another one within the layers, on the base model that its folder names."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from prunehal.models.checkpoint_files import check_folder, read_object

__all__ = ["ADAPTER", "base_of", "put_on"]

ADAPTER = "adapter_config.json"


def base_of(folder: Path) -> tuple[str, str | None]:
    """Return the folder or hub name of the base model that an adapter folder names, and its revision, None for the newest.

    Raises:
        OSError: PEFT is not installed, or the folder's files cannot be read or name no base model.
        ValueError: the adapter puts trained tokens in front of the prompt.
    """
    check_folder(folder, needed=ADAPTER)
    if importlib.util.find_spec("peft") is None:
        raise OSError(f"{folder} holds an adapter ({ADAPTER}); expected the library peft, which loads it; pip install peft")
    from peft import PeftConfig

    base, revision = (read_object(folder / ADAPTER).get(name) for name in ("base_model_name_or_path", "revision"))
    if not isinstance(base, str) or not base or not (revision is None or isinstance(revision, str)):
        raise OSError(
            f"{folder / ADAPTER} names base_model_name_or_path={base!r}, revision={revision!r}; expected the folder or hub name "
            "of the model that it was trained on; write it there"
        )
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # PEFT checks no types, so any error comes from the file's content
        raise _unreadable(folder / ADAPTER, error) from error
    if config.is_prompt_learning:
        raise ValueError(
            f"{folder / ADAPTER}: peft_type={config.peft_type.value!r} puts trained tokens in front of the prompt, which moves "
            "its visual tokens; expected an adapter within the layers, such as LoRA"
        )
    return base, revision


def put_on(model: PreTrainedModel, folder: Path) -> None:
    """Put an adapter's layers and weights into a model, in place.

    Args:
        model: the base model that the adapter names.
        folder: as PEFT's ``save_pretrained`` writes it.

    Raises:
        OSError: they cannot be read, or do not belong to this model.
    """
    try:
        keys: Any = model.load_adapter(str(folder))
    except SafetensorError as error:
        raise _unreadable(folder / "adapter_model.safetensors", error) from error
    except Exception as error:
        raise _unreadable(folder / ADAPTER, error) from error
    faulty = sorted([*keys.missing_keys, *keys.unexpected_keys, *(key for key, *_ in keys.mismatched_keys)])
    if faulty:
        raise OSError(
            f"adapter weights of {folder} do not belong to {type(model).__name__}: {len(faulty)} tensors are missing, left over "
            f"or of another shape: {', '.join(faulty[:3])}; expected those of the model that {ADAPTER} names; name the right one "
            "there"
        )


def _unreadable(path: Path, error: Exception) -> OSError:
    return OSError(
        f"{path} cannot be used: {type(error).__name__}: {error}; expected an adapter as PEFT's save_pretrained writes it; copy "
        "or download the folder again"
    )
