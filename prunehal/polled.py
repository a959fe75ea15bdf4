"""First-token mode on yes-or-no questions: prune before the answer's one word is chosen, and see whether it changes.

A policy that acts while decoding comes too late for an answer of one word, as the paper says; in first-token mode the prompt's
last query decides what the answer is read from. The oracle keeps the patches of objects.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from prunehal.benchmarks.pope import KINDS, Question, parse_answer, score
from prunehal.clustered import estimate, mean
from prunehal.core import FirstToken, Informative, Keep, NoPruning, Policy, PruneHal, SharedPrefill, attach
from prunehal.experiments import Experiment
from prunehal.loading import load
from prunehal.marked import read_marked, write_marked
from prunehal.redundancy import at_random
from prunehal.resources import data_path
from prunehal.testbed.model import build_prompt
from prunehal.testbed.oracle import object_tokens
from prunehal.testbed.polling import polling_questions
from prunehal.testbed.scenes import GRID, scene_of

__all__ = ["FILE", "RULES", "ask", "compare", "measure", "stored"]

FILE = "polled.csv.gz"  # among the shipped results
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
    shared, first = SharedPrefill(model, dict(inputs)), FirstToken(model, dict(inputs))
    parts = []
    for name, (mode, policy) in rules.items():
        options = {"seeds": [question.question_id for question in questions]}
        if isinstance(policy, Keep):
            given, cache = shared.inputs, shared.attach(NoPruning(), keep=marks, **options)
        elif mode == "first-token":
            given, cache = first.inputs, first.attach(policy, **options)
        else:
            given, cache = inputs, attach(model, inputs, policy, **options)
        search = {"do_sample": False, "max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
        made = model.generate(**given, past_key_values=cache, **search)
        said = processor.batch_decode(made.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        margin = (made.logits[0][:, yes] - made.logits[0][:, no]).float().tolist()
        lines = [
            (q.question_id, int(q.image), q.label, parse_answer(text), text) for q, text in zip(questions, said, strict=True)
        ]
        frame = pd.DataFrame(lines, columns=["question_id", "image_id", "label", "answer", "text"])
        parts.append(frame.assign(margin=margin, rule=name))
    return pd.concat(parts, ignore_index=True)


def measure(out: Path, n_images: int = 100, batch_size: int = 60, progress: bool = True) -> pd.DataFrame:
    """Ask POPE's three kinds of questions about scenes of the test split, alone and among three clean tiles, and write the rows.

    Args:
        out: compressed file to write.
        n_images: scenes.
        batch_size: questions at once.
        progress: show a bar with the time left.

    Returns:
        The columns of :func:`ask` without text, and: kind, tiles.
    """
    model, processor = load()
    jobs = []
    for tiles in (0, 3):
        for kind in KINDS:
            asked = polling_questions("test", n_images, kind)
            jobs += [(tiles, kind, asked[start : start + batch_size]) for start in range(0, len(asked), batch_size)]
    parts = []
    for tiles, kind, some in tqdm(jobs, desc="questions", unit="batch", disable=not progress):
        parts.append(ask(model, processor, some, k=tiles).assign(kind=kind, tiles=tiles))
    frame = pd.concat(parts, ignore_index=True).drop(columns="text").round({"margin": 3})
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
    """Compare every rule with no pruning, on the same questions of each kind and number of tiles.

    Args:
        rows: as :func:`measure` or :func:`stored` returns them.
        n_resamples: of every bootstrap over images.

    Returns:
        One line for each tiles, kind and rule; in percent or points: accuracy, f1, yes (share of the answers), changed (answers
        that differ from those without pruning), d_accuracy, low, high (difference from no pruning, 95% BCa interval over images);
        p (Wald's, with the error of a jackknife over images). The last four are NaN for no pruning.

    >>> answers = {"question_id": [1, 2] * 2, "image_id": [7, 8] * 2, "label": ["yes", "no"] * 2, "kind": "random", "tiles": 0}
    >>> answers |= {"rule": ["no pruning"] * 2 + ["some"] * 2, "answer": ["yes", "yes", "yes", "no"]}
    >>> compare(pd.DataFrame(answers), 100).set_index("rule").loc["some", ["accuracy", "changed", "d_accuracy"]].tolist()
    [100.0, 50.0, 50.0]
    """
    lines = []
    for (tiles, kind), cell in rows.groupby(["tiles", "kind"], sort=False):
        rules = {rule: part.set_index("question_id") for rule, part in cell.groupby("rule", sort=False)}
        plain = rules["no pruning"]
        asked = [Question(number, str(line.image_id), "", line.label) for number, line in plain.iterrows()]
        images, names = pd.factorize(plain["image_id"])
        right = plain["answer"].eq(plain["label"])
        for rule, part in rules.items():
            answers = part.loc[plain.index, "answer"]
            metrics = score(asked, answers.tolist()).metrics
            line = {"accuracy": metrics["accuracy"], "f1": metrics["f1"], "yes": metrics["yes_ratio"]}
            line["changed"] = answers.ne(plain["answer"]).mean()
            line = {"tiles": tiles, "kind": kind, "rule": rule} | {name: 100 * value for name, value in line.items()}
            if rule != "no pruning":
                change = 100.0 * answers.eq(plain["label"]) - 100.0 * right
                found = estimate(mean(change.to_numpy(), images), len(names), len(plain), n_resamples)
                line |= {"d_accuracy": found["estimate"], **{name: found[name] for name in ("low", "high", "p")}}
            lines.append(line)
    return pd.DataFrame(lines)
