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
- edited: all questions of a pair on edited images (visual_input 2). No table of the official code, but the "hard question"
  accuracies of the published leaderboard have its 430 pairs as denominator (195 / 430 = 45.3488), not the 452 of hard.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from prunehal.benchmarks.judged.hallusionbench_answers import (
    PLACE,
    VERDICT,
    answers,
    carried,
    key_of,
    question_key,
    questions,
    read_judgement,
    result_records,
)
from prunehal.benchmarks.judged.hallusionbench_failures import has_same, pair_failures, question_failures
from prunehal.benchmarks.replies import check_rule, refuse_another_question, refuse_unreadable, reply, unreadable_counts
from prunehal.files.paths import written
from prunehal.files.reading import convert, reading
from prunehal.files.records import BadInput, Report

__all__ = [
    "VERDICT", "Filled", "judge_prompts", "question_key", "questions", "read_judgement", "read_results", "results", "score",
    "score_file", "with_verdicts", "write_results",
]  # fmt: skip

_PROMPT = (
    "Imagine you are an intelligent teacher. Thoroughly read the question, reference answer and the prediction answer to "
    "ensure a clear understanding of the information provided. Assess the correctness of the predictions. If the prediction "
    "answer does not conflict with the reference answer, please generate “correct”. If the prediction answer conflict with "
    "the reference answer, please generate “incorrect”. If the prediction answer is unclear about the answer, please "
    'generate "unclear". \n\n Question:{question}\nReference answer: {reference}\nPrediction answer:{prediction}\nOutput:'
)
_PAIR = ("category", "subcategory", "set_id", "question_id")
_SCOPES = ("all", "VD", "VS")
_FIX = "Give one entry for each question of HallusionBench.json, in its order or by question_key."


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
    with written(path) as part:
        part.write_text(json.dumps(filled) + "\n", encoding="utf-8")


def read_results(path: Path | str) -> list[dict[str, Any]]:
    """Read a result file, with or without verdicts, or rows with the key of a question and the reply of a judge.

    Raises:
        BadInput: lines that cannot be read, that lack the key or a part of it, or have an entry of another type; no record.
        OSError: the file cannot be read.
    """
    return [record.value for record in result_records(path)]


class Filled(msgspec.Struct):
    """The entries of a record that the judge's prompt contains."""

    question: str
    gt_answer_details: str
    model_prediction: str


def judge_prompts(filled: Sequence[Mapping[str, Any]], whole: bool = False) -> list[dict[str, str]]:
    """Return ``{"key", "prompt"}`` for each record: the published prompt, to be sent alone as one user message.

    Args:
        filled: records with question, gt_answer_details and model_prediction, as `results` gives them.
        whole: whether it is an error that one of the 1129 questions has no record.

    Raises:
        BadInput: a record lacks one of these entries, or has the question or image of another one than its key names; there
            are no records, or not all with ``whole``.

    >>> print(judge_prompts(results(["No."] * 1129))[0]["prompt"][-68:])
    with the highest import value in 2018?
    Prediction answer:No.
    Output:
    """
    asked: dict[str, str] = {}
    known = {question_key(question): question for question in questions()}
    problems = [] if filled else ["there are none; expected one for each question"]
    for record in filled:
        try:
            key = key_of(record)
            parts = convert(record, Filled, key)
            if key in known:
                refuse_another_question(record, carried(known[key]), key)
            elif whole:
                raise ValueError(f"{key} is none of the {len(known)} questions")
        except ValueError as error:
            problems.append(str(error))
            continue
        if key in asked:
            problems.append(f"{key} is answered twice; expected one record for each question")
        asked[key] = _PROMPT.format(question=parts.question, reference=parts.gt_answer_details, prediction=parts.model_prediction)
    if whole and not problems:
        problems = [f"{key}: no record" for key in known if key not in asked]
    if problems:
        raise BadInput("HallusionBench results", problems, "Fill the records in with `results` or write_results.")
    return [{"key": key, "prompt": prompt} for key, prompt in asked.items()]


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


def score_file(path: Path | str, rule: str = "official", judgement_key: str | None = None) -> Report:
    """Score a result file with verdicts, or a file of replies with the keys of their questions, as `score` does.

    Raises:
        BadInput, ValueError: see `score`; the file is named, and the line.
        OSError: the file cannot be read.
    """
    check_rule(rule)
    with reading(path):
        return _scored([(record.where, record.value) for record in result_records(path)], questions(), rule, judgement_key)


def score(
    records: Sequence[Mapping[str, Any]],
    against: Sequence[Mapping[str, Any]] | None = None,
    rule: str = "official",
    judgement_key: str | None = None,
) -> Report:
    """Score judged records with the official rules.

    On VS questions without an image (figure 0) "unclear" is right too; on all others only "correct" is.

    Args:
        records: one for each question, with the verdict (0, 1 or 2) in the entry `VERDICT`, or with the reply of a judge
            (see `replies.reply`); when they also have ``same`` ("1" when the answer agrees with the one on figure 0), the
            failures of the pairs are counted by kind.
        against: the questions to answer; all 1129 by default.
        rule: "official", or "strict" (see `read_judgement`): an unreadable reply is then incorrect, not unclear.
        judgement_key: the key that holds the verdict or the reply; None takes the one that is there.

    Returns:
        A report; metrics: ``percent`` (rounded to 4 decimals as in the official tables), ``correct`` and ``total``
        (the exact fractions), each by table (see the module) and by all, VD and VS; ``figures`` (correct, inconsistent and
        wrong figures, and the mean share of right answers); ``failures`` (counts of language hallucination LH, visual
        illusion VI and Mix, by question, and by pair with ``same``); of replies also ``unreadable`` (without the three
        words, or by the strict rule not at the beginning), ``unreadable_share`` and ``n_empty``; ``n``. A percentage without a
        question is None. Items: key, verdict, correct.

    Raises:
        BadInput: questions that are missing, answered twice or unknown, or a verdict that is none; no ``same`` where the
            rule of the pairs asks for it, although other records have it.

    >>> report = score(with_verdicts(results(["No."] * 1129), ["unclear"] * 1129))
    >>> report.metrics["percent"]["question"], report.metrics["correct"]["question"]["all"]
    ({'all': 15.7662, 'VD': 0.0, 'VS': 33.0855}, 178)
    """
    check_rule(rule)
    given = [(f"record {place}", record) for place, record in enumerate(records)]
    return _scored(given, questions() if against is None else against, rule, judgement_key)


def _scored(
    given: Sequence[tuple[str, Mapping[str, Any]]],
    against: Sequence[Mapping[str, Any]],
    rule: str,
    judgement_key: str | None,
) -> Report:
    judged = answers(given, against, rule, judgement_key)
    texts = [answer["reply"] for answer in judged if answer["reply"] is not None]
    readable = [answer["readable"] for answer in judged if answer["reply"] is not None]
    refuse_unreadable("HallusionBench judgements", texts, readable, "correct, incorrect or unclear")
    tables = {
        "question": _groups(judged, PLACE),
        "figure": _groups((a for a in judged if a["category"] != "VS" or a["figure_id"] != "0"), PLACE[:4]),
        "pair": _groups(judged, _PAIR),
        "easy": _groups((a for a in judged if a["figure_id"] == "0"), _PAIR),
        "hard": _groups((a for a in judged if a["figure_id"] != "0"), _PAIR),
        "edited": _groups((a for a in judged if a["visual_input"] == "2"), _PAIR),
    }
    percent, correct, total = {}, {}, {}
    for name, groups in tables.items():
        total[name] = {scope: len(_within(groups, scope)) for scope in _SCOPES}
        correct[name] = {scope: sum(map(all, _within(groups, scope))) for scope in _SCOPES}
        percent[name] = {s: round(100 * correct[name][s] / total[name][s], 4) if total[name][s] else None for s in _SCOPES}
    failures = {"question": question_failures(judged)}
    if has_same(judged):
        failures["pair"] = pair_failures(judged)
    metrics = {
        "percent": percent,
        "correct": correct,
        "total": total,
        "figures": {scope: _figures(_within(tables["figure"], scope)) for scope in _SCOPES},
        "failures": failures,
        **(unreadable_counts(texts, readable) if texts else {}),
        "n": len(judged),
    }
    items = [{"key": question_key(answer), "verdict": answer["verdict"], "correct": answer["correct"]} for answer in judged]
    rules = {"official": "evaluation.py of tianyi-lab/HallusionBench", "strict": "strict"}
    return Report(metrics, items, {"benchmark": "HallusionBench", "rule": rules[rule]})


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
    texts: dict[str, str] = {}
    for key, value in given.items():
        try:
            if what == "prediction" and not isinstance(value, str):
                raise ValueError(f"{value!r}; expected text")
            texts[key] = reply(value)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise BadInput(f"HallusionBench {what}s", problems, _FIX)
    return [texts[key] for key in keys]
