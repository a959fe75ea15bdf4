"""Load a model and its processor: the embedded one, one from the hub, or one from a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import logging as hf_logging

from prunehal.resources import data_path
from prunehal.testbed.model import LlavaProcessor

__all__ = ["EMBEDDED", "load", "weights_mark"]

EMBEDDED = "embedded"


def load(
    name: str | Path = EMBEDDED,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str = "auto",
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a multimodal LLM for generation, with its processor.

    Args:
        name: ``"embedded"`` for the small LLaVA-architecture model that ships with this package, a hub name such as
            ``"llava-hf/llava-1.5-7b-hf"``, or a folder written by ``save_pretrained``.
        revision: branch, tag or commit of a hub repository; pin it to make a study repeatable.
        dtype: data type of the weights; ``"auto"`` takes that of the checkpoint (the embedded model always in float32,
            so that results do not depend on the machine's half precision).
        trust_remote_code: run code that a hub repository brings along; off unless asked for.
        **kwargs: more arguments of ``from_pretrained``, e.g. ``device_map="auto"`` or ``attn_implementation="sdpa"``.

    Returns:
        The model in evaluation mode, and its processor, with padding on the left as batched generation needs it.

    Raises:
        ValueError: the checkpoint holds no image-text-to-text model.
        OSError: no such folder or hub name, or a weights file that cannot be read.

    >>> model, processor = load()
    >>> type(model).__name__, model.training
    ('LlavaForConditionalGeneration', False)
    """
    processors: Any = AutoProcessor
    if name == EMBEDDED:
        name, dtype, processors = data_path("embedded"), torch.float32, LlavaProcessor
    source = str(name)
    looks_local = isinstance(name, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1
    folder = Path(source).expanduser()
    if folder.is_dir():
        source = str(folder)
        _check_folder(folder)
    elif looks_local or "/" not in source:
        raise OSError(
            f"model {source!r} is no folder here and no hub name; expected {EMBEDDED!r}, a folder written by save_pretrained, "
            "or a hub name of the form 'owner/name'; check the spelling and the working directory"
        )
    quiet = source == str(data_path("embedded", must_exist=False)) and hf_logging.is_progress_bar_enabled()
    if quiet:  # a bar for 7 MB is noise in a notebook
        hf_logging.disable_progress_bar()
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # so that all faults are named below, at once
    try:
        model, found = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, **common, **kwargs)
    except ValueError as error:
        raise ValueError(
            f"model {source!r} cannot be loaded as an image-text-to-text model: {error}; expected a multimodal LLM such as "
            "LLaVA or Qwen2.5-VL; a text-only model has no visual tokens to prune"
        ) from error
    except SafetensorError as error:
        raise OSError(
            f"weights of {source!r} cannot be read: {error}; expected whole safetensors files; fetch them again"
        ) from error
    finally:
        if quiet:
            hf_logging.enable_progress_bar()
    if faulty := sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]):
        raise OSError(
            f"weights of {source!r} lack {len(faulty)} tensors, or hold them in another shape: {', '.join(faulty[:3])}; expected "
            "the weights that belong to its config.json; copy or download the folder again"
        )
    try:
        processor = processors.from_pretrained(source, **common)
    except (OSError, ValueError, ImportError) as error:
        library = next((name for name in ("torchvision", "sentencepiece", "num2words") if name in str(error).lower()), None)
        files = "expected tokenizer and image processor files beside the weights; copy or download the folder again"
        fix = files if library is None else f"expected the library {library}, which this processor needs; pip install {library}"
        raise OSError(f"processor of {source!r} cannot be read: {error}; {fix}") from error
    processor.tokenizer.padding_side = "left"
    return model.eval(), processor


def weights_mark(name: str | Path) -> str | None:
    """Return 16 hex digits that tell the weights of a checkpoint folder from others; None for a hub name, which has commits.

    They come from the names and sizes of the weights files and from their first and last 64 kB, so that a large checkpoint takes
    no time.

    >>> len(weights_mark("embedded")), weights_mark("llava-hf/llava-1.5-7b-hf")
    (16, None)
    """
    folder = data_path("embedded") if name == EMBEDDED else Path(name).expanduser()
    if not folder.is_dir():
        return None
    mark = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("config.json")]):
        size = path.stat().st_size
        with path.open("rb") as file:
            mark.update(f"{path.name} {size}".encode() + file.read(2**16))
            file.seek(max(0, size - 2**16))
            mark.update(file.read())
    return mark.hexdigest()[:16]


def _check_folder(folder: Path) -> None:
    """Raise an OSError that names the file when a checkpoint folder lacks its config or holds a broken weights file."""
    if not (folder / "config.json").is_file():
        raise OSError(
            f"model folder {folder} holds no config.json; expected a folder written by save_pretrained; point to that one"
        )
    for weights in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(weights, framework="pt"):
                pass
        except SafetensorError as error:
            raise OSError(
                f"weights file {weights} is corrupt ({weights.stat().st_size} bytes: {error}); expected a whole safetensors "
                "file; copy or download it again"
            ) from error
