"""Store: the rows of experiments in a folder, one file for each, whose header holds what made the rows.

A file in work is JSON lines, ``<name>-<key>.jsonl``: first a header (the experiment and the versions that made its rows), then a
row for each image, appended batch by batch and synced to the disk. A process that is killed leaves whole rows and at most one
torn line, which the next one cuts off. When all images of a sweep are there the file is packed, whole or not at all, to
``.jsonl.gz``, which git can hold.

A row holds: key (image id), caption, tokens (the end token not counted), finished, visual (mean number of visual tokens in a
layer's cache, over layers and steps), events (step, reason, tokens kept), voted (the steps at which a majority of the layers
voted, whether or not a prune was still allowed), layers, mass (attention on visual tokens for each layer, mean of the steps)
and mentions (node, hallucinated, step, mass for each layer, entropy as the mean of the layers).
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from prunehal.benchmarks.chair.score import ChairResult, score
from prunehal.benchmarks.chair.truth import truth_of_scorer
from prunehal.core.observed import PRUNES
from prunehal.experiments.experiment import TESTBED, Experiment
from prunehal.experiments.images import image_keys, truth
from prunehal.experiments.stored_rows import HEADER, read_stored, sync_names
from prunehal.experiments.versions import MadeBy, made_by, refuse_other_versions
from prunehal.files.locking import locked
from prunehal.files.paths import data_path, written
from prunehal.files.records import some
from prunehal.files.rows import RowFile
from prunehal.testbed.world.final import refuse_other_ranges

__all__ = ["Store"]

_BELOW = 2.5e-5  # the middle of the masses that four decimals round to 0


class Store:
    """Read and write the rows of experiments in a folder.

    Attributes:
        folder: where the files are.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Store(folder).missing(Experiment(n_images=2))
    [200000000, 200000001]
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._held: dict[Path, _Held] | None = None  # while this process writes: what it has appended to

    @classmethod
    def shipped(cls) -> Store:
        """Return the store that ships with the package, which ``make rows`` fills.

        >>> len(Store.shipped().captions(Experiment(split="test", n_images=3)))
        3
        """
        return cls(data_path("results", must_exist=False))

    def path(self, experiment: Experiment) -> Path:
        """Return the packed file of an experiment; while in work it has no ``.gz``."""
        return self.folder / f"{experiment.name}-{experiment.key}.jsonl.gz"

    def rows(self, experiment: Experiment) -> dict[int | str, dict[str, Any]]:
        """Return ``{image id: row}`` of all images that are stored, perhaps more or fewer than the experiment asks for.

        Raises:
            ValueError: the rows were made by other weights, images or code, or are of scenes of the final split whose purpose is
                not the experiment's.
            BadInput: the file is broken.
        """
        found: dict[int | str, dict[str, Any]] = {}
        for path in self._files(experiment):
            rows = read_stored(path)
            header = rows.pop(HEADER, None)
            if header and "made_by" in header:
                refuse_other_versions(path, header["made_by"], made_by(experiment))
            elif header or rows:
                raise ValueError(f"{path}: does not say what made its rows; expected a header; remove the file")
            _refuse_other_ranges(path, experiment, rows)
            found |= rows
        return found

    def missing(self, experiment: Experiment) -> list[int | str]:
        """Return the image ids of the experiment that have no row yet."""
        rows = self.rows(experiment)
        return [key for key in image_keys(experiment) if key not in rows]

    def captions(self, experiment: Experiment) -> pd.DataFrame:
        """Return one line for each image of the experiment: image_id, caption, tokens, finished, visual, prunes.

        Raises:
            FileNotFoundError: rows are missing; make them by `prunehal.sweep`.
            ValueError: as in :meth:`rows`.
        """
        names = ("caption", "tokens", "finished", "visual")
        rows = [(row["key"], *(row[name] for name in names), len(_prunes(row))) for row in self._asked(experiment)]
        return pd.DataFrame(rows, columns=["image_id", *names, "prunes"])

    def events(self, experiment: Experiment) -> pd.DataFrame:
        """Return one line for each prune: image_id, number (1, 2, ...), step, reason, kept; raises as :meth:`captions`.

        Returns from a bank are left out; they stand among a row's events.
        """
        lines = [(row["key"], number, *prune) for row in self._asked(experiment) for number, prune in enumerate(_prunes(row), 1)]
        return pd.DataFrame(lines, columns=["image_id", "number", "step", "reason", "kept"])

    def votes(self, experiment: Experiment) -> pd.DataFrame:
        """Return one line for each step at which a majority voted: image_id, step, steps; raises as :meth:`captions`."""
        lines = [(row["key"], step, row["tokens"]) for row in self._asked(experiment) for step in row["voted"]]
        return pd.DataFrame(lines, columns=["image_id", "step", "steps"])

    def mentions(self, experiment: Experiment) -> pd.DataFrame:
        """Return one line for each mention and layer, as `prunehal.mention_attention` does; raises as :meth:`captions`.

        Rows hold masses of four decimals. Where that leaves 0 of the mean that a ratio is over, mean and mass count as 0.000025
        at least, the middle of what is rounded to 0: ratios are finite, and 1 where both are too small to be told apart.
        """
        lines = [
            (row["key"], index, node, hallucinated, step, row["tokens"], layer, mass, entropy, mean)
            for row in self._asked(experiment)
            for index, (node, hallucinated, step, masses, entropy) in enumerate(row["mentions"])
            for layer, mass, mean in zip(row["layers"], masses, row["mass"], strict=True)
        ]
        names = ["image_id", "index", "node", "hallucinated", "step", "steps", "layer", "mass", "entropy", "mean"]
        frame = pd.DataFrame(lines, columns=names)
        of_mentions = frame.groupby(["image_id", "layer"])["mass"].transform("mean")
        step_ratio = _ratio(frame["mass"], frame.pop("mean"))
        return frame.assign(step_ratio=step_ratio, mention_ratio=_ratio(frame["mass"], of_mentions))

    def score(self, experiment: Experiment, scorer: str = "fixed") -> ChairResult:
        """Return the CHAIR scores of the experiment's captions; raises as :meth:`captions`.

        Images of COCO are scored by the ground truth that belongs to the scorer.
        """
        captions = self.captions(experiment)
        return score(captions, truth(experiment, captions["image_id"].tolist(), truth_of_scorer(scorer)), scorer)

    # Writing.

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder as the one process that writes; raises BlockingIOError if another one does.

        Meanwhile a file is read once, however often rows are appended to it.
        """
        with locked(self.folder):
            self._held = {}
            try:
                yield
            finally:
                self._held = None

    def append(self, experiment: Experiment, rows: Sequence[Mapping[str, Any]], by: MadeBy | None = None) -> None:
        """Add rows, and wait until the disk has them.

        Args:
            experiment: whose rows.
            rows: of images that have none.
            by: what made them, as `prunehal.experiments.versions.made_by` says it on the worker; by default this process.

        Raises:
            ValueError: an image has a row already, rows that something else made are there, or a row is of a scene of the final
                split whose purpose is not the experiment's.
            OSError: there is no room; nothing is added.
        """
        by = made_by(experiment) if by is None else by
        held = self._holding(experiment)
        for path, before in held.made_by.items():
            refuse_other_versions(path, before, by)
        if doubled := [row["key"] for row in rows if row["key"] in held.keys]:
            raise ValueError(
                f"{self.path(experiment)}: has rows of {some(doubled)} already; expected new ones; read missing() first"
            )
        _refuse_other_ranges(self.path(experiment), experiment, [row["key"] for row in rows])
        header = {"key": HEADER, "experiment": experiment.description, "made_by": by}
        held.file.append([*([] if held.file.rows else [header]), *rows])
        held.made_by.setdefault(held.file.path, by)
        held.keys.update(row["key"] for row in rows)
        held.file.rows = {HEADER: header}  # whole rows of all experiments would fill the memory of a large sweep

    def _holding(self, experiment: Experiment) -> _Held:
        path = self._in_work(experiment)
        if self._held is not None and path in self._held:
            return self._held[path]
        keys = set(self.rows(experiment))
        file = RowFile(path)
        file.repair()  # only who writes may do that
        headers = {path: file.rows.get(HEADER), self.path(experiment): read_stored(self.path(experiment)).get(HEADER)}
        held = _Held(file, keys, {path: header["made_by"] for path, header in headers.items() if header})
        if self._held is not None:
            self._held[path] = held
        return held

    def pack(self, experiment: Experiment) -> None:
        """Pack the rows of an experiment into one compressed file, sorted by image, and remove the file in work."""
        in_work, packed = self._files(experiment)
        if not in_work.exists():
            return
        rows = read_stored(in_work) | read_stored(packed)
        header = rows.pop(HEADER)
        lines = [json.dumps(row, separators=(",", ":")) for row in (header, *sorted(rows.values(), key=lambda r: str(r["key"])))]
        with written(packed) as part, part.open("wb") as file:
            file.write(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
            file.flush()
            os.fsync(file.fileno())
        sync_names(self.folder)  # the new name, too, before the rows that were safe are removed
        in_work.unlink()
        if self._held is not None:
            self._held.pop(in_work, None)

    def _in_work(self, experiment: Experiment) -> Path:
        return self.path(experiment).with_suffix("")

    def _files(self, experiment: Experiment) -> tuple[Path, Path]:
        """Return the file in work and the packed one; read in this order, no row is missed while another process packs."""
        return self._in_work(experiment), self.path(experiment)

    def _asked(self, experiment: Experiment) -> list[dict[str, Any]]:
        rows, keys = self.rows(experiment), image_keys(experiment)
        if missing := [key for key in keys if key not in rows]:
            raise FileNotFoundError(
                f"{self.path(experiment)}: {len(missing)} of {len(keys)} images of {experiment.name} have no row; expected all; "
                "make them by ph.sweep([experiment], store) or: python -m prunehal sweep GRID.toml"
            )
        return [rows[key] for key in keys]


@dataclass
class _Held:
    """What is known of a file while rows are appended to it: the images that have one, and path -> what made the rows there."""

    file: RowFile
    keys: set[int | str]
    made_by: dict[Path, MadeBy]


def _refuse_other_ranges(path: Path, experiment: Experiment, keys: Iterable[int | str]) -> None:
    if experiment.images == TESTBED:
        try:
            refuse_other_ranges(experiment.split, keys)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _prunes(row: Mapping[str, Any]) -> list[list[Any]]:
    return [event for event in row["events"] if event[1] in PRUNES]


def _ratio(mass: pd.Series, mean: pd.Series) -> pd.Series:
    """Return mass / mean, finite where the mean was rounded to 0."""
    return (mass / mean).where(mean > 0, mass.clip(lower=_BELOW) / _BELOW)
