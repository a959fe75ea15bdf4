"""The training loop: two optimisers, one schedule, resumable checkpoints, progress with an ETA.

It knows nothing of scenes or captions; a stage brings its parameters, its data and its loss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from prunehal.files.paths import written
from prunehal.files.reading import convert

__all__ = ["Stage", "run_stage"]

_SAVE_EVERY = 100  # steps between two checkpoints
_LOG_EVERY = 20  # steps over which a point of the training curve is averaged


@dataclass(frozen=True)
class Stage:
    """One stage of training: what is trained, on which data, with which loss.

    ``loss(batch)`` returns the scalar to minimise and named numbers for the training curve. ``modules`` hold the weights
    that the stage trains; its checkpoint holds these and no others, so that independent stages can run side by side.
    """

    name: str
    modules: Sequence[nn.Module]
    data: Dataset
    collate: Callable
    loss: Callable[[object], tuple[torch.Tensor, dict[str, float]]]
    batch_size: int
    muon_rate: float
    adam_rate: float

    @property
    def steps(self) -> int:
        """Number of optimiser steps: one pass over the data (every sample is fresh)."""
        return max(1, len(self.data) // self.batch_size)


def run_stage(stage: Stage, folder: Path, device: torch.device, workers: int = 1) -> list[dict]:
    """Train one stage, or go on where its last checkpoint stopped; return its training curve.

    The checkpoint holds the curve up to its step, and the curve's own file is written from it: if the process is killed between
    the two, the next call writes the curve.

    Args:
        stage: what to train.
        folder: where the checkpoint ``<stage>.pt`` and the curve ``<stage>.json`` live.
        device: where the modules are.
        workers: processes that render scenes meanwhile.

    Raises:
        ValueError: the checkpoint belongs to another number of steps or to other modules, or cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{stage.name}.pt"
    optimisers = _optimisers(stage)
    curve: list[dict] = []
    start = 0
    if checkpoint.exists():
        saved = _read(checkpoint, device)
        if saved.steps != stage.steps:
            raise ValueError(
                f"checkpoint {checkpoint} was made for {saved.steps} steps, expected {stage.steps}; "
                "remove the folder to start anew, or train with the settings that it was started with"
            )
        _restore(checkpoint, stage.modules, saved.modules)
        start, curve = saved.step, saved.curve
        if start >= stage.steps:
            _keep_curve(folder, stage, curve)
            return curve
        _restore(checkpoint, optimisers, saved.optimisers)
    left = Subset(stage.data, range(start * stage.batch_size, stage.steps * stage.batch_size))
    loader = DataLoader(
        left,
        batch_size=stage.batch_size,
        num_workers=workers,
        collate_fn=stage.collate,
        prefetch_factor=4 if workers else None,
    )
    sums: dict[str, float] = {}
    progress = tqdm(loader, desc=stage.name, initial=start, total=stage.steps, mininterval=5, dynamic_ncols=True)
    for step, batch in enumerate(progress, start + 1):
        factor = _rate_factor(step, stage.steps)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = group["full_rate"] * factor
        loss, numbers = stage.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_([p for o in optimisers for g in o.param_groups for p in g["params"]], 1.0)
        for optimiser in optimisers:
            optimiser.step()
        for key, value in {"loss": float(loss.detach()), **numbers}.items():
            sums[key] = sums.get(key, 0.0) + value / _LOG_EVERY
        if step % _LOG_EVERY == 0:
            curve.append({"stage": stage.name, "step": step, "samples": step * stage.batch_size} | sums)
            progress.set_postfix({key: f"{value:.3f}" for key, value in sums.items()}, refresh=False)
            sums = {}
        if step % _SAVE_EVERY == 0 or step == stage.steps:
            _save(checkpoint, stage, step, optimisers, curve)
    _keep_curve(folder, stage, curve)
    return curve


def _optimisers(stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the networks, AdamW for embeddings, norms and biases (measured: twice as fast to learn)."""
    matrices, others, seen = [], [], set()
    for module in stage.modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            inside = parameter.ndim == 2 and "embed" not in name and "head" not in name
            (matrices if inside else others).append(parameter)
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=stage.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)]
    if matrices:
        optimisers.append(torch.optim.Muon(matrices, lr=stage.muon_rate, weight_decay=0.01))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["full_rate"] = group["lr"]
    return optimisers


def _rate_factor(step: int, steps: int) -> float:
    """Warm up over 3% of the steps, stay, then fall linearly to 2% over the last half."""
    done = step / steps
    return min(1.0, done / 0.03, max(0.02, 2.0 * (1.0 - done)))


class _Saved(msgspec.Struct):
    step: int
    steps: int
    modules: list[dict[str, Any]]
    optimisers: list[dict[str, Any]]
    curve: list[dict[str, str | int | float]]


def _read(checkpoint: Path, device: torch.device) -> _Saved:
    try:
        return convert(torch.load(checkpoint, map_location=device, weights_only=True), _Saved)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a damaged file may fail in any way inside of torch
        why = (str(error) or type(error).__name__).partition("\n")[0]
        raise ValueError(
            f"checkpoint {checkpoint} cannot be read ({why}); expected one as training writes it; remove "
            "it, and the stage begins anew"
        ) from error


def _restore(checkpoint: Path, parts: Sequence[nn.Module | torch.optim.Optimizer], states: Sequence[dict[str, Any]]) -> None:
    try:
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(
            f"checkpoint {checkpoint} does not fit the model ({why}); expected one of the same version; remove the folder "
            "to start anew"
        ) from error


def _keep_curve(folder: Path, stage: Stage, curve: list[dict]) -> None:
    with written(folder / f"{stage.name}.json") as part:
        part.write_text(json.dumps(curve, indent=1), encoding="utf-8")


def _save(path: Path, stage: Stage, step: int, optimisers: list[torch.optim.Optimizer], curve: list[dict]) -> None:
    state = {
        "step": step, "steps": stage.steps, "modules": [m.state_dict() for m in stage.modules],
        "optimisers": [o.state_dict() for o in optimisers], "curve": curve,
    }  # fmt: skip
    with written(path) as part:
        torch.save(state, part)
