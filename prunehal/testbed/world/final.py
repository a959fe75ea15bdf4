"""The final split: fresh scenes that are given out once, by ranges of their index, each range for one purpose.

Scenes that are used for many comparisons make claims seem surer than they are. Those of the final split are read once, for
claims that were written down before. An experiment reads a range by the name of its purpose, ``split="final-worlds"``. The
final split as a whole cannot be read, and scenes without a purpose are kept back.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from numbers import Integral

__all__ = [
    "FINAL",
    "FINAL_SPLITS",
    "RANGES",
    "Range",
    "final_indices",
    "is_final",
    "is_kept_back",
    "purpose_of",
    "refuse_other_ranges",
]

FINAL = "final"  # the split of `prunehal.testbed.world.scenes.scene`
_FIRST_ID = 400_000_000  # image_id of the final split's scene 0
_N_IDS = 100_000_000  # image ids that belong to the final split


@dataclass(frozen=True)
class Range:
    """Scenes of the final split that serve one purpose.

    Attributes:
        first, end: indices of the scenes, from ``first`` to before ``end``.
        serves: the claims that may be reported on them.
    """

    first: int
    end: int
    serves: str

    def __len__(self) -> int:
        return self.end - self.first


# Purpose -> its range. A range that has been read is not given a second purpose; a new purpose takes scenes from 8,000 on, which
# are kept back, and is written into LOG.md before it is read.
RANGES = {
    "worlds": Range(0, 4_000, "the comparison of worlds and models"),
    "selections": Range(4_000, 8_000, "selections of visual tokens that may help"),
}
FINAL_SPLITS = tuple(f"{FINAL}-{purpose}" for purpose in RANGES)  # what an experiment names


def final_indices(purpose: str, count: int) -> range:
    """Return the indices of the first ``count`` scenes of a purpose's range.

    Args:
        purpose: a key of RANGES.
        count: number of scenes.

    Raises:
        ValueError: no such purpose, or more scenes than its range holds.

    >>> final_indices("selections", 3)
    range(4000, 4003)
    >>> final_indices("worlds", 4001)
    Traceback (most recent call last):
    ValueError: n_images=4001: expected 1 to 4,000, the scenes that the final split has for 'worlds'; give a smaller number
    """
    if purpose not in RANGES:
        raise ValueError(f"purpose={purpose!r}: {_expected()}")
    given = RANGES[purpose]
    if not 1 <= count <= len(given):
        raise ValueError(
            f"n_images={count}: expected 1 to {len(given):,}, the scenes that the final split has for {purpose!r}; give a "
            "smaller number"
        )
    return range(given.first, given.first + count)


def purpose_of(split: str) -> str | None:
    """Return the purpose in the name of a split, a key of RANGES; None for a split that is not final.

    Raises:
        ValueError: the name is that of the final split without a purpose, or with one that RANGES lacks.

    >>> purpose_of("final-worlds"), purpose_of("test")
    ('worlds', None)
    """
    name, _, purpose = split.partition("-")
    if name != FINAL:
        return None
    if purpose not in RANGES:
        raise ValueError(f"split={split!r}: {_expected()}")
    return purpose


def refuse_other_ranges(split: str, image_ids: Iterable[Hashable]) -> None:
    """Raise a ValueError if scenes of the final split are among those of an experiment that does not have their purpose.

    Args:
        split: of the experiment; its purpose, if it is final.
        image_ids: of the scenes that are read or stored for it.

    >>> refuse_other_ranges("final-worlds", [400_000_000, 400_003_999])
    >>> refuse_other_ranges("final-worlds", [400_004_000])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: split='final-worlds': image id 400004000 is scene 4000 of the final split, ...
    """
    purpose = purpose_of(split)
    given = None if purpose is None else RANGES[purpose]
    for image_id in image_ids:
        if not isinstance(image_id, Integral) or (given is None and not is_final(image_id)):
            continue
        if given is None or not given.first <= image_id - _FIRST_ID < given.end:
            raise ValueError(f"split={split!r}: image id {image_id} is {_scene(image_id)}; expected {_ids(given)}")


def is_final(image_id: Hashable) -> bool:
    """Return whether this is the image id of a scene of the final split.

    >>> is_final(400_000_000), is_final(300_000_000), is_final("400000000")
    (True, False, False)
    """
    return isinstance(image_id, Integral) and 0 <= image_id - _FIRST_ID < _N_IDS


def is_kept_back(image_id: Hashable) -> bool:
    """Return whether this is a scene of the final split that has been given to no purpose.

    >>> is_kept_back(400_008_000), is_kept_back(400_000_000), is_kept_back(300_008_000)
    (True, False, False)
    """
    return is_final(image_id) and _owner(image_id) is None


def _owner(image_id: int) -> str | None:
    index = image_id - _FIRST_ID
    return next((purpose for purpose, given in RANGES.items() if given.first <= index < given.end), None)


def _scene(image_id: int) -> str:
    if not is_final(image_id):
        return "no scene of the final split"
    owner = _owner(image_id)
    whose = "which is kept back" if owner is None else f"which is given to {owner!r}, {RANGES[owner].serves}"
    return f"scene {image_id - _FIRST_ID} of the final split, {whose}"


def _ids(given: Range | None) -> str:
    if given is None:
        return f"scenes of that split; name the purpose of final ones by split: {', '.join(map(repr, FINAL_SPLITS))}"
    return f"ids {_FIRST_ID + given.first} to {_FIRST_ID + given.end - 1}, the scenes for {given.serves}"


def _expected() -> str:
    kinds = " or ".join(f"split={name!r} ({given.serves})" for name, given in zip(FINAL_SPLITS, RANGES.values(), strict=True))
    return f"scenes of the final split are given out once, each range for one purpose; expected {kinds}; name the purpose"
