"""The ground truth of CHAIR: which objects each image holds, from COCO's two tables, the user's files or the testbed.

COCO has two ground truths in use, because the scripts unite the instances of an image with the objects that its five captions
name, and the two official scorers find different objects in captions. ``pattern`` (393,178 objects in 123,287 images) was
built by the `pattern` scorer's code and ships with the package; ``wordnet`` (394,680 objects) by the `wordnet` scorer's, and
differs in 1,741 images. Public ``chair.pkl`` files hold exactly one of the two: Maxlinn/CHAIR-metric-standalone the first,
repositories that started from OPERA's or DeCo's the second (such as Areebol/vlm-decoding-hal).
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec

from prunehal.benchmarks.chair.captions import image_number
from prunehal.benchmarks.chair.coco_files import Table, ground_truth_from_coco, objects_of_file
from prunehal.benchmarks.chair.mentions import ChairScorer
from prunehal.files.reading import convert, read_json, reading
from prunehal.files.records import read_shipped, some

__all__ = [
    "BENCHMARKS",
    "PATTERN",
    "TESTBED",
    "WORDNET",
    "ground_truth_coco",
    "ground_truth_from_coco",
    "ground_truth_testbed",
    "load_ground_truth",
    "truth_of_scorer",
]

PATTERN, WORDNET, TESTBED = "pattern", "wordnet", "testbed"
BENCHMARKS = "PRUNEHAL_BENCHMARKS"  # the environment variable that names the folder of the benchmarks' own files
_DIFFERENCE = Path("chair", "chair_gt_wordnet_diff.json.gz")  # in that folder
_WAYS_ON = (
    "Fix: name such a folder, or pass --ground-truth pattern (1,741 of 123,287 images differ), or build this truth from COCO's "
    "own files: --scorer wordnet --ground-truth instances_val2014.json --ground-truth captions_val2014.json."
)


class _Lazy(Mapping[Hashable, set[str]]):
    """Look the objects of an image up when they are asked for: the table holds 123,287 images."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __getitem__(self, image: Hashable) -> set[str]:
        if isinstance(image, bool) or not isinstance(image, int):
            raise KeyError(image)
        return {self._table.nodes[place] for place in self._table.images[str(image)]}

    def __iter__(self) -> Iterator[int]:
        return map(int, self._table.images)

    def __len__(self) -> int:
        return len(self._table.images)


class _Scenes(Mapping[Hashable, set[str]]):
    """Render nothing and know all: the objects of a scene of the testbed follow from its image_id."""

    def __getitem__(self, image: Hashable) -> set[str]:
        from prunehal.testbed.world.final import is_kept_back
        from prunehal.testbed.world.scenes import scene_of

        try:
            known = scene_of(image)
        except ValueError as error:
            raise KeyError(image) from error
        if is_kept_back(known.image_id):
            raise KeyError(image)
        return set(known.names)

    def __iter__(self) -> Iterator[int]:
        return iter(())  # without end: asked for one by one

    def __len__(self) -> int:
        return 0


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    add: list[str]
    drop: list[str]


def truth_of_scorer(scorer: str | ChairScorer) -> str:
    """Return the name of COCO's ground truth that a scorer has by default, the one that its own code built.

    `fixed`, and scorers of the user's own, have the shipped one.

    >>> truth_of_scorer("wordnet"), truth_of_scorer("pattern"), truth_of_scorer("fixed")
    ('wordnet', 'pattern', 'pattern')
    """
    name = scorer if isinstance(scorer, str) else scorer.name
    return WORDNET if name == "wordnet" else PATTERN


def ground_truth_coco(name: str = PATTERN) -> Mapping[Hashable, set[str]]:
    """Return a ground truth of all COCO train2014 and val2014 images, by image id.

    Args:
        name: ``"pattern"``, the shipped table, or ``"wordnet"``, which is that table changed in 1,741 images by
            ``chair/chair_gt_wordnet_diff.json.gz`` of the folder that the environment variable PRUNEHAL_BENCHMARKS names.

    Raises:
        ValueError: no truth has this name.
        BadInput: the file of changes is damaged, or does not belong to the shipped table.
        FileNotFoundError: ``"wordnet"``, and the variable is not set, or its folder lacks the file.

    >>> sorted(ground_truth_coco()[310196])
    ['person', 'skis', 'snowboard']
    """
    if name not in (PATTERN, WORDNET):
        raise ValueError(
            f"ground truth {name!r}: COCO has two ground truths of CHAIR; expected 'pattern' (the shipped one) or 'wordnet'. "
            "Fix: pass one of these names."
        )
    return _Lazy(_shipped() if name == PATTERN else _changed(_difference()))


def ground_truth_testbed() -> Mapping[Hashable, set[str]]:
    """Return the objects of the testbed's scenes, by their image_id; none of scenes of the final split that are kept back.

    >>> from prunehal.testbed.world.scenes import scene
    >>> ground_truth_testbed()[scene("test", 3).image_id] == set(scene("test", 3).names)
    True
    """
    return _Scenes()


def load_ground_truth(sources: Sequence[str | Path] = (), scorer: str | ChairScorer = "fixed") -> Mapping[Hashable, set[str]]:
    """Load the ground truth that a command line or a notebook names.

    Args:
        sources: ``"pattern"`` or ``"wordnet"`` for COCO's (nothing: the one of the scorer, see `truth_of_scorer`); ``"testbed"``;
            or files, whose objects are united: COCO instances, COCO captions, the layout of the shipped table, or
            ``{image_id: [categories]}``. One of COCO's truths may stand among the files.
        scorer: the one that scores; it also reads COCO captions.

    Raises:
        ValueError: a file of another layout, or with unknown categories; names that do not go together; ``"coco"``, which
            could be either.
        OSError: a file cannot be read, or is not there.

    >>> 310196 in load_ground_truth(["pattern"])
    True
    """
    names = [str(source) for source in sources] or [truth_of_scorer(scorer)]
    if "coco" in names:
        ground_truth_coco("coco")
    if names == [TESTBED]:
        return ground_truth_testbed()
    if TESTBED in names:
        raise ValueError(f"ground truth {some(names)}: the testbed's is complete; expected it alone. Fix: leave the others out.")
    if {PATTERN, WORDNET} <= set(names):
        raise ValueError(
            f"ground truth {some(names)}: pattern and wordnet are two truths of the same images; expected one of them. "
            "Fix: leave one out."
        )
    if len(names) == 1 and names[0] in (PATTERN, WORDNET):
        return ground_truth_coco(names[0])
    truth: dict[Hashable, set[str]] = {}
    for name in names:
        objects_of = ground_truth_coco(name) if name in (PATTERN, WORDNET) else objects_of_file(name, scorer)
        for given, objects in objects_of.items():
            number = image_number(given) if isinstance(given, str) else None
            image = given if number is None else number
            truth[image] = truth.get(image, set()) | objects
    return truth


@cache
def _shipped() -> Table:
    return convert(read_shipped("chair", "chair_gt_coco_trainval2014.json.gz"), Table)


def _difference() -> Path:
    """Return the file of the images in which the wordnet truth differs."""
    folder = os.environ.get(BENCHMARKS)
    if not folder:
        raise FileNotFoundError(
            f"the wordnet ground truth needs the file {_DIFFERENCE.name}, and {BENCHMARKS} is not set; expected that variable to "
            f"name a folder with the file {_DIFFERENCE}. {_WAYS_ON}"
        )
    path = Path(folder) / _DIFFERENCE
    if not path.is_file():
        raise FileNotFoundError(
            f"the wordnet ground truth needs the file {path}, which does not exist; expected {BENCHMARKS} (now {folder!r}) to "
            f"name a folder with the file {_DIFFERENCE}. {_WAYS_ON}"
        )
    return path


@cache
def _changed(path: Path) -> Table:
    """Return the shipped table with the changes of a file, ``{image id: {"add": [...], "drop": [...]}}``."""
    table = _shipped()
    number = {node: place for place, node in enumerate(table.nodes)}
    images = dict(table.images)
    with reading(path):
        for image, change in convert(read_json(path), dict[str, _Change]).items():
            before = {table.nodes[place] for place in images.get(image, ())}
            add, drop = set(change.add), set(change.drop)
            if image not in images or add & before or not drop <= before or not add <= number.keys():
                raise ValueError(
                    f"image {image}: add {change.add} and drop {change.drop}; expected changes of the shipped table, in which it "
                    f"holds {sorted(before)}. {_WAYS_ON}"
                )
            images[image] = sorted(number[node] for node in before - drop | add)
    return Table(table.nodes, images)
