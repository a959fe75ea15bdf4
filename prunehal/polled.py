"""First-token mode on yes-or-no questions: prune before the answer's one word is chosen, and see whether it changes.

A policy that acts while decoding comes too late for an answer of one word, as the paper says; in first-token mode the prompt's
last query decides what the answer is read from. The oracle keeps the patches of objects. An answer is the sign of a margin, the
logit of "Yes" minus that of "No"; margins move where no answer changes, and tell how far from a change the answers are.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.benchmarks.pope import KINDS, Question, parse_answer, score
from prunehal.clustered import estimate, gap, over_images
from prunehal.core import FirstToken, Informative, Keep, NoPruning, Policy, PruneHal, SharedPrefill
from prunehal.experiments import Experiment
from prunehal.loading import load
from prunehal.marked import read_marked, write_marked
from prunehal.redundancy import at_random
from prunehal.resources import data_path
from prunehal.testbed.model import build_prompt
from prunehal.testbed.oracle import object_tokens
from prunehal.testbed.polling import polling_questions
from prunehal.testbed.scenes import GRID, scene_of

__all__ = ["CELL", "FILE", "RULES", "SURROUNDINGS", "among_tiles", "ask", "compare", "harder", "headroom", "measure", "stored"]

FILE = "polled.csv.gz"  # among the shipped results
SURROUNDINGS = ((0, False), (3, False), (3, True))  # background tiles, cluttered
CELL = ["tiles", "clutter", "kind"]  # the columns that tell where a question was asked
_INFORMATIVE = Informative(p=0.8, grid=GRID, window=2 * GRID - 1)  # chosen on captions, notebook 08
RULES: dict[str, tuple[str, Policy]] = {
    "no pruning": ("decoding", NoPruning()),
    "PruneHal while decoding": ("decoding", PruneHal(r=0.4, t=3)),
    **{f"first token, r = {r}": ("first-token", PruneHal(r=r, t=1)) for r in (0.9, 0.7, 0.4, 0.25)},
    "first token, random r = 0.4": ("first-token", PruneHal(r=0.4, t=1, selection="random")),
    "first token, informative tokens": ("first-token", _INFORMATIVE),
    "first token, as many random ones": ("first-token", at_random(_INFORMATIVE)),
    "first token, oracle": ("first-token", Keep()),
}


def ask(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Sequence[Question],
    rules: Mapping[str, tuple[str, Policy]] = RULES,
    *,
    k: int = 0,
    clutter: bool = False,
) -> pd.DataFrame:
    """Ask a batch of questions under every rule.

    Args:
        model, processor: a model of the testbed that answers questions.
        questions: as `prunehal.testbed.polling.polling_questions` returns them; their images are ids of scenes.
        rules: name -> mode ("decoding" or "first-token") and policy.
        k, clutter: background tiles around each scene.

    Returns:
        One line for each rule and question: rule, question_id, image_id, label, answer ("yes" or "no" by POPE's official rule),
        text, and margin (logit of "Yes" minus that of "No" where the first word is chosen).
    """
    scenes = [scene_of(int(question.image)) for question in questions]
    images = [image for each in scenes for image in each.tiles(k, clutter)[0]]
    texts = [build_prompt(k + 1, question.text) for question in questions]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt").to(model.device)
    marks = object_tokens(scenes, (inputs["input_ids"] == model.config.image_token_id).cpu(), k, clutter)
    yes, no = (processor.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("Yes", "No"))
    first = FirstToken(model, dict(inputs))  # of its prompt all rules go on
    parts = []
    for name, (mode, policy) in rules.items():
        options = {"seeds": [question.question_id for question in questions]}
        if isinstance(policy, Keep):
            cache = SharedPrefill.attach(first, NoPruning(), keep=marks, **options)
        elif mode == "first-token":
            cache = first.attach(policy, **options)
        else:
            cache = SharedPrefill.attach(first, policy, **options)
        search = {"do_sample": False, "max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
        made = model.generate(**first.inputs, **cache.options, **search)
        said = processor.batch_decode(made.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        margin = (made.logits[0][:, yes] - made.logits[0][:, no]).float().tolist()
        lines = [
            (q.question_id, int(q.image), q.label, parse_answer(text), text) for q, text in zip(questions, said, strict=True)
        ]
        frame = pd.DataFrame(lines, columns=["question_id", "image_id", "label", "answer", "text"])
        parts.append(frame.assign(margin=margin, rule=name))
    return pd.concat(parts, ignore_index=True)


def measure(out: Path, n_images: int = 100, batch_size: int = 60, progress: bool = True) -> pd.DataFrame:
    """Ask POPE's three kinds of questions about scenes of the test split, alone and among three clean or cluttered tiles.

    The rows are written, too.

    Args:
        out: compressed file to write.
        n_images: scenes.
        batch_size: questions at once.
        progress: show a bar with the time left.

    Returns:
        The columns of :func:`ask` without text, and: kind, tiles, clutter.
    """
    model, processor = load()
    asked = {kind: polling_questions("test", n_images, kind) for kind in KINDS}
    number = {pair: i for i, pair in enumerate(dict.fromkeys((q.image, q.text) for some in asked.values() for q in some))}
    places = [(kind, q, number[q.image, q.text]) for kind, some in asked.items() for q in some]
    once = list({i: replace(q, question_id=i) for _, q, i in places}.values())  # a question of several kinds is asked once
    jobs = [(around, start) for around in SURROUNDINGS for start in range(0, len(once), batch_size)]
    parts = []
    for (tiles, clutter), start in tqdm(jobs, desc="questions", unit="batch", disable=not progress):
        answers = ask(model, processor, once[start : start + batch_size], k=tiles, clutter=clutter)
        parts.append(answers.assign(tiles=tiles, clutter=clutter))
    answers = pd.concat(parts, ignore_index=True).drop(columns="text").round({"margin": 3})
    frame = pd.DataFrame([(kind, q.question_id, i) for kind, q, i in places], columns=["kind", "question_id", "number"])
    frame = frame.merge(answers.rename(columns={"question_id": "number"}), on="number").drop(columns="number")
    frame = frame.sort_values(["tiles", "clutter"], kind="stable", ignore_index=True)
    write_marked(out, frame.to_csv(index=False), Experiment(split="test", n_images=n_images))
    return frame


def stored(path: Path | None = None) -> pd.DataFrame:
    """Read the rows that :func:`measure` wrote; by default the shipped ones.

    Raises:
        FileNotFoundError, ValueError, BadInput: as `prunehal.marked.read_marked`.
    """
    path = data_path("results", FILE, must_exist=False) if path is None else path
    _, table = read_marked(path, Experiment(split="test"), "python -m prunehal poll")
    return pd.read_csv(io.StringIO(table))


def compare(rows: pd.DataFrame, n_resamples: int = 5000) -> pd.DataFrame:
    """Compare every rule with no pruning, on the same questions of each kind and surroundings.

    Args:
        rows: as :func:`measure` or :func:`stored` returns them.
        n_resamples: of every bootstrap over images.

    Returns:
        One line for each tiles, clutter, kind and rule; in percent or points: accuracy, f1, yes (share of the answers), changed
        (answers that differ from those without pruning), d_accuracy, low, high (difference from no pruning, 95% BCa interval over
        images); p (Wald's, with the error of a jackknife over images). In logits: margin, the mean margin toward the right
        answer, above 0 where the answer is right; d_margin, d_margin_low, d_margin_high, p_margin. Differences and p are NaN for
        no pruning.

    >>> answers = {"question_id": [1, 2] * 2, "image_id": [7, 8] * 2, "label": ["yes", "no"] * 2, "kind": "random", "tiles": 0}
    >>> answers |= {"clutter": False, "rule": ["no pruning"] * 2 + ["some"] * 2, "answer": ["yes", "yes", "yes", "no"]}
    >>> line = compare(pd.DataFrame(answers | {"margin": [2.0, 1.0, 2.5, -0.5]}), 100).set_index("rule").loc["some"]
    >>> line[["accuracy", "changed", "d_accuracy", "margin", "d_margin"]].astype(float).tolist()
    [100.0, 50.0, 50.0, 1.5, 1.0]
    """
    lines = []
    for cell, rules in _cells(rows):
        plain = rules["no pruning"]
        asked = [Question(number, str(line.image_id), "", line.label) for number, line in plain.iterrows()]
        for rule, part in rules.items():
            metrics = score(asked, part["answer"].tolist()).metrics
            line = {"accuracy": metrics["accuracy"], "f1": metrics["f1"], "yes": metrics["yes_ratio"]}
            line["changed"] = part["answer"].ne(plain["answer"]).mean()
            line = cell | {"rule": rule} | {name: 100 * value for name, value in line.items()} | {"margin": part["toward"].mean()}
            if rule != "no pruning":
                changes = (100.0 * part["right"] - 100.0 * plain["right"], part["toward"] - plain["toward"])
                found, moved = (over_images(plain.assign(change=change), "change", n_resamples=n_resamples) for change in changes)
                line |= {"d_accuracy": found["estimate"], **{name: found[name] for name in ("low", "high", "p")}}
                line |= {"d_margin": moved["estimate"], "d_margin_low": moved["low"], "d_margin_high": moved["high"]}
                line["p_margin"] = moved["p"]
            lines.append(line)
    return pd.DataFrame(lines)


def headroom(rows: pd.DataFrame) -> pd.DataFrame:
    """Return whether there was room for a rule to correct answers, and how near it came.

    Args:
        rows: as :func:`measure` or :func:`stored` returns them.

    Returns:
        One line for each tiles, clutter, kind and rule but no pruning: questions; wrong (answers without pruning); corrected and
        spoiled by the rule; nearest (smallest distance of a wrong answer's margin without pruning from 0, in logits); moved,
        farthest (mean and largest distance that the rule moved a margin); within (wrong answers nearer than that farthest).

    >>> answers = {"question_id": [1, 2] * 2, "image_id": [7, 8] * 2, "label": ["yes", "no"] * 2, "kind": "random", "tiles": 0}
    >>> answers |= {"clutter": False, "rule": ["no pruning"] * 2 + ["some"] * 2, "answer": ["yes", "yes", "yes", "no"]}
    >>> line = headroom(pd.DataFrame(answers | {"margin": [2.0, 1.0, 2.5, -0.5]})).iloc[0]
    >>> line[["wrong", "corrected", "spoiled", "nearest", "farthest", "within"]].astype(float).tolist()
    [1.0, 1.0, 0.0, 1.0, 1.5, 1.0]
    """
    lines = []
    for cell, rules in _cells(rows):
        plain = rules["no pruning"]
        away = plain.loc[~plain["right"], "margin"].abs()
        for rule, part in rules.items():
            if rule == "no pruning":
                continue
            moved = (part["margin"] - plain["margin"]).abs()
            line = {"questions": len(plain), "wrong": len(away)}
            line["corrected"] = (part["right"] & ~plain["right"]).sum()
            line["spoiled"] = (plain["right"] & ~part["right"]).sum()
            line |= {"nearest": away.min(), "moved": moved.mean(), "farthest": moved.max(), "within": (away < moved.max()).sum()}
            lines.append(cell | {"rule": rule} | line)
    return pd.DataFrame(lines)


def harder(rows: pd.DataFrame, n_resamples: int = 5000) -> pd.DataFrame:
    """Return whether questions about popular and adversarial absent objects are harder than those about random ones.

    Args:
        rows: as :func:`measure` or :func:`stored` returns them; those without pruning are read.
        n_resamples: of every bootstrap over images.

    Returns:
        One line for each tiles, clutter and kind but "random": accuracy on absent objects (percent), and its difference from
        that of random ones in points: difference, low, high (95% BCa interval over images), p.
    """
    absent = rows[(rows["rule"] == "no pruning") & (rows["label"] == "no")]
    lines = []
    for (tiles, clutter), part in absent.groupby(["tiles", "clutter"], sort=False):
        for kind in KINDS[1:]:
            both = part[part["kind"].isin((KINDS[0], kind))]
            images, names = pd.factorize(both["image_id"])
            right, first = 100.0 * both["answer"].eq("no"), both["kind"].eq(kind).to_numpy()
            found = estimate(gap(right.to_numpy(), images, first), len(names), len(both), n_resamples)
            lines.append(_line(tiles, clutter, kind, right[first].mean(), found))
    return pd.DataFrame(lines)


def among_tiles(rows: pd.DataFrame, n_resamples: int = 5000) -> pd.DataFrame:
    """Return what background tiles alone do to the answers, without pruning: as much is what removing them could win back.

    Args:
        rows: as :func:`measure` or :func:`stored` returns them; those without pruning are read.
        n_resamples: of every bootstrap over images.

    Returns:
        One line for each tiles, clutter and kind with background tiles: accuracy (percent); difference, low, high, p as in
        :func:`harder`, from the same questions about the scene alone.
    """
    plain = {tuple(cell.values()): rules["no pruning"] for cell, rules in _cells(rows)}
    lines = []
    for (tiles, clutter, kind), part in plain.items():
        if not tiles:
            continue
        right, alone = (100.0 * each["right"] for each in (part, plain[0, False, kind].loc[part.index]))
        found = over_images(part.assign(change=right - alone), "change", n_resamples=n_resamples)
        lines.append(_line(tiles, clutter, kind, right.mean(), found))
    return pd.DataFrame(lines)


def _line(tiles: int, clutter: bool, kind: str, accuracy: float, found: Mapping[str, float]) -> dict[str, object]:
    """Return a line of accuracy in a cell, and of its difference from a condition, as `prunehal.clustered.estimate` found it."""
    line = {"tiles": tiles, "clutter": clutter, "kind": kind, "accuracy": accuracy, "difference": found["estimate"]}
    return line | {name: found[name] for name in ("low", "high", "p")}


def _cells(rows: pd.DataFrame) -> Iterator[tuple[dict[str, object], dict[str, pd.DataFrame]]]:
    """Yield each tiles, clutter and kind, and rule -> its answers, the same questions in the same order for all rules.

    The answers are indexed by question_id and have two columns more: right, and toward (the margin toward the right answer).
    """
    sign = np.where(rows["label"] == "yes", 1, -1)
    rows = rows.assign(right=rows["answer"] == rows["label"], toward=sign * rows["margin"])
    for keys, cell in rows.groupby(CELL, sort=False):
        rules = {rule: part.set_index("question_id") for rule, part in cell.groupby("rule", sort=False)}
        order = rules["no pruning"].index
        yield dict(zip(CELL, keys, strict=True)), {rule: part.loc[order] for rule, part in rules.items()}
