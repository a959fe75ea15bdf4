"""Check the parameters of a notebook: a misspelt name is an error, not a silent default, and no parameter hides another name.

papermill and the like write a cell of their own after the one tagged ``parameters``, and only warn of a name that the notebook
does not know. A notebook here calls `note_names` before that cell and `check_parameters` after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["check_parameters", "note_names"]


def note_names(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names that a namespace has now, with what they stand for; pass ``globals()``.

    >>> note_names({"r": 1, "_i1": "r = 1"})
    {'r': 1}
    """
    return {name: value for name, value in namespace.items() if not name.startswith("_")}


def check_parameters(
    namespace: Mapping[str, Any], before: Mapping[str, Any], expected: Mapping[str, type | tuple[type, ...]]
) -> None:
    """Raise an error if the cells since `note_names` set anything but the expected names, or a value of another type.

    Args:
        namespace: ``globals()``.
        before: what `note_names` returned.
        expected: name -> type, or types; None stands for itself, and a whole number is a float, too.

    Raises:
        ValueError: an unknown or a missing name, one that stood for something else before, or a value of another type; the
            message names it.

    >>> check_parameters({"r": 0.4, "rr": 0.9}, {}, {"r": float})
    Traceback (most recent call last):
    ValueError: unknown parameter(s) 'rr'; expected some of r; check the spelling
    """
    known = ", ".join(expected)
    # What note_names returned got a name, too.
    found = {name: value for name, value in note_names(namespace).items() if name not in expected and value is not before}
    if unknown := sorted(found.keys() - before.keys()):
        raise ValueError(f"unknown parameter(s) {', '.join(map(repr, unknown))}; expected some of {known}; check the spelling")
    if hidden := sorted(name for name, value in found.items() if value is not before[name]):
        raise ValueError(
            f"parameter(s) {', '.join(map(repr, hidden))} overwrite what the notebook has under the same name; expected some of "
            f"{known}; choose one of those"
        )
    for name, kinds in expected.items():
        if name not in namespace:
            raise ValueError(f"parameter {name!r} is not set; expected all of {known}; set it in the cell of parameters")
        allowed = tuple(type(None) if kind is None else kind for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        value = namespace[name]
        if isinstance(value, int) and float in allowed:
            allowed += (int,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ValueError(f"{name}={value!r}: expected {names}; change it in the cell of parameters")
