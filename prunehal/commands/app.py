"""The command line: ``python -m prunehal COMMAND``; ``--help`` lists the commands."""

from __future__ import annotations

import typer

from prunehal.commands import measure, rows, run, train
from prunehal.commands.judge_prompts import app as judge_prompts
from prunehal.commands.score import app as score
from prunehal.commands.sweep import sweep_grid

__all__ = ["app"]

app = typer.Typer(help="Score benchmarks, run models on them, and make what the notebooks read.", no_args_is_help=True)
app.add_typer(score, name="score")
app.add_typer(judge_prompts, name="judge-prompts")
app.command("sweep")(sweep_grid)
app.command("run")(run.run_benchmark)
for command in (
    train.train, train.card, rows.repetition, rows.claims, rows.causal, rows.evidence, rows.seeds, rows.readme, run.lmms_eval,
    measure.bench, measure.bench_decoders, measure.bench_scoring, measure.bench_sweep, measure.numerics,
):  # fmt: skip
    app.command()(command)
