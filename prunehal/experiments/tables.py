"""Tables that say what made them: one compressed file of CSV, below a first line that holds the experiment and the versions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from prunehal.experiments import Experiment
from prunehal.experiments.versions import made_by, refuse_other_versions
from prunehal.files.paths import written
from prunehal.files.reading import BadInput, read_text

__all__ = ["read_marked", "write_marked"]


def write_marked(path: Path, table: str, experiment: Experiment) -> None:
    """Write a table with the mark of what made it; the file comes out the same, byte by byte, from the same table.

    Args:
        path: file to write, by convention ``.csv.gz``.
        table: CSV.
        experiment: of whose rows or images the table tells.
    """
    header = json.dumps({"experiment": experiment.description, "made_by": made_by(experiment)})
    with written(path) as part:
        part.write_bytes(gzip.compress(f"# {header}\n{table}".encode(), mtime=0))


def read_marked(path: Path, experiment: Experiment, make: str) -> tuple[dict[str, Any], str]:
    """Read what :func:`write_marked` wrote, if what made it is what would make it now.

    Args:
        path: the file.
        experiment: as it was written; its number of images does not matter.
        make: command line that makes the file, for messages.

    Returns:
        The experiment's description as it was written, and the CSV.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: other code, weights or scenes made the table.
        BadInput: the file is broken, or does not say what made it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "table.csv.gz"
    ...     write_marked(path, "a,b\\n1,2\\n", Experiment(n_images=2))
    ...     described, table = read_marked(path, Experiment(), "make rows")
    >>> described["n_images"], table
    (2, 'a,b\\n1,2\\n')
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such table; make it by: {make}")
    fix = f"Restore the file, or remove it and make it again by: {make}"
    try:
        first, _, table = read_text(path).partition("\n")
    except BadInput as error:
        raise BadInput(path, error.problems, fix) from error
    try:
        header = json.loads(first.removeprefix("# "))
        described, before = header["experiment"], header["made_by"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(path, [f"line 1: {first[:40]!r}; expected '# ' and what made the rows, as JSON"], fix) from error
    refuse_other_versions(path, before, made_by(experiment))
    return described, table
