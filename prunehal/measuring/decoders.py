"""Measure what mitigation decoders cost beside stock greedy and beam search, alone and with pruning.

Every round runs all methods one after the other, in changing order, in one process and on one model, so that their ratios are
those of the same circumstances. No text ends early. On random weights the words mean nothing, but cost does not depend on
them, except for OPERA's returns.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import pandas as pd
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from prunehal.core import NoPruning, Policy, PruneHal, attach
from prunehal.core.keyword import as_option
from prunehal.decoding.base import Decoder
from prunehal.decoding.named import BEAMS, DECODERS, Decoding, named_decoding
from prunehal.files.paths import written
from prunehal.files.reading import read_text, reading
from prunehal.measuring.engine import Clock, build, machine, prompt
from prunehal.models.load import load
from prunehal.testbed.training.model import build_processor, build_prompt
from prunehal.testbed.world.scenes import scene

__all__ = ["EMBEDDED", "METHODS", "as_table", "measure", "ratios", "run"]

EMBEDDED = "embedded"
_MEASURED = ("seconds", "ms_per_token", "kv_peak_bytes")
_POLICIES: dict[str, Policy | None] = {"stock": None, "no pruning": NoPruning(), "PruneHal": PruneHal(r=0.4, t=3)}
# (decoding, policy) -> what runs; "stock" is generate() on a cache of the library.
METHODS: dict[tuple[str, str], tuple[Decoding, Policy | None]] = {
    (name, policy): (named_decoding(name), _POLICIES[policy])
    for name in ("greedy", "beam", *DECODERS)
    for policy in (("stock", "PruneHal") if name in ("greedy", "beam") else ("no pruning", "PruneHal"))
}


def measure(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], decoding: Decoding, policy: Policy | None, new_tokens: int
) -> dict[str, float]:
    """Generate once; return seconds of the whole call, ms_per_token after the first, and kv_peak_bytes.

    The bytes are those of K and V of the run and of a method's second run; what OPERA holds while it looks ahead is not in them.

    >>> from prunehal.decoding import VCD
    >>> model = build("dry-run", "float32", "cpu")
    >>> found = [measure(model, prompt(model, 1, 0), method, NoPruning(), 3) for method in ("greedy", VCD())]
    >>> found[1]["kv_peak_bytes"] / found[0]["kv_peak_bytes"] > 1.5
    True
    """
    start = time.perf_counter()
    cache = DynamicCache(config=model.config) if policy is None else attach(model, inputs, policy)
    with decoding.on(model, inputs, cache) if isinstance(decoding, Decoder) else nullcontext({}) as options:
        caches = [cache, *(each.cache for each in getattr(cache, "listeners", ()) if hasattr(each, "cache"))]
        clock = Clock(*caches)
        options |= {"num_beams": BEAMS} if decoding == "beam" else {}
        model.generate(
            **inputs, **as_option(cache), max_new_tokens=new_tokens, do_sample=False, stopping_criteria=[clock], **options
        )
    return {
        "seconds": time.perf_counter() - start,
        "ms_per_token": (clock.times[-1] - clock.times[0]) / (new_tokens - 1) * 1e3,
        "kv_peak_bytes": max(clock.bytes),
    }


def run(shape: str, new_tokens: int, rounds: int, path: Path, only: str = "", device: str = "cpu") -> pd.DataFrame:
    """Measure the rounds that the file lacks, write it after each method, and return all of its rows.

    Args:
        shape: of `prunehal.measuring.engine.SHAPES`, or "embedded".
        new_tokens: of each text.
        rounds: how many of each method.
        path: CSV file; rows of other shapes stay.
        only: methods whose name holds this text; greedy and beam search run in any case.
        device: of the model.

    Returns:
        Columns: shape, new_tokens, round, decoding, policy, seconds, ms_per_token, kv_peak_bytes, and those of the machine.

    Raises:
        ValueError: the file holds rows of another machine or other versions.
    """
    here = machine(device)
    with reading(path):
        frame = pd.read_csv(io.StringIO(read_text(path))) if path.exists() else pd.DataFrame()
    for name, value in here.items():
        if len(frame) and set(frame[name]) != {value}:
            raise ValueError(f"{path}: holds rows of {name} {set(frame[name])}; expected {value}. Fix: choose another file.")
    model = _model(shape, device)
    wanted = [method for method in METHODS if only in method[0] or method[1] == "stock"]
    for turn in (bar := tqdm(range(rounds), desc=f"decoders, {shape}", unit="round", smoothing=0)):
        place = turn % len(wanted)
        for name, policy in wanted[place:] + wanted[:place]:
            done = {"shape": shape, "new_tokens": new_tokens, "round": turn, "decoding": name, "policy": policy}
            if len(frame) and (frame[list(done)] == list(done.values())).all(axis=1).any():
                continue
            bar.set_postfix_str(f"{name}, {policy}")
            inputs = _inputs(model, shape, turn)
            if turn == 0:
                measure(model, inputs, *METHODS[name, policy], 2)  # the first call loads libraries and takes memory
            found = measure(model, inputs, *METHODS[name, policy], new_tokens)
            frame = pd.concat([frame, pd.DataFrame([done | found | here])], ignore_index=True)
            with written(path) as part:
                frame.to_csv(part, index=False)
    return frame


def ratios(frame: pd.DataFrame, shape: str) -> pd.DataFrame:
    """Return, for each method, the ratios to stock greedy decoding (or beam search) of the same round.

    Returns:
        Columns: decoding, policy, base ("greedy", or "beam" for OPERA and beam search), rounds; time, low, high (median,
        smallest and largest ratio of seconds), ms_per_token and kv (medians of the ratios); over_greedy (time, always to greedy).
    """
    part = frame[frame["shape"] == shape]
    methods = {key: rows.set_index("round")[list(_MEASURED)] for key, rows in part.groupby(["decoding", "policy"], sort=False)}
    lines = []
    for (name, policy), own in methods.items():
        base = "beam" if name in ("beam", "opera") else "greedy"
        ratio, over_greedy = own / methods[base, "stock"], own / methods["greedy", "stock"]
        line = {"decoding": name, "policy": policy, "base": base, "rounds": len(own)}
        line |= {"over_greedy": median(over_greedy["seconds"])}
        line |= {"time": median(ratio["seconds"]), "low": ratio["seconds"].min(), "high": ratio["seconds"].max()}
        line |= {"ms_per_token": median(ratio["ms_per_token"]), "kv": median(ratio["kv_peak_bytes"])}
        lines.append(line)
    return pd.DataFrame(lines)


def as_table(frame: pd.DataFrame, shape: str) -> str:
    """Return the ratios as a markdown table."""
    lines = ["| decoding | cache | time, ratio to | ms a token, ratio | peak of K and V, ratio |", "|---" * 5 + "|"]
    for line in ratios(frame, shape).itertuples():
        spread = f" [{line.low:.2f}, {line.high:.2f}]" if line.rounds > 1 else ""
        base = {"greedy": "greedy", "beam": "beam 5"}[line.base]
        lines.append(
            f"| {line.decoding} | {line.policy} | {base}: {line.time:.2f}{spread} | {line.ms_per_token:.2f} | {line.kv:.2f} |"
        )
    return "\n".join(lines)


def _model(shape: str, device: str) -> PreTrainedModel:
    if shape != EMBEDDED:
        return build(shape, "bfloat16" if device == "cuda" else "float32", device)
    model = load()[0].to(device)
    model.generation_config.eos_token_id = None  # no text ends early
    return model


def _inputs(model: PreTrainedModel, shape: str, seed: int) -> dict[str, Tensor]:
    if shape != EMBEDDED:
        return prompt(model, 1, seed)
    inputs = build_processor()(images=scene("test", seed).image(), text=build_prompt(), return_tensors="pt")
    return dict(inputs.to(model.device))
