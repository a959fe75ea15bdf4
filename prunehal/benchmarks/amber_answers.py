"""AMBER, discriminative part: accuracy, precision, recall and F1 of yes-or-no answers, for every type of question.

Source: Wang et al. 2023, arXiv 2311.07397; the rule is that of ``inference.py`` in junyangwang0410/AMBER. "No" is the
positive class: precision and recall tell how well absent things are denied.

Quirks of the official script, kept because the numbers of papers hold them: only exactly "Yes" and "No" are answers, so
"Yes.", "no" and "" are wrong and neither; every number is divided by a count that begins at 0.001 (0.003 for attribute, which
sums three), so that all right gives 100.0 only after rounding; F1 is made from the rounded precision and recall, with 0.0001
added below the line (0.001 for existence).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prunehal.benchmarks.amber_files import annotations, check_responses, initial_counters, read_responses
from prunehal.benchmarks.files import Report

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


def score_answers(responses: Mapping[int, str]) -> Report:
    """Score answers by discriminative id.

    Returns:
        A report; metrics: accuracy, precision, recall and f1 in percent, rounded to one decimal, for each of all, existence,
        attribute, state, number, action and relation (0.0 where there is no answer of a type). Items: id, type, truth,
        response, correct. Settings: benchmark, and n, the number of answers of each type.

    Raises:
        ValueError: no answer, an unknown or generative id, an answer that is no text.

    >>> score_answers({1005: "Yes", 1006: "No", 1007: "No.", 8633: "Yes"}).metrics["all"]
    {'accuracy': 50.0, 'precision': 99.9, 'recall': 50.0, 'f1': 66.6}
    """
    check_responses(responses, "discriminative")
    counters = initial_counters()
    n = dict.fromkeys(_GROUPS, 0)
    items = []
    for number, response in responses.items():
        kind, truth = annotations()[number]["type"], annotations()[number]["truth"]
        name, prefix = _TYPES.get(kind, _RELATION)
        correct = response == ("Yes" if truth == "yes" else "No")
        for part in ("", prefix):
            counters[f"{part}qa_correct_num"] += 1
            counters[f"{part}qa_correct_score"] += correct
            if truth == "no":
                counters[f"{part}qa_no_num"] += 1
                counters[f"{part}qa_no_score"] += correct
            if response == "No":
                counters[f"{part}qa_ans_no_num"] += 1
                counters[f"{part}qa_ans_no_score"] += truth == "no"
        for group in ("all", name, *(["attribute"] if prefix in _GROUPS["attribute"] else [])):
            n[group] += 1
        items.append({"id": number, "type": kind, "truth": truth, "response": response, "correct": correct})
    metrics = {}
    for group, prefixes in _GROUPS.items():
        accuracy, precision, recall = (
            round(_sum(counters, prefixes, f"{what}_score") / _sum(counters, prefixes, f"{what}_num") * 100, 1)
            for what in ("qa_correct", "qa_ans_no", "qa_no")
        )
        p, r = precision / 100, recall / 100
        f1 = round(2 * p * r / (p + r + (0.001 if group == "existence" else 0.0001)) * 100, 1)
        metrics[group] = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    return Report(metrics, items, {"benchmark": "AMBER discriminative", "n": n})


def score_discriminative(responses_path: Path | str, skip_bad: bool = False) -> Report:
    """Score a response file of the official layout: a JSON list of objects with id and response.

    Args:
        responses_path: the file.
        skip_bad: go on without the bad lines, and count them under ``settings["n_bad"]``.

    Returns:
        A report as `score_answers` gives it; settings also hold responses, n_bad and n_other (captions,
        which are left out).

    Raises:
        BadInput: see `read_responses`.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    ...     _ = file.write('[{"id": 8633, "response": "No"}]')
    ...     file.flush()
    ...     score_discriminative(file.name).metrics["existence"]
    {'accuracy': 99.9, 'precision': 99.9, 'recall': 99.9, 'f1': 99.9}
    """
    responses, counts = read_responses(responses_path, "discriminative", skip_bad)
    report = score_answers(responses)
    return Report(report.metrics, report.items, {**report.settings, "responses": str(responses_path), **counts})


def _sum(counters: Mapping[str, float], prefixes: tuple[str, ...], name: str) -> float:
    total = counters[prefixes[0] + name]
    for prefix in prefixes[1:]:
        total = total + counters[prefix + name]  # from left to right, as the official sum is rounded
    return total
