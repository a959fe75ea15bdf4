"""Policies of the user's own in grids and stores: how they are named and found, and how an edited one is told from before."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Iterator

from prunehal.core import Policy

__all__ = ["is_own", "named_class", "policy_name", "source_mark"]

_PACKAGE = "prunehal."


def is_own(kind: type[Policy]) -> bool:
    """Return whether a class of policies is the user's: defined outside of the package.

    >>> from prunehal.core import PruneHal
    >>> is_own(PruneHal)
    False
    """
    return not kind.__module__.startswith(_PACKAGE)


def policy_name(kind: type[Policy]) -> str:
    """Return what a class of policies is called in rows: its name, or ``"module:name"`` outside of the package.

    >>> from prunehal.core import PruneHal
    >>> policy_name(PruneHal)
    'PruneHal'
    """
    return f"{kind.__module__}:{kind.__qualname__}" if is_own(kind) else kind.__name__


def named_class(name: str) -> type[Policy]:
    """Return the class of policies that ``"module:name"`` names; the module is imported.

    Raises:
        ValueError: the module cannot be imported, or holds no such class of policies.

    >>> named_class("prunehal.core:PruneHal").__name__
    'PruneHal'
    """
    module, _, path = name.partition(":")
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"policy name={name!r}: cannot be found ({error}); expected module:Class, such as 'my_policies:MyPolicy' for a file "
            "my_policies.py in the working directory or on PYTHONPATH; check both names"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ValueError(f"policy name={name!r}: is {found!r}; expected a class that derives from prunehal.core.Policy")
    return found


def source_mark(kind: type[Policy]) -> str | None:
    """Return a mark of what a class of the user's does: its ``version``, or a hash of its source; None for the package's own.

    The source is that of the class and of its bases outside of the package. What they call elsewhere is not seen: raise
    ``version``, a text or a number in the class, when that changes.

    Raises:
        ValueError: there is neither a version nor a source that can be read.

    >>> from prunehal.core import PruneHal
    >>> source_mark(PruneHal) is None
    True
    """
    if not is_own(kind):
        return None
    if (version := vars(kind).get("version")) is not None:
        return f"version {version}"
    parts = [part for base in kind.__mro__ if issubclass(base, Policy) and is_own(base) for part in _source(base)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _source(kind: type[Policy]) -> Iterator[str]:
    """Yield the source of a class: as a whole, or of its methods and values where it was typed into a notebook."""
    try:
        yield inspect.getsource(kind)
        return
    except (OSError, TypeError):
        pass
    read = 0
    for name, value in sorted(vars(kind).items()):
        function = inspect.unwrap(getattr(value, "__func__", value))
        if not inspect.isfunction(function):
            yield f"{name} = {value!r}" if isinstance(value, str | int | float | tuple | None) and name[:2] != "__" else name
            continue
        try:
            yield inspect.getsource(function)
            read += 1
        except (OSError, TypeError):
            yield name  # made by dataclass, from the fields
    if not read:
        raise ValueError(
            f"policy {policy_name(kind)}: its source cannot be read, so that rows of an edited class could not be told from "
            "older ones; expected a class in a file, or one with a version, such as version: ClassVar[int] = 1"
        )
