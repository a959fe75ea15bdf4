"""One way for all commands to fail: a message on standard error that names what is wrong, and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = ["named_errors", "usable"]


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
        if isinstance(error, OSError) and error.filename is not None:  # as the operating system says it
            said = (
                f"{error.filename}: cannot be used ({error.strerror}); expected a path that can be read or written so; check it"
            )
    except MemoryError as error:
        why = f" ({error})" if str(error) else ""
        said = f"memory does not suffice{why}; expected room for one item at least; make the work smaller, or free some memory"
    else:
        return
    typer.echo(f"Error: {said}", err=True)
    raise typer.Exit(2)


def usable(device: str | None) -> str:
    """Return the device that ``--device`` names, by default a GPU if there is one.

    Raises:
        ValueError: this machine has no such device.

    >>> usable("cpu")
    'cpu'
    >>> usable("foo")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: --device foo: cannot be used here (...); expected ...; or leave it out
    """
    import torch  # here, so that --help does not wait for it

    known = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    if device is None:
        return known[0]
    try:
        torch.zeros(1, device=device).item()
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        why, there = str(error).partition("\n")[0].rstrip("."), " or ".join(known)
        raise ValueError(f"--device {device}: cannot be used here ({why}); expected {there}; or leave it out") from error
    return device
