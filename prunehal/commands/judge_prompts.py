"""The commands ``python -m prunehal judge-prompts ...``: what to ask the judge of a benchmark, one prompt a line.

No judge is called here. Send each ``prompt`` to the judge of your choice, keep its replies, and score them with
``python -m prunehal score ...``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from prunehal.commands.errors import named_errors
from prunehal.resources import written

__all__ = ["app", "hallusion", "mmhal", "mmvet", "pairwise"]

app = typer.Typer(help="Write the published prompts for the judge of a benchmark.", no_args_is_help=True)

Out = Annotated[Path, typer.Argument(help="JSON lines to write.")]


@app.command()
def mmhal(responses: Annotated[Path, typer.Argument(help="The response file that `run` writes.")], out: Out) -> None:
    """MMHal-Bench: 96 prompts."""
    from prunehal.benchmarks import judged
    from prunehal.benchmarks.files import read_values

    _write(out, lambda: judged.judge_prompts(read_values(responses)))


@app.command()
def hallusion(results: Annotated[Path, typer.Argument(help="HallusionBench's result file.")], out: Out) -> None:
    """HallusionBench: a prompt for each answer."""
    from prunehal.benchmarks import hallusion as benchmark

    _write(out, lambda: benchmark.judge_prompts(benchmark.read_results(results)))


@app.command()
def mmvet(
    questions: Annotated[Path, typer.Argument(help="mm-vet.json, which is not shipped.")],
    predictions: Annotated[Path, typer.Argument(help="The answers: one JSON object, id -> text.")],
    out: Out,
) -> None:
    """MM-Vet: a few-shot prompt for each answer."""
    from prunehal.benchmarks import mmvet as benchmark

    _write(out, lambda: benchmark.judge_prompts(questions, predictions))


@app.command()
def pairwise(
    captions_a: Annotated[Path, typer.Argument(help="Captions of the one method.")],
    captions_b: Annotated[Path, typer.Argument(help="Captions of the other, of the same images.")],
    out: Out,
    one_order: Annotated[bool, typer.Option("--one-order", help="Ask with a first only; by default also with b first.")] = False,
) -> None:
    """Correctness and detailedness of two methods: one or two prompts for each image, to be sent with the image."""
    from prunehal.benchmarks import pairwise as benchmark
    from prunehal.benchmarks import read_captions

    def prompts() -> list[dict[str, Any]]:
        a, b = (read_captions(path)[0] for path in (captions_a, captions_b))
        return benchmark.prompts(a, b, swap=not one_order)

    _write(out, prompts)


def _write(out: Path, prompts: Callable[[], list[dict[str, Any]]]) -> None:
    with named_errors():
        lines = [json.dumps(prompt) + "\n" for prompt in prompts()]
        with written(out) as part:
            part.write_text("".join(lines), encoding="utf-8")
    typer.echo(f"written: {out}, {len(lines)} prompts")
