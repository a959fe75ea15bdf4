"""Commands that measure: speed, memory, half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunehal.commands.errors import named_errors, usable

__all__ = ["bench", "bench_decoders", "bench_scoring", "bench_sweep", "numerics"]


@named_errors()
def numerics(
    images: Annotated[int, typer.Option(min=1, max=1_000_000, help="Images of the test split.")] = 100,
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("data/bench/numerics.csv"),
) -> None:
    """Measure what bfloat16 and float16 change on the embedded model, and print the table."""
    from prunehal.measuring.half_precision import as_table, measure

    typer.echo(as_table(measure(out, images)))


@named_errors()
def bench_scoring(
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("data/bench/scoring.csv"),
) -> None:
    """Measure how fast the CHAIR scorers are on 500 and on 100,000 captions, and print the table."""
    from prunehal.measuring.scoring import as_table, measure

    typer.echo(as_table(measure(out)))


@named_errors()
def bench_sweep(
    images: Annotated[int, typer.Option(min=1, help="Images of each of the twenty settings.")] = 300,
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("data/bench/sweep.csv"),
) -> None:
    """Measure sweeps against the naive loop, and on one and two workers of a Dask cluster, and print the table."""
    from prunehal.measuring.sweeps import as_table, measure

    typer.echo(as_table(measure(out, images)))


@named_errors()
def bench_decoders(
    shape: Annotated[str, typer.Option(help="embedded, llava-0.3b or llava-1.5-7b.")] = "llava-0.3b",
    new_tokens: Annotated[int, typer.Option(min=2, help="Of each text.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each method.")] = 3,
    only: Annotated[str, typer.Option(help="Methods whose name holds this text, and the stock ones.")] = "",
    device: Annotated[str | None, typer.Option(help="cuda or cpu; by default whichever is there.")] = None,
    out: Annotated[Path, typer.Option(help="CSV file; a second call goes on where the first stopped.")] = Path(
        "data/bench/decoders.csv"
    ),
) -> None:
    """Measure what mitigation decoders cost beside stock greedy and beam search, and print the table."""
    from prunehal.measuring.decoders import EMBEDDED, as_table, run
    from prunehal.measuring.engine import SHAPES

    if shape not in (EMBEDDED, *SHAPES):
        raise typer.BadParameter(f"shape {shape!r}: expected one of {', '.join((EMBEDDED, *SHAPES))}")
    device = usable(device)
    typer.echo(as_table(run(shape, new_tokens, rounds, out, only, device), shape))


@named_errors()
def bench(
    device: Annotated[str | None, typer.Option(help="cuda or cpu; by default whichever is there.")] = None,
    shape: Annotated[str | None, typer.Option(help="Decoder: llava-0.3b (default on a CPU) or llava-1.5-7b (on a GPU).")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each case.")] = 3,
    new_tokens: Annotated[int | None, typer.Option(min=2, help="256 on a CPU and 512 on a GPU, by default.")] = None,
    only: Annotated[str, typer.Option(help="Run the cases whose name holds this text, e.g. 'batch 1,'.")] = "",
    out: Annotated[Path, typer.Option(help="pyperf file; a second call goes on where the first stopped.")] = Path(
        "build/bench.json"
    ),
) -> None:
    """Measure speed and memory against stock generate(), interleaved, and print the table."""
    from prunehal.measuring.engine import SHAPES, as_table, cases, run

    device = usable(device)
    if shape is not None and shape not in SHAPES:
        raise typer.BadParameter(f"shape {shape!r}: expected one of {', '.join(SHAPES)}")
    wanted = [case for case in cases(device, shape, new_tokens) if only in case.name]
    if not wanted:
        names = "; ".join(case.name for case in cases(device, shape, new_tokens))
        raise typer.BadParameter(f"only {only!r}: no case holds it; expected a part of {names}")
    typer.echo(as_table(run(wanted, rounds, out, device)))
