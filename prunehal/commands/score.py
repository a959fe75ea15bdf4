"""The commands ``python -m prunehal score ...``: read a benchmark's files, score them by its own rules, write one report.

Every command prints its metrics and the settings that they rest on. With ``--json OUT`` the report is written as
``{"metrics": ..., "items": ..., "settings": ...}``. Bad input is named line by line on standard error, the exit code is 2 and
nothing is written; ``--skip-bad`` goes on without the bad lines and counts them under ``settings``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from prunehal.commands.errors import named_errors
from prunehal.files.records import Report

__all__ = [
    "amber_discriminative",
    "amber_generative",
    "app",
    "chair",
    "hallusion",
    "mmhal",
    "mmvet",
    "pairwise",
    "pope",
]

app = typer.Typer(help="Score captions and answers by the rules of the published benchmarks.", no_args_is_help=True)

Json = Annotated[Path | None, typer.Option("--json", help="Write metrics, items and settings to this file.")]
Rule = Annotated[str, typer.Option(help="official, or strict: the first word must be yes or no, in any letter case.")]
AnswerKey = Annotated[str | None, typer.Option(help="The key that holds the answers, where several could.")]
JudgeRule = Annotated[str, typer.Option("--rule", help="official, or strict: the reply must have the required form.")]
JudgementKey = Annotated[str | None, typer.Option(help="The key that holds the judge's replies, where several could.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without unusable lines, and count them.")]


@app.command()
def chair(
    captions: Annotated[
        Path, typer.Argument(help="JSON list, JSON lines, or one object for all images: image_id and caption of each.")
    ],
    scorer: Annotated[str, typer.Option(help="pattern, wordnet (both official) or fixed.")] = "pattern",
    ground_truth: Annotated[
        list[str] | None,
        typer.Option(
            help="COCO's pattern (shipped) or wordnet (needs PRUNEHAL_BENCHMARKS), by default that of the scorer (pattern for "
            "fixed); testbed; or annotation files, of which more than one is united."
        ),
    ] = None,
    caption_key: Annotated[str | None, typer.Option(help="The key that holds the caption, where several could.")] = None,
    image_key: Annotated[str | None, typer.Option(help="The key that names the image, where several could.")] = None,
    truncate_words: Annotated[int | None, typer.Option(min=0, help="Score the first N words of each caption.")] = None,
    drop_unfinished: Annotated[bool, typer.Option("--drop-unfinished", help="Drop what follows the last full stop.")] = False,
    json: Json = None,
    skip_bad: SkipBad = False,
) -> None:
    """CHAIR of captions: chair_i and chair_s; beside them distinct_chair_i, absent objects, recall, repeats, unfinished, words.

    unfinished is the share of the captions as the file has them that were cut at a limit of tokens: by the key finished (true or
    false) if every row has it, and else by their last mark.
    """
    import pandas as pd

    from prunehal import benchmarks
    from prunehal.benchmarks.chair.captions import read_caption_file
    from prunehal.benchmarks.chair.score import is_finished

    def scored() -> Report:
        loaded = benchmarks.load_scorer(scorer)
        sources = ground_truth or [benchmarks.truth_of_scorer(loaded)]
        truth = benchmarks.load_ground_truth(sources, loaded)
        read = read_caption_file(captions, truth, skip_bad, caption_key, image_key)
        texts = read.captions
        ended = [is_finished(text) for text in texts.values()] if read.finished is None else list(read.finished.values())
        if truncate_words is not None:
            texts = {image: benchmarks.truncate(text, truncate_words) for image, text in texts.items()}
        if drop_unfinished:
            texts = {image: benchmarks.drop_unfinished(text) for image, text in texts.items()}
        if not any(text.strip() for text in texts.values()):
            raise ValueError(
                f"{captions}: no caption keeps a word; expected one that does. Fix: raise --truncate-words, or leave out "
                "--drop-unfinished."
            )
        frame = pd.DataFrame({"image_id": list(texts), "caption": list(texts.values()), "finished": ended})
        result = benchmarks.score(frame, truth, loaded)
        if not result.metrics["n_mentions"]:
            raise ValueError(
                f"{captions}: no caption names an object, the first is {next(iter(texts.values()))[:60]!r}; expected English "
                "captions. Fix: check the model's prompt, or name the key of the captions by --caption-key"
            )
        settings = {
            "captions": str(captions), "ground_truth": sources, "truncate_words": truncate_words,
            "drop_unfinished": drop_unfinished, "unfinished_by": "text" if read.finished is None else "finished",
            "n_finished": read.n_finished, "n_bad": read.n_bad, "n_distinct_captions": len(set(texts.values())),
            "n_without_mention": int((result.items["n_mentions"] == 0).sum()),
        }  # fmt: skip
        return result.report(settings)

    _finish(scored, json, captions)


@app.command()
def pope(
    questions: Annotated[str, typer.Argument(help="POPE question file, or a shipped one such as coco/adversarial.")],
    answers: Annotated[Path, typer.Argument(help="Answers by question_id, or in the order of the questions: question, answer.")],
    rule: Rule = "official",
    answer_key: AnswerKey = None,
    json: Json = None,
    skip_bad: SkipBad = False,
) -> None:
    """POPE: accuracy, precision, recall, F1 and the share of yes."""
    from prunehal.benchmarks.pope import score as benchmark

    _finish(
        lambda: benchmark.score_files(questions, answers, rule=rule, skip_bad=skip_bad, answer_key=answer_key),
        json, questions, answers,
    )  # fmt: skip


@app.command()
def amber_generative(
    responses: Annotated[Path, typer.Argument(help="AMBER's response file: id, response.")],
    similarity: Annotated[str, typer.Option(help="exact, spacy, or a JSON file of word vectors.")] = "exact",
    answer_key: AnswerKey = None,
    json: Json = None,
    skip_bad: SkipBad = False,
) -> None:
    """AMBER, captions: CHAIR, Cover, Hal and Cog, in percent."""
    from prunehal.benchmarks.amber import score as amber

    _finish(
        lambda: amber.score_generative(responses, similarity=similarity, skip_bad=skip_bad, answer_key=answer_key),
        json, responses,
    )  # fmt: skip


@app.command()
def amber_discriminative(
    responses: Annotated[Path, typer.Argument(help="AMBER's response file: id, response (Yes or No).")],
    rule: Annotated[
        str, typer.Option(help="official: exactly Yes or No; or strict: the first word must be yes or no, in any letter case.")
    ] = "official",
    answer_key: AnswerKey = None,
    json: Json = None,
    skip_bad: SkipBad = False,
) -> None:
    """AMBER, questions: accuracy, precision, recall and F1 of every type, in percent."""
    from prunehal.benchmarks.amber import score as amber

    _finish(
        lambda: amber.score_discriminative(responses, skip_bad=skip_bad, rule=rule, answer_key=answer_key),
        json, responses,
    )  # fmt: skip


@app.command()
def mmhal(
    judgements: Annotated[Path, typer.Argument(help="The judge's 96 replies: as eval_gpt4.py writes them, or index, judgement.")],
    rule: JudgeRule = "official",
    judgement_key: JudgementKey = None,
    json: Json = None,
) -> None:
    """MMHal-Bench: average rating and hallucination rate, from the replies of your judge."""
    from prunehal.benchmarks.judged import mmhal as judged

    _finish(lambda: judged.score_file(judgements, rule, judgement_key), json, judgements)


@app.command()
def hallusion(
    results: Annotated[
        Path, typer.Argument(help="HallusionBench's result file with verdicts, or your judge's replies: key, judgement.")
    ],
    rule: JudgeRule = "official",
    judgement_key: JudgementKey = None,
    json: Json = None,
) -> None:
    """HallusionBench: accuracy by question, figure and pair, from the verdicts of your judge."""
    from prunehal.benchmarks.judged import hallusionbench as benchmark

    _finish(lambda: benchmark.score_file(results, rule, judgement_key), json, results)


@app.command()
def mmvet(
    questions: Annotated[Path, typer.Argument(help="mm-vet.json, which is not shipped.")],
    grades: Annotated[
        Path, typer.Argument(help="The evaluator's grade file; id -> 0 to 1; or your judge's replies: id, judgement.")
    ],
    rule: JudgeRule = "official",
    judgement_key: JudgementKey = None,
    json: Json = None,
) -> None:
    """MM-Vet: percent in total and for each capability, from the grades of your judge."""
    from prunehal.benchmarks.judged import mmvet as benchmark

    _finish(lambda: benchmark.score(questions, grades, rule, judgement_key), json, questions, grades)


@app.command()
def pairwise(
    judgements: Annotated[
        Path, typer.Argument(help="image_id, order (ab or ba) and judgement: replies to the exported prompts.")
    ],
    judgement_key: JudgementKey = None,
    json: Json = None,
) -> None:
    """Two methods side by side: correctness and detailedness, from the replies of your judge."""
    from prunehal.benchmarks.judged import pairwise as benchmark

    _finish(lambda: benchmark.score_file(judgements, judgement_key), json, judgements)


def _finish(scored: Callable[[], Report], json: Path | None, *inputs: Path | str) -> None:
    """Score, write the report, and print it; say what is wrong in one message and with exit code 2."""
    with named_errors():
        if json is not None and json.resolve() in [Path(path).resolve() for path in inputs]:
            raise ValueError(f"--json {json} is the file that is read; expected another one; choose another name")
        report = scored()
        if json is not None:
            report.write(json)
    for name, value in report.metrics.items():
        typer.echo(f"{name}: {_shown(value)}")
    typer.echo("settings: " + ", ".join(f"{name}={value}" for name, value in report.settings.items()))


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    return f"{value:.4f}" if isinstance(value, float) else str(value)
