"""Stored rows: captions of one split under one setting, made once by a command and read by the notebooks.

Each setting has a file of its own, written whole or not at all, so that an interrupted run goes on with the next setting.
Rows name the weights that made them; rows of other weights are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path

import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.benchmarks.chair import score
from prunehal.captioning import caption_scenes, mention_attention
from prunehal.core import NoPruning, Policy, PruneHal
from prunehal.loading import load
from prunehal.resources import data_path, written
from prunehal.testbed.scenes import scene

__all__ = ["N_STORED", "N_TRACED", "Setting", "grid", "ground_truth", "make_mentions", "make_rows", "read_rows", "weights_id"]

N_STORED = 400  # images of a stored setting
N_TRACED = 1000  # images whose mentions are stored with their attention
RATIOS = (0.4, 0.7, 0.9)
PRUNES = (1, 2, 3)


@dataclass(frozen=True)
class Setting:
    """One condition: a policy on one split, perhaps among k background tiles.

    >>> Setting("test", PruneHal(r=0.7, t=2)).name
    'prunehal_r0.7_t2'
    """

    split: str
    policy: Policy = field(default_factory=NoPruning)
    k: int = 0
    clutter: bool = False

    @property
    def name(self) -> str:
        """A file name that says all that differs from the defaults."""
        given = [f for f in fields(self.policy) if f.init and (f.name in ("r", "t", "k"))]
        parts = [type(self.policy).__name__.lower(), *(f"{f.name}{getattr(self.policy, f.name)}" for f in given)]
        others = [f for f in fields(self.policy) if f.init and f not in given]
        parts += [f"{f.name}-{getattr(self.policy, f.name)}" for f in others if getattr(self.policy, f.name) != f.default]
        parts += [f"tiles{self.k}{'cluttered' if self.clutter else 'clean'}"] if self.k else []
        return re.sub(r"[^\w.\-]", "", "_".join(parts))


def grid(split: str) -> list[Setting]:
    """Return the settings that the stored rows of a split hold; the controls and the redundant scenes on test only."""
    policies: list[Policy] = [NoPruning(), *(PruneHal(r, t) for r in RATIOS for t in PRUNES)]
    settings = [Setting(split, policy) for policy in policies]
    if split == "test":
        settings += [
            Setting(split, PruneHal(r, t, selection=s)) for s in ("random", "lowest") for r, t in ((0.4, 1), (0.4, 3), (0.7, 2))
        ]
        settings += [Setting(split, PruneHal(0.7, 2, factor=factor)) for factor in (0.25, 0.5, 0.95)]
        settings += [Setting(split, policy, 3) for policy in (NoPruning(), PruneHal(0.4, 3))]
    return settings


@cache
def weights_id() -> str:
    """Return the first 16 hex digits of the sha256 of the embedded model's weights."""
    return hashlib.sha256(data_path("embedded", "model.safetensors").read_bytes()).hexdigest()[:16]


def ground_truth(split: str, n_images: int = N_STORED) -> dict[int, set[str]]:
    """Return ``{image_id: names of the objects in the scene}`` for the first scenes of a split."""
    return {s.image_id: set(s.names) for s in (scene(split, i) for i in range(n_images))}


def read_rows(setting: Setting, folder: Path | None = None) -> pd.DataFrame:
    """Read the stored rows of a setting: image_id, caption, tokens, prunes.

    Args:
        setting: the condition.
        folder: where the rows are stored; the shipped ones if left out.

    Raises:
        FileNotFoundError: the setting was not stored; make its rows with ``make_rows``.
        ValueError: the rows were made by other weights than the embedded model now has.
    """
    return _read(_path(setting.split, setting.name, folder))


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise FileNotFoundError(f"no stored rows at {path}; make them with: python -m prunehal rows")
    rows = pd.read_csv(path, keep_default_na=False)  # "null" and "" are captions
    if (rows.pop("weights") != weights_id()).any():
        raise ValueError(
            f"{path} was made by other weights than the embedded model has ({weights_id()}); expected rows of this model; "
            "remove the file and run: python -m prunehal rows"
        )
    return rows


def make_rows(
    settings: Iterable[Setting],
    model: PreTrainedModel | None = None,
    processor: ProcessorMixin | None = None,
    *,
    n_images: int = N_STORED,
    folder: Path | None = None,
    progress: bool = False,
) -> dict[Setting, pd.DataFrame]:
    """Return the rows of each setting: stored ones are read (their first ``n_images``), missing ones made.

    Args:
        settings: the conditions.
        model, processor: the embedded model, loaded when first needed.
        n_images: images of each; only settings of all N_STORED images are stored.
        folder: where rows are stored; the shipped folder if left out.
        progress: show a bar over the settings.

    Raises:
        ValueError: n_images is not within 1..N_STORED, or stored rows belong to other weights.
    """
    if not 1 <= n_images <= N_STORED:
        raise ValueError(f"n_images={n_images}: expected a number of images in 1..{N_STORED}")
    rows = {}
    for setting in tqdm(list(settings), desc="settings", unit="setting", disable=not progress):
        try:
            rows[setting] = read_rows(setting, folder).head(n_images)
            continue
        except FileNotFoundError:
            pass
        if model is None or processor is None:
            model, processor = load()
        scenes = [scene(setting.split, i) for i in range(n_images)]
        done = caption_scenes(model, processor, scenes, setting.policy, k=setting.k, clutter=setting.clutter)
        rows[setting] = done.captions[["image_id", "caption", "tokens", "prunes"]]
        if n_images == N_STORED:
            _write(rows[setting].assign(weights=weights_id()), _path(setting.split, setting.name, folder))
    return rows


def make_mentions(
    split: str = "test", n_images: int = N_TRACED, *, folder: Path | None = None, progress: bool = False
) -> pd.DataFrame:
    """Return the visual attention at every object mention, without pruning: stored rows if there are, else made.

    Returns:
        The columns of :func:`prunehal.captioning.mention_attention` for the first ``n_images`` scenes of the split.

    Raises:
        ValueError: stored rows belong to other weights.
    """
    path = _path(split, "mentions", folder)
    truth = ground_truth(split, n_images)
    if path.exists():
        rows = _read(path)
        return rows[rows["image_id"].isin(truth)]
    model, processor = load()
    done = caption_scenes(model, processor, [scene(split, i) for i in range(n_images)], trace=True, progress=progress)
    rows = mention_attention(done, score(done.texts, truth)).round(6)
    if n_images == N_TRACED:
        _write(rows.assign(weights=weights_id()), path)
    return rows


def _path(split: str, name: str, folder: Path | None) -> Path:
    return (folder or data_path("results", must_exist=False)) / split / f"{name}.csv.gz"


def _write(rows: pd.DataFrame, path: Path) -> None:
    with written(path) as part:
        rows.to_csv(part, index=False, compression={"method": "gzip", "mtime": 0})
