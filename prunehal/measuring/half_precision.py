"""Measure what half precision changes: logits, prune steps, kept tokens and captions, on the embedded model.

In float32 the engine equals stock generate() and the masked full cache within 1e-5, which the tests hold. In bfloat16 and
float16 stock generate() itself is off by more than that, and the explicit attention of one query rounds at other places than
sdpa does. This says by how much, with stock's own distance to float32 beside it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from prunehal.core import NoPruning, Policy, PrunableCache, PruneHal, attach
from prunehal.files.paths import data_path, written
from prunehal.models.load import load
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import scene

__all__ = ["as_table", "measure"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
POLICY = PruneHal(r=0.4, t=3)
STEPS = 40


def measure(path: Path, images: int = 100, batch_size: int = 25) -> pd.DataFrame:
    """Write and return one row for each dtype, compared with float32 on the same forced tokens.

    Columns: dtype, images; stock (largest difference of a logit of stock generate() from float32's), observe and exact
    (the same for the observing cache from stock in that dtype); steps (share of the images whose prunes came at the steps of
    float32), kept (tokens that both keep, of those that either keeps), captions (share of the captions, freely generated while
    pruning, that equal float32's), captions_stock (the same without pruning).
    """
    parts: dict[str, list[dict]] = {name: [] for name in DTYPES}
    # Loaded anew for each dtype: model.to() would round RoPE's frequencies as well, and for good.
    loaded = {name: load(data_path("embedded"), dtype=dtype)[0] for name, dtype in DTYPES.items()}
    processor = load()[1]
    for start in tqdm(range(0, images, batch_size), desc="numerics", unit="batch"):
        batch = [scene("test", index).image() for index in range(start, min(start + batch_size, images))]
        inputs = processor(images=batch, text=[build_prompt()] * len(batch), return_tensors="pt")
        truth: dict[str, object] = {}
        for name, dtype in DTYPES.items():
            parts[name].append(_compared(loaded[name], inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}, truth))
    frame = pd.DataFrame([{"dtype": name} | _together(pd.DataFrame(found)) for name, found in parts.items()])
    with written(path) as part:
        frame.to_csv(part, index=False)
    return frame


def as_table(frame: pd.DataFrame) -> str:
    """Return the rows as a markdown table."""
    lines = [
        "| | stock, from float32 | observing, from stock | exact, from stock | same prunes | kept in common | same captions |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in frame.itertuples():
        shares = f"{row.steps:.0%} | {row.kept:.0%} | {row.captions:.0%} (stock: {row.captions_stock:.0%})"
        lines.append(f"| {row.dtype} | {row.stock:.1g} | {row.observe:.1g} | {row.exact:.1g} | {shares} |")
    return "\n".join(lines)


def _together(batches: pd.DataFrame) -> dict[str, float]:
    largest, images = batches[["stock", "observe", "exact"]].max(), batches.pop("images")
    means = batches.drop(columns=largest.index).mul(images, axis=0).sum() / images.sum()
    return {"images": images.sum()} | largest.to_dict() | means.to_dict()


def _compared(model: PreTrainedModel, inputs: dict[str, torch.Tensor], truth: dict[str, object]) -> dict[str, float]:
    """Compare one dtype with float32; the first call, in float32, fills in the truth."""
    free, _ = _generated(model, inputs, None)
    pruned, _ = _generated(model, inputs, POLICY)
    if not truth:
        truth |= {"tokens": free.sequences, "pruned": pruned.sequences}
    forced = truth["tokens"]
    stock, _ = _generated(model, inputs, None, forced)
    observe, _ = _generated(model, inputs, NoPruning(), forced)
    exact, _ = _generated(model, inputs, NoPruning(), forced, exact=True)
    _, cache = _generated(model, inputs, POLICY, forced)
    found = {"logits": stock.logits, "events": cache.events, "kept": cache}
    truth.setdefault("forced", found)
    true = truth["forced"]
    rows = range(len(forced))
    steps = [_steps(cache.events, row) == _steps(true["events"], row) for row in rows]
    kept = [_common(cache, true["kept"], row) for row in rows]
    return {
        "images": len(forced),
        "stock": _apart(stock.logits, true["logits"]),
        "observe": _apart(observe.logits, stock.logits),
        "exact": _apart(exact.logits, stock.logits),
        "steps": sum(steps) / len(steps),
        "kept": sum(kept) / len(kept),
        "captions": _equal(pruned.sequences, truth["pruned"]),
        "captions_stock": _equal(free.sequences, truth["tokens"]),
    }


def _generated(model, inputs, policy: Policy | None, forced: torch.Tensor | None = None, exact: bool = False):
    cache = None if policy is None else attach(model, inputs, policy, exact=exact)
    settings = {} if cache is None else dict(cache.options)
    settings |= {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    if forced is not None:
        settings["prefix_allowed_tokens_fn"] = lambda row, ids: [int(forced[row, len(ids)])]
        settings["max_new_tokens"] = forced.shape[1] - inputs["input_ids"].shape[1]
    return model.generate(**inputs, **settings), cache


def _apart(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> float:
    return max((a.float() - b.float()).abs().max().item() for a, b in zip(one, other, strict=True))


def _equal(one: torch.Tensor, other: torch.Tensor) -> float:
    width = max(one.shape[1], other.shape[1])
    one, other = (torch.nn.functional.pad(ids, (0, width - ids.shape[1])) for ids in (one, other))
    return (one == other).all(1).float().mean().item()


def _steps(events: pd.DataFrame, row: int) -> list[int]:
    return events.loc[events["row"] == row, "step"].tolist()


def _common(cache: PrunableCache, true: PrunableCache, row: int) -> float:
    layers = cache.trace.frame()["layer"].unique()
    shares = []
    for layer in layers:
        mine, theirs = (set(each.kept(layer)[row].tolist()) for each in (cache, true))
        shares.append(len(mine & theirs) / len(mine | theirs))
    return sum(shares) / len(shares)
