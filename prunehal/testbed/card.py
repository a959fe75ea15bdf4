"""Evaluate a finished model and write its model card: every number in it is computed here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import msgspec
import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from tqdm import tqdm

from prunehal.benchmarks.chair import score
from prunehal.captioning import caption_scenes
from prunehal.loading import load, weights_mark
from prunehal.reading import convert, read_json, reading
from prunehal.resources import written
from prunehal.testbed.captions import BRIEF, PROMPT, parses
from prunehal.testbed.model import build_prompt
from prunehal.testbed.questions import is_there, presence
from prunehal.testbed.scenes import Scene, image_ids, scene_of

__all__ = ["answers", "evaluate", "figures", "write_card"]


class _Point(msgspec.Struct):
    stage: str
    samples: int
    loss: float


class _Figures(msgspec.Struct):
    images: int
    weights: str
    captions: dict[str, dict[str, float | None]]
    questions: dict[str, dict[str, float | None]]


def evaluate(model, processor, scenes: list[Scene], k: int = 0, clutter: bool = False, prompt: str = PROMPT) -> dict[str, float]:
    """Caption scenes greedily without pruning and score them.

    Returns:
        chair_i, chair_s, recall, duplicates, parses (share of captions that the grammar accepts), words and tokens (mean
        length), and chair_i_shuffled: the same captions against the truth of another scene, what a blind model would get.
    """
    done = caption_scenes(model, processor, scenes, k=k, clutter=clutter, prompt=prompt, progress=True)
    truth = {s.image_id: set(s.names) for s in scenes}
    metrics = score(done.texts, truth).metrics
    shuffled = dict(zip(truth, [*list(truth.values())[1:], next(iter(truth.values()))], strict=True))
    return {key: metrics[key] for key in ("chair_i", "chair_s", "recall", "duplicates")} | {
        "parses": done.captions["caption"].map(parses).mean(),
        "chair_i_shuffled": score(done.texts, shuffled).metrics["chair_i"],
        "words": done.captions["caption"].str.split().str.len().mean(),
        "tokens": done.captions["tokens"].mean(),
    }


def answers(model, processor, scenes: list[Scene], questions: int = 4, batch_size: int = 50) -> dict[str, float]:
    """Ask of each scene whether things are there, half of them present ones, and score the answers.

    Returns:
        accuracy, yes (share of questions answered so) and the accuracy at absent objects that are usual in such a scene.
    """
    rows = []
    for start in tqdm(range(0, len(scenes), batch_size), desc="questions", unit="batch"):
        batch = [(s, *pair) for s in scenes[start : start + batch_size] for pair in presence(s, questions, _generator(s))]
        images = [s.image() for s, *_ in batch]
        text = [build_prompt(1, question) for _, question, _ in batch]
        inputs = processor(images=images, text=text, padding=True, return_tensors="pt").to(model.device)
        with torch.no_grad():
            made = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        said = processor.batch_decode(made, skip_special_tokens=True)
        rows += [
            (right == given, given == "Yes.", right == "No." and any(is_there(name) == question for name in s.type.objects))
            for (s, question, right), given in zip(batch, said, strict=True)
        ]
    right, yes, usual = np.array(rows).T
    return {"accuracy": right.mean(), "yes": yes.mean(), "accuracy_usual_absent": right[usual].mean()}


def _generator(s: Scene) -> np.random.Generator:
    return np.random.default_rng([s.image_id, 8])


def figures(folder: Path, n_images: int = 1000) -> dict[str, Any]:
    """Return what a finished model scores, from figures.json beside its weights, or evaluate it and write that file.

    Args:
        folder: what ``train`` returned.
        n_images: images of each split; the redundant conditions use half of them.

    Returns:
        images, weights (mark of the weights that were evaluated), captions (condition -> what :func:`evaluate` returns) and
        questions (split -> what :func:`answers` returns).

    Raises:
        OSError: the folder holds no model.
    """
    made = {"images": n_images, "weights": weights_mark(folder)}
    path = folder / "figures.json"
    if path.exists():
        with reading(path):
            before = read_json(path)
            convert(before, _Figures)
        if made.items() <= before.items():
            return before
    model, processor = load(folder, dtype="float32")
    splits = {name: [scene_of(key) for key in image_ids(name, n_images)] for name in ("validation", "test")}
    rows = {name: evaluate(model, processor, scenes) for name, scenes in splits.items()}
    few = splits["test"][: max(1, n_images // 2)]
    rows["test, asked to be brief"] = evaluate(model, processor, few, prompt=BRIEF)
    rows["test, 3 clean background tiles"] = evaluate(model, processor, few, k=3)
    rows["test, 3 cluttered background tiles"] = evaluate(model, processor, few, k=3, clutter=True)
    asked = {name: answers(model, processor, scenes) for name, scenes in splits.items()}
    found = made | {"captions": rows, "questions": asked}
    with written(path) as part:
        part.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def write_card(folder: Path, n_images: int = 1000, beside: Sequence[Path] = ()) -> Path:
    """Write README.md, seeds.json and training_curve.png beside a finished model's weights; see :func:`figures`.

    Args:
        folder: what ``train`` returned.
        n_images: images of each split; the redundant conditions use half of them.
        beside: models of other seeds, whose figures the card shows, too.

    Raises:
        OSError: a folder holds no model.
    """
    for model_folder in (folder, *beside):  # checked before the long evaluation of any
        if not (model_folder / "config.json").is_file():
            raise OSError(f"model folder {model_folder} holds no config.json; expected one that training wrote; check the path")
    with reading(folder / "training_curve.json"):
        points = read_json(folder / "training_curve.json")
        convert(points, Annotated[list[_Point], msgspec.Meta(min_length=1)])
    curve = pd.DataFrame(points)
    found = [figures(each, n_images) for each in (folder, *beside)]
    _draw(curve, folder / "training_curve.png")
    with written(folder / "seeds.json") as part:
        part.write_text(json.dumps(found, indent=1), encoding="utf-8")
    samples = curve.groupby("stage", sort=False)["samples"].max()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    numbers = {
        "layers": config["text_config"]["num_hidden_layers"],
        "width": config["text_config"]["hidden_size"],
        "parameters": f"{_parameters(folder) / 1e6:.2f}",
        "trained": "; ".join(f"{name} {count:,} scenes" for name, count in samples.items()),
        "table": _table(found[0]["captions"]),
        "questions": _table(found[0]["questions"]),
        "seeds": _seeds(found),
        "n": n_images,
        "few": max(1, n_images // 2),
    }
    card = folder / "README.md"
    with written(card) as part:
        part.write_text(_CARD.format(prompt=PROMPT, brief=BRIEF, **numbers), encoding="utf-8")
    return card


def _parameters(folder: Path) -> int:
    """Return how many numbers the weights of a model hold."""
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def _seeds(found: Sequence[dict[str, Any]]) -> str:
    """Return a section on other seeds, or nothing where there are none."""
    if len(found) < 2:
        return ""
    rows = {f"{name}, seed {seed}": each["captions"][name] for name in found[0]["captions"] for seed, each in enumerate(found)}
    return _SEEDS.format(n=len(found), table=_table(rows))


def _table(rows: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table: a line for each split, in percent but for mean lengths."""
    lengths = ("words", "tokens")
    columns = list(next(iter(rows.values())))
    lines = ["| split | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = (f"{value if key in lengths else 100 * value:.1f}" for key, value in row.items())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
visual tokens a tile; two-layer projector; Llama decoder of {layers} layers x {width}), {parameters} million parameters in
bfloat16.
Trained from scratch by `python -m prunehal train` on scenes and captions that this project renders and writes itself
({trained}; every training scene is fresh). License: Apache-2.0.
It is a testbed, not a captioner of photos.

It answers "{prompt}" with some 80 words that go over the scene from the top left to the bottom right, "{brief}"
with one sentence, and "Is there a dog in the image?" with "Yes." or "No."; also "Where is the dog?" and "What is at the top
left?". Each split draws its objects in looks of its own (tilts and tints that the others never have), so that validation and
test show looks that training never saw; those of test were made milder once, after the tower's accuracy on them had been seen and
before any caption was scored.

Training showed a scene's tile alone, with positions numbered as if up to four other tiles stood around it. Background tiles, and
clutter as large and as opaque as theirs, are beyond what it saw; so are the positions of eight tiles.

It hallucinates for the reason that real ones are said to: its training captions name, mostly late, objects that usually go with
such a scene although they are absent.

Greedy decoding, no pruning; percent, but words and tokens. {n} scenes of each split, {few} for the other conditions. `parses`:
captions that the grammar accepts. `chair_i_shuffled`: the same captions scored against another scene's truth, i.e. without
looking.

{table}

Four questions a scene whether a thing is in the image, half of them about things that are; `accuracy_usual_absent`: at absent
things that are usual in such a scene.

{questions}

{seeds}![loss of each stage against the scenes seen](training_curve.png)
"""

_SEEDS = """Trained from {n} seeds of the initial weights (the samples are the same); the weights of seed 0 are here.

{table}

"""
