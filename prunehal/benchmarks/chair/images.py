"""The images of a folder that are captioned: their keys, where they lie, and what of the folder is left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from prunehal.benchmarks.chair.captions import image_number
from prunehal.files.images import image_pixels
from prunehal.files.reading import read_text, reading
from prunehal.files.records import BadInput, read_records

__all__ = ["Item", "distinct_items", "image_key", "images_of", "items_in", "left_out"]

_SUFFIXES = (".jpg", ".jpeg", ".png")
# Where the images lie below the folder that the user names: as COCO, AMBER and MMHal-Bench unpack.
_FOLDERS = ("", "val2014", "image", "images")
_HEADERS = ("image_id", "image_ids", "file_name")  # a first line of a list of images that names none


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to ask: its key in the benchmark, the file name of its image, the text."""

    key: int | str
    image: str
    text: str


def items_in(images: Path, questions: str | None = None, prompt: str = "") -> list[Item]:
    """Return the images of a folder, or those of it that a file of ids names, each with the same prompt.

    Args:
        images: the folder; images lie in it, or in its val2014 folder.
        questions: a file of image ids; None for all images, numbers first.
        prompt: the text of every item.

    Raises:
        BadInput: a file of ids that cannot be used, or two images of one number.
        ValueError: no folder, or no image in it.

    >>> from prunehal.files.paths import data_path
    >>> items_in(data_path("sprites"), prompt="Describe it.")
    [Item(key='sprites', image='sprites.png', text='Describe it.')]
    """
    if not images.is_dir():
        raise ValueError(f"images={str(images)!r}: is no folder; expected one with .jpg or .png files; check the path")
    names = dict.fromkeys(path.name for path in _files_in(images) if path.suffix.lower() in _SUFFIXES)
    if not names:
        raise ValueError(f"images={str(images)!r}: holds no image; expected .jpg or .png files, in it or in its val2014 folder")
    by_key: dict[int | str, str] = {}
    problems = []
    for name in names:
        if (other := by_key.setdefault(image_key(name), name)) != name:
            problems.append(f"{other} and {name} are both image {image_key(name)!r}")
    if problems:
        raise BadInput(images, problems, "Expected one image of each number or name; move the others away.")
    if questions is None:
        keys: Iterable[int | str] = sorted(by_key, key=lambda key: (isinstance(key, str), key))
    else:
        keys = _listed_images(Path(questions))
    return [
        Item(key, by_key.get(key, f"COCO_val2014_{key:012d}.jpg" if isinstance(key, int) else str(key)), prompt) for key in keys
    ]


def distinct_items(items: list[Item], source: Path | str) -> list[Item]:
    """Return the items, each of which must be there once.

    Raises:
        BadInput: two items of one key; `source` is the file or folder that is named.
    """
    if doubled := [key for key, times in Counter(str(item.key) for item in items).items() if times > 1]:
        raise BadInput(source, [f"{key!r} comes twice" for key in doubled], "Expected each item once; remove one.")
    return items


def images_of(items: Sequence[Item], folder: Path, skip_missing: bool = False) -> tuple[list[Item], dict[str, tuple[Path, int]]]:
    """Find the items' images in the folder, or in its val2014, image or images folder, and read their headers.

    Returns:
        The items whose image is there, and ``{file name: (path, pixels)}``.

    Raises:
        BadInput: images that are missing (unless they are to be skipped) or no pictures.
        ValueError: none is there.

    >>> from prunehal.files.paths import data_path
    >>> kept, found = images_of([Item(1, "sprites.png", ""), Item(2, "no.png", "")], data_path("sprites"), skip_missing=True)
    >>> kept, found["sprites.png"][0].name
    ([Item(key=1, image='sprites.png', text='')], 'sprites.png')
    """
    found: dict[str, tuple[Path, int]] = {}
    missing: list[str] = []
    broken: list[str] = []
    for name in dict.fromkeys(item.image for item in items):
        path = next((path for part in _FOLDERS if (path := folder / part / name).is_file()), None)
        if path is None:
            missing.append(name)
            continue
        try:
            found[name] = path, image_pixels(path)
        except OSError as error:
            broken.append(str(error))
    problems = broken + ([] if skip_missing else [f"{name} is missing" for name in missing])
    if problems:
        raise BadInput(
            folder, problems,
            f"Expected the images of {len(found) + len(missing) + len(broken)} names here, or in its "
            f"{', '.join(_FOLDERS[1:-1])} or {_FOLDERS[-1]} folder; complete them, or pass --skip-missing (skip_missing=True).",
        )  # fmt: skip
    if not found:
        raise ValueError(f"{folder}: none of {len(missing)} images is there; expected such as {missing[:1]}; check the folder")
    return [item for item in items if item.image in found], found


def left_out(images: Path, questions: str | None = None) -> dict[str, int]:
    """Return how many files of other formats, ``{".webp": 3}``, a folder of images holds.

    Hidden files do not count; where the questions name the images, nothing is left out.

    >>> from prunehal.files.paths import data_path
    >>> left_out(data_path("sprites"))
    {'.json': 1, '.txt': 1}
    """
    if questions is not None:
        return {}
    others = (path for path in _files_in(images) if path.suffix.lower() not in _SUFFIXES and not path.name.startswith("."))
    return dict(sorted(Counter(path.suffix.lower() or "without suffix" for path in others).items()))


def image_key(name: str) -> int | str:
    """Return what an image is called in results: its COCO number, or the name without suffix.

    >>> image_key("COCO_val2014_000000123456.jpg"), image_key("cat_1.png"), image_key("42")
    (123456, 'cat_1', 42)
    """
    path, number = PurePosixPath(name), image_number(name)
    if number is not None:
        return number
    return path.stem if path.suffix.lower() in _SUFFIXES else path.name


def _files_in(images: Path) -> Iterator[Path]:
    """Yield the files of a folder of images and of its val2014 folder, each in the order of their names."""
    for part in _FOLDERS[:2]:
        if (images / part).is_dir():
            yield from (path for path in sorted((images / part).iterdir()) if path.is_file())


def _listed_images(path: Path) -> list[int | str]:
    """Read image ids: a JSON list, JSON objects with image_id, or one id or file name a line, with or without a header line."""
    text = read_text(path)
    begin = text.lstrip()[:1]
    values: dict[str, Any] = {}
    if begin == "[":
        with reading(path):
            listed = json.loads(text)
        values = {f"entry {place}": value for place, value in enumerate(listed, 1)}
    elif begin != "{":
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        headed = bool(lines) and lines[0][1].casefold() in _HEADERS
        values = {f"line {number}": line for number, line in lines[headed:]}
    if begin == "{" or any(isinstance(value, dict) for value in values.values()):
        records, problems = read_records(path)
        problems += [
            f"{record.where}: image_id is {record.value['image_id']!r} and image {record.value['image']!r}; expected one image"
            for record in records
            if len({str(image_key(str(record.value[name]))) for name in ("image_id", "image") if name in record.value}) > 1
        ]
        if problems:
            raise BadInput(path, problems, "Expected objects with image_id.")
        values = {record.where: record.value.get("image_id", record.value.get("image")) for record in records}
    if bad := {
        where: value
        for where, value in values.items()
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip()
    }:
        problems = [f"{where}: {value!r} is no image id" for where, value in bad.items()]
        raise BadInput(path, problems, "Expected numbers or file names of images.")
    if not values:
        raise BadInput(path, ["it holds no image id"], "Expected numbers or file names of images.")
    return list(dict.fromkeys(value if isinstance(value, int) else image_key(value.strip()) for value in values.values()))
