"""Check the files of a checkpoint folder, and find the one at fault when transformers cannot read it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, GenerationConfig

__all__ = ["check_folder", "file_at_fault", "read_object"]

# The JSON files that transformers and PEFT read in a folder; others may lie beside them.
OBJECTS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "model.safetensors.index.json",
    "adapter_config.json",
)
AGAIN = "copy or download it again"


class _Generation(msgspec.Struct):
    """The fields of generation_config.json that are used long after loading, where a wrong type fails inside transformers."""

    eos_token_id: int | list[int] | None = None
    pad_token_id: int | list[int] | None = None
    bos_token_id: int | list[int] | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    num_beams: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    do_sample: bool | None = None
    use_cache: bool | None = None


class _Processor(msgspec.Struct):
    """The fields of processor_config.json that are used when an image is processed."""

    patch_size: int | list[int] | dict[str, int] | None = None
    num_additional_image_tokens: int | None = None
    image_token: str | dict[str, Any] | None = None
    image_processor: dict[str, Any] | None = None
    processor_class: str | None = None


class _Tokenizer(msgspec.Struct):
    """The fields of tokenizer_config.json that are used before the tokenizer is loaded."""

    tokenizer_class: str | None = None
    processor_class: str | None = None
    model_max_length: int | float | None = None
    padding_side: str | None = None


KINDS = {"generation_config.json": _Generation, "processor_config.json": _Processor, "tokenizer_config.json": _Tokenizer}


def check_folder(folder: Path, needed: str = "config.json") -> None:
    """Raise an OSError that names the file if a folder lacks its configuration or holds a broken file.

    Args:
        folder: as ``save_pretrained`` writes it.
        needed: the file that the folder must hold.
    """
    if not (folder / needed).is_file():
        raise OSError(f"model folder {folder} holds no {needed}; expected a folder written by save_pretrained; point to that one")
    for name in OBJECTS:
        if (folder / name).is_file():
            _check_kinds(folder / name, read_object(folder / name))
    for weights in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(weights, framework="pt"):
                pass
        except SafetensorError as error:
            raise OSError(
                f"weights file {weights} is corrupt ({weights.stat().st_size} bytes: {error}); expected a whole safetensors "
                f"file; {AGAIN}"
            ) from error
    _check_parts(folder / "model.safetensors.index.json")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises:
        OSError: the file is no JSON, or holds something else than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path} cannot be read: {error}; expected JSON in UTF-8, as save_pretrained writes it; {AGAIN}") from error
    if not isinstance(value, dict):
        raise OSError(f"{path} holds {str(value)[:60]!r}; expected a JSON object, as save_pretrained writes it; {AGAIN}")
    return value


def _check_kinds(path: Path, content: dict[str, Any]) -> None:
    if (kind := KINDS.get(path.name)) is None:
        return
    try:
        msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise OSError(f"{path} cannot be used: {error}; {AGAIN}") from error


def _check_parts(index: Path) -> None:
    if not index.is_file():
        return
    parts = read_object(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise OSError(f"{index} has no weight_map of tensor names to file names; expected one; {AGAIN}")
    if missing := sorted({part for part in parts.values() if not (index.parent / part).is_file()}):
        raise OSError(
            f"weights file {index.parent / missing[0]} is missing ({len(missing)} of {len(set(parts.values()))} that "
            f"{index.name} names); expected all of them; copy or download the folder again"
        )


def file_at_fault(source: str, common: Mapping[str, Any], *, of_processor: bool) -> str:
    """Return the name of the file that cannot be read by itself, among those that a model or its processor needs.

    Args:
        source: folder or hub name.
        common: options of every ``from_pretrained``.
        of_processor: look among the files of the processor, not among those of the model.
    """
    readers: dict[str, Callable[..., object]] = {
        "config.json": AutoConfig.from_pretrained,
        "generation_config.json": lambda source, revision, **_: GenerationConfig.from_pretrained(source, revision=revision),
    }
    if of_processor:
        readers = {
            "tokenizer.json": AutoTokenizer.from_pretrained,
            "preprocessor_config.json": AutoImageProcessor.from_pretrained,
        }
    for name, read in readers.items():
        try:
            read(source, **common)
        except Exception:  # whatever the error is, this file causes it
            return _as_in(source, name)
    return _as_in(source, "processor_config.json" if of_processor else "config.json")


def _as_in(source: str, name: str) -> str:
    # The same settings may stand in one of two files.
    others = {"preprocessor_config.json": "processor_config.json", "tokenizer.json": "tokenizer_config.json"}
    folder = Path(source)
    if name in others and folder.is_dir() and not (folder / name).is_file() and (folder / others[name]).is_file():
        return others[name]
    return name
