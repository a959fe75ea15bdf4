"""The rows in one file of a store: what a header and a row hold, and how a file is read and its name made safe."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunehal.files.reading import LIMIT, BadInput
from prunehal.files.rows import Keyed, read_rows

__all__ = ["HEADER", "read_stored", "sync_names"]

HEADER = ""  # the key of the first row


class _Header(Keyed):
    experiment: dict[str, Any] | None = None
    made_by: dict[str, str | int | None] | None = None


class _Row(Keyed):
    caption: str
    tokens: int
    finished: bool
    visual: float
    events: list[tuple[int, str, Any]]
    voted: list[int]
    layers: list[int]
    mass: list[float]
    mentions: list[tuple[str, bool, int, list[float], float]]


def sync_names(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_stored(path: Path) -> dict[int | str, dict[str, Any]]:
    """Return ``{key: row}`` of a file, the header among them, and leave it as it is: another process may be writing to it.

    A file that is not there has no rows.

    Raises:
        BadInput: the file is broken.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    fix = "Restore the file, or remove it and sweep again."
    if path.suffix == ".gz":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
                raw = packed.read(LIMIT + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(path, [f"it cannot be unpacked ({error})"], fix) from error
        if len(raw) > LIMIT:
            raise BadInput(path, [f"it unpacks to more than {LIMIT:,} bytes; expected rows of one experiment"], fix)
    rows, problems = read_rows(raw, _kind)
    if problems:
        raise BadInput(path, problems, fix)
    return rows


def _kind(row: Mapping[str, Any]) -> type:
    return _Header if row.get("key") == HEADER else _Row
