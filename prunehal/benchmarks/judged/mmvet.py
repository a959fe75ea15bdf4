"""MM-Vet: open questions that each need several capabilities; a judge grades every answer from 0 to 1.

Source: Yu et al. 2023, "MM-Vet: Evaluating Large Multimodal Models for Integrated Capabilities", arXiv 2308.02490. Layout,
few-shot prompt and totals follow mm-vet_evaluator.py and .ipynb of yuweihao/MM-Vet (commit 7d717c2). The questions
(mm-vet.json, 218 of them) are not shipped: unpack the authors' mm-vet.zip and pass its path. No judge is called here;
the published numbers are means over 5 runs of gpt-4-0613.

Deviation: the official columns of combinations are named in the arbitrary order of a Python set (``ocr_spat`` in one run,
``spat_ocr`` in the next); here the capabilities stand in the order of `CAPABILITIES`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from prunehal.benchmarks.judged.mmvet_grades import read_grade, read_grades
from prunehal.benchmarks.replies import check_rule, refuse_unreadable, unreadable_counts
from prunehal.files.paths import written
from prunehal.files.reading import convert, reading
from prunehal.files.records import BadInput, Report, read_records

__all__ = ["CAPABILITIES", "PROMPT", "Question", "judge_prompts", "read_grade", "read_predictions", "score", "write_predictions"]

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")

_MEME = (
    "Can you explain this meme? | This meme is poking fun at the fact that the names of the countries Iceland and Greenland "
    "are misleading. Despite its name, Iceland is known for its beautiful green landscapes, while Greenland is mostly "
    "covered in ice and snow. The meme is saying that the person has trust issues because the names of these countries do "
    "not accurately represent their landscapes. | "
)

PROMPT = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> in the "
    "ground truth means it is totally right only when all elements in the ground truth are present in the prediction, and "
    "<OR> means it is totally right when any one element in the ground truth is present in the prediction. The correctness "
    "score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 (totally right). Just complete the "
    "last space of the correctness score.\n"
    "\n"
    "Question | Ground truth | Prediction | Correctness\n"
    "--- | --- | --- | ---\n"
    "What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0\n"
    "What is x in the equation? | -1 <AND> -5 | x = -1 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -5 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -5 or 5 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -1 or x = -5 | 1.0\n"
    f"{_MEME}The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland is not very icy "
    "and Greenland isn't very green. | 0.4\n"
    f"{_MEME}The meme is using humor to point out the misleading nature of Iceland's and Greenland's names. Iceland, despite "
    "its name, has lush green landscapes while Greenland is mostly covered in ice and snow. The text 'This is why I have "
    "trust issues' is a playful way to suggest that these contradictions can lead to distrust or confusion. The humor in "
    "this meme is derived from the unexpected contrast between the names of the countries and their actual physical "
    "characteristics. | 1.0\n"
)

_FIX = "Give each question of mm-vet.json exactly one entry under its id, such as v1_0."


def write_predictions(path: Path | str, predictions: Mapping[str, str]) -> None:
    """Write the file that the official evaluator reads: one JSON object ``{"v1_0": text, ...}``.

    Raises:
        BadInput: there is no prediction, or one is no text.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_predictions(Path(folder) / "mine.json", {"v1_0": "x = -1"})
    ...     (Path(folder) / "mine.json").read_text().splitlines()[1]
    '    "v1_0": "x = -1"'
    """
    problems = [f"{key!r}: {text!r}; expected text" for key, text in predictions.items() if not isinstance(text, str)]
    if problems or not predictions:
        raise BadInput("MM-Vet predictions", problems or ["there are none; expected a text for each question"], _FIX)
    with written(path) as part:
        part.write_text(json.dumps(dict(predictions), indent=4) + "\n", encoding="utf-8")


def read_predictions(path: Path | str) -> dict[str, str]:
    """Read the file of `write_predictions`: id -> text.

    Raises:
        BadInput: not one object, or an entry that is no text.
        OSError: the file cannot be read.
    """
    texts = _content(path, "MM-Vet predictions")
    if problems := [f"{key!r}: {repr(text)[:80]}; expected text" for key, text in texts.items() if not isinstance(text, str)]:
        raise BadInput(path, problems, _FIX)
    return texts


def judge_prompts(
    mm_vet: Path | str | Mapping[str, Any], predictions: Path | str | Mapping[str, str], again: bool = False
) -> list[dict[str, str]]:
    """Return ``{"id", "prompt"}`` for each question: the published few-shot prompt, to be sent alone as one user message.

    The official evaluator asks gpt-4-0613 at temperature 0 for 3 tokens. When `read_grade` cannot read the reply, it asks up
    to five times more, with one more line (`again`), and then gives 0.

    Args:
        mm_vet: mm-vet.json, or its content.
        predictions: the file of `write_predictions`, or its content.
        again: add the line of the repeated questions.

    Raises:
        BadInput: a file or entry that cannot be read, questions without or predictions without their other half.
        OSError: a file cannot be read.

    >>> question = {"question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}
    >>> judge_prompts({"v1_0": question}, {"v1_0": "x = 3"})[0]["prompt"].splitlines()[-1]
    'What is x? | -1 <AND> -5 | x = 3 | '
    """
    questions = _questions(mm_vet)
    texts = _content(predictions, "MM-Vet predictions")
    problems = _unmatched(questions, texts, "prediction")
    problems += [f"{key!r}: {text!r}; expected text" for key, text in texts.items() if not isinstance(text, str)]
    if problems:
        raise BadInput(_name(predictions, "MM-Vet predictions"), problems, _FIX)
    asked = []
    for key, question in questions.items():
        truth = question["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        row = " | ".join([question["question"], truth, texts[key], ""])
        last = "\nPredict the correctness of the answer (digit): " if again else ""
        asked.append({"id": key, "prompt": f"{PROMPT}\n{row}{last}"})
    return asked


def score(
    mm_vet: Path | str | Mapping[str, Any],
    grades: Path | str | Mapping[str, Any],
    rule: str = "official",
    judgement_key: str | None = None,
) -> Report:
    """Score the grades of a judge as the official notebook does: percentages, averaged over its runs.

    Args:
        mm_vet: mm-vet.json, or its content.
        grades: a file or mapping of id -> grade from 0 to 1, or -> the judge's reply, or -> ``{"score": [grade of each run],
            ...}`` as in the evaluator's ``*-grade-*runs.json``; or a file of rows with id and the judge's reply.
        rule: how replies are read, "official" or "strict" (see `read_grade`); an unreadable one is a grade of 0 by both.
        judgement_key: the key that holds the reply in rows; None takes the one that is there.

    Returns:
        A report; metrics (percent): ``total``, ``capabilities`` (those that occur), ``combinations`` (most frequent first),
        ``runs`` (total of each run), ``std`` (of the runs, population), ``official`` (total, capabilities, combinations and
        std with 1 decimal, as printed); of replies also ``unreadable``, ``unreadable_share`` and
        ``n_empty``; ``n``, ``n_runs``. Items: id, capability, grade (mean over runs).

    Raises:
        BadInput: a file or entry that cannot be read, ids without their other half, grades outside 0 to 1, unequal runs.
        OSError: a file cannot be read.

    >>> questions = {"v1_0": {"question": "What is x?", "answer": "-1", "capability": ["ocr", "math"]},
    ...              "v1_1": {"question": "Who?", "answer": "Nobody", "capability": ["ocr"]}}
    >>> report = score(questions, {"v1_0": {"score": [0.5, 0.3]}, "v1_1": {"score": [1.0, 1.0]}})
    >>> report.metrics["official"]["capabilities"], report.metrics["official"]["combinations"]
    ({'ocr': 70.0, 'math': 40.0}, {'ocr_math': 40.0, 'ocr': 100.0})
    """
    check_rule(rule)
    questions = _questions(mm_vet)
    with reading(_name(grades, "MM-Vet grades")):
        read = read_grades(grades, questions, rule, judgement_key)
        refuse_unreadable("MM-Vet grades", read.texts, read.readable, "a number from 0.0 to 1.0")

    # Sums in the order of the grades and numpy's rounding, as in the notebook: a tie such as 33.25 must fall on its side.
    table = {key: np.array(values, dtype=float) for key, values in read.runs.items()}
    combined: dict[str, list[str]] = {}
    for key, question in questions.items():
        combined.setdefault("_".join(name for name in CAPABILITIES if name in question["capability"]), []).append(key)
    by_run = _percent(table, list(questions))
    capable = {name: [key for key, question in questions.items() if name in question["capability"]] for name in CAPABILITIES}
    capabilities = {name: _percent(table, keys).mean() for name, keys in capable.items() if keys}
    in_order = sorted(combined.items(), key=lambda entry: -len(entry[1]))
    combinations = {name: _percent(table, keys).mean() for name, keys in in_order}
    metrics = {
        "total": float(by_run.mean()),
        "capabilities": {name: float(value) for name, value in capabilities.items()},
        "combinations": {name: float(value) for name, value in combinations.items()},
        "runs": by_run.tolist(),
        "std": float(by_run.std()),
        "official": {
            "total": float(round(by_run.mean(), 1)),
            "capabilities": {name: float(round(value, 1)) for name, value in capabilities.items()},
            "combinations": {name: float(round(value, 1)) for name, value in combinations.items()},
            "std": float(round(by_run.std(), 1)),
        },
        **(unreadable_counts(read.texts, read.readable) if read.texts else {}),
        "n": len(questions),
        "n_runs": len(by_run),
    }
    items = [
        {"id": key, "capability": list(question["capability"]), "grade": float(table[key].mean())}
        for key, question in questions.items()
    ]
    rules = {"official": "mm-vet_evaluator of yuweihao/MM-Vet", "strict": "strict"}
    return Report(metrics, items, {"benchmark": "MM-Vet", "rule": rules[rule]})


def _percent(table: Mapping[str, np.ndarray], keys: Collection[str]) -> np.ndarray:
    wanted = set(keys)
    grades = np.stack([values for key, values in table.items() if key in wanted])  # (question, run)
    return np.add.accumulate(grades)[-1] / len(grades) * 100  # (run,)


class Question(msgspec.Struct):
    """What is read of a question of mm-vet.json."""

    question: str
    answer: str
    capability: list[str]


def _questions(source: Path | str | Mapping[str, Any]) -> dict[str, Any]:
    content = _content(source, "mm-vet.json")
    problems = [] if content else ["no question"]
    for key, entry in content.items():
        try:
            question = convert(entry, Question, repr(key))
        except ValueError as error:
            problems.append(str(error))
            continue
        if not question.capability:
            problems.append(f"{key!r}: no list of capabilities")
        elif unknown := set(question.capability) - set(CAPABILITIES):
            problems.append(f"{key!r}: capability {', '.join(sorted(unknown))}; expected {', '.join(CAPABILITIES)}")
    if problems:
        raise BadInput(_name(source, "mm-vet.json"), problems, "Unpack the authors' mm-vet.zip again.")
    return content


def _content(source: Path | str | Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the one object of a file, or a copy of a mapping."""
    if isinstance(source, Mapping):
        return dict(source)
    records, problems = read_records(source)
    if len(records) != 1 and not problems:
        problems = [f"{len(records)} objects; expected one object, with an entry for each id ({what})"]
    if problems:
        raise BadInput(source, problems, _FIX)
    return records[0].value


def _name(source: Path | str | Mapping[str, Any], what: str) -> str:
    return what if isinstance(source, Mapping) else str(source)


def _unmatched(questions: Mapping[str, Any], given: Mapping[str, Any], what: str) -> list[str]:
    problems = [f"{key!r}: no {what}" for key in questions if key not in given]
    return problems + [f"{key!r}: a {what} without a question in mm-vet.json" for key in given if key not in questions]
