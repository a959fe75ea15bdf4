"""HallusionBench: yes/no questions on images and their edited twins, and on no image; a judge compares with the reference.

Source: Guan et al. 2024, "HallusionBench", arXiv 2310.14566. Files, prompt and rules follow utils.py (commit 08e51de) and
evaluation.py (commit 0daf753) of tianyi-lab/HallusionBench, BSD-3-Clause. No judge is called here; the published numbers
rest on gpt-4.

A question is named by category (VD, visual dependent; VS, visual supplement), subcategory, set, figure and question number.
Figure 0 is the original image of VD, and no image of VS; the others are edited or supplied images. The same question on
several figures of one set is a pair. `score` gives the official tables:

- question: each question alone.
- figure: all questions on one figure are right; VS without an image is left out.
- pair: all questions of a pair are right.
- easy, hard: all questions of a pair on figure 0, on the other figures.
- edited: all questions of a pair on edited images (visual_input 2). This one is no table of the official code; but the "hard
  question" accuracies of the published leaderboard have its 430 pairs as denominator (195 / 430 = 45.3488), not the 452 of
  hard. Compare those with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunehal.benchmarks.files import BadInput, Report, read_records, read_shipped
from prunehal.benchmarks.hallusion_failures import has_same, pair_failures, question_failures
from prunehal.benchmarks.judged import reply_text
from prunehal.resources import written

__all__ = [
    "VERDICT",
    "judge_prompts",
    "question_key",
    "questions",
    "read_judgement",
    "read_results",
    "results",
    "score",
    "with_verdicts",
    "write_results",
]

VERDICT = "gpt4v_output_gpt_check"  # the entry of the official files, whichever judge and model

_PROMPT = (
    "Imagine you are an intelligent teacher. Thoroughly read the question, reference answer and the prediction answer to "
    "ensure a clear understanding of the information provided. Assess the correctness of the predictions. If the prediction "
    "answer does not conflict with the reference answer, please generate “correct”. If the prediction answer conflict with "
    "the reference answer, please generate “incorrect”. If the prediction answer is unclear about the answer, please "
    'generate "unclear". \n\n Question:{question}\nReference answer: {reference}\nPrediction answer:{prediction}\nOutput:'
)
_PLACE = ("category", "subcategory", "set_id", "figure_id", "question_id")
_PAIR = ("category", "subcategory", "set_id", "question_id")
_SCOPES = ("all", "VD", "VS")
_FIX = "Give one entry for each question of HallusionBench.json, in its order or by question_key."


def questions() -> list[dict[str, Any]]:
    """Return the 1129 records of HallusionBench.json: the five parts of the key, visual_input (0 none, 1 original or plain,
    2 edited image), sample_note, question, gt_answer_details, gt_answer ("1" yes, "0" no) and filename (None: no image).

    The images are not shipped.

    >>> len(questions()), questions()[0]["category"], questions()[0]["filename"]
    (1129, 'VS', None)
    """
    return read_shipped("hallusionbench", "HallusionBench.json.gz")


def question_key(record: Mapping[str, Any]) -> str:
    """Return the official name of a question.

    >>> question_key(questions()[0])
    'VS_chart_0_0_0'
    """
    return "_".join(str(record[part]) for part in _PLACE)


def results(predictions: Sequence[str] | Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the records with the answers filled in as ``model_prediction``.

    Args:
        predictions: a text for each question, in the order of `questions` or by `question_key`.

    Raises:
        BadInput: predictions that are missing, too many, or no text.

    >>> results(["Yes."] * 1129)[5]["model_prediction"]
    'Yes.'
    """
    asked = questions()
    texts = _matched(predictions, [question_key(record) for record in asked], "prediction")
    return [{**record, "model_prediction": text} for record, text in zip(asked, texts, strict=True)]


def write_results(path: Path | str, predictions: Sequence[str] | Mapping[str, str]) -> None:
    """Write the file that the official evaluation.py reads (HallusionBench_result.json).

    Raises:
        BadInput: see `results`.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_results(Path(folder) / "HallusionBench_result.json", ["No."] * 1129)
    ...     len(read_results(Path(folder) / "HallusionBench_result.json"))
    1129
    """
    filled = results(predictions)
    with written(Path(path)) as part:
        part.write_text(json.dumps(filled) + "\n", encoding="utf-8")


def read_results(path: Path | str) -> list[dict[str, Any]]:
    """Read a result file, with or without verdicts.

    Raises:
        BadInput: lines that cannot be read, or that lack a part of the key.
        OSError: the file cannot be read.
    """
    records, problems = read_records(path)
    for record in records:
        if absent := [part for part in _PLACE if part not in record.value]:
            problems.append(f"{record.where}: no {', '.join(absent)}")
    if problems:
        raise BadInput(path, problems, "Give the records of HallusionBench.json, with model_prediction added.")
    return [record.value for record in records]


def judge_prompts(filled: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return ``{"key", "prompt"}`` for each record: the published prompt, to be sent alone as one user message.

    Args:
        filled: records with question, gt_answer_details and model_prediction, as `results` gives them.

    Raises:
        BadInput: a record lacks one of these entries.

    >>> print(judge_prompts(results(["No."] * 1129))[0]["prompt"][-68:])
    with the highest import value in 2018?
    Prediction answer:No.
    Output:
    """
    asked, problems = [], []
    for record in filled:
        key = question_key(record)
        parts = [record.get(name) for name in ("question", "gt_answer_details", "model_prediction")]
        if not all(isinstance(part, str) for part in parts):
            problems.append(f"{key}: no text for question, gt_answer_details or model_prediction")
        else:
            prompt = _PROMPT.format(question=parts[0], reference=parts[1], prediction=parts[2])
            asked.append({"key": key, "prompt": prompt})
    if problems:
        raise BadInput("HallusionBench results", problems, "Fill the records in with `results` or write_results.")
    return asked


def read_judgement(text: str) -> int:
    """Return what a reply says: 0 incorrect, 1 correct, 2 unclear (neither word), by the official rule.

    >>> [read_judgement(text) for text in ("Incorrect.", "Correct", "unclear", "not correct")]
    [0, 1, 2, 1]
    """
    lower = text.lower()
    return 0 if "incorrect" in lower else 1 if "correct" in lower else 2


def with_verdicts(filled: Sequence[Mapping[str, Any]], judgements: Sequence[Any] | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records with what the judge said of each, "0", "1" or "2", in the official entry.

    Args:
        filled: the records that were judged.
        judgements: a reply for each, in the same order or by `question_key`, as text, as an object with judgement or text,
            or as a chat completion.

    Raises:
        BadInput: replies that are missing, too many, or without text.

    >>> judged = with_verdicts(results(["No."] * 1129), ["correct"] * 1129)
    >>> judged[0]["gpt4v_output_gpt_check"]
    '1'
    """
    texts = _matched(judgements, [question_key(record) for record in filled], "judgement")
    return [{**record, VERDICT: str(read_judgement(text))} for record, text in zip(filled, texts, strict=True)]


def score(records: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]] | None = None) -> Report:
    """Score judged records with the official rules.

    On VS questions without an image (figure 0) "unclear" is right too; on all others only "correct" is.

    Args:
        records: one for each question, with the verdict (0, 1 or 2) in the entry `VERDICT`; when they also have ``same``
            ("1" when the answer agrees with the one on figure 0), the failures of the pairs are told apart.
        against: the questions to answer; all 1129 by default.

    Returns:
        A report; metrics: ``percent`` (rounded to 4 decimals as in the official tables), ``correct`` and ``total``
        (the exact fractions), each by table (see the module) and by all, VD and VS; ``figures`` (correct, inconsistent and
        wrong figures, and the mean share of right answers); ``failures`` (counts of language hallucination LH, visual
        illusion VI and Mix, by question, and by pair with ``same``); ``n``. A percentage without a question is None. Items:
        key, verdict, correct.

    Raises:
        BadInput: questions that are missing, answered twice or unknown, or a verdict that is none; no ``same`` where the
            rule of the pairs asks for it, although other records have it.

    >>> report = score(with_verdicts(results(["No."] * 1129), ["unclear"] * 1129))
    >>> report.metrics["percent"]["question"], report.metrics["correct"]["question"]["all"]
    ({'all': 15.7662, 'VD': 0.0, 'VS': 33.0855}, 178)
    """
    answers = _answers(records, questions() if against is None else against)
    tables = {
        "question": _groups(answers, _PLACE),
        "figure": _groups((a for a in answers if a["category"] != "VS" or a["figure_id"] != "0"), _PLACE[:4]),
        "pair": _groups(answers, _PAIR),
        "easy": _groups((a for a in answers if a["figure_id"] == "0"), _PAIR),
        "hard": _groups((a for a in answers if a["figure_id"] != "0"), _PAIR),
        "edited": _groups((a for a in answers if a["visual_input"] == "2"), _PAIR),
    }
    percent, correct, total = {}, {}, {}
    for name, groups in tables.items():
        total[name] = {scope: len(_within(groups, scope)) for scope in _SCOPES}
        correct[name] = {scope: sum(map(all, _within(groups, scope))) for scope in _SCOPES}
        percent[name] = {s: round(100 * correct[name][s] / total[name][s], 4) if total[name][s] else None for s in _SCOPES}
    failures = {"question": question_failures(answers)}
    if has_same(answers):
        failures["pair"] = pair_failures(answers)
    metrics = {
        "percent": percent,
        "correct": correct,
        "total": total,
        "figures": {scope: _figures(_within(tables["figure"], scope)) for scope in _SCOPES},
        "failures": failures,
        "n": len(answers),
    }
    items = [{"key": question_key(answer), "verdict": answer["verdict"], "correct": answer["correct"]} for answer in answers]
    return Report(metrics, items, {"benchmark": "HallusionBench", "rule": "evaluation.py of tianyi-lab/HallusionBench"})


def _answers(records: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the rules need of each question: the parts of its key, visual_input, verdict, correct, same."""
    asked = {question_key(question): question for question in against}
    found: dict[str, dict[str, Any]] = {}
    problems = []
    for place, record in enumerate(records):
        if absent := [part for part in _PLACE if part not in record]:
            problems.append(f"record {place}: no {', '.join(absent)}")
            continue
        key, verdict = question_key(record), str(record.get(VERDICT))
        if key not in asked:
            problems.append(f"record {place}: {key} is none of the {len(asked)} questions")
        elif key in found:
            problems.append(f"record {place}: {key} is answered twice")
        else:
            if verdict not in ("0", "1", "2"):
                problems.append(f"record {place}: {key} has {VERDICT} {record.get(VERDICT)!r}; expected 0, 1 or 2")
            place_of = {part: str(asked[key][part]) for part in (*_PLACE, "visual_input")}
            right = ("1", "2") if place_of["category"] == "VS" and place_of["figure_id"] == "0" else ("1",)
            found[key] = {**place_of, "verdict": verdict, "correct": verdict in right, "same": record.get("same")}
    problems += [f"{key} has no record" for key in asked if key not in found]
    if problems:
        raise BadInput("HallusionBench records", problems, "Give exactly one judged record for each question.")
    return [found[key] for key in asked]


def _groups(answers: Iterable[Mapping[str, Any]], parts: Sequence[str]) -> dict[tuple[str, ...], list[bool]]:
    groups: dict[tuple[str, ...], list[bool]] = {}
    for answer in answers:
        groups.setdefault(tuple(answer[part] for part in parts), []).append(answer["correct"])
    return groups


def _within(groups: Mapping[tuple[str, ...], list[bool]], scope: str) -> list[list[bool]]:
    return [group for key, group in groups.items() if scope in ("all", key[0])]


def _figures(groups: Sequence[Sequence[bool]]) -> dict[str, Any]:
    right, none = sum(map(all, groups)), sum(not any(group) for group in groups)
    share = sum(sum(group) / len(group) for group in groups) / len(groups) if groups else None
    return {"correct": right, "inconsistent": len(groups) - right - none, "wrong": none, "score": share}


def _matched(given: Sequence[Any] | Mapping[str, Any], keys: Sequence[str], what: str) -> list[str]:
    """Return the text for each key, given in order or by key."""
    if isinstance(given, Mapping):
        known = set(keys)
        problems = [f"{key}: no {what}" for key in keys if key not in given]
        problems += [f"{key}: a {what} for no question" for key in given if key not in known]
    else:
        problems = [] if len(given) == len(keys) else [f"{len(given)} {what}s; expected {len(keys)}"]
        given = dict(zip(keys, given, strict=False))
    texts = {key: reply_text(value) for key, value in given.items()}
    problems += [f"{key}: {given[key]!r}; expected text" for key, text in texts.items() if text is None]
    if problems:
        raise BadInput(f"HallusionBench {what}s", problems, _FIX)
    return [texts[key] for key in keys]
