"""Hold a folder as the one process that writes there, and leave it as it was if nothing was written."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from prunehal.files.paths import written

__all__ = ["locked"]

_LOCK, _HOLDER = "run.lock", "run.holder.json"


class _Holder(msgspec.Struct):
    process: int
    machine: str
    since: str


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder, so that no second process writes into it; the lock ends with the process, however it ends.

    A block that writes nothing, such as a run that is refused, leaves neither lock nor folder: those that were made here are
    removed again.

    Raises:
        BlockingIOError: another run holds it; the message names the process.
        OSError: the folder cannot be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with locked(Path(folder) / "new" / "run"):
    ...         msgspec.json.decode((Path(folder) / "new/run/run.holder.json").read_bytes())["process"] == os.getpid()
    ...     list(Path(folder).iterdir())
    True
    []
    """
    made = _make(folder)
    lock, holder = FileLock(folder / _LOCK), folder / _HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"{folder}: another run writes here ({_who(holder)}); expected one run at a time; wait for it to end, or choose "
            "another folder"
        ) from None
    try:
        me = _Holder(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"))
        with written(holder) as part:
            part.write_bytes(msgspec.json.encode(me) + b"\n")
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
            if os.listdir(folder) == [_LOCK]:
                (folder / _LOCK).unlink()  # while it is held, so that no other process holds it now
                for path in made:
                    path.rmdir()
        lock.release()


def _make(folder: Path) -> list[Path]:
    """Make the folder and those that hold it, and return those that were not there, the innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder}: cannot be made ({error.strerror}); expected a folder; choose another place") from error
    return made


def _who(holder: Path) -> str:
    try:
        who = msgspec.json.decode(holder.read_bytes(), type=_Holder)
    except (OSError, msgspec.DecodeError):
        return "its process is unknown"
    return f"process {who.process} on {who.machine}, since {who.since}"
