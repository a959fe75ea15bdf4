"""POPE's questions for rendered scenes: half about objects that are there, half about absent ones, chosen in three ways.

Source of the rules: Li et al. 2023, arXiv 2305.10355. For each image three objects that are there, and as many that are not:
``random`` ones; the most frequent ones of the data set (``popular``); or, for each object asked about, the one that most often
stands beside it (``adversarial``). Frequencies are counted over scenes of the same split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from prunehal.benchmarks.pope import KINDS, Question
from prunehal.testbed.questions import is_there
from prunehal.testbed.scenes import Scene, image_ids, scene, scene_of
from prunehal.testbed.world import NAMES

__all__ = ["PAIRS", "polling_questions"]

PAIRS = 3  # questions of each answer for one image
_COUNTED = 2000  # scenes over which objects are counted


def polling_questions(split: str, n_images: int, kind: str) -> list[Question]:
    """Return the questions about the first scenes that show at least three objects, "yes" and "no" in turn.

    Args:
        split: of the testbed.
        n_images: scenes to look at; those with fewer objects are left out, as POPE does.
        kind: how absent objects are chosen: random, popular or adversarial.

    Raises:
        ValueError: another kind or split.

    >>> [(asked.text, asked.label) for asked in polling_questions("test", 1, "popular")][-1][1]
    'no'
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(map(repr, KINDS))}")
    found: list[Question] = []
    for each in map(scene_of, image_ids(split, n_images)):
        if len(each.names) < PAIRS:
            continue
        for present, absent in _pairs(each, kind):
            for name, label in ((present, "yes"), (absent, "no")):
                found.append(Question(len(found) + 1, str(each.image_id), is_there(name), label))
    return found


def _pairs(of: Scene, kind: str) -> Iterator[tuple[str, str]]:
    rng = np.random.default_rng([of.image_id, 9])  # the same objects that are there for all kinds
    present = [str(name) for name in rng.permutation(sorted(of.names))[:PAIRS]]
    asked: set[str] = set()
    for name in present:
        if kind == "random":
            order: Iterable[str] = map(str, rng.permutation(NAMES))
        elif kind == "popular":
            order = _by_frequency(of.split)
        else:
            order = _beside(of.split, name)
        absent = next(other for other in order if other not in of.names and other not in asked)
        asked.add(absent)
        yield name, absent


@lru_cache
def _by_frequency(split: str) -> tuple[str, ...]:
    """Return all objects, the most frequent first; equals in the order of NAMES."""
    counts = Counter(name for index in range(_COUNTED) for name in scene(split, index).names)
    return tuple(sorted(NAMES, key=lambda name: -counts[name]))


@lru_cache
def _beside(split: str, name: str) -> tuple[str, ...]:
    """Return all other objects, those first that most often stand in a scene with this one."""
    shown = [scene(split, index).names for index in range(_COUNTED)]
    counts = Counter(other for names in shown if name in names for other in names)
    return tuple(sorted((other for other in NAMES if other != name), key=lambda other: -counts[other]))
