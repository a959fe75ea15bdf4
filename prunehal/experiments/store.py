"""Store: the rows of experiments in a folder, one file for each, which says what made it.

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
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from prunehal.benchmarks.chair import ChairResult, score
from prunehal.benchmarks.files import BadInput, some
from prunehal.experiments.description import Experiment
from prunehal.experiments.pictures import image_keys, truth
from prunehal.experiments.versions import made_by, refuse_other_versions
from prunehal.resources import data_path, written
from prunehal.running.rows import RowFile, locked

__all__ = ["Store"]

_HEADER = ""  # the key of the first row


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
            ValueError: the rows were made by other weights, images or code.
            BadInput: the file is broken.
        """
        found: dict[int | str, dict[str, Any]] = {}
        for path in self._files(experiment):
            rows = _read(path)
            if header := rows.pop(_HEADER, None):
                refuse_other_versions(path, header["made_by"], made_by(experiment))
            elif rows:
                raise ValueError(f"{path}: does not say what made its rows; expected a header; remove the file")
            found |= rows
        return found

    def missing(self, experiment: Experiment) -> list[int | str]:
        """Return the image ids of the experiment that have no row yet."""
        rows = self.rows(experiment)
        return [key for key in image_keys(experiment) if key not in rows]

    def captions(self, experiment: Experiment) -> pd.DataFrame:
        """Return one line for each image of the experiment: image_id, caption, tokens, finished, visual, prunes.

        Raises:
            FileNotFoundError: rows are missing; sweep() makes them.
            ValueError: as in :meth:`rows`.
        """
        names = ("caption", "tokens", "finished", "visual")
        rows = [(row["key"], *(row[name] for name in names), len(row["events"])) for row in self._asked(experiment)]
        return pd.DataFrame(rows, columns=["image_id", *names, "prunes"])

    def events(self, experiment: Experiment) -> pd.DataFrame:
        """Return one line for each prune: image_id, number (1, 2, ...), step, reason, kept; raises as :meth:`captions`."""
        lines = [
            (row["key"], number, *event) for row in self._asked(experiment) for number, event in enumerate(row["events"], start=1)
        ]
        return pd.DataFrame(lines, columns=["image_id", "number", "step", "reason", "kept"])

    def votes(self, experiment: Experiment) -> pd.DataFrame:
        """Return one line for each step at which a majority voted: image_id, step, steps; raises as :meth:`captions`."""
        lines = [(row["key"], step, row["tokens"]) for row in self._asked(experiment) for step in row["voted"]]
        return pd.DataFrame(lines, columns=["image_id", "step", "steps"])

    def mentions(self, experiment: Experiment) -> pd.DataFrame:
        """Return one line for each mention and layer, as `prunehal.mention_attention` does; raises as :meth:`captions`."""
        lines = [
            (row["key"], index, node, hallucinated, step, row["tokens"], layer, mass, entropy, mass / mean)
            for row in self._asked(experiment)
            for index, (node, hallucinated, step, masses, entropy) in enumerate(row["mentions"])
            for layer, mass, mean in zip(row["layers"], masses, row["mass"], strict=True)
        ]
        names = ["image_id", "index", "node", "hallucinated", "step", "steps", "layer", "mass", "entropy", "step_ratio"]
        frame = pd.DataFrame(lines, columns=names)
        return frame.assign(mention_ratio=frame["mass"] / frame.groupby(["image_id", "layer"])["mass"].transform("mean"))

    def score(self, experiment: Experiment, scorer: str = "fixed") -> ChairResult:
        """Return the CHAIR scores of the experiment's captions; raises as :meth:`captions`."""
        captions = self.captions(experiment)
        return score(captions, truth(experiment, captions["image_id"].tolist()), scorer)

    # Writing.

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder as the one process that writes; raises BlockingIOError if another one does."""
        with locked(self.folder):
            yield

    def append(self, experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, and wait until the disk has them.

        Raises:
            ValueError: an image has a row already.
            OSError: there is no room; nothing is added.
        """
        header = {"key": _HEADER, "experiment": experiment.description, "made_by": made_by(experiment)}
        stored = self.rows(experiment)
        if doubled := [row["key"] for row in rows if row["key"] in stored]:
            raise ValueError(
                f"{self.path(experiment)}: has rows of {some(doubled)} already; expected new ones; read missing() first"
            )
        file = RowFile(self._in_work(experiment))  # cuts a torn line off; only who writes may do that
        file.append([*([] if file.rows else [header]), *rows])

    def pack(self, experiment: Experiment) -> None:
        """Pack the rows of an experiment into one compressed file, sorted by image, and remove the file in work."""
        in_work, packed = self._files(experiment)
        if not in_work.exists():
            return
        rows = _read(in_work) | _read(packed)
        header = rows.pop(_HEADER)
        lines = [json.dumps(row, separators=(",", ":")) for row in (header, *sorted(rows.values(), key=lambda r: str(r["key"])))]
        with written(packed) as part:
            part.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
        in_work.unlink()

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


def _read(path: Path) -> dict[int | str, dict[str, Any]]:
    """Return ``{key: row}`` of a file, the header among them, and leave it as it is: another process may be writing to it."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    fix = "Restore the file, or remove it and sweep again."
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(path, [f"it cannot be unpacked ({error})"], fix) from error
    rows: dict[int | str, dict[str, Any]] = {}
    problems = []
    for number, line in enumerate(raw.split(b"\n")[:-1], start=1):  # what comes after the last line end is torn, and no row
        try:
            row = json.loads(line)
            if row["key"] in rows:
                problems.append(f"line {number}: key {row['key']!r} again; expected each once")
            rows[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            problems.append(f"line {number}: {line[:40]!r}; expected a row, a JSON object with a key")
    if problems:
        raise BadInput(path, problems, fix)
    return rows
