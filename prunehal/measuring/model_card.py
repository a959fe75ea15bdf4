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

from prunehal.benchmarks.chair.score import score
from prunehal.experiments.captioning import caption_scenes
from prunehal.files.paths import written
from prunehal.files.reading import convert, read_json, reading
from prunehal.measuring.looking import looks, start_token_share
from prunehal.measuring.model_card_text import CARD, COLUMNS, in_words, other_seeds, table
from prunehal.models.load import load, weights_mark
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.captions import BRIEF, PROMPT, parses
from prunehal.testbed.world.questions import is_there, presence
from prunehal.testbed.world.scenes import Scene, image_ids, scene_of

__all__ = ["answers", "evaluate", "figures", "write_card"]

_TRACED = 100  # scenes from which a card says where the model looks


class _Point(msgspec.Struct):
    stage: str
    samples: int
    loss: float


class _Figures(msgspec.Struct):
    images: int
    weights: str
    captions: dict[str, dict[str, float | None]]
    questions: dict[str, dict[str, float | None]]
    attention: dict[str, float | None] = {}


def evaluate(model, processor, scenes: list[Scene], k: int = 0, clutter: bool = False, prompt: str = PROMPT) -> dict[str, float]:
    """Caption scenes greedily without pruning and score them.

    Returns:
        chair_i, chair_s, distinct_chair_i, absent (distinct absent objects of a caption), recall, repeats, unfinished (share of
        captions cut at the limit), parses (share that the grammar accepts), words and tokens (mean length), and
        chair_i_shuffled: the same captions against the truth of another scene, what a blind model would get.
    """
    done = caption_scenes(model, processor, scenes, k=k, clutter=clutter, prompt=prompt, progress=True)
    truth = {s.image_id: set(s.names) for s in scenes}
    metrics = score(done.captions, truth).metrics
    shuffled = dict(zip(truth, [*list(truth.values())[1:], next(iter(truth.values()))], strict=True))
    found = metrics | {
        "parses": done.captions["caption"].map(parses).mean(),
        "chair_i_shuffled": score(done.texts, shuffled).metrics["chair_i"],
        "tokens": done.captions["tokens"].mean(),
    }
    return {name: found[name] for name in COLUMNS}


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

    It is evaluated where that file is missing, is of other weights or images, or holds other columns.

    Args:
        folder: what ``train`` returned.
        n_images: images of each split; the redundant conditions use half of them.

    Returns:
        images, weights (mark of the weights that were evaluated), captions (condition -> what :func:`evaluate` returns),
        questions (split -> what :func:`answers` returns) and attention (what `prunehal.measuring.looking` returns).

    Raises:
        OSError: the folder holds no model.
    """
    made = {"images": n_images, "weights": weights_mark(folder)}
    path = folder / "figures.json"
    if path.exists():
        with reading(path):
            before = read_json(path)
            convert(before, _Figures)
        current = before.get("attention") and all(tuple(row) == COLUMNS for row in before["captions"].values())
        if current and made.items() <= before.items():
            return before
    model, processor = load(folder, dtype="float32")
    splits = {name: [scene_of(key) for key in image_ids(name, n_images)] for name in ("validation", "test")}
    rows = {name: evaluate(model, processor, scenes) for name, scenes in splits.items()}
    few = splits["test"][: max(1, n_images // 2)]
    rows["test, asked to be brief"] = evaluate(model, processor, few, prompt=BRIEF)
    rows["test, 3 clean background tiles"] = evaluate(model, processor, few, k=3)
    rows["test, 3 cluttered background tiles"] = evaluate(model, processor, few, k=3, clutter=True)
    asked = {name: answers(model, processor, scenes) for name, scenes in splits.items()}
    found = made | {"captions": rows, "questions": asked, "attention": _attention(folder, splits["test"][:_TRACED])}
    with written(path) as part:
        part.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def write_card(folder: Path, n_images: int = 1000, beside: Sequence[Path] = ()) -> Path:
    """Write README.md, seeds.json and training_curve.png beside a finished model's weights; see :func:`figures`.

    seeds.json keeps the figures of all seeds, this model's first. Without `beside` those of the others stay as they are there, so
    that the card can be written again where their weights are not at hand.

    Args:
        folder: what ``train`` returned.
        n_images: images of each split; the redundant conditions use half of them.
        beside: models of other seeds, whose figures the card shows, too.

    Raises:
        OSError: a folder holds no model.
        ValueError: seeds.json holds figures of other seeds on another number of images.
    """
    for model_folder in (folder, *beside):  # checked before the long evaluation of any
        if not (model_folder / "config.json").is_file():
            raise OSError(f"model folder {model_folder} holds no config.json; expected one that training wrote; check the path")
    with reading(folder / "training_curve.json"):
        points = read_json(folder / "training_curve.json")
        convert(points, Annotated[list[_Point], msgspec.Meta(min_length=1)])
    curve = pd.DataFrame(points)
    others = [] if beside else _kept_seeds(folder, n_images)
    found = [*(figures(each, n_images) for each in (folder, *beside)), *others]
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
        "table": table(found[0]["captions"], COLUMNS),
        "questions": table(found[0]["questions"], ("accuracy", "yes", "accuracy_usual_absent")),
        "seeds": other_seeds(found),
        "traced": min(n_images, _TRACED),
        "heads": config["text_config"]["num_attention_heads"],
        **in_words(found[0]["attention"]),
        "n": n_images,
        "few": max(1, n_images // 2),
    }
    card = folder / "README.md"
    with written(card) as part:
        part.write_text(CARD.format(prompt=PROMPT, brief=BRIEF, **numbers), encoding="utf-8")
    return card


def _parameters(folder: Path) -> int:
    """Return how many numbers the weights of a model hold."""
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def _attention(folder: Path, scenes: list[Scene]) -> dict[str, float | None]:
    """Return where a model looks in captions of scenes; None where no mention is of a kind."""
    model, processor = load(folder, dtype="float32", attn_implementation="eager")  # which alone returns weights
    done = caption_scenes(model, processor, scenes, trace=True, progress=True)
    scored = score(done.texts, {each.image_id: set(each.names) for each in scenes})
    found = looks(done, scored, model.config.get_text_config().num_attention_heads)
    found["start"] = start_token_share(model, processor, scenes, done.texts)
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def _kept_seeds(folder: Path, n_images: int) -> list[dict[str, Any]]:
    """Return the figures of other seeds that seeds.json beside a model holds."""
    path = folder / "seeds.json"
    if not path.exists():
        return []
    with reading(path):
        _, *others = convert(read_json(path), Annotated[list[Any], msgspec.Meta(min_length=1)])
        convert(others, list[_Figures])
    if bad := sorted({each["images"] for each in others} - {n_images}):
        raise ValueError(
            f"n_images={n_images}, and {path} holds figures of other seeds on {bad[0]}; expected the same number; take {bad[0]} "
            "images, give the models of the other seeds, or remove the file"
        )
    return others


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
