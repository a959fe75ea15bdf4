"""AMBER, discriminative part: accuracy, precision, recall and F1 of yes-or-no answers, for every type of question.

Source: Wang et al. 2023, arXiv 2311.07397; the rule is that of ``inference.py`` in junyangwang0410/AMBER. "No" is the
positive class: precision and recall show how well absent things are denied.

By the official rule only exactly "Yes" and "No" are answers, so "Yes.", "no" and "" are wrong and neither. By the strict rule,
the same as that of POPE, the first word decides, in any case and with any punctuation: "Yes.", "yes, ..." and "**No**" are
answers, "There is" is neither. How many are neither is counted as unreadable; where all are, there is nothing to score.

Quirks of the official script, kept under both rules because the numbers of papers hold them: every number is divided by a
count that begins at 0.001 (0.003 for attribute, which sums three), so that all right gives 100.0 only after rounding; F1 is made
from the rounded precision and recall, with 0.0001 added below the line (0.001 for existence).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunehal.benchmarks.amber.files import annotations, check_responses, initial_counters
from prunehal.benchmarks.amber.responses import official_answer, read_responses
from prunehal.benchmarks.replies import check_rule
from prunehal.benchmarks.yes_or_no import counts, first_word
from prunehal.files.reading import reading
from prunehal.files.records import Report

__all__ = ["score_answers", "score_discriminative"]

# Type in the annotations -> name in the report and prefix of the official counters; every other type is a relation.
_TYPES = {
    "discriminative-attribute-state": ("state", "as_"),
    "discriminative-attribute-number": ("number", "an_"),
    "discriminative-attribute-action": ("action", "aa_"),
    "discriminative-hallucination": ("existence", "ha_"),
}
_RELATION = ("relation", "asso_")
_GROUPS = {  # name in the report -> prefixes whose counters are summed, in the official order
    "all": ("",),
    "existence": ("ha_",),
    "attribute": ("as_", "an_", "aa_"),
    "state": ("as_",),
    "number": ("an_",),
    "action": ("aa_",),
    "relation": ("asso_",),
}


def score_answers(responses: Mapping[int, str], rule: str = "official") -> Report:
    """Score answers by discriminative id.

    Args:
        responses: id -> answer.
        rule: ``official``: exactly Yes or No. ``strict``: the first word, without punctuation and case, is yes or no.

    Returns:
        A report; metrics: accuracy, precision, recall and f1 in percent, rounded to one decimal, for each of all, existence,
        attribute, state, number, action and relation (None where there is no answer of a type); n, n_empty, unreadable (wrong,
        and neither Yes nor No) and unreadable_share, from 0 to 1. Items: id, type, truth, response, answer (Yes, No or
        None), correct. Settings: benchmark, rule, and n, the number of answers of each type.

    Raises:
        ValueError: no answer, an unknown or generative id, an answer that is no text, an unknown rule; or no answer can be
            read.

    >>> score_answers({1005: "Yes", 1006: "No", 1007: "No.", 8633: "Yes"}).metrics["all"]
    {'accuracy': 50.0, 'precision': 99.9, 'recall': 50.0, 'f1': 66.6}
    >>> score_answers({1005: "Yes.", 1006: "no"}, rule="strict").metrics["all"]["accuracy"]
    100.0
    """
    check_rule(rule)
    check_responses(responses, "discriminative")
    counters = initial_counters()
    n = dict.fromkeys(_GROUPS, 0)
    items = []
    read = {number: _answer(response, rule) for number, response in responses.items()}
    for number, answer in read.items():
        kind, truth = annotations()[number]["type"], annotations()[number]["truth"]
        name, prefix = _TYPES.get(kind, _RELATION)
        correct = answer == ("Yes" if truth == "yes" else "No")
        for part in ("", prefix):
            counters[f"{part}qa_correct_num"] += 1
            counters[f"{part}qa_correct_score"] += correct
            if truth == "no":
                counters[f"{part}qa_no_num"] += 1
                counters[f"{part}qa_no_score"] += correct
            if answer == "No":
                counters[f"{part}qa_ans_no_num"] += 1
                counters[f"{part}qa_ans_no_score"] += truth == "no"
        for group in ("all", name, *(["attribute"] if prefix in _GROUPS["attribute"] else [])):
            n[group] += 1
        items.append({
            "id": number, "type": kind, "truth": truth, "response": responses[number], "answer": answer, "correct": correct,
        })  # fmt: skip
    metrics: dict[str, Any] = {}
    for group, prefixes in _GROUPS.items():
        if not n[group]:
            metrics[group] = dict.fromkeys(("accuracy", "precision", "recall", "f1"))
            continue
        accuracy, precision, recall = (
            round(_sum(counters, prefixes, f"{what}_score") / _sum(counters, prefixes, f"{what}_num") * 100, 1)
            for what in ("qa_correct", "qa_ans_no", "qa_no")
        )
        p, r = precision / 100, recall / 100
        f1 = round(2 * p * r / (p + r + (0.001 if group == "existence" else 0.0001)) * 100, 1)
        metrics[group] = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    texts = list(responses.values())
    metrics |= counts(texts, [answer is not None for answer in read.values()], _hint(texts, rule))
    return Report(metrics, items, {"benchmark": "AMBER discriminative", "rule": rule, "n": n})


def score_discriminative(
    responses_path: Path | str, skip_bad: bool = False, rule: str = "official", answer_key: str | None = None
) -> Report:
    """Score a response file: a JSON list of objects with id and response, or another layout of `read_responses`.

    Args:
        responses_path: the file.
        skip_bad: go on without the bad lines, and count them under ``settings["n_bad"]``.
        rule: see `score_answers`.
        answer_key: the key that holds the answers, where several could.

    Returns:
        A report as `score_answers` gives it; settings also hold responses, answer_key, n_bad, n_missing (questions without an
        answer), n_other (captions, which are left out) and compared.

    Raises:
        BadInput: see `read_responses`; or no answer can be read.
        ValueError: an unknown rule.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    ...     _ = file.write('[{"id": 8633, "response": "No"}]')
    ...     file.flush()
    ...     score_discriminative(file.name).metrics["existence"]
    {'accuracy': 99.9, 'precision': 99.9, 'recall': 99.9, 'f1': 99.9}
    """
    check_rule(rule)
    responses, left_out = read_responses(responses_path, "discriminative", skip_bad, answer_key)
    with reading(responses_path):
        report = score_answers(responses, rule)
    settings = {**report.settings, "responses": str(responses_path), "answer_key": answer_key, **left_out}
    return Report(report.metrics, report.items, settings)


def _answer(response: str, rule: str) -> str | None:
    if rule == "official":
        return official_answer(response)
    word = first_word(response)
    return None if word is None else word.capitalize()


def _hint(texts: list[str], rule: str) -> str:
    """Return what was expected where no answer can be read, and the fix."""
    if rule == "strict":
        return "the strict rule expected yes or no as the first word; Fix: check the model's prompt"
    others = sum(first_word(text) is not None for text in texts)
    fix = f"use the strict rule (--rule strict), which reads {others} of them" if others else "check the model's prompt"
    return f"the official rule expected exactly Yes or No; Fix: {fix}"


def _sum(counters: Mapping[str, float], prefixes: tuple[str, ...], name: str) -> float:
    total = counters[prefixes[0] + name]
    for prefix in prefixes[1:]:
        total = total + counters[prefix + name]  # from left to right, as the official sum is rounded
    return total
