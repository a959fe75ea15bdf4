"""The README's tables of speed, memory and numerics: computed from the stored measurements, never typed in."""

from __future__ import annotations

import pandas as pd
import pyperf

from prunehal.files.paths import data_path
from prunehal.measuring import decoders as bench_decoders
from prunehal.measuring import engine as bench
from prunehal.measuring import half_precision as half
from prunehal.measuring import scoring as bench_scoring
from prunehal.measuring import sweeps as bench_sweep

__all__ = ["cost", "numerics", "scoring", "speed", "sweeps"]


def speed() -> str:
    """Return the README's tables of speed and memory, one for each machine that was measured."""
    tables = []
    for path in sorted(data_path("bench").glob("*.json")):
        suite = pyperf.BenchmarkSuite.load(str(path))
        found = suite.get_benchmarks()[0].get_metadata()
        versions = f"torch {found['torch_version']}, transformers {found['transformers_version']}"
        tables.append(f"{found['machine']}; {versions}:\n\n{bench.as_table(suite)}")
    return "\n\n".join(tables)


def numerics() -> str:
    """Return the README's table of what half precision changes."""
    frame = pd.read_csv(data_path("bench", "numerics.csv"))
    what = "Largest difference of a logit on the same forced tokens, and shares that agree with float32"
    return f"{half.as_table(frame)}\n\n{what}; the embedded model, {frame['images'].iloc[0]} images."


def scoring() -> str:
    """Return the README's table of the scorers' speed and memory."""
    return bench_scoring.as_table(pd.read_csv(data_path("bench", "scoring.csv")))


def sweeps() -> str:
    """Return the README's table of the throughput of sweeps."""
    frame = pd.read_csv(data_path("bench", "sweep.csv"))
    made = f"20 settings of {frame['captions'].iloc[0] // 20} images, the embedded model in float32, {frame['machine'].iloc[0]}"
    return f"{bench_sweep.as_table(frame)}\n\n{made}, torch {frame['torch'].iloc[0]}."


def cost() -> str:
    """Return the README's tables of what decoders cost, one for each model that was measured."""
    frame = pd.read_csv(data_path("bench", "decoders.csv"))
    tables = []
    for (shape, tokens), part in frame.groupby(["shape", "new_tokens"], sort=False):
        rounds = part["round"].nunique()
        what = f"{shape}, {tokens} new tokens, {rounds} round{'s' if rounds > 1 else ''}, {part['machine'].iloc[0]}"
        tables.append(f"{what}:\n\n{bench_decoders.as_table(frame, shape)}")
    return "\n\n".join(tables)
