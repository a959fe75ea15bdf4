"""Check the parameters of a notebook: a misspelt name is an error, not a silent default.

papermill and the like write a cell of their own after the one tagged ``parameters``, and only warn of a name that the notebook
does not know. A notebook here calls `note_names` before that cell and `check_parameters` after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["check_parameters", "note_names"]


def note_names(namespace: Mapping[str, Any]) -> frozenset[str]:
    """Return the names that a namespace has now; pass ``globals()``.

    >>> note_names({"r": 1, "_i1": "r = 1"}) == {"r"}
    True
    """
    return frozenset(name for name in namespace if not name.startswith("_"))


def check_parameters(
    namespace: Mapping[str, Any], before: frozenset[str], expected: Mapping[str, type | tuple[type, ...]]
) -> None:
    """Raise an error if the cells since `note_names` set anything but the expected names, or a value of another type.

    Args:
        namespace: ``globals()``.
        before: what `note_names` returned.
        expected: name -> type, or types; None stands for itself.

    Raises:
        ValueError: an unknown or a missing name, or a value of another type; the message names it.

    >>> check_parameters({"r": 0.4, "rr": 0.9}, frozenset(), {"r": float})
    Traceback (most recent call last):
    ValueError: unknown parameter(s) 'rr'; expected some of r; check the spelling
    """
    known = ", ".join(expected)
    found = note_names(namespace) - before - expected.keys()
    if unknown := sorted(name for name in found if namespace[name] is not before):  # what note_names returned got a name, too
        raise ValueError(f"unknown parameter(s) {', '.join(map(repr, unknown))}; expected some of {known}; check the spelling")
    for name, kinds in expected.items():
        if name not in namespace:
            raise ValueError(f"parameter {name!r} is not set; expected all of {known}; set it in the cell of parameters")
        allowed = tuple(type(None) if kind is None else kind for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        value = namespace[name]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ValueError(f"{name}={value!r}: expected {names}; change it in the cell of parameters")
