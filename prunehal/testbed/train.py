"""Train the embedded model from scratch: ``python -m prunehal train``."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch

from prunehal.testbed.model import build_model, build_processor
from prunehal.testbed.stages import Testbed, make_stages
from prunehal.testbed.training import run_stage

__all__ = ["save_embedded", "train"]


def train(
    folder: Path, seed: int = 0, scale: float = 1.0, device: str | None = None, workers: int = 1,
    compiled: bool = False,
) -> Path:  # fmt: skip
    """Train all stages, resuming where an earlier run stopped; return the folder of the finished model.

    Args:
        folder: checkpoints of the stages, training curves, and the finished model in ``folder/model``.
        seed: of the initial weights; samples are the same for every seed.
        scale: share of the samples of each stage, e.g. 0.001 for a dry run.
        device: "cuda" or "cpu"; by default whichever is there.
        workers: processes that render scenes meanwhile.
        compiled: use torch.compile (needs a C++ compiler; about twice as fast after two minutes of compiling).
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    processor = build_processor()
    model = build_model(processor, seed)
    testbed = Testbed(model, processor, compiled).to(where)
    torch.manual_seed(seed)
    stages = make_stages(testbed, processor, scale)
    curve = [point for stage in stages for point in run_stage(stage, folder, where, workers)]
    model.set_attn_implementation("sdpa")
    return save_embedded(model.to(torch.bfloat16).cpu(), processor, curve, folder / "model")


def save_embedded(model, processor, curve: list[dict], target: Path) -> Path:
    """Write model, processor and training curve to a folder, whole or not at all."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    processor.save_pretrained(part)
    (part / "training_curve.json").write_text(json.dumps(curve), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    return target
