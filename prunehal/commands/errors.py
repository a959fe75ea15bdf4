"""One way for all commands to fail: a message on standard error that names what is wrong, and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = ["named_errors"]


@contextmanager
def named_errors() -> Iterator[None]:
    """Print bad input, files that cannot be used, and lack of memory as one message, without a traceback; exit with code 2.

    >>> try:
    ...     with named_errors():
    ...         raise ValueError("r=2: expected 0 < r <= 1")
    ... except typer.Exit as stop:
    ...     stop.exit_code
    2
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        said = str(error)
    except MemoryError as error:
        why = f" ({error})" if str(error) else ""
        said = f"memory does not suffice{why}; expected room for one item at least; make the work smaller, or free some memory"
    else:
        return
    typer.echo(f"Error: {said}", err=True)
    raise typer.Exit(2)
