"""Keep the rows of a long run in a folder: whole rows, and rows of one setting only.

A folder holds ``rows.jsonl`` (one JSON object a line, appended batch by batch) and ``settings.json`` (what made them).
A process that is killed leaves whole rows and at most one torn line at the end, which the next one cuts off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from prunehal.files.paths import written
from prunehal.files.reading import BadInput, convert, read_json, reading

__all__ = ["Keyed", "RowFile", "keep_free", "keep_settings", "kept_settings", "read_rows", "refuse_other_settings"]


class Keyed(msgspec.Struct):
    """The entry that every row has."""

    key: int | str


class _Kept(msgspec.Struct):
    settings: dict[str, Any]
    free: dict[str, Any] = {}


def kept_settings(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that `keep_settings` wrote to a file: those of all rows, and those that are free.

    Raises:
        BadInput: the file is not one of `keep_settings`.
        OSError: it cannot be read.
    """
    try:
        with reading(path):
            kept = convert(read_json(path), _Kept)
    except BadInput as error:
        fix = "Expected the settings that made the rows beside it; choose another folder."
        raise BadInput(path, error.problems, fix) from error
    return kept.settings, kept.free


def refuse_other_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise a ValueError that names every setting that differs from the one in the file; no file, no objection.

    Args:
        path: ``settings.json`` as `keep_settings` writes it.
        settings: some or all of the settings; those that the file does not know count as different.

    Raises:
        ValueError: a setting differs, or the file is not one of `keep_settings`.
    """
    if not path.exists():
        return
    before, now = _flat(kept_settings(path)[0]), _flat(json.loads(json.dumps(settings)))
    before = {name: value for name, value in before.items() if name.split(".")[0] in settings}
    absent = object()
    names = [name for name in {**before, **now} if before.get(name, absent) != now.get(name, absent)]
    # Of another policy the name says enough: its options are others anyway.
    renamed = {name.removesuffix("name") for name in names if name.endswith(".name")}
    names = [name for name in names if name.endswith(".name") or not name.startswith(tuple(renamed))]
    if names:
        differing = [f"{name} was {_shown(before, name)}, is now {_shown(now, name)}" for name in names]
        raise ValueError(
            f"{path.parent}: holds rows of other settings: {'; '.join(differing)}; expected the same settings for all rows of a "
            "folder; choose another folder, or go on with the old settings"
        )


def keep_settings(path: Path, settings: Mapping[str, Any], free: Mapping[str, Any], has_rows: bool) -> None:
    """Write the settings of a folder, whole, before its first row; with rows there, see first that they are the same.

    Args:
        path: the file, ``settings.json``.
        settings: what all rows of the folder share.
        free: what may differ from call to call, such as the batch size; the latest is kept.
        has_rows: whether there are rows; without any, other settings do no harm.

    Raises:
        ValueError: the rows were made with other settings, or nothing says with which.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "settings.json"
    ...     keep_settings(path, {"seed": 0}, {"batch_size": 8}, has_rows=False)
    ...     keep_settings(path, {"seed": 0}, {"batch_size": 4}, has_rows=True)
    ...     json.loads(path.read_text())
    {'settings': {'seed': 0}, 'free': {'batch_size': 4}}
    """
    if has_rows:
        if not path.exists():
            raise ValueError(
                f"{path.parent}: holds rows, but no {path.name} that says what made them; expected both; choose another folder"
            )
        refuse_other_settings(path, settings)
    with written(path) as part:
        text = json.dumps({"settings": settings, "free": free}, ensure_ascii=False, indent=1)
        part.write_text(text + "\n", encoding="utf-8")


def keep_free(path: Path, free: Mapping[str, Any]) -> None:
    """Store what may differ from call to call, if it has changed, beside rows that are all there.

    Raises:
        BadInput: the file is not one of `keep_settings`.
        OSError: it cannot be read or written.
    """
    settings, before = kept_settings(path)
    if before | free != before:
        keep_settings(path, settings, before | free, has_rows=False)


class RowFile:
    """Rows of JSON lines, each with a ``key`` of its own.

    Args:
        path: the file; it is made with the first row.
        kind: the type of a row, a `msgspec.Struct` with a ``key``.

    Attributes:
        path: the file.
        rows: ``{key: row}`` of what was there, then also of what was appended.
        torn: how many bytes of a row stand at the end of a file that was torn there; 0 if it is whole. `repair` cuts them
            off, and so does the first `append`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "rows.jsonl"
    ...     RowFile(path).append([{"key": 1, "text": "a"}])
    ...     _ = path.write_text(path.read_text() + '{"key": 2, "te')
    ...     again = RowFile(path)
    ...     again.rows, again.repair().partition(":")[2]
    ({1: {'key': 1, 'text': 'a'}}, ' a torn last line (14 bytes) was cut off')
    """

    def __init__(self, path: Path, kind: type = Keyed) -> None:
        """Read the file, and leave it as it is.

        Raises:
            BadInput: a line in the middle is no row, or a key comes twice.
            OSError: the file cannot be read.
        """
        self.path = path
        raw = path.read_bytes() if path.exists() else b""
        self.rows, problems = read_rows(raw, lambda row: kind)
        if problems:
            raise BadInput(path, problems, "Remove these lines (their items run again), or choose another folder.")
        self.torn = len(raw) - raw.rfind(b"\n") - 1

    def repair(self) -> str:
        """Cut a torn last line off, and return that in words; "" if the file is whole.

        Raises:
            OSError: the file cannot be cut.
        """
        torn, self.torn = self.torn, 0
        if not torn:
            return ""
        os.truncate(self.path, self.path.stat().st_size - torn)
        return f"{self.path}: a torn last line ({torn} bytes) was cut off"

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows by one write, and wait until the disk has them.

        Raises:
            ValueError: a key is there already.
            OSError: there is no room; nothing is added.
        """
        if doubled := [row["key"] for row in rows if row["key"] in self.rows]:
            raise ValueError(f"{self.path}: rows {doubled} are there already; expected new keys; read the file before a run")
        self.repair()
        data = "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        before = os.fstat(file).st_size
        try:
            if (done := os.write(file, data)) != len(data):
                raise OSError(f"only {done} of {len(data)} bytes could be written")
            os.fsync(file)
        except OSError as error:
            with suppress(OSError):  # a line that stays torn is cut off by the next start
                os.ftruncate(file, before)
            raise OSError(
                f"{self.path}: {len(rows)} rows could not be added ({error.strerror or error}); expected room for {len(data)} "
                "bytes; free some disk space and run again: the rows before them are whole"
            ) from error
        finally:
            os.close(file)
        self.rows |= {row["key"]: dict(row) for row in rows}


def read_rows(raw: bytes, kind: Callable[[dict[str, Any]], type]) -> tuple[dict[int | str, dict[str, Any]], list[str]]:
    """Return ``{key: row}`` of JSON lines, and the problems, one for each line that is no row; a torn last line is ignored.

    Args:
        raw: what the file holds.
        kind: returns the `msgspec.Struct` that a row must fit.

    >>> read_rows(b'{"key": 1}\\n{"key": [2]}\\n{"key": 3', lambda row: Keyed)
    ({1: {'key': 1}}, ['line 2: key is [2]; expected a whole number or text'])
    """
    rows: dict[int | str, dict[str, Any]] = {}
    problems = []
    for number, line in enumerate(raw.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError):
            problems.append(f"line {number}: {line[:40]!r}; expected a row, a JSON object with a key")
            continue
        try:
            convert(row, kind(row), f"line {number}")
        except ValueError as error:
            problems.append(str(error))
            continue
        if row["key"] in rows:
            problems.append(f"line {number}: key {row['key']!r} again; expected each once")
        rows[row["key"]] = row
    return rows, problems


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return ``{"policy.r": 0.4}`` for ``{"policy": {"r": 0.4}}``."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "not there"
