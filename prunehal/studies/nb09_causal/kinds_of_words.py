"""Why a word may be hallucinated: its object looks like one that is there, or its scene suggests it.

The rule looks at the scene and at the word, never at attention or probabilities:

* look-alike: the object's sprite is as like that of some object of the scene as the likest twentieth of all pairs of different
  objects (`look_alike_from`; so a word is look-alike by chance with one chance in twenty for each object of the scene);
* prior-driven: the object is among those that usually stand in a scene of this type (`prunehal.testbed.world.world.SCENES`).

A word can be both, or neither.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pandas as pd

from prunehal.studies.nb09_causal.intervene import likeness
from prunehal.testbed.world.scenes import scene_of
from prunehal.testbed.world.world import COMPANIONS, NAMES

__all__ = ["KINDS", "count_kinds", "kinds_of", "look_alike_from"]

KINDS = ("prior-driven", "look-alike", "both", "neither")
_SHARE = 0.95  # of the pairs of different objects are less alike


@cache
def look_alike_from() -> float:
    """Return the likeness from which on two different objects count as look-alikes.

    >>> likeness("orange", "apple") > look_alike_from() > likeness("orange", "fork")
    True
    """
    return float(np.quantile([likeness(*pair) for pair in itertools.combinations(NAMES, 2)], _SHARE))


def kinds_of(mentions: pd.DataFrame) -> pd.DataFrame:
    """Return for each mention why its word may be hallucinated.

    Args:
        mentions: columns image_id (of the testbed), index and node; of each caption all first mentions.

    Returns:
        The index of the mentions; columns likeness (largest, to another object of the scene), usual (in a scene of this type),
        habit (an object that was named before usually has this one for company in texts) and kind (one of KINDS).

    >>> kinds_of(pd.DataFrame({"image_id": [300000000], "index": [0], "node": ["bed"]}))["usual"].tolist()
    [True]
    """
    lines = []
    for image_id, index, node in zip(mentions["image_id"], mentions["index"], mentions["node"], strict=True):
        scene = scene_of(image_id)
        others = [likeness(node, other) for other in scene.names if other != node]
        lines.append({"image_id": image_id, "index": index, "node": node, "usual": node in scene.type.objects})
        lines[-1]["likeness"] = max(others, default=-1.0)
    frame = pd.DataFrame(lines, index=mentions.index)
    company = frame["node"].map(lambda name: COMPANIONS.get(name, ("",))[0])
    named = {image_id: list(zip(part["index"], company[part.index], strict=True)) for image_id, part in frame.groupby("image_id")}
    frame["habit"] = [
        any(earlier < index and other == node for earlier, other in named[image_id])
        for image_id, index, node in zip(frame["image_id"], frame["index"], frame["node"], strict=True)
    ]
    alike, usual = frame["likeness"] >= look_alike_from(), frame["usual"]
    frame["kind"] = np.select([usual & ~alike, alike & ~usual, usual & alike], KINDS[:3], KINDS[3])
    return frame[["likeness", "usual", "habit", "kind"]]


def count_kinds(mentions: pd.DataFrame) -> pd.DataFrame:
    """Return how many hallucinated mentions are of each kind, and how many of them a habit of texts suggests besides.

    Args:
        mentions: columns hallucinated, kind and habit.

    Returns:
        One line for each kind: mentions, habit.

    >>> some = {"hallucinated": [True, True, False], "kind": ["neither", "both", "both"], "habit": [True, False, False]}
    >>> count_kinds(pd.DataFrame(some)).loc["neither"].tolist()
    [1, 1]
    """
    some = mentions[mentions["hallucinated"]]
    return pd.DataFrame({"mentions": some["kind"].value_counts(), "habit": some.groupby("kind")["habit"].sum()}).reindex(
        KINDS, fill_value=0
    ).fillna(0).astype(int)  # fmt: skip
