"""Find the files that ship with the package, and write new files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["data_path", "written"]

_HERE = Path(__file__).resolve().parent
# A wheel holds data/ inside the package; a checkout (editable install) holds it beside the package.
_ROOTS = (_HERE / "data", _HERE.parent / "data")


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
    """Yield a path beside ``path`` to write to, and rename it to ``path`` at the end: readers never see half a file.

    Folders are made as needed. When the block or the renaming raises, the old file stays and the new one is removed.

    Raises:
        OSError: the path is a folder, its folder cannot be made, or there is no room.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written(Path(folder) / "new" / "rows.txt") as part:
    ...         _ = part.write_text("whole")
    ...     (Path(folder) / "new" / "rows.txt").read_text(), len(list(Path(folder).rglob("*.txt*")))
    ('whole', 1)
    """
    if not path.name or path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; expected the name of a file to write; give one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the folder of {path} cannot be made ({error.strerror}); expected a folder; choose another place"
        ) from error
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
