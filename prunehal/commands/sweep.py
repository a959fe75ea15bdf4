"""``python -m prunehal sweep``: make the rows of grids, in this process or on a Dask cluster."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from prunehal.commands.errors import named_errors

__all__ = ["cluster", "sweep_grid"]


def sweep_grid(
    grids: Annotated[list[Path], typer.Argument(help="TOML files; see help(prunehal.read_grid).")],
    store: Annotated[Path, typer.Option(help="Folder of the rows.")] = Path("results"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on in a folder that holds rows of these grids.")] = False,
    dask: Annotated[str | None, typer.Option(help="Scheduler of a Dask cluster, e.g. tcp://10.0.0.1:8786.")] = None,
    gpus: Annotated[
        bool, typer.Option("--gpus", help="Give each task a worker that was started with --resources GPU=1.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images decoded at once.")] = 50,
) -> None:
    """Make the rows of grids of experiments, resumably, with the time left."""
    from prunehal.experiments import Store, read_grid, sweep

    with named_errors():
        read = sorted((each for path in grids for each in read_grid(path)), key=lambda each: each.n_images)
        experiments = list({each.key: each for each in read}.values())  # of the same with fewer and with more images the latter
        folder = Store(store)
        held = [each for each in experiments if folder.rows(each)]
        if held and not resume:
            raise ValueError(
                f"{store}: holds rows of {len(held)} of the {len(experiments)} experiments; expected none; add --resume to make "
                "only what is missing, or name another --store"
            )
        if gpus and dask is None:
            raise ValueError("--gpus: speaks of workers of a cluster; expected --dask too; leave it out on one machine")
        with cluster(dask, gpus) as executor:
            sweep(experiments, folder, executor, batch_size=batch_size)
        typer.echo(f"{store}: {sum(each.n_images for each in experiments)} captions of {len(experiments)} experiments are stored")


@contextmanager
def cluster(address: str | None, gpus: bool = False) -> Iterator[Executor | None]:
    """Connect to a Dask scheduler and yield its executor; None without an address.

    Raises:
        ValueError: Dask is not installed, or no scheduler answers.
    """
    if address is None:
        yield None
        return
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise ValueError(f"--dask {address}: {error}; expected Dask; pip install 'prunehal[cluster]'") from error
    # A client that could not connect closes itself when it is collected. In the middle of another one's start that waits for ever
    # for a lock that the start holds.
    gc.collect()
    try:
        client = Client(address, timeout="20s")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--dask {address}: no scheduler answers ({error}); expected one, such as `dask scheduler` prints; start it, "
            "or check the address"
        ) from error
    with client:
        yield client.get_executor(pure=False, retries=2, resources={"GPU": 1} if gpus else None)
