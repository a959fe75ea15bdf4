"""Find the files that ship with the package: the embedded model, the sprite sheet, the word lists, the stored rows."""

from __future__ import annotations

from pathlib import Path

__all__ = ["data_path"]

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
