"""Measure what the engine costs and saves: interleaved runs of stock generate() and the same call on our caches.

Every round runs all variants of a case, one after the other in changing order, in one process, so that whatever else the
machine does hits all of them alike; what is reported are ratios to the stock call of the same round. Weights are random:
speed does not depend on what they say. Results are pyperf files, one benchmark for each case and variant and one run for
each round; a second call goes on where the first stopped.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import pyperf
import torch
import transformers
from torch.utils.benchmark import Timer
from tqdm import tqdm
from transformers import (
    Cache,
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    StoppingCriteria,
)

from prunehal.core import NoPruning, PruneHal, attach
from prunehal.core.blocks import BlockLayer
from prunehal.core.keyword import as_option
from prunehal.core.trace import AttentionTrace, statistics
from prunehal.files.paths import written

__all__ = [
    "SHAPES",
    "VARIANTS",
    "Case",
    "Clock",
    "as_table",
    "build",
    "cases",
    "cpu_name",
    "machine",
    "measure",
    "prompt",
    "recording",
    "run",
]

IMAGE, VISUAL, WORDS = 32000, 576, 35  # placeholder id, visual tokens (24 x 24 patches), text tokens of the prompt


@dataclass(frozen=True)
class Case:
    """Describe what is generated: a decoder's shape, its dtype, the batch, the beams and the new tokens."""

    shape: str
    dtype: str
    batch: int
    beams: int
    new_tokens: int

    @property
    def name(self) -> str:
        """Return the case in words; the key of stored rounds."""
        decoding = "greedy" if self.beams == 1 else f"beam {self.beams}"
        return f"{self.shape} {self.dtype}, batch {self.batch}, {decoding}, {self.new_tokens} new tokens"


# (layers, hidden size, heads, size of the feed-forward layer) of the decoder.
SHAPES = {
    "llava-0.1b": (12, 768, 12, 2048),
    "llava-0.3b": (16, 1024, 16, 4096),
    "llava-1.5-7b": (32, 4096, 32, 11008),
    "dry-run": (2, 64, 4, 64),
}


DETAILS = ("ttft_s", "ms_per_token", "kv_first_bytes", "kv_peak_bytes", "kv_last_bytes")
RECORDING = "recording of one step"
# Which cache generate() runs on, made from the model and its inputs.
VARIANTS = {
    "stock": lambda model, inputs: DynamicCache(config=model.config),  # what generate() makes for itself
    # It only allocates ahead: the gain of preallocation apart from that of pruning.
    "blocks": lambda model, inputs: Cache(layers=[BlockLayer() for _ in range(model.config.text_config.num_hidden_layers)]),
    "observe": lambda model, inputs: attach(model, inputs, NoPruning()),
    "prune": lambda model, inputs: attach(model, inputs, PruneHal(r=0.4, t=3)),  # published for LLaVA-1.5
}


def cases(device: str, shape: str | None = None, new_tokens: int | None = None) -> list[Case]:
    """Return the cases of a device, the quick ones first."""
    if device == "cpu":
        grid = [(batch, beams) for beams in (1, 5) for batch in (1, 8)]
        return [Case(shape or "llava-0.3b", "float32", batch, beams, new_tokens or 256) for batch, beams in grid]
    grid = [(1, 1), (1, 5), (8, 1), (16, 1), (8, 5)]
    return [Case(shape or "llava-1.5-7b", "bfloat16", batch, beams, new_tokens or 512) for batch, beams in grid]


def build(shape: str, dtype: str, device: str) -> LlavaForConditionalGeneration:
    """Return a LLaVA with a decoder of that shape and a small tower for 336 x 336 pixels, on sdpa attention."""
    layers, hidden, heads, inner = SHAPES[shape]
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=32064, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-2)
    torch.manual_seed(0)
    with torch.device(device):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            model = LlavaForConditionalGeneration(config).eval()
        finally:
            torch.set_default_dtype(previous)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


class Clock(StoppingCriteria):
    """Note the time and the bytes of K and V, in all caches of a call, after each token."""

    def __init__(self, *caches: Cache) -> None:
        self.caches, self.times, self.bytes = caches, [], []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.bytes.append(
            sum(
                part.untyped_storage().nbytes()
                for cache in self.caches
                for layer in cache.layers
                for part in (layer.keys, layer.values)
            )
        )
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def prompt(model: LlavaForConditionalGeneration, batch: int, seed: int) -> dict[str, torch.Tensor]:
    """Return what a processor would make of random pictures and 35 random words around each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, IMAGE, (batch, WORDS), generator=generator)
    ids = torch.cat([ids[:, :5], torch.full((batch, VISUAL), IMAGE), ids[:, 5:]], dim=1)
    pixels = torch.randn(batch, 3, 336, 336, generator=generator).to(model.dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return {name: value.to(model.device) for name, value in inputs.items()}


def measure(model: LlavaForConditionalGeneration, case: Case, variant: str, seed: int) -> tuple[float, dict[str, float]]:
    """Generate once; return the seconds of the whole call, and ttft_s, ms_per_token and the bytes of K and V.

    >>> case = Case("dry-run", "float32", batch=1, beams=1, new_tokens=3)
    >>> seconds, details = measure(build("dry-run", "float32", "cpu"), case, "prune", seed=0)
    >>> details["kv_first_bytes"] > 0, sorted(details)
    (True, ['kv_first_bytes', 'kv_last_bytes', 'kv_peak_bytes', 'ms_per_token', 'ttft_s'])
    """
    inputs = prompt(model, case.batch, seed)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    cache = VARIANTS[variant](model, inputs)
    clock = Clock(cache)
    model.generate(
        **inputs, **as_option(cache), max_new_tokens=case.new_tokens, do_sample=False, num_beams=case.beams,
        stopping_criteria=[clock],
    )  # fmt: skip
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    details = {
        "ttft_s": clock.times[0] - start,
        "ms_per_token": (clock.times[-1] - clock.times[0]) / (len(clock.times) - 1) * 1e3,
        "kv_first_bytes": clock.bytes[0],
        "kv_peak_bytes": max(clock.bytes),
        "kv_last_bytes": clock.bytes[-1],
    }
    if model.device.type == "cuda":
        details["cuda_peak_bytes"] = torch.cuda.max_memory_allocated()
    return seconds, details


def recording(case: Case, device: str) -> float:
    """Return the seconds that recording one step takes: its statistics, and the lines in the trace's buffer."""
    layers, rows = SHAPES[case.shape][0], case.batch * case.beams
    weights = torch.rand(layers, rows, 1, VISUAL, device=device)
    counts = torch.full((rows,), VISUAL, device=device)
    votes, live = torch.rand(4, layers, rows, device=device), torch.ones(rows, dtype=torch.bool, device=device)

    def caption() -> None:
        trace = AttentionTrace(list(range(layers)), rows, torch.device(device), visual=None)
        for _ in range(case.new_tokens):
            trace.record(statistics(weights, counts), votes, live, None)

    timer = Timer("caption()", globals={"caption": caption}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange().median / case.new_tokens


def run(wanted: Sequence[Case], rounds: int, path: Path, device: str) -> pyperf.BenchmarkSuite:
    """Measure the rounds that the file lacks, write it after each, and return all that it holds.

    Raises:
        ValueError: the file holds rounds of another machine or other versions.
    """
    here, runs, on_gpu = machine(device), {}, torch.device(device).type == "cuda"
    if path.exists():
        for benchmark in pyperf.BenchmarkSuite.load(str(path)).get_benchmarks():
            runs[benchmark.get_name()] = list(benchmark.get_runs())
            found = {name: benchmark.get_metadata().get(name) for name in here}
            if found != here:
                raise ValueError(f"{path}: holds rounds of {found}; expected {here}, to compare them. Fix: choose another file.")
    order = list(VARIANTS)
    left = [(case, turn) for case in wanted for turn in range(len(runs.get(f"{case.name}: {order[-1]}", [])), rounds)]
    built: tuple[tuple[str, str], LlavaForConditionalGeneration] | None = None
    warm: Case | None = None
    for case, turn in (bar := tqdm(left, desc="bench", unit="round", smoothing=0)):
        bar.set_postfix_str(case.name)
        if built is None or built[0] != (case.shape, case.dtype):
            built = None  # free the old one first
            built = (case.shape, case.dtype), build(case.shape, case.dtype, device)
        if warm != case:  # the first calls load libraries, tune kernels and take memory from the system
            small = replace(case, new_tokens=4) if on_gpu else replace(case, batch=1, beams=1, new_tokens=4)
            for variant in order:
                measure(built[1], small, variant, seed=0)
            warm = case
        first = turn % len(order)
        measured = {variant: measure(built[1], case, variant, seed=turn) for variant in order[first:] + order[:first]}
        for variant, (seconds, details) in measured.items():
            name = f"{case.name}: {variant}"
            metadata = here | details | {"name": name, "unit": "second"}
            runs.setdefault(name, []).append(pyperf.Run([seconds], metadata=metadata, collect_metadata=False))
        name = f"{case.name}: {RECORDING}"
        metadata = here | {"name": name, "unit": "second"}
        runs.setdefault(name, []).append(pyperf.Run([recording(case, device)], metadata=metadata, collect_metadata=False))
        _write(runs, path)
    return pyperf.BenchmarkSuite.load(str(path))


def as_table(suite: pyperf.BenchmarkSuite) -> str:
    """Return the results as a markdown table: for each case and variant the ratio to stock, the median over the rounds."""
    named = {benchmark.get_name(): benchmark for benchmark in suite.get_benchmarks()}
    lines = [
        "| case | cache | time, ratio to stock | ms a token | first token, s | K and V, MB: first, peak, last | recording, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(name.rpartition(": ")[0] for name in named):
        base = named[f"{case}: stock"].get_values()
        recorded = named[f"{case}: {RECORDING}"].median() * 1e3
        for variant in VARIANTS:
            benchmark = named[f"{case}: {variant}"]
            ratios = [mine / theirs for mine, theirs in zip(benchmark.get_values(), base, strict=True)]
            spread = f" [{min(ratios):.2f}, {max(ratios):.2f}]" if len(ratios) > 1 else ""
            detail = {key: median(run.get_metadata()[key] for run in benchmark.get_runs()) for key in DETAILS}
            sizes = ", ".join(f"{detail[key] / 1e6:.0f}" for key in DETAILS if key.startswith("kv_"))
            peaks = [run.get_metadata().get("cuda_peak_bytes") for run in benchmark.get_runs()]
            sizes += f"; {max(peaks) / 1e9:.1f} GB on the device" if all(peaks) else ""
            first = f"{case} ({len(ratios)} round{'s' if len(ratios) > 1 else ''})" if variant == "stock" else ""
            ratio = "1" if variant == "stock" else f"{median(ratios):.2f}{spread}"
            shown = f"{recorded:.2f}" if variant == "observe" else ""
            lines.append(
                f"| {first} | {variant} | {ratio} | {detail['ms_per_token']:.0f} | {detail['ttft_s']:.1f} | {sizes} | {shown} |"
            )
    return "\n".join(lines)


def _write(runs: dict[str, list[pyperf.Run]], path: Path) -> None:
    with written(path) as part:
        pyperf.BenchmarkSuite([pyperf.Benchmark(each) for each in runs.values()]).dump(str(part), replace=True)


def cpu_name() -> str:
    """Return what the processor calls itself.

    >>> isinstance(cpu_name(), str)
    True
    """
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def machine(device: str) -> dict[str, str | int]:
    """Return what must be equal for rounds to be compared: machine, threads and versions."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "machine": torch.cuda.get_device_name(device) if on_gpu else f"{cpu_name()}, {torch.get_num_threads()} threads",
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
    }
