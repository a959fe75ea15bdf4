"""Train the embedded model from scratch: ``python -m prunehal train``."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from pathlib import Path

import torch

from prunehal.core.checks import refuse
from prunehal.files.locking import locked
from prunehal.files.rows import keep_settings, kept_settings
from prunehal.testbed.training.loop import run_stage
from prunehal.testbed.training.model import build_model, build_processor
from prunehal.testbed.training.stages import LARGEST_SCALE, Testbed, make_stages

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

    Raises:
        ValueError: a setting is out of its range, or the folder's checkpoint has other settings or cannot be read.
        BlockingIOError: another process trains in the folder.
    """
    if not 0 <= scale <= LARGEST_SCALE:
        raise refuse("scale", scale, f"a number from 0 to {LARGEST_SCALE}", "With more samples the stages would share scenes.")
    for name, value in (("seed", seed), ("workers", workers)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise refuse(name, value, "an integer from 0 to 4,294,967,295", "Leave it out for the default.")
    with locked(folder):
        return _train(folder, seed, scale, device, workers, compiled)


def _train(folder: Path, seed: int, scale: float, device: str | None, workers: int, compiled: bool) -> Path:
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    processor = build_processor()
    model = build_model(processor, seed)
    testbed = Testbed(model, processor, compiled).to(where)
    torch.manual_seed(seed)
    stages = make_stages(testbed, processor, scale)
    _begun_alike(folder / "settings.json", {"seed": seed, "scale": float(scale)})
    curve = [point for stage in stages for point in run_stage(stage, folder, where, workers)]
    model.set_attn_implementation("sdpa")
    return save_embedded(model.to(torch.bfloat16).cpu(), processor, curve, folder / "model")


def _begun_alike(path: Path, settings: dict[str, float]) -> None:
    """Raise a ValueError unless the folder was begun with these settings; store them in a new one."""
    if not path.exists():
        keep_settings(path, settings, {}, has_rows=False)
        return
    before, _ = kept_settings(path)
    changed = [name for name in settings if before.get(name) != settings[name]]
    if differing := [f"{name} was {before.get(name)}, is now {settings[name]}" for name in changed]:
        raise ValueError(
            f"{path.parent}: was begun with other settings: {'; '.join(differing)}; expected the same; choose another folder"
        )


def save_embedded(model, processor, curve: list[dict], target: Path) -> Path:
    """Write model, processor and training curve to a folder, whole or not at all; the same model there, and its card, stay."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    processor.save_pretrained(part)
    (part / "training_curve.json").write_text(json.dumps(curve), encoding="utf-8")
    names = ("model.safetensors", "training_curve.json")
    if all((target / name).is_file() and filecmp.cmp(part / name, target / name, shallow=False) for name in names):
        shutil.rmtree(part)
        return target
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    return target
