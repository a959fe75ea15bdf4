"""Read caption files of the shapes in use, one caption for each image, and name every line that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Container, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from prunehal.benchmarks.other_keys import free_text
from prunehal.files.records import BadInput, Record, bad_lines, read_records, some

__all__ = ["CaptionFile", "drop_unfinished", "image_number", "read_caption_file", "read_captions"]

_ID_KEYS = ("image_id", "image", "file_name")
_TEXT_KEYS = (
    "caption", "text", "answer", "response", "prediction", "output", "outputs", "pred", "description", "generated_text",
    "generated_caption", "model_answer", "model_output", "model_response",
)  # fmt: skip
_ROWS = {"imgToEval": dict, "sentences": list}  # the original script reads the first layout, and later ones write the second
# A number, or COCO's way to write one: COCO_val2014_000000310196.jpg. Other names ("cat_1.jpg") stay names.
_NUMBER = re.compile(r"(?:(\d+)|.*_(\d{12}))(?:\.[A-Za-z]\w*)?")
_PICTURE = re.compile(r".+\.(?:jpe?g|png|webp|bmp|gif|tiff?)", re.IGNORECASE)


class _Unclear(ValueError):
    """A row whose caption or image could be several things: a fault of the whole file, which no flag skips."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A file's entry for one image: its place in the file, its object, and the image's name where that is a key outside it."""

    where: str
    value: Mapping[str, Any]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class CaptionFile:
    """What a file of captions holds.

    Attributes:
        captions: image_id -> caption, in the order of the file.
        finished: image_id -> whether the caption ended by itself and not at a limit of tokens, if every row has ``finished``
            (true or false), as in the files that `python -m prunehal run` writes; otherwise None.
        n_finished: the number of rows that have it: fewer than there are captions where it is left out, null or something else.
        n_bad: the number of lines that were skipped.
    """

    captions: dict[Hashable, str]
    finished: dict[Hashable, bool] | None
    n_finished: int
    n_bad: int


def read_captions(
    path: Path | str,
    known: Container[Hashable] | None = None,
    skip_bad: bool = False,
    caption_key: str | None = None,
    image_key: str | None = None,
) -> tuple[dict[Hashable, str], int]:
    """Read ``{image_id: caption}`` from a JSON list, JSON lines, objects one after the other, or one object for all images.

    An object names its image under ``image_id``, ``image`` or ``file_name``, by number or by file name
    (``COCO_val2014_000000310196.jpg`` is image 310196), and its caption under ``caption``, ``text``, ``answer``, ``response``,
    ``prediction``, ``output`` or the like. One object for all images is ``{image_id: caption}``, the original script's
    ``{"overall": ..., "imgToEval": {image_id: {"caption": ...}}}``, or a script's result, ``{"sentences": [...]}``. A list that
    holds one caption is that caption.

    An empty caption is a caption: the official scripts count it, without mentions.

    Args:
        path: the file, packed (``.gz``) or not.
        known: images with ground truth; others are problems. None takes all.
        skip_bad: go on without the bad lines, keeping the first of several captions of an image. Rows in which several keys
            could be the caption (a sentence under a key of any name) or the image, and differ, are never skipped.
        caption_key: the key that holds the caption, where several could.
        image_key: the key that names the image, where several could.

    Returns:
        The captions in the order of the file, and the number of lines that were skipped.

    Raises:
        BadInput: lines that cannot be read, lack an image or a caption, repeat an image or name an unknown one, unless they are
            skipped; rows in which several keys could be the caption or the image, and differ; or no caption with a word at all.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    ...     _ = file.write('{"image": "COCO_val2014_000000000042.jpg", "text": "A cat."}')
    ...     file.flush()
    ...     read_captions(file.name)
    ({42: 'A cat.'}, 0)
    """
    found = read_caption_file(path, known, skip_bad, caption_key, image_key)
    return found.captions, found.n_bad


def read_caption_file(
    path: Path | str,
    known: Container[Hashable] | None = None,
    skip_bad: bool = False,
    caption_key: str | None = None,
    image_key: str | None = None,
) -> CaptionFile:
    """Read a file as :func:`read_captions` does, and which captions ended by themselves; arguments and errors are the same.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    ...     _ = file.write('{"image_id": 42, "caption": "A cat on", "finished": false}')
    ...     file.flush()
    ...     read_caption_file(file.name).finished
    {42: False}
    """
    records, problems = read_records(path)
    unclear: list[str] = []
    captions: dict[Hashable, str] = {}
    finished: dict[Hashable, Any] = {}
    first: dict[Hashable, str] = {}
    for record in records:
        for row in _rows(record, known, {image_key, caption_key} - {None}):
            try:
                image, text = _image(row, known, image_key), _caption(row, caption_key)
                if image in first:
                    raise ValueError(f"image {image!r} again, first on {first[image]}; expected one caption for each image")
            except ValueError as error:
                (unclear if isinstance(error, _Unclear) else problems).append(f"{row.where}: {error}")
                continue
            captions[image], finished[image], first[image] = text, row.value.get("finished"), row.where
    if unclear:
        raise BadInput(path, unclear, "These rows cannot be skipped: what they hold makes the other rows doubtful too.")
    n_bad = bad_lines(path, problems, skip_bad)
    if not captions:
        raise BadInput(path, [*problems, "no caption is left; expected objects with image_id and caption"])
    if not any(text.strip() for text in captions.values()):
        raise BadInput(path, [*problems, f"all captions are empty ({len(captions)}); expected a word in at least one"])
    n_finished = sum(isinstance(value, bool) for value in finished.values())
    return CaptionFile(captions, finished if n_finished == len(finished) else None, n_finished, n_bad)


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
    match = _NUMBER.fullmatch(PurePosixPath(name.strip().replace("\\", "/")).name)
    return int(match[1] or match[2]) if match else None


def _rows(record: Record, known: Container[Hashable] | None, wanted: set[str]) -> Iterator[_Row]:
    """Return the rows that a record stands for: itself, or one for each image of a layout that is one object for all."""
    content = record.value
    if not {*_ID_KEYS, *_TEXT_KEYS, *wanted} & content.keys():
        for key, kind in _ROWS.items():
            if isinstance(content.get(key), kind):
                rows = content[key].items() if kind is dict else ((None, value) for value in content[key])
                for place, (name, value) in enumerate(rows):
                    yield _row(f"{record.where}, {key}[{place if name is None else repr(name)}]", name, value)
                return
        if any(image_number(name) is not None or _PICTURE.fullmatch(name) or _in(name, known) for name in content):
            for name, value in content.items():
                yield _row(f"{record.where}, {name!r}", name, value)
            return
    yield _Row(record.where, content)


def _row(where: str, name: str | None, value: Any) -> _Row:
    value = _single(value)
    return _Row(where, value if isinstance(value, Mapping) else {"caption": value}, name)


def _single(value: Any) -> Any:
    """Return what a list of one holds; anything else as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _in(name: str, known: Container[Hashable] | None) -> bool:
    return known is not None and any(candidate in known for candidate in _names(name))


def _image(row: _Row, known: Container[Hashable] | None, wanted: str | None) -> Hashable:
    given = _given(row, "image", _ID_KEYS, wanted)
    if row.name is not None:
        given = {"the key": row.name} | given
    names = {key: _names(value) for key, value in given.items()}
    if unnamed := [key for key, called in names.items() if not called]:
        raise ValueError(f"{unnamed[0]} is {given[unnamed[0]]!r}; expected a number or a file name")
    for kind in (int, str):  # a number and a name that holds none cannot be compared here
        called = {key: PurePosixPath(str(images[0])).stem for key, images in names.items() if isinstance(images[0], kind)}
        _refuse_two(called, given, "name different images")
    if known is None:
        return next(iter(names.values()))[0]
    images = {key: next((image for image in called if image in known), None) for key, called in names.items()}
    images = {key: image for key, image in images.items() if image is not None}
    if not images:
        key, value = next(iter(given.items()))
        raise ValueError(f"{key} {value!r} has no ground truth; expected an image of the ground truth, check the split")
    if isinstance(known, Mapping):
        _refuse_two({key: frozenset(known[image]) for key, image in images.items()}, given, "have different ground truths")
    return next(iter(images.values()))


def _given(row: _Row, what: str, usual: tuple[str, ...], wanted: str | None) -> dict[str, Any]:
    """Return what a row has under the wanted key, or under the usual ones; null counts only where nothing else is there."""
    given = {key: row.value[key] for key in ([wanted] if wanted else usual) if key in row.value}
    if given or (what == "image" and row.name is not None):
        return {key: value for key, value in given.items() if value is not None} or given
    expected = f"the key {wanted}" if wanted else f"one of the keys {', '.join(usual)}"
    raise ValueError(f"no {what}; expected {expected}, found {some(sorted(row.value))}")


def _refuse_two(called: Mapping[str, Hashable], given: Mapping[str, Any], why: str) -> None:
    if len(set(called.values())) > 1:
        named = " and ".join(f"{key} {given[key]!r}" for key in called)
        flag = next((f", or name the key, as in --image-key {key}" for key in called if key in _ID_KEYS), "")
        raise _Unclear(f"{named} {why}; expected one image. Fix: mend the row{flag}")


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


def _caption(row: _Row, wanted: str | None) -> str:
    given = {key: _single(text) for key, text in _given(row, "caption", _TEXT_KEYS, wanted).items()}
    if any(text != next(iter(given.values())) for text in given.values()):
        shown = " and ".join(f"{key} {str(text)[:40]!r}" for key, text in given.items())
        raise _Unclear(
            f"{shown} could be the caption, and differ; expected one. Fix: name its key, as in --caption-key {next(iter(given))}"
        )
    key, text = next(iter(given.items()))
    if not wanted and (other := free_text(row.value, {*_ID_KEYS, *_TEXT_KEYS})) is not None:
        raise _Unclear(
            f"{key} {str(text)[:40]!r} and {other} {str(row.value[other])[:40]!r} could be the caption; expected one. Fix: name "
            f"its key, as in --caption-key {other} or --caption-key {key}"
        )
    if not isinstance(text, str):
        raise ValueError(f"{key} is {str(text)[:40]!r}; expected text ('' where the model wrote none)")
    return text
