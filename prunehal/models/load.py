"""Load a model and its processor: the embedded one, one from the hub, or one from a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import logging as hf_logging

from prunehal.files.paths import data_path
from prunehal.models.adapters import ADAPTER, base_of, put_on
from prunehal.models.checkpoint_files import check_folder, file_at_fault
from prunehal.testbed.training.model import LlavaProcessor

__all__ = ["DTYPES", "EMBEDDED", "is_out_of_memory", "load", "weights_mark"]

EMBEDDED = "embedded"
DTYPES = ("auto", "float32", "bfloat16", "float16")


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
            ``"llava-hf/llava-1.5-7b-hf"``, or a folder written by ``save_pretrained``; also that of a LoRA adapter, which is
            loaded on the base model that it names (with the library peft).
        revision: branch, tag or commit of a hub repository. Pin a commit to make a study repeatable, and to load what was
            reviewed: a branch may change. For an adapter it is that of its base model.
        dtype: data type of the weights; ``"auto"`` takes that of the checkpoint (the embedded model always in float32,
            so that results do not depend on the machine's half precision).
        trust_remote_code: run code that a hub repository brings along; off unless asked for.
        **kwargs: more arguments of ``from_pretrained``, e.g. ``device_map="auto"`` or ``attn_implementation="sdpa"``.

    Returns:
        The model in evaluation mode, and its processor, with padding on the left as batched generation needs it.

    Raises:
        ValueError: the checkpoint holds no image-text-to-text model.
        OSError: no such folder or hub name, a library that it needs is missing, or a file that cannot be read, which is named.

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
    if folder.is_file():
        raise OSError(f"model {source!r} is a file; expected a folder written by save_pretrained; give {str(folder.parent)!r}")
    if folder.is_dir():
        source = str(folder)
        if (folder / ADAPTER).is_file():
            return _load_adapted(folder, revision, {"dtype": dtype, "trust_remote_code": trust_remote_code, **kwargs})
        check_folder(folder)
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
        model, info = _model_of(source, dtype=dtype, **common, **kwargs)
    except ValueError as error:
        raise ValueError(
            f"model {source!r} cannot be loaded as an image-text-to-text model: {error}; expected a multimodal LLM such as "
            f"LLaVA or Qwen2.5-VL; {_reason_against(source)}"
        ) from error
    except SafetensorError as error:
        raise OSError(
            f"weights of {source!r} cannot be read: {error}; expected whole safetensors files; fetch them again"
        ) from error
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers takes the values of a file as they are; they fail wherever they are used
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            raise
        raise _unusable(source, common, error, of_processor=False) from error
    finally:
        if quiet:
            hf_logging.enable_progress_bar()
    if faulty := sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]):
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
    except Exception as error:
        raise _unusable(source, common, error, of_processor=True) from error
    if getattr(processor, "tokenizer", None) is None:
        raise OSError(
            f"processor of {source!r} is a {type(processor).__name__} only; expected one for text and images; copy or download "
            "processor_config.json or preprocessor_config.json too"
        )
    processor.tokenizer.padding_side = "left"
    return model.eval(), processor


def _reason_against(source: str) -> str:
    if "qwen-vl" in source.lower():
        return "the code of Qwen-VL comes with its weights and is not run here; use Qwen2-VL, e.g. Qwen/Qwen2-VL-7B-Instruct"
    return "a text-only model has no visual tokens to prune"


def _model_of(source: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        return AutoModelForImageTextToText.from_pretrained(source, **options)
    except ValueError as error:  # Phi-4 multimodal stands only in the wider list, among models that read sound and no images
        if "Unrecognized configuration class" not in str(error):
            raise
        try:
            loaded = AutoModelForMultimodalLM.from_pretrained(source, **options)
        except ValueError:
            raise error from None
        if "image" not in loaded[0].input_modalities:
            raise
        return loaded


def _load_adapted(folder: Path, revision: str | None, options: dict[str, Any]) -> tuple[PreTrainedModel, ProcessorMixin]:
    base, pinned = base_of(folder)
    base = EMBEDDED if Path(base) == data_path("embedded", must_exist=False) else base
    try:
        model, processor = load(base, revision=pinned if revision is None else revision, **options)
    except OSError as error:
        raise OSError(f"adapter {folder}: the base model that its {ADAPTER} names cannot be loaded: {error}") from error
    put_on(model, folder)
    return model.eval(), processor


def _unusable(source: str, common: dict[str, Any], error: Exception, *, of_processor: bool) -> OSError:
    path = Path(source) / file_at_fault(source, common, of_processor=of_processor)
    return OSError(
        f"{path} cannot be used: {type(error).__name__}: {error}; expected values of the kinds that save_pretrained writes; copy "
        "or download it again"
    )


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
    kinds = ("*.safetensors", "*.bin", "config.json", ADAPTER)
    for path in sorted(path for kind in kinds for path in folder.glob(kind)):
        size = path.stat().st_size
        with path.open("rb") as file:
            mark.update(f"{path.name} {size}".encode() + file.read(2**16))
            file.seek(max(0, size - 2**16))
            mark.update(file.read())
    if (folder / ADAPTER).is_file():
        base, revision = base_of(folder)
        mark.update(f"{weights_mark(base) or base} {revision}".encode())
    return mark.hexdigest()[:16]


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory did not suffice, on whatever device."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
