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
from prunehal.files.paths import file_name, written
from prunehal.files.reading import BadInput, reading

__all__ = ["app", "hallusion", "mmhal", "mmvet", "pairwise"]

app = typer.Typer(help="Write the published prompts for the judge of a benchmark.", no_args_is_help=True)

Prompts = tuple[list[dict[str, Any]], dict[Path, list[str]]]  # the rows to write, and the answers of each file


@named_errors()
def _out(name: str) -> Path:
    return file_name(name)


Out = Annotated[Path, typer.Argument(help="JSON lines to write.", parser=_out)]


@app.command()
def mmhal(responses: Annotated[Path, typer.Argument(help="The response file that `run` writes.")], out: Out) -> None:
    """MMHal-Bench: 96 prompts."""
    from prunehal.benchmarks.judged import mmhal as judged

    def prompts() -> Prompts:
        filled = judged.read_responses(responses)
        return judged.judge_prompts(filled), {responses: [record["model_answer"] for record in filled]}

    _write(out, prompts, responses)


@app.command()
def hallusion(results: Annotated[Path, typer.Argument(help="HallusionBench's result file.")], out: Out) -> None:
    """HallusionBench: a prompt for each answer."""
    from prunehal.benchmarks.judged import hallusionbench as benchmark

    def prompts() -> Prompts:
        filled = benchmark.read_results(results)
        return benchmark.judge_prompts(filled, whole=True), {results: [record["model_prediction"] for record in filled]}

    _write(out, prompts, results)


@app.command()
def mmvet(
    questions: Annotated[Path, typer.Argument(help="mm-vet.json, which is not shipped.")],
    predictions: Annotated[Path, typer.Argument(help="The answers: one JSON object, id -> text.")],
    out: Out,
) -> None:
    """MM-Vet: a few-shot prompt for each answer."""
    from prunehal.benchmarks.judged import mmvet as benchmark

    def prompts() -> Prompts:
        texts = benchmark.read_predictions(predictions)
        return benchmark.judge_prompts(questions, texts), {predictions: list(texts.values())}

    _write(out, prompts, questions, predictions)


@app.command()
def pairwise(
    captions_a: Annotated[Path, typer.Argument(help="Captions of the one method.")],
    captions_b: Annotated[Path, typer.Argument(help="Captions of the other, of the same images.")],
    out: Out,
    one_order: Annotated[bool, typer.Option("--one-order", help="Ask with a first only; by default also with b first.")] = False,
    caption_key: Annotated[str | None, typer.Option(help="The key that holds the captions, where several could.")] = None,
    image_key: Annotated[str | None, typer.Option(help="The key that names the images, where several could.")] = None,
) -> None:
    """Correctness and detailedness of two methods: one or two prompts for each image, to be sent with the image."""
    from prunehal.benchmarks import read_captions
    from prunehal.benchmarks.judged import pairwise as benchmark

    def prompts() -> Prompts:
        paths = (captions_a, captions_b)
        a, b = (read_captions(path, caption_key=caption_key, image_key=image_key)[0] for path in paths)
        return benchmark.prompts(a, b, swap=not one_order), {captions_a: list(a.values()), captions_b: list(b.values())}

    _write(out, prompts, captions_a, captions_b)


def _write(out: Path, prompts: Callable[[], Prompts], *inputs: Path) -> None:
    """Write the prompts, and print how many there are and how many of the answers are empty."""
    with named_errors():
        if out.resolve() in [path.resolve() for path in inputs]:
            raise ValueError(f"OUT {out} is a file that is read; expected another one; choose another name")
        with reading(inputs[-1]):
            rows, answers = prompts()
        for path, texts in answers.items():
            if not any(text.strip() for text in texts):
                problem = f"all answers are empty ({len(texts)}); expected a word in at least one"
                raise BadInput(path, [problem], "Check the model's prompt, and what its answers were written from.")
        with written(out) as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    n_empty = sum(not text.strip() for texts in answers.values() for text in texts)
    typer.echo(f"written: {out}, {len(rows)} prompts, {n_empty} empty answers")
