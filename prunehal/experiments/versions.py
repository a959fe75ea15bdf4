"""Say what made rows: the code, the weights, the images; rows that something else made are refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig

import prunehal
from prunehal.experiments.experiment import Experiment
from prunehal.experiments.images import pictures_version
from prunehal.experiments.own_policies import source_mark
from prunehal.models.load import weights_mark

__all__ = ["CODE", "MadeBy", "made_by", "made_by_each", "refuse_other_versions", "refuse_other_worker"]

# Raise this number with every change of the code after which a row comes out otherwise than before (tests/golden_rows.json).
CODE = 1

MadeBy = Mapping[str, str | int | None]

_MUST_AGREE = ("code", "weights", "pictures", "policy")


def made_by(experiment: Experiment) -> dict[str, str | int | None]:
    """Return what makes the rows of an experiment now.

    The weights of a hub name are marked by their commit; None where neither the hub nor a local copy tells it. A policy that is
    not the package's has a mark of its source.

    Raises:
        OSError: the model is neither a folder that is there nor a hub name.

    >>> sorted(made_by(Experiment()))
    ['code', 'pictures', 'prunehal', 'torch', 'transformers', 'weights']
    """
    return made_by_each([experiment])[experiment.key]


def made_by_each(experiments: Sequence[Experiment]) -> dict[str, dict[str, str | int | None]]:
    """Return key -> :func:`made_by` of experiments of one model and the same images, which are read once for all.

    >>> list(made_by_each([Experiment()]).values()) == [made_by(Experiment())]
    True
    """
    first = experiments[0]
    shared = {
        "code": CODE,
        "weights": weights_mark(first.model) or _hub_mark(first.model, first.revision),
        "pictures": _pictures(first.images, first.split, first.questions, first.tiles, first.clutter),
        "prunehal": prunehal.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    marks = {each.key: source_mark(type(each.policy)) for each in experiments}
    return {key: shared | ({} if mark is None else {"policy": mark}) for key, mark in marks.items()}


def refuse_other_versions(path: Path, before: MadeBy, now: MadeBy) -> None:
    """Raise a ValueError that names what differs; other versions of torch and transformers are only recorded.

    What is None now cannot be known here, and is not compared.

    >>> refuse_other_versions(Path("a.jsonl"), {"code": 1, "weights": "a"}, {"code": 2, "weights": "a"})
    Traceback (most recent call last):
    ValueError: a.jsonl: holds rows of other code: it was 1, is now 2; expected rows made alike; remove the file, and sweep again
    """
    if differing := _differing(before, now):
        what = "; ".join(f"it was {before.get(name)}, is now {now[name]}" for name in differing)
        raise ValueError(
            f"{path}: holds rows of other {' and '.join(differing)}: {what}; expected rows made alike; remove the file, and "
            "sweep again"
        )


def refuse_other_worker(experiment: Experiment, theirs: MadeBy) -> None:
    """Raise a ValueError that names what a worker has otherwise than this process.

    Args:
        experiment: whose rows the worker made.
        theirs: what :func:`made_by` returned on the worker.

    >>> refuse_other_worker(Experiment(), made_by(Experiment()) | {"code": 0})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: validation_nopruning: a worker has other code: 0 there, ... here; expected the same; ...
    """
    here = made_by(experiment)
    if differing := _differing(theirs, here):
        what = "; ".join(f"{theirs.get(name)} there, {here[name]} here" for name in differing)
        raise ValueError(
            f"{experiment.name}: a worker has other {' and '.join(differing)}: {what}; expected the same; nothing of it was "
            "stored; start the workers with the package, weights and images of this process"
        )


def _differing(before: MadeBy, now: MadeBy) -> list[str]:
    return [name for name in _MUST_AGREE if now.get(name) is not None and before.get(name) != now[name]]


@cache
def _hub_mark(name: str, revision: str | None) -> str | None:
    """Return ``"name at commit"``; the commit is that of the configuration, here or on the hub."""
    if not re.fullmatch(r"[\w\-][\w\-.]*/[\w\-.]+", name):
        raise OSError(
            f"model {name!r} is no folder here and no hub name; expected 'embedded', a folder written by save_pretrained, or a "
            "hub name of the form 'owner/name'; check the spelling and the working directory"
        )
    if re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        return f"{name} at {revision}"
    try:
        commit = PreTrainedConfig.get_config_dict(name, revision=revision)[0].get("_commit_hash")
    except (OSError, ValueError):  # no network and no copy here; a worker may have it
        return None
    return commit and f"{name} at {commit}"


@cache
def _pictures(images: str, split: str, questions: str | None, tiles: int, clutter: bool) -> str:
    return pictures_version(Experiment(images=images, split=split, questions=questions, tiles=tiles, clutter=clutter))
