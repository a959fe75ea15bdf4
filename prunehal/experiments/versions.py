"""Say what made rows: the code, the weights, the images; rows that something else made are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
import transformers

import prunehal
from prunehal.experiments.description import Experiment
from prunehal.experiments.pictures import pictures_version
from prunehal.loading import weights_mark

__all__ = ["CODE", "made_by", "refuse_other_versions"]

# Raise this number with every change of the code after which a row comes out otherwise than before.
CODE = 1

_MUST_AGREE = ("code", "weights", "pictures")


def made_by(experiment: Experiment) -> dict[str, str | int]:
    """Return what makes the rows of an experiment now.

    >>> sorted(made_by(Experiment()))
    ['code', 'pictures', 'prunehal', 'torch', 'transformers', 'weights']
    """
    return {
        "code": CODE,
        "weights": weights_mark(experiment.model) or f"{experiment.model} at {experiment.revision}",
        "pictures": _pictures(experiment.images, experiment.split, experiment.questions, experiment.tiles, experiment.clutter),
        "prunehal": prunehal.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


def refuse_other_versions(path: Path, before: Mapping[str, str | int], now: Mapping[str, str | int]) -> None:
    """Raise a ValueError that names what differs; other versions of torch and transformers are only recorded.

    >>> refuse_other_versions(Path("a.jsonl"), {"code": 1, "weights": "a"}, {"code": 2, "weights": "a"})
    Traceback (most recent call last):
    ValueError: a.jsonl: holds rows of other code: it was 1, is now 2; expected rows made alike; remove the file, and sweep again
    """
    differing = [name for name in _MUST_AGREE if before.get(name) != now.get(name)]
    if differing:
        what = "; ".join(f"it was {before.get(name)}, is now {now.get(name)}" for name in differing)
        raise ValueError(
            f"{path}: holds rows of other {' and '.join(differing)}: {what}; expected rows made alike; remove the file, and "
            "sweep again"
        )


@cache
def _pictures(images: str, split: str, questions: str | None, tiles: int, clutter: bool) -> str:
    return pictures_version(Experiment(images=images, split=split, questions=questions, tiles=tiles, clutter=clutter))
