"""Find the files that ship with the package, and write new files whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["data_path", "file_name", "written"]

_HERE = Path(__file__).resolve().parents[1]  # the package
# A wheel holds data/ inside the package; a checkout (editable install) holds it beside the package.
_ROOTS = (_HERE / "data", _HERE.parent / "data")
_PREFIX = ".part-"  # of the folder in which a file is written first
_STREAMS = {"/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}


def data_path(*parts: str, must_exist: bool = True) -> Path:
    """Return the path of a shipped data file or folder.

    Args:
        *parts: path components below the data folder, e.g. ``"chair", "synonyms.txt"``.
        must_exist: raise when it is missing; ``False`` serves writers of new data.

    Raises:
        FileNotFoundError: the file is not part of this installation.

    >>> data_path("sprites", "sprites.json").name
    'sprites.json'
    """
    root = next((root for root in _ROOTS if root.is_dir()), _ROOTS[-1])
    path = root.joinpath(*parts)
    if must_exist and not path.exists():
        raise FileNotFoundError(
            f"shipped data file {'/'.join(parts)!r} is missing (looked in {root}); expected it in the data folder of the "
            "repository or wheel; reinstall prunehal, or restore data/ with git"
        )
    return path


def file_name(path: Path | str) -> Path:
    """Return the path of a file to write, whether it is there or not.

    Raises:
        OSError: it is a folder, or is written like one (``out/``).

    >>> file_name("new/out.json").name
    'out.json'
    """
    name = str(path)
    path = Path(path)
    if not path.name or path.is_dir() or name.endswith(os.sep):
        raise IsADirectoryError(f"{name!r} is a folder; expected the name of a file to write; give one")
    return path


@contextmanager
def written(path: Path | str) -> Iterator[Path]:
    """Yield a path to write to, and put what was written in the place of ``path`` at the end: readers never see half a file.

    Only a regular file is replaced. Of a symbolic link, the file that it leads to is replaced, and the link stays; a device
    or a named pipe receives the content. Folders are made as needed. When the block raises, or the content cannot be put in
    its place, the old file stays and the new one is removed.

    Raises:
        OSError: the path is a folder, its folder cannot be made, or there is no room; the error names the path.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written(Path(folder) / "new" / "rows.txt") as part:
    ...         _ = part.write_text("whole")
    ...     (Path(folder) / "new" / "rows.txt").read_text(), len(list(Path(folder).rglob("*.txt*")))
    ('whole', 1)
    """
    path = file_name(path)
    with _named(path):
        if _receives(path):
            with tempfile.TemporaryDirectory() as folder:
                part = Path(folder) / path.name
                yield part
                # Opened to append, so that nothing is truncated; an open file goes on from its own position.
                given = _open_already(path)
                with part.open("rb") as source, open(path if given is None else os.dup(given), "ab") as receiver:
                    shutil.copyfileobj(source, receiver)
            return
        target = Path(os.path.realpath(path))
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"the folder of {path} cannot be made ({error.strerror}); expected a folder; choose another place"
            ) from error
        # A folder of this call alone, beside the target: no name of the user's or of another process, and one file system.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=_PREFIX) as folder:
            part = Path(folder) / f"{target.name}.part"
            yield part
            os.replace(part, target)


def _receives(path: Path) -> bool:
    """Whether a path is a device, a pipe, or a name of an open file, which are written to as they are."""
    return _open_already(path) is not None or (path.exists() and not path.is_file())


def _open_already(path: Path) -> int | None:
    """Return the number of the open file that a path such as ``/dev/stdout`` stands for."""
    name = _STREAMS.get(str(path), str(path))
    match = re.fullmatch(r"(?:/dev|/proc/self)/fd/(\d+)", name)
    return int(match[1]) if match else None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the path itself, not the temporary file beside it, in errors of the system such as a full disk."""
    try:
        yield
    except OSError as error:
        part = _PREFIX in str(error.filename)
        if error.errno is None or not (error.filename is None or part):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
