"""Keep the rows of a long run in a folder: one writer at a time, whole rows, and rows of one setting only.

A folder holds ``rows.jsonl`` (one JSON object a line, appended batch by batch), ``settings.json`` (what made them) and a lock.
A process that is killed leaves whole rows and at most one torn line at the end, which the next one cuts off.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prunehal.benchmarks.files import BadInput
from prunehal.resources import written

__all__ = ["RowFile", "keep_settings", "locked", "refuse_other_settings"]

_HOLDER = "run.holder.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder, so that no second process writes rows into it; the lock ends with the process, however it ends.

    Raises:
        BlockingIOError: another run holds it; the message says which.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
    ...     json.loads((Path(folder) / "run.holder.json").read_text())["process"] == os.getpid()
    True
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / "run.lock"), folder / _HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"{folder}: another run writes here ({_who(holder)}); expected one run at a time; wait for it to end, or choose "
            "another folder"
        ) from None
    try:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        me = {"process": os.getpid(), "machine": socket.gethostname(), "since": started}
        with written(holder) as part:
            part.write_text(json.dumps(me) + "\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


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
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error!r}); expected the settings that made the rows beside it; choose another folder"
        ) from error
    before, now = _flat(kept), _flat(json.loads(json.dumps(settings)))
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


class RowFile:
    """Rows of JSON lines, each with a ``key`` of its own.

    Attributes:
        path: the file; it is made with the first row.
        rows: ``{key: row}`` of what was there, then also of what was appended.
        repaired: what was cut off a file that ended inside a row, in words; "" if it was whole.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "rows.jsonl"
    ...     RowFile(path).append([{"key": 1, "text": "a"}])
    ...     _ = path.write_text(path.read_text() + '{"key": 2, "te')
    ...     again = RowFile(path)
    ...     again.rows, again.repaired.partition(":")[2]
    ({1: {'key': 1, 'text': 'a'}}, ' a torn last line (14 bytes) was cut off')
    """

    def __init__(self, path: Path) -> None:
        """Read the file, and cut a torn last line off.

        Raises:
            BadInput: a line in the middle is no row, or a key comes twice.
        """
        self.path, self.repaired = path, ""
        raw = path.read_bytes() if path.exists() else b""
        whole = raw.rfind(b"\n") + 1
        rows, problems = {}, []
        for number, line in enumerate(raw[:whole].split(b"\n")[:-1], start=1):
            try:
                row = json.loads(line)
                key = row["key"]
                if key in rows:
                    problems.append(f"line {number}: key {key!r} again; expected each once")
                rows[key] = row
            except (ValueError, KeyError, TypeError):
                problems.append(f"line {number}: {line[:40]!r}; expected a row, a JSON object with a key")
        if problems:
            raise BadInput(path, problems, "Remove these lines (their items run again), or choose another folder.")
        self.rows: dict[int | str, dict[str, Any]] = rows
        if whole < len(raw):
            os.truncate(path, whole)
            self.repaired = f"{path}: a torn last line ({len(raw) - whole} bytes) was cut off"

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows by one write, and wait until the disk has them.

        Raises:
            ValueError: a key is there already.
            OSError: there is no room; nothing is added.
        """
        if doubled := [row["key"] for row in rows if row["key"] in self.rows]:
            raise ValueError(f"{self.path}: rows {doubled} are there already; expected new keys; read the file before a run")
        data = "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before = os.fstat(file).st_size
            if (done := os.write(file, data)) != len(data):
                os.ftruncate(file, before)
                raise OSError(
                    f"{self.path}: only {done} of {len(data)} bytes could be written; expected room for them; free some "
                    "disk space and run again"
                )
            os.fsync(file)
        finally:
            os.close(file)
        self.rows |= {row["key"]: dict(row) for row in rows}


def _who(holder: Path) -> str:
    try:
        who = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {who['process']} on {who['machine']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said which process it is"


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return ``{"policy.r": 0.4}`` for ``{"policy": {"r": 0.4}}``."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "not there"
