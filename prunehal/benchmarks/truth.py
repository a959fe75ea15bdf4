"""The ground truth of CHAIR: which objects each image holds, from the shipped COCO table, the user's files or the testbed."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from prunehal.benchmarks.captions import image_number
from prunehal.benchmarks.files import read_records, read_shipped, some
from prunehal.benchmarks.mentions import ChairScorer, load_scorer

__all__ = ["SHIPPED", "TESTBED", "ground_truth_coco", "ground_truth_from_coco", "ground_truth_testbed", "load_ground_truth"]

SHIPPED, TESTBED = "coco", "testbed"


class _Lazy(Mapping[Hashable, set[str]]):
    """Look the objects of an image up when they are asked for: the table holds 123,287 images."""

    def __init__(self, table: Mapping[str, list[int]], nodes: Sequence[str]) -> None:
        self._table, self._nodes = table, nodes

    def __getitem__(self, image: Hashable) -> set[str]:
        if isinstance(image, bool) or not isinstance(image, int):
            raise KeyError(image)
        return {self._nodes[index] for index in self._table[str(image)]}

    def __iter__(self) -> Iterator[int]:
        return map(int, self._table)

    def __len__(self) -> int:
        return len(self._table)


class _Scenes(Mapping[Hashable, set[str]]):
    """Render nothing and know all: the objects of a scene of the testbed follow from its image_id."""

    def __getitem__(self, image: Hashable) -> set[str]:
        from prunehal.testbed.scenes import scene_of

        try:
            return set(scene_of(image).names)
        except ValueError as error:
            raise KeyError(image) from error

    def __iter__(self) -> Iterator[int]:
        return iter(())  # without end: asked for one by one

    def __len__(self) -> int:
        return 0


@cache
def ground_truth_coco() -> Mapping[Hashable, set[str]]:
    """Return the official ground truth of all COCO train2014 and val2014 images, from the shipped table.

    It was made by the official `pattern` code from instances and captions; OPERA's scores rest on the same.

    >>> sorted(ground_truth_coco()[310196])
    ['person', 'skis', 'snowboard']
    """
    table = read_shipped("chair", "chair_gt_coco_trainval2014.json.gz")
    return _Lazy(table["images"], table["nodes"])


def ground_truth_testbed() -> Mapping[Hashable, set[str]]:
    """Return the objects of the testbed's scenes, by their image_id.

    >>> from prunehal.testbed.scenes import scene
    >>> ground_truth_testbed()[scene("test", 3).image_id] == set(scene("test", 3).names)
    True
    """
    return _Scenes()


def load_ground_truth(sources: Sequence[str | Path] = (), scorer: str | ChairScorer = "fixed") -> Mapping[Hashable, set[str]]:
    """Load the ground truth that a command line or a notebook names.

    Args:
        sources: nothing or "coco" for the shipped table; "testbed"; or files, whose objects are united: COCO instances,
            COCO captions, the layout of the shipped table, or ``{image_id: [categories]}``.
        scorer: reads COCO captions; the one that scores is the one to use here.

    Raises:
        ValueError: a file of another layout, or with unknown categories.
        OSError: a file cannot be read.

    >>> 310196 in load_ground_truth(["coco"])
    True
    """
    names = [str(source) for source in sources] or [SHIPPED]
    if names == [SHIPPED]:
        return ground_truth_coco()
    if names == [TESTBED]:
        return ground_truth_testbed()
    if TESTBED in names:
        raise ValueError(f"ground truth {some(names)}: the testbed's is complete; expected it alone; leave the others out")
    truth: dict[Hashable, set[str]] = {}
    for name in names:
        for given, objects in (ground_truth_coco() if name == SHIPPED else _objects(name, scorer)).items():
            number = image_number(given) if isinstance(given, str) else None
            image = given if number is None else number
            truth[image] = truth.get(image, set()) | objects
    return truth


def ground_truth_from_coco(
    instances: Mapping | str | Path,
    captions: Mapping | str | Path | None = None,
    scorer: str | ChairScorer = "fixed",
) -> dict[int, set[str]]:
    """Read which objects each image holds: its COCO instances, united with the objects its captions name.

    Annotators of instances miss objects that the captions name, so the official scripts unite both. Give no captions
    to take the instances alone, as for scenes whose instances are complete.

    Args:
        instances: COCO instances file, or its parsed content (images, annotations, categories).
        captions: COCO captions file, or its parsed content (annotations), or None.
        scorer: reads the captions; the one that scores is the one to use here.

    Raises:
        ValueError: a file holds no JSON, a part of the COCO layout is missing, or a category is none of the 80.
        OSError: a file cannot be read.

    >>> coco = {"images": [{"id": 7}], "categories": [{"id": 18, "name": "dog"}],
    ...         "annotations": [{"image_id": 7, "category_id": 18}]}
    >>> ground_truth_from_coco(coco)
    {7: {'dog'}}
    """
    scorer = load_scorer(scorer) if isinstance(scorer, str) else scorer
    content = _coco(instances, "instances", ("images", "annotations", "categories"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    if unknown := set(names.values()) - set(scorer.nodes.values()):
        raise ValueError(f"unknown categories {some(sorted(unknown))}; expected COCO category names; rename these categories")
    truth: dict[int, set[str]] = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["category_id"] not in names:
            raise ValueError(
                f"an annotation of image {annotation['image_id']} has category_id {annotation['category_id']!r}; "
                "expected an id listed under 'categories'; complete that list"
            )
        truth.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
    if captions is not None:
        for annotation in _coco(captions, "captions", ("annotations",))["annotations"]:
            named = {mention.node for mention in scorer.mentions(annotation["caption"])}
            truth.setdefault(annotation["image_id"], set()).update(named)
    return truth


def _objects(name: str, scorer: str | ChairScorer) -> Mapping[Hashable, set[str]]:
    """Return what one file says, whichever of the layouts it has."""
    records, problems = read_records(name)
    if problems or len(records) != 1:
        raise ValueError(
            f"{name}: {'; '.join(problems) or f'{len(records)} objects'}; expected one JSON object; give another file"
        )
    try:
        return _by_layout(name, records[0].value, scorer)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{name}: is not laid out as expected ({type(error).__name__}: {error}); expected one of COCO instances, COCO "
            "captions, the shipped table, {image_id: [categories]}; give another file"
        ) from error


def _by_layout(name: str, content: Mapping, scorer: str | ChairScorer) -> Mapping[Hashable, set[str]]:
    if "nodes" in content and "images" in content:
        return dict(_Lazy(content["images"], content["nodes"]))  # all at once, so that what is wrong with it shows here
    if "annotations" in content:
        nothing = {"images": content.get("images", []), "categories": [], "annotations": []}
        pair = (content, None) if "categories" in content else (nothing, content)
        found = ground_truth_from_coco(*pair, scorer)
        named = {image["file_name"]: found[image["id"]] for image in content.get("images", ()) if "file_name" in image}
        return found | named | {PurePosixPath(name).stem: objects for name, objects in named.items()}
    if content and all(isinstance(objects, list) for objects in content.values()):
        return {image: set(objects) for image, objects in content.items()}
    raise ValueError(
        f"{name}: this layout is none of COCO instances, COCO captions, the shipped table, {{image_id: [categories]}}; "
        "expected one of these, or one of the words coco and testbed; give another file"
    )


def _coco(source: Mapping | str | Path, what: str, keys: tuple[str, ...]) -> Mapping:
    try:
        content = source if isinstance(source, Mapping) else json.loads(Path(source).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} holds no JSON ({error}); expected a COCO {what} file; get it again") from error
    if absent := [key for key in keys if key not in content]:
        raise ValueError(f"the COCO {what} lack {absent}; expected the keys {list(keys)}; give the {what} annotation file")
    return content
