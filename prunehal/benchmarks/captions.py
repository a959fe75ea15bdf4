"""Read caption files of the shapes in use, one caption for each image, and name every line that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Container, Hashable
from pathlib import Path, PurePosixPath
from typing import Any

from prunehal.benchmarks.files import BadInput, Record, bad_lines, read_records, some

__all__ = ["drop_unfinished", "image_number", "read_captions"]

_ID_KEYS = ("image_id", "image", "file_name")
_TEXT_KEYS = ("caption", "text")
# A number, or COCO's way to write one: COCO_val2014_000000310196.jpg. Other names ("cat_1.jpg") stay names.
_NUMBER = re.compile(r"(?:(\d+)|.*_(\d{12}))(?:\.[A-Za-z]\w*)?")


def read_captions(
    path: Path | str, known: Container[Hashable] | None = None, skip_bad: bool = False
) -> tuple[dict[Hashable, str], int]:
    """Read ``{image_id: caption}`` from a JSON list, JSON lines, or objects one after the other.

    An object names its image under ``image_id``, ``image`` or ``file_name``, by number or by file name
    (``COCO_val2014_000000310196.jpg`` is image 310196), and its caption under ``caption`` or ``text``.

    Args:
        path: the file, packed (``.gz``) or not.
        known: images with ground truth; others are problems. None takes all.
        skip_bad: go on without the bad lines, keeping the first of several captions of an image.

    Returns:
        The captions in the order of the file, and the number of lines that were skipped.

    Raises:
        BadInput: lines that cannot be read, lack an image or a caption, repeat an image, hold an empty caption or an unknown
            image, unless they are skipped; or no caption at all.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    ...     _ = file.write('{"image": "COCO_val2014_000000000042.jpg", "text": "A cat."}')
    ...     file.flush()
    ...     read_captions(file.name)
    ({42: 'A cat.'}, 0)
    """
    records, problems = read_records(path)
    captions: dict[Hashable, str] = {}
    first: dict[Hashable, str] = {}
    for record in records:
        try:
            image, text = _image(record, known), _caption(record)
            if image in first:
                raise ValueError(f"image {image!r} again, first on {first[image]}; expected one caption for each image")
        except ValueError as error:
            problems.append(f"{record.where}: {error}")
            continue
        captions[image], first[image] = text, record.where
    n_bad = bad_lines(path, problems, skip_bad)
    if not captions:
        raise BadInput(path, [*problems, "no caption is left; expected objects with image_id and caption"])
    return captions, n_bad


def drop_unfinished(caption: str) -> str:
    """Drop what follows the last full stop, as OPERA's script does for captions that the token limit cut off.

    A caption without any full stop becomes empty, there too.

    >>> drop_unfinished("A dog runs. It is chas"), drop_unfinished("A dog runs")
    ('A dog runs.', '')
    """
    return caption[: caption.rfind(".") + 1]


def image_number(name: str) -> int | None:
    """Return the number that a file name or a text stands for, or None.

    >>> image_number("val2014/COCO_val2014_000000000042.jpg"), image_number("042"), image_number("cat_1.jpg")
    (42, 42, None)
    """
    found = _NUMBER.fullmatch(PurePosixPath(name.strip().replace("\\", "/")).name)
    return int(found[1] or found[2]) if found else None


def _image(record: Record, known: Container[Hashable] | None) -> Hashable:
    key = next((key for key in _ID_KEYS if key in record.value), None)
    if key is None:
        raise ValueError(f"no image; expected one of the keys {', '.join(_ID_KEYS)}, found {some(sorted(record.value))}")
    given = record.value[key]
    names = _names(given)
    if not names:
        raise ValueError(f"{key} is {given!r}; expected a number or a file name")
    if known is None:
        return names[0]
    for name in names:
        if name in known:
            return name
    raise ValueError(f"{key} {given!r} has no ground truth; expected an image of the ground truth, check the split")


def _names(given: Any) -> list[Hashable]:
    """Return what an image may be called in a ground truth, the likeliest first."""
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, int) and not isinstance(given, bool):
        return [given, str(given)]
    if not isinstance(given, str) or not given.strip():
        return []
    path, number = PurePosixPath(given.strip().replace("\\", "/")), image_number(given)
    return [*([] if number is None else [number]), given, path.name, path.stem]


def _caption(record: Record) -> str:
    key = next((key for key in _TEXT_KEYS if key in record.value), None)
    if key is None:
        raise ValueError(f"no caption; expected one of the keys {', '.join(_TEXT_KEYS)}, found {some(sorted(record.value))}")
    text = record.value[key]
    if not isinstance(text, str):
        raise ValueError(f"{key} is {str(text)[:40]!r}; expected text")
    if not text.strip():
        raise ValueError(f"the {key} is empty; expected at least a word")
    return text
