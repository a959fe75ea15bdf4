"""The scores of several settings on one split, and whether that split is one to choose on."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from prunehal.benchmarks.chair.score import ChairResult
from prunehal.files.records import some
from prunehal.testbed.world.final import FINAL, is_final

__all__ = ["Graded"]

# Words that end like "test" and say nothing about a split; any other name with "test" in it counts as one, and any with "final":
# a test split that is not noticed does harm in silence, a refusal does not.
_NO_TEST = re.compile(r"(?<![A-Za-z])(?i:la|con|fas|grea|shor|ligh|brigh|smar)test(?![A-Za-z])")


@dataclass(frozen=True, eq=False)
class Graded:
    """The scores of several settings on the images of one split.

    Attributes:
        split: name of the split, such as "validation".
        results: setting -> its scores; settings are anything hashable, and all are scored on the same images.

    Raises:
        ValueError: no name, no results, or settings scored on different images.

    >>> from prunehal.benchmarks import score
    >>> truth = {1: {"dog"}, 2: {"cat"}}
    >>> graded = Graded("validation", {0.4: score({1: "A dog.", 2: "A cat."}, truth)})
    >>> graded.is_test, sorted(graded.images)
    (False, [1, 2])
    """

    split: str
    results: Mapping[Hashable, ChairResult]

    def __post_init__(self) -> None:
        if not (isinstance(self.split, str) and self.split.strip()):
            raise ValueError(f"split is {self.split!r}, expected the name of a split, such as 'validation'")
        if not self.results:
            raise ValueError(f"the {self.split} split has no results; expected setting -> ChairResult; score some settings")
        object.__setattr__(self, "results", MappingProxyType(dict(self.results)))  # what was graded does not change later
        for setting, result in self.results.items():
            if odd := self.images ^ set(result.items["image_id"]):
                first = next(iter(self.results))
                raise ValueError(
                    f"{setting!r} and {first!r} were scored on different images of the {self.split} split, {len(odd)} such as "
                    f"{some(odd)}; expected the same images for all settings; score those that all have"
                )

    @property
    def images(self) -> frozenset[Hashable]:
        """The image_ids of the split."""
        return frozenset(next(iter(self.results.values())).items["image_id"])

    @property
    def is_test(self) -> bool:
        """Whether nothing may be chosen on the split: it is a test split or a final one.

        Its name holds "test", in any case and place, but for words such as latest and contest, or "final"; or, whatever it is
        called, scenes of the testbed's final split are among its images.
        """
        name = _NO_TEST.sub("", self.split).lower()
        return "test" in name or FINAL in name or self.n_final > 0

    @property
    def n_final(self) -> int:
        """How many of the images are scenes of the testbed's final split."""
        return sum(map(is_final, self.images))
