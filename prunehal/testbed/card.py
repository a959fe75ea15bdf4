"""Evaluate a finished model and write its model card: every number in it is computed here."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from prunehal.benchmarks.chair import score
from prunehal.captioning import caption_scenes
from prunehal.loading import load
from prunehal.testbed.captions import parses
from prunehal.testbed.scenes import Scene, scene

__all__ = ["evaluate", "write_card"]


def evaluate(model, processor, scenes: list[Scene], k: int = 0, clutter: bool = False) -> dict[str, float]:
    """Caption scenes greedily without pruning and score them.

    Returns:
        chair_i, chair_s, recall, duplicates, parses (share of captions that the grammar accepts), tokens (mean length),
        and chair_i_shuffled: the same captions against the truth of another scene, what a blind model would get.
    """
    done = caption_scenes(model, processor, scenes, k=k, clutter=clutter, progress=True)
    truth = {s.image_id: set(s.names) for s in scenes}
    metrics = score(done.texts, truth).metrics
    shuffled = dict(zip(truth, [*list(truth.values())[1:], next(iter(truth.values()))], strict=True))
    return {key: metrics[key] for key in ("chair_i", "chair_s", "recall", "duplicates")} | {
        "parses": done.captions["caption"].map(parses).mean(),
        "tokens": done.captions["tokens"].mean(),
        "chair_i_shuffled": score(done.texts, shuffled).metrics["chair_i"],
    }


def write_card(folder: Path, n_images: int = 1000) -> Path:
    """Write README.md, figures.json and training_curve.png beside a finished model's weights.

    Args:
        folder: what ``train`` returned.
        n_images: images of each split; the redundant conditions use half of them.

    Raises:
        OSError: the folder holds no model.
    """
    model, processor = load(folder, dtype="float32")
    splits = {name: [scene(name, i) for i in range(n_images)] for name in ("validation", "test")}
    rows = {name: evaluate(model, processor, scenes) for name, scenes in splits.items()}
    few = splits["test"][: max(1, n_images // 2)]
    rows["test, 3 clean background tiles"] = evaluate(model, processor, few, k=3)
    rows["test, 3 cluttered background tiles"] = evaluate(model, processor, few, k=3, clutter=True)
    curve = pd.DataFrame(json.loads((folder / "training_curve.json").read_text(encoding="utf-8")))
    _draw(curve, folder / "training_curve.png")
    (folder / "figures.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    table = pd.DataFrame(rows).T
    percent = table.drop(columns="tokens").mul(100).assign(tokens=table["tokens"])
    lines = ["| split | " + " | ".join(percent.columns) + " |", "|---" * (len(percent.columns) + 1) + "|"]
    for name, row in zip(percent.index, percent.to_numpy(), strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in row) + " |")
    samples = curve.groupby("stage", sort=False)["samples"].max()
    trained = "; ".join(f"{name} {count:,} scenes" for name, count in samples.items())
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    card = folder / "README.md"
    numbers = {"parameters": f"{parameters:.2f}", "trained": trained, "table": "\n".join(lines), "n": n_images, "few": len(few)}
    card.write_text(_CARD.format(**numbers), encoding="utf-8")
    return card


def _draw(curve: pd.DataFrame, path: Path) -> None:
    stages = list(dict.fromkeys(curve["stage"]))
    figure, axes = plt.subplots(1, len(stages), figsize=(3 * len(stages), 2.8), layout="constrained")
    for axis, stage in zip(axes, stages, strict=True):
        part = curve[curve["stage"] == stage]
        column = "object_loss" if part.get("object_loss") is not None and part["object_loss"].notna().any() else "loss"
        axis.plot(part["samples"] / 1000, part[column], color="#0072B2")
        axis.set(title=stage, xlabel="thousand scenes", ylabel="loss at object words" if column == "object_loss" else "loss")
        axis.set_ylim(bottom=0)
    figure.savefig(path, dpi=100)
    plt.close(figure)


_CARD = """# The embedded model

A small multimodal LLM of LLaVA architecture (`LlavaForConditionalGeneration`: CLIP vision tower, patch 8, 96 x 96 pixels, 144
visual tokens a tile; two-layer projector; Llama decoder of 6 layers x 192), {parameters} million parameters in bfloat16.
Trained from scratch by `python -m prunehal train` on scenes and captions that this project renders and writes itself
({trained}; every training scene is fresh; captions come four to a scene). License: Apache-2.0.
It is a testbed, not a captioner of photos.

It hallucinates for the reason that real ones are said to: its training captions name, mostly late, objects that usually go with
such a scene although they are absent.

Greedy decoding, no pruning; percent, but tokens. {n} scenes of each split, {few} for the redundant conditions. `parses`: captions
that the grammar accepts. `chair_i_shuffled`: the same captions scored against another scene's truth, i.e. without looking.

{table}

![loss of each stage against the scenes seen](training_curve.png)
"""
