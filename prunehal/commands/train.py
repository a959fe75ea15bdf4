"""Commands that train the embedded model and write its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunehal.commands.errors import named_errors, usable

__all__ = ["card", "train"]


@named_errors()
def train(
    folder: Annotated[Path, typer.Option(help="Checkpoints, curves and the finished model.")] = Path("runs/seed0"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights.")] = 0,
    scale: Annotated[float, typer.Option(min=0.0, help="Share of the samples; 0.001 is a dry run.")] = 1.0,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; by default whichever is there.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that render scenes meanwhile.")] = 1,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile; needs a C++ compiler.")] = False,
) -> None:
    """Train the embedded model from scratch; a second call goes on where the first stopped."""
    from prunehal.testbed.training.train import train as run

    typer.echo(f"finished: {run(folder, seed, scale, usable(device), workers, compiled)}")


@named_errors()
def card(
    folder: Annotated[Path, typer.Argument(help="The finished model, e.g. runs/seed0/model.")],
    images: Annotated[int, typer.Option(min=1, max=1_000_000, help="Images of each split to evaluate on.")] = 1000,
    beside: Annotated[list[Path] | None, typer.Option(help="A model of another seed, to show its figures, too.")] = None,
) -> None:
    """Evaluate a finished model on the validation and test splits and write its model card beside the weights."""
    from prunehal.measuring.model_card import write_card

    typer.echo(f"written: {write_card(folder, images, beside or ())}")
