"""Commands that run a model on a benchmark, and export a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunehal.commands.errors import named_errors, usable

__all__ = ["lmms_eval", "run_benchmark"]


@named_errors()
def run_benchmark(
    model: Annotated[str, typer.Option(help="embedded, a hub name such as llava-hf/llava-1.5-7b-hf, or a folder.")],
    benchmark: Annotated[str, typer.Option(help="chair, pope, amber or mmhal.")],
    images: Annotated[Path, typer.Option(help="Folder of the benchmark's images.")],
    out: Annotated[Path, typer.Option(help="Folder of the rows and the result; the same call goes on there.")],
    policy: Annotated[str, typer.Option(help="prunehal, topk, none (stock generate()), or your own module:Class.")] = "prunehal",
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
