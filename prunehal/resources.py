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

__all__ = ["data_path", "written"]

_HERE = Path(__file__).resolve().parent
# A wheel holds data/ inside the package; a checkout (editable install) holds it beside the package.
_ROOTS = (_HERE / "data", _HERE.parent / "data")
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


@contextmanager
def written(path: Path) -> Iterator[Path]:
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
    path = Path(path)
    if not path.name or path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; expected the name of a file to write; give one")
    with _named(path):
        if _receives(path):
            with tempfile.TemporaryDirectory() as folder:
                part = Path(folder) / path.name
                yield part
                # To append is to truncate nothing; and what is open has its own place to go on from.
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
        part = target.with_name(f"{target.name}.part")
        try:
            if part.is_symlink() or (part.exists() and not part.is_file()):
                part.unlink()  # to write to it would be to write to what it leads to
            yield part
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _receives(path: Path) -> bool:
    """Whether a path is a device, a pipe, or a name of an open file, which are written to as they are."""
    return _open_already(path) is not None or (path.exists() and not path.is_file())


def _open_already(path: Path) -> int | None:
    """Return the number of the open file that a path such as ``/dev/stdout`` stands for."""
    name = _STREAMS.get(str(path), str(path))
    found = re.fullmatch(r"(?:/dev|/proc/self)/fd/(\d+)", name)
    return int(found[1]) if found else None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the path, not the part that is written first, in errors of the system such as a full disk."""
    try:
        yield
    except OSError as error:
        part = str(error.filename).endswith(f"{path.name}.part")
        if error.errno is None or not (error.filename is None or part):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
