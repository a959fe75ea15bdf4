"""Command line: ``python -m prunehal COMMAND``; ``--help`` lists the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunehal.commands.errors import named_errors, usable
from prunehal.commands.judge_prompts import app as judge_prompts
from prunehal.commands.score import app as score
from prunehal.commands.sweep import sweep_grid

app = typer.Typer(help="Score benchmarks, run models on them, and make what the notebooks read.", no_args_is_help=True)
app.add_typer(score, name="score")
app.add_typer(judge_prompts, name="judge-prompts")
app.command("sweep")(sweep_grid)


@app.command()
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


@app.command()
@named_errors()
def card(
    folder: Annotated[Path, typer.Argument(help="The finished model, e.g. runs/seed0/model.")],
    images: Annotated[int, typer.Option(min=1, max=1_000_000, help="Images of each split to evaluate on.")] = 1000,
    beside: Annotated[list[Path] | None, typer.Option(help="A model of another seed, to show its figures, too.")] = None,
) -> None:
    """Evaluate a finished model on the validation and test splits and write its model card beside the weights."""
    from prunehal.measuring.model_card import write_card

    typer.echo(f"written: {write_card(folder, images, beside or ())}")


@app.command()
@named_errors()
def numerics(
    images: Annotated[int, typer.Option(min=1, max=1_000_000, help="Images of the test split.")] = 100,
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("data/bench/numerics.csv"),
) -> None:
    """Measure what bfloat16 and float16 change on the embedded model, and print the table."""
    from prunehal.measuring.half_precision import as_table, measure

    typer.echo(as_table(measure(out, images)))


@app.command()
@named_errors()
def bench_scoring(
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("data/bench/scoring.csv"),
) -> None:
    """Measure how fast the CHAIR scorers are on 500 and on 100,000 captions, and print the table."""
    from prunehal.measuring.scoring import as_table, measure

    typer.echo(as_table(measure(out)))


@app.command()
@named_errors()
def bench_sweep(
    images: Annotated[int, typer.Option(min=1, help="Images of each of the twenty settings.")] = 300,
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("data/bench/sweep.csv"),
) -> None:
    """Measure sweeps against the naive loop, and on one and two workers of a Dask cluster, and print the table."""
    from prunehal.measuring.sweeps import as_table, measure

    typer.echo(as_table(measure(out, images)))


@app.command()
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


@app.command()
@named_errors()
def causal(
    images: Annotated[int, typer.Option(min=1, help="Stored captions of so many scenes of the test split.")] = 400,
    out: Annotated[Path, typer.Option(help="Compressed CSV file to write.")] = Path("data/results/interventions.csv.gz"),
) -> None:
    """Intervene on the attention at every mention of the embedded model's captions; write each word's probability."""
    from prunehal.studies.nb09_causal.rows import measure

    typer.echo(f"{out}: {len(measure(out, images))} rows")


@app.command()
@named_errors()
def evidence(
    images: Annotated[int, typer.Option(min=1, help="Scenes of the test split in each cell.")] = 60,
    out: Annotated[Path, typer.Option(help="Compressed CSV file to write.")] = Path("data/results/evidence.csv.gz"),
) -> None:
    """Measure where visual attention lies among background tiles, and what each rule keeps of the objects."""
    from prunehal.studies.nb08_redundancy.evidence import measure

    typer.echo(f"{out}: {len(measure(out, images))} rows")


@app.command()
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


@app.command()
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


@app.command()
@named_errors()
def claims() -> None:
    """Compute every confirmatory claim of the notebooks from the stored rows, correct for all of them (Holm), and store them."""
    from prunehal.experiments import Store
    from prunehal.studies.claims import lines, write

    for notebook, part in write(Store.shipped()).groupby("notebook"):
        typer.echo("\n".join([f"notebook {notebook}", *(f"  {line}" for line in lines(part))]))


@app.command()
@named_errors()
def readme(path: Annotated[Path, typer.Argument(help="The file with the markers.")] = Path("README.md")) -> None:
    """Write the findings, the speed and the numerics, computed from the stored rows, into the README."""
    from prunehal.studies.readme import update_readme

    update_readme(path)


@app.command("run")
@named_errors()
def run_benchmark(
    model: Annotated[str, typer.Option(help="embedded, a hub name such as llava-hf/llava-1.5-7b-hf, or a folder.")],
    benchmark: Annotated[str, typer.Option(help="chair, pope, amber or mmhal.")],
    images: Annotated[Path, typer.Option(help="Folder of the benchmark's images.")],
    out: Annotated[Path, typer.Option(help="Folder of the rows and the result; the same call goes on there.")],
    policy: Annotated[str, typer.Option(help="prunehal, topk, or none: stock generate().")] = "prunehal",
    r: Annotated[float | None, typer.Option(help="Retention ratio of prunehal; 0.4 by default.")] = None,
    t: Annotated[int | None, typer.Option(help="Largest number of prunes of prunehal; 3 by default.")] = None,
    k: Annotated[int | None, typer.Option(help="Visual tokens that topk keeps; it needs them.")] = None,
    decoding: Annotated[
        str, typer.Option(help="greedy, beam (5 beams), nucleus (top_p 0.9), vcd, dola, opera, deco, pai, kvsmooth or fastv.")
    ] = "greedy",
    decoder_option: Annotated[
        list[str] | None, typer.Option(help="An option of the decoder, e.g. alpha=0.5; several are possible.")
    ] = None,
    questions: Annotated[
        str | None, typer.Option(help="POPE: a file, or a shipped one such as coco/adversarial; CHAIR: a file of image ids.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="CHAIR: instead of 'Please describe this image in detail.'")] = None,
    prompt_suffix: Annotated[str, typer.Option(help="Added to every prompt, e.g. ' Please answer yes or no.'")] = "",
    template: Annotated[str | None, typer.Option(help="Instead of the chat template: text with {image} and {prompt}.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Images at once; halved when memory runs out.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Only the first so many.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cuda or cpu; by default whichever is there.")] = None,
    device_map: Annotated[str | None, typer.Option(help="Of transformers, e.g. auto, for several devices.")] = None,
    attn_implementation: Annotated[str | None, typer.Option(help="sdpa, eager or flash_attention_2.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out what has no image.")] = False,
) -> None:
    """Run a model on a benchmark, resumably, and write the result file that the benchmark's scorer reads."""
    options = dict(locals())
    for name in ("policy", "r", "t", "k", "decoding", "decoder_option"):
        del options[name]
    from prunehal.decoding.named import named_decoding, read_options
    from prunehal.running import Run, named_policy, run

    if device is not None:
        usable(device)
    method = named_decoding(decoding, read_options(decoder_option or ()))
    typer.echo(f"written: {run(Run(policy=named_policy(policy, r=r, t=t, k=k), decoding=method, **options))}")


@app.command()
@named_errors()
def lmms_eval(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    partial: Annotated[bool, typer.Option("--partial", help="Export a run that has not ended, too.")] = False,
) -> None:
    """Write the rows of a run in the layout of lmms-eval's sample files."""
    from prunehal.benchmarks.lmms_eval import export
    from prunehal.running.finished import finished

    run = finished(folder, partial)
    path = export(run.rows, out, run.benchmark, prompt="prompt", answer="text", doc=["key", "image", "prompt"], doc_id="key")
    typer.echo(f"written: {path}" + (f"; partial: {run.lacking}" if run.lacking else ""))


@app.command()
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


if __name__ == "__main__":
    app()
