"""Read the rows of a run that has ended, to export or compare them; one that has not is refused, or marked as partial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from prunehal.files.reading import BadInput, convert, reading
from prunehal.files.rows import kept_settings, read_rows
from prunehal.running.engine import Row
from prunehal.running.tasks import BENCHMARKS

__all__ = ["Finished", "finished"]


class _Counts(msgspec.Struct):
    items: int | None = None


class Finished(msgspec.Struct):
    """The rows of a run.

    Attributes:
        benchmark: its name.
        rows: in the order in which they were made.
        lacking: empty if the run has ended and has the rows of its items; otherwise in words how many rows of how many are there,
            such as ``3 of 10 items``.
    """

    benchmark: str
    rows: list[dict[str, Any]]
    lacking: str


def finished(folder: Path, partial: bool = False) -> Finished:
    """Return the rows of a run.

    Args:
        folder: of the run; it is left as it is, for another process may be writing there.
        partial: take a run that has not ended, too.

    Raises:
        BadInput: a file of the folder cannot be used; the message names it and its line.
        ValueError: the folder is of no run, or the run has not ended; the message says how many rows of how many are there.
        OSError: a file cannot be read.
    """
    path = folder / "settings.json"
    settings, free = kept_settings(path)
    benchmark = settings.get("benchmark")
    if not isinstance(benchmark, str) or benchmark not in BENCHMARKS:
        raise ValueError(
            f"{path} names no benchmark: it is {benchmark!r}; expected one of {', '.join(map(repr, BENCHMARKS))}; give the "
            "folder of a run"
        )
    with reading(path):
        counts = convert(free, _Counts)
    with reading(folder / "rows.jsonl"):
        rows, problems = read_rows((folder / "rows.jsonl").read_bytes(), lambda row: Row)  # a torn last line is no row yet
    if problems:
        raise BadInput(folder / "rows.jsonl", problems, "Remove these lines, and run again.")
    lacking = ""
    if not (folder / BENCHMARKS[benchmark].result).exists():  # which is written when all rows are there
        lacking = f"{len(rows)} of {'an unknown number of' if counts.items is None else counts.items} items"
        if not partial:
            raise ValueError(
                f"{folder}: has rows of {lacking}, for the run has not ended; expected all; run the same call again, or pass "
                "--partial (partial=True) to take what is there"
            )
    elif counts.items is not None and len(rows) > counts.items:  # the latest call asked less, and the result is of that
        lacking = f"{len(rows)} rows, of which the latest call asked for {counts.items} items"
        if not partial:
            raise ValueError(
                f"{folder}: has {lacking}; expected rows and result of the same items; run the call for all of them again, or "
                "pass --partial (partial=True) to take all rows"
            )
    return Finished(benchmark, list(rows.values()), lacking)
