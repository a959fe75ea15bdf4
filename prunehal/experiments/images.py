"""The images of an experiment: scenes of the testbed or files of a folder, with their truth and a mark of what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from PIL import Image

from prunehal.benchmarks import ground_truth_coco, ground_truth_testbed
from prunehal.benchmarks.chair.images import distinct_items, images_of, items_in
from prunehal.benchmarks.chair.truth import PATTERN
from prunehal.experiments.experiment import TESTBED, Experiment
from prunehal.files.images import load_image
from prunehal.files.records import some
from prunehal.testbed.world.final import refuse_other_ranges
from prunehal.testbed.world.scenes import image_ids, scene_of

__all__ = ["image_keys", "pictures", "pictures_version", "truth"]

_ENDS = 2**16  # bytes that are read at each end of a file


def image_keys(experiment: Experiment) -> list[int | str]:
    """Return the image ids of an experiment, the first ``n_images``, in their order.

    Raises:
        ValueError: the folder has fewer, or cannot be used.

    >>> image_keys(Experiment(split="test", n_images=2))
    [300000000, 300000001]
    """
    if experiment.images == TESTBED:
        return image_ids(experiment.split, experiment.n_images)
    keys = list(_files(experiment.images, experiment.questions))
    if len(keys) < experiment.n_images:
        raise ValueError(
            f"n_images={experiment.n_images}: {experiment.questions or experiment.images} has {len(keys)} images; expected as "
            "many or more; give a smaller n_images"
        )
    return keys[: experiment.n_images]


def pictures(experiment: Experiment, keys: Sequence[int | str]) -> list[list[Image.Image]]:
    """Return the pictures that the model sees for each image id: one, or a scene among its background tiles.

    Raises:
        ValueError: a scene of the final split whose purpose is not the experiment's.

    >>> [len(row) for row in pictures(Experiment(split="test", tiles=3), [300000000])]
    [4]
    """
    if experiment.images == TESTBED:
        refuse_other_ranges(experiment.split, keys)
        if experiment.positions_only:
            return [[scene_of(key).image()] for key in keys]
        return [scene_of(key).tiles(experiment.tiles, experiment.clutter)[0] for key in keys]
    files = _files(experiment.images, experiment.questions)
    return [[load_image(files[key])] for key in keys]


def truth(experiment: Experiment, keys: Sequence[int | str] | None = None, coco: str = PATTERN) -> dict[Hashable, set[str]]:
    """Return ``{image id: COCO names of what it shows}``; of all images of the experiment if no keys are given.

    Args:
        experiment: names the images: the testbed's, or a folder.
        keys: image ids.
        coco: which of COCO's two ground truths a folder's images have; see `prunehal.benchmarks.ground_truth_coco`.

    Raises:
        ValueError: COCO says nothing about an image of the folder; a scene of the final split whose purpose is not the
            experiment's.
        FileNotFoundError: the wordnet truth is not at hand.

    >>> sorted(truth(Experiment(split="test", n_images=1))[300000000])[0]
    'bed'
    """
    keys = image_keys(experiment) if keys is None else list(keys)
    if experiment.images == TESTBED:
        refuse_other_ranges(experiment.split, keys)
        known = ground_truth_testbed()
        return {key: set(known[key]) for key in keys}
    known = ground_truth_coco(coco)
    if unknown := [key for key in keys if key not in known]:
        raise ValueError(
            f"images={experiment.images!r}: COCO's truth lacks {len(unknown)} of the images, {some(unknown)}; expected images of "
            "COCO train2014 or val2014; name others by questions"
        )
    return {key: set(known[key]) for key in keys}


def pictures_version(experiment: Experiment) -> str:
    """Return a mark of what the images and their truth are: it tells a changed world from the one of old rows.

    Of the testbed it is from the pixels of the first scene, for all scenes come from the same code. Of a folder it is from all
    images, or all that ``questions`` names, however many are asked for: names, sizes, first and last 64 kB, and COCO's truth:
    the `pattern` one, by its name and by what it holds, because stored mentions are marked by it.
    A large folder is read once in a process; ``questions`` keep that short.

    Raises:
        OSError: an image cannot be read.
    """
    if experiment.images != TESTBED:
        return _folder_version(experiment.images, experiment.questions)
    first = image_keys(replace(experiment, n_images=1))
    mark = hashlib.sha256(repr(sorted(truth(experiment, first)[first[0]])).encode())
    for picture in pictures(experiment, first)[0]:
        mark.update(repr(picture.size).encode() + picture.tobytes())
    return mark.hexdigest()[:16]


def _folder_version(folder: str, questions: str | None) -> str:
    known, mark = ground_truth_coco(PATTERN), hashlib.sha256(f"ground truth {PATTERN}".encode())
    for key, path in _files(folder, questions).items():
        size = path.stat().st_size
        mark.update(repr((key, path.name, size, sorted(known.get(key, ())))).encode())
        with path.open("rb") as file:
            mark.update(file.read(_ENDS))
            if size > _ENDS:
                file.seek(max(_ENDS, size - _ENDS))
                mark.update(file.read())
    return mark.hexdigest()[:16]


@cache
def _files(folder: str, questions: str | None) -> dict[int | str, Path]:
    asked = distinct_items(items_in(Path(folder), questions), questions or folder)
    items, found = images_of(asked, Path(folder))
    return {item.key: found[item.image][0] for item in items}
