"""POPE: yes-or-no questions about objects, scored by the official rule or by a strict one.

Source: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models", arXiv 2305.10355; the official
rule is that of ``evaluate.py`` in AoiDragon/POPE. The nine question files (coco, aokvqa, gqa; random, popular, adversarial)
ship in the official layout: one JSON object a line, with question_id, image, text and label.

Quirks of the official rule, kept because the numbers of papers hold them: only the text before the first full stop is read;
only the tokens "No", "no" and "not" say no, so "NO", "No!", "Not" and "no\\n" count as yes, and so does an empty answer, a
refusal or any other text; "Yes, no doubt" counts as no. The strict rule has none of these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from prunehal.benchmarks.files import BadInput, Report, bad_lines
from prunehal.benchmarks.pope_files import LABELS, Question, pair, read_places, read_questions
from prunehal.resources import data_path, written

__all__ = ["KINDS", "RULES", "SOURCES", "Question", "parse_answer", "questions", "score", "score_files", "write_answers"]

SOURCES = ("coco", "aokvqa", "gqa")
KINDS = ("random", "popular", "adversarial")
RULES = ("official", "strict")

_OFFICIAL_NO = {"No", "not", "no"}
_EDGE = re.compile(r"^[\W_]+|[\W_]+$")  # punctuation and underscores around a word


def questions(source: str, kind: str) -> list[Question]:
    """Return the 3000 questions of one shipped file.

    Args:
        source: where the images are from: coco, aokvqa or gqa.
        kind: how absent objects were chosen: random, popular or adversarial.

    Raises:
        ValueError: another source or kind.

    >>> questions("coco", "adversarial")[1]
    Question(question_id=2, image='COCO_val2014_000000310196.jpg', text='Is there a backpack in the image?', label='no')
    """
    if source not in SOURCES or kind not in KINDS:
        raise ValueError(f"POPE questions {source!r}, {kind!r}; expected a source of {list(SOURCES)} and a kind of {list(KINDS)}")
    path = _shipped(source, kind)
    places, problems = read_questions(path)
    bad_lines(path, problems, skip_bad=False)
    return [place.content for place in places]


def parse_answer(text: str, rule: str = "official") -> str | None:
    """Return ``"yes"`` or ``"no"``; by the strict rule also None.

    Args:
        text: what the model answered.
        rule: ``official``: no when "No", "no" or "not" is a token of the text before the first full stop, without its
            commas and split at single spaces; otherwise yes. ``strict``: the first word, without punctuation and case, must
            be yes or no; None otherwise.

    Raises:
        ValueError: another rule, or an answer that is no text.

    >>> parse_answer("No, there is no dog."), parse_answer("NO"), parse_answer("I see. No dog."), parse_answer("")
    ('no', 'yes', 'yes', 'yes')
    >>> parse_answer("**NO**, there is none", "strict"), parse_answer("There is no dog", "strict")
    ('no', None)
    """
    _check_rule(rule)
    if not isinstance(text, str):
        raise ValueError(f"the answer is {text!r}; expected text; pass what the model answered")
    if rule == "official":
        tokens = text.split(".", 1)[0].replace(",", "").split(" ")
        return "yes" if _OFFICIAL_NO.isdisjoint(tokens) else "no"
    word = next(filter(None, (_EDGE.sub("", token) for token in text.split())), "").lower()
    return word if word in LABELS else None


def score(questions: Sequence[Question], answers: Sequence[str], rule: str = "official") -> Report:
    """Score answers, given in the order of the questions.

    Yes is the positive class. An answer that is neither (strict rule only) is wrong and in none of tp, fp, tn and fn; recall
    is over all questions whose label is yes, so that keeping silent does not raise it. Nothing divided by nothing is 0.0.

    Args:
        questions: at least one, with the labels yes or no (the official script takes any other label for yes).
        answers: one text for each question.
        rule: see `parse_answer`.

    Returns:
        A report; metrics: tp, fp, tn, fn, accuracy, precision, recall, f1, yes_ratio (share of the answers that are yes), n,
        and for the strict rule unanswered (how many are neither). Items: question_id, image, label, answer, correct.

    Raises:
        ValueError: no question, another number of answers, an unknown label or rule, an answer that is no text.

    >>> asked = [Question(1, "a.jpg", "Is there a dog?", "yes"), Question(2, "a.jpg", "Is there a cat?", "no")]
    >>> metrics = score(asked, ["Yes.", "Yes, a small one."]).metrics
    >>> metrics["accuracy"], metrics["precision"], metrics["recall"], metrics["yes_ratio"]
    (0.5, 0.5, 1.0, 1.0)
    """
    _check_rule(rule)
    if not questions or len(questions) != len(answers):
        raise ValueError(f"{len(answers)} answers to {len(questions)} questions; expected one answer to each of at least one")
    if unknown := [question for question in questions if question.label not in LABELS]:
        raise ValueError(f"unknown label {unknown[0].label!r} of question_id {unknown[0].question_id!r}; expected yes or no")
    said = [parse_answer(answer, rule) for answer in answers]
    items = [
        {
            "question_id": question.question_id,
            "image": question.image,
            "label": question.label,
            "answer": answer,
            "correct": answer == question.label,
        }
        for question, answer in zip(questions, said, strict=True)
    ]
    count = {
        name: sum(item["answer"] == answer and item["label"] == label for item in items)
        for name, answer, label in (("tp", "yes", "yes"), ("fp", "yes", "no"), ("tn", "no", "no"), ("fn", "no", "yes"))
    }
    precision = _ratio(count["tp"], said.count("yes"))
    recall = _ratio(count["tp"], sum(question.label == "yes" for question in questions))
    metrics = count | {
        "accuracy": (count["tp"] + count["tn"]) / len(items),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": said.count("yes") / len(items),
        "n": len(items),
    }
    if rule == "strict":
        metrics["unanswered"] = said.count(None)
    return Report(metrics, items, {"benchmark": "POPE", "rule": rule})


def score_files(questions_path: Path | str, answers_path: Path | str, rule: str = "official", skip_bad: bool = False) -> Report:
    """Score a file of answers against a file of questions.

    Files are JSON lines (whatever the suffix) or a JSON list, packed (``.gz``) or not. An answer has its text under answer
    (or text, or prediction), and may name its question (text) and question_id. When every answer has a question_id, answers
    are matched by it; otherwise they stand in the order of the questions, and an unreadable line keeps its place.

    Args:
        questions_path: a question file, or the name of a shipped one, such as ``coco/adversarial``.
        answers_path: the answers.
        rule: see `parse_answer`.
        skip_bad: leave out the pairs with a problem, and count them under ``settings["n_bad"]``.

    Returns:
        A report as `score` gives it; settings: benchmark, questions, answers, rule, n_bad (pairs left out).

    Raises:
        BadInput: unreadable lines, missing or wrong fields, a question_id twice, another number of answers, an answer that
            names another question, unless skipped; or no usable pair.
        ValueError: another rule.
        OSError: a file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    ...     file.writelines(json.dumps({"answer": "No."}) + "\\n" for _ in range(3000))
    ...     file.flush()
    ...     score_files("coco/popular", file.name).metrics["accuracy"]
    0.5
    """
    _check_rule(rule)
    shipped = {f"{source}/{kind}": (source, kind) for source in SOURCES for kind in KINDS}
    name = str(questions_path)
    if name not in shipped and not Path(name).exists():
        raise FileNotFoundError(f"{name}: no such question file; expected a file, or one of the shipped {', '.join(shipped)}")
    asked, problems = read_questions(_shipped(*shipped[name]) if name in shipped else name)
    bad_lines(name, problems, skip_bad)
    given, problems = read_places(answers_path)
    pairs, more = pair(asked, given)
    bad_lines(answers_path, problems + more, skip_bad)
    if not pairs:
        problems += [*more, f"no usable answer to a question of {name}; expected objects with answer"]
        raise BadInput(answers_path, problems)
    report = score([question for question, _ in pairs], [answer for _, answer in pairs], rule)
    n_bad = max(len(asked), len(given)) - len(pairs)
    settings = {"benchmark": "POPE", "questions": name, "answers": str(answers_path), "rule": rule, "n_bad": n_bad}
    return Report(report.metrics, report.items, settings)


def write_answers(path: Path | str, questions: Sequence[Question], answers: Sequence[str]) -> None:
    """Write answers as the official script reads them, one object a line, in the order of the questions.

    Each line holds question and answer, and question_id, which the official script does not read.

    Raises:
        ValueError: another number of answers than questions, or an answer that is no text; nothing is written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_answers(Path(folder) / "answers.json", questions("gqa", "random")[:1], ["Yes."])
    ...     (Path(folder) / "answers.json").read_text()
    '{"question": "Is there a bird in the image?", "answer": "Yes.", "question_id": 1}\\n'
    """
    if len(questions) != len(answers):
        raise ValueError(f"{len(answers)} answers to {len(questions)} questions; expected one answer to each")
    for question, answer in zip(questions, answers, strict=True):
        if not isinstance(answer, str):
            raise ValueError(f"the answer to question_id {question.question_id!r} is {answer!r}; expected text")
    with written(Path(path)) as part, part.open("w", encoding="utf-8") as file:
        for question, answer in zip(questions, answers, strict=True):
            line = {"question": question.text, "answer": answer, "question_id": question.question_id}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _shipped(source: str, kind: str) -> Path:
    return data_path("pope", f"{source}_pope_{kind}.json.gz")


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise ValueError(f"unknown POPE rule {rule!r}; expected one of {list(RULES)}")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
