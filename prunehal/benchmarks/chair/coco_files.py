"""Read which objects images hold from the user's own files: COCO instances, COCO captions, tables, and plain lists."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath

import msgspec

from prunehal.benchmarks.chair.mentions import ChairScorer, load_scorer
from prunehal.files.reading import convert, read_json, reading
from prunehal.files.records import some

__all__ = ["Table", "ground_truth_from_coco", "objects_of_file"]

_FIX = "Fix: get the file again, or give another one."
_LAYOUTS = "COCO instances, COCO captions, the layout of the shipped table, {image_id: [categories]}"


class _Image(msgspec.Struct):
    id: int | str
    file_name: str | None = None


class _Category(msgspec.Struct):
    id: int
    name: str


class _Instance(msgspec.Struct):
    image_id: int | str
    category_id: int


class _Caption(msgspec.Struct):
    image_id: int | str
    caption: str


class _Instances(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Instance]
    categories: list[_Category]


class _Captions(msgspec.Struct):
    annotations: list[_Caption]
    images: list[_Image] = []


class Table(msgspec.Struct):
    """The layout of the shipped table: names of objects, and for each image the places of its objects among them."""

    nodes: list[str]
    images: dict[str, list[int]]

    def __post_init__(self) -> None:
        for image, places in self.images.items():
            if wrong := [place for place in places if not 0 <= place < len(self.nodes)]:
                raise ValueError(f"image {image} has object {wrong[0]}, expected 0 to {len(self.nodes) - 1}")


def ground_truth_from_coco(
    instances: Mapping | str | Path,
    captions: Mapping | str | Path | None = None,
    scorer: str | ChairScorer = "fixed",
) -> dict[int | str, set[str]]:
    """Read which objects each image holds: its COCO instances, united with the objects its captions name.

    Annotators of instances miss objects that the captions name, so the official scripts unite both. Give no captions
    to take the instances alone, as for scenes whose instances are complete.

    Args:
        instances: COCO instances file, packed (``.gz``) or not, or its parsed content (images, annotations, categories).
        captions: COCO captions file, or its parsed content (annotations), or None.
        scorer: finds objects in the captions; pass the one that is used for scoring.

    Raises:
        BadInput: a file holds no JSON, a part of the COCO layout is missing or of another type, or a category is none of
            the 80; the message names the file and the place in it.
        OSError: a file cannot be read.

    >>> coco = {"images": [{"id": 7}], "categories": [{"id": 18, "name": "dog"}],
    ...         "annotations": [{"image_id": 7, "category_id": 18}]}
    >>> ground_truth_from_coco(coco)
    {7: {'dog'}}
    """
    scorer = load_scorer(scorer) if isinstance(scorer, str) else scorer
    with _named(instances, "the COCO instances"):
        truth = _of_instances(convert(_content(instances), _Instances), scorer)
    if captions is not None:
        with _named(captions, "the COCO captions"):
            from_captions = _of_captions(convert(_content(captions), _Captions), scorer)
        for image, objects in from_captions.items():
            truth[image] = truth.get(image, set()) | objects
    return truth


def objects_of_file(path: str | Path, scorer: str | ChairScorer = "fixed") -> dict[Hashable, set[str]]:
    """Return ``{image: COCO categories}`` of one file, in any of the layouts below.

    Images of COCO files that have a file_name are in the result under that name, too, with and without suffix.

    Args:
        path: COCO instances, COCO captions, the layout of the shipped table, or ``{image_id: [categories]}``.
        scorer: reads COCO captions.

    Raises:
        BadInput: the file has another layout, or a category is none of the 80; the message names the file and the place in it.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    ...     _ = file.write('{"7": ["dog"]}')
    ...     file.flush()
    ...     objects_of_file(file.name)
    {'7': {'dog'}}
    """
    scorer = load_scorer(scorer) if isinstance(scorer, str) else scorer
    with reading(path):
        content = read_json(path)
        if not isinstance(content, dict) or not content:
            raise ValueError(f"it holds {repr(content)[:40]}; expected one object, {_LAYOUTS}. {_FIX}")
        truth = _by_layout(content, scorer)
        if unknown := set().union(*truth.values()) - set(scorer.nodes.values()):
            raise ValueError(f"unknown categories {some(sorted(unknown))}; expected COCO category names. Fix: rename these.")
    return truth


def _by_layout(content: dict, scorer: ChairScorer) -> dict[Hashable, set[str]]:
    if "nodes" in content and "images" in content:
        table = convert(content, Table)
        return {image: {table.nodes[place] for place in places} for image, places in table.images.items()}
    if "annotations" not in content:
        try:
            return {image: set(objects) for image, objects in convert(content, dict[str, list[str]]).items()}
        except ValueError as error:
            raise ValueError(f"{error}, in {_LAYOUTS}. {_FIX}") from error
    if "categories" in content:
        layout = convert(content, _Instances)
        truth = _of_instances(layout, scorer)
    else:
        layout = convert(content, _Captions)
        truth = _of_captions(layout, scorer)
    by_name = {image.file_name: truth[image.id] for image in layout.images if image.file_name is not None}
    return truth | by_name | {PurePosixPath(file_name).stem: objects for file_name, objects in by_name.items()}


def _of_instances(content: _Instances, scorer: ChairScorer) -> dict[int | str, set[str]]:
    names = {category.id: category.name for category in content.categories}
    if unknown := set(names.values()) - set(scorer.nodes.values()):
        raise ValueError(f"unknown categories {some(sorted(unknown))}; expected COCO category names. Fix: rename these.")
    truth: dict[int | str, set[str]] = {image.id: set() for image in content.images}
    for place, annotation in enumerate(content.annotations):
        if annotation.category_id not in names:
            raise ValueError(
                f"annotations[{place}], of image {annotation.image_id}, has category_id {annotation.category_id}; expected an id "
                "listed under 'categories'. Fix: complete that list."
            )
        truth.setdefault(annotation.image_id, set()).add(names[annotation.category_id])
    return truth


def _of_captions(content: _Captions, scorer: ChairScorer) -> dict[int | str, set[str]]:
    truth: dict[int | str, set[str]] = {image.id: set() for image in content.images}
    for annotation in content.annotations:
        named = {mention.node for mention in scorer.mentions(annotation.caption)}
        truth.setdefault(annotation.image_id, set()).update(named)
    return truth


def _content(source: Mapping | str | Path) -> object:
    return dict(source) if isinstance(source, Mapping) else read_json(source)


def _named(source: Mapping | str | Path, what: str) -> AbstractContextManager[None]:
    """Add to errors the name of the file, or what the parsed content is."""
    return reading(what if isinstance(source, Mapping) else source)
