"""Commands that make and read what the notebooks rest on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunehal.commands.errors import named_errors

__all__ = ["causal", "claims", "evidence", "readme", "repetition", "seeds"]


@named_errors()
def causal(
    images: Annotated[int, typer.Option(min=1, help="Stored captions of so many scenes of the test split.")] = 400,
    out: Annotated[Path, typer.Option(help="Compressed CSV file to write.")] = Path("data/results/interventions.csv.gz"),
) -> None:
    """Intervene on the attention at every mention of the embedded model's captions; write each word's probability."""
    from prunehal.studies.nb09_causal.rows import measure

    typer.echo(f"{out}: {len(measure(out, images))} rows")


@named_errors()
def evidence(
    images: Annotated[int, typer.Option(min=1, help="Scenes of the test split in each cell.")] = 60,
    out: Annotated[Path, typer.Option(help="Compressed CSV file to write.")] = Path("data/results/evidence.csv.gz"),
) -> None:
    """Measure where visual attention lies among background tiles, and what each rule keeps of the objects."""
    from prunehal.studies.nb08_redundancy.evidence import measure

    typer.echo(f"{out}: {len(measure(out, images))} rows")


@named_errors()
def seeds(
    models: Annotated[list[Path], typer.Argument(help="Finished models of other seeds than the embedded one, seed 1 first.")],
    work: Annotated[Path, typer.Option(help="Folder of the rows under way; the same call goes on there.")] = Path("runs/seeds"),
    images: Annotated[int, typer.Option(min=2, help="Scenes of the test split in each cell.")] = 1000,
    transfer: Annotated[int, typer.Option(min=2, help="Scenes for settings that other seeds chose.")] = 300,
    dask: Annotated[str | None, typer.Option(help="Scheduler of a Dask cluster, e.g. tcp://10.0.0.1:8786.")] = None,
    out: Annotated[Path, typer.Option(help="Compressed CSV file to write.")] = Path("data/results/seeds.csv.gz"),
) -> None:
    """Caption with the embedded model and with models of other training seeds, and write what the captions count."""
    from prunehal.commands.sweep import cluster
    from prunehal.studies.nb11_seeds.rows import measure

    with cluster(dask) as executor:
        typer.echo(f"{out}: {len(measure(models, work, out, images, transfer, executor))} lines")


@named_errors()
def repetition(
    images: Annotated[int, typer.Option(min=2, max=400, help="Scenes of the test split.")] = 400,
) -> None:
    """Print what repetition hides: the paper's controls counted by mentions (CHAIR_i) and by distinct objects."""
    from prunehal.experiments import Experiment, Store
    from prunehal.studies.repetition import as_table
    from prunehal.studies.repetition import repetition as measured

    typer.echo(as_table(measured(Store.shipped(), Experiment(split="test", n_images=images))))
    typer.echo(f"\n{images} images; percent, absent objects and words a caption; paired 95% BCa intervals over images.")


@named_errors()
def claims() -> None:
    """Compute every confirmatory claim of the notebooks from the stored rows, correct for all of them (Holm), and store them."""
    from prunehal.experiments import Store
    from prunehal.studies.claims import lines, write

    for notebook, part in write(Store.shipped()).groupby("notebook"):
        typer.echo("\n".join([f"notebook {notebook}", *(f"  {line}" for line in lines(part))]))


@named_errors()
def readme(path: Annotated[Path, typer.Argument(help="The file with the markers.")] = Path("README.md")) -> None:
    """Write the findings, the speed and the numerics, computed from the stored rows, into the README."""
    from prunehal.studies.readme import update_readme

    update_readme(path)
