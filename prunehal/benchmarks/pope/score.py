"""POPE: yes-or-no questions about objects, scored by the official rule or by a strict one.

Source: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models", arXiv 2305.10355; the official
rule is that of ``evaluate.py`` in AoiDragon/POPE. The nine question files (coco, aokvqa, gqa; random, popular, adversarial)
ship in the official layout: one JSON object a line, with question_id, image, text and label.

Quirks of the official rule, kept because the numbers of papers hold them: only the text before the first full stop is read;
only the tokens "No", "no" and "not" mean no, so "NO", "No!", "Not" and "no\\n" count as yes, and so does an empty answer, a
refusal or any other text; "Yes, no doubt" counts as no. How many answers hold neither a no of that kind nor the word yes, and
are yes only for that, is counted as unreadable. The strict rule has none of these quirks: the first word decides, and an
answer that begins with another word is unreadable and wrong. The strict rule of AMBER reads answers in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from prunehal.benchmarks.answer_rows import refuse_wrong, words
from prunehal.benchmarks.pope.files import LABELS, Question, read_places, read_questions
from prunehal.benchmarks.pope.joined import join, official_answer
from prunehal.benchmarks.replies import RULES, check_rule
from prunehal.benchmarks.yes_or_no import counts, first_word
from prunehal.files.paths import data_path, written
from prunehal.files.reading import reading
from prunehal.files.records import BadInput, Report, bad_lines

__all__ = ["KINDS", "RULES", "SOURCES", "Question", "parse_answer", "questions", "score", "score_files", "write_answers"]

SOURCES = ("coco", "aokvqa", "gqa")
KINDS = ("random", "popular", "adversarial")


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
    check_rule(rule)
    if not isinstance(text, str):
        raise ValueError(f"the answer is {text!r}; expected text; pass what the model answered")
    return official_answer(text) if rule == "official" else first_word(text)


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
        n_empty (empty answers, scored like others), unreadable (strict rule: neither yes nor no; official rule: yes only
        because nothing else was found) and unreadable_share. Items: question_id, image, label, answer, correct.

    Raises:
        ValueError: no question, another number of answers, an unknown label or rule, an answer that is no text, or no answer at
            all that can be read.

    >>> asked = [Question(1, "a.jpg", "Is there a dog?", "yes"), Question(2, "a.jpg", "Is there a cat?", "no")]
    >>> metrics = score(asked, ["Yes.", "Yes, a small one."]).metrics
    >>> metrics["accuracy"], metrics["precision"], metrics["recall"], metrics["yes_ratio"]
    (0.5, 0.5, 1.0, 1.0)
    """
    check_rule(rule)
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
    }
    readable = [_readable(answer, rule) for answer in answers]
    metrics |= counts(answers, readable, f"expected a yes or no ({rule} rule); Fix: check the model's prompt")
    return Report(metrics, items, {"benchmark": "POPE", "rule": rule})


def score_files(
    questions_path: Path | str,
    answers_path: Path | str,
    rule: str = "official",
    skip_bad: bool = False,
    answer_key: str | None = None,
) -> Report:
    """Score a file of answers against a file of questions.

    Files are JSON lines (whatever the suffix) or a JSON list, packed (``.gz``) or not. An answer has its text under answer, or
    response, prediction, ans, text and the like (`prunehal.benchmarks.answer_rows.ANSWER_KEYS`); where several of them are there
    and read differently, the file is refused. It may carry its question (question, prompt, query), image and label, which
    must then be those of its question. When every answer has a question_id, answers are joined by it; otherwise they stand in the
    order of the questions, one for each, and an unreadable line keeps its place.

    Args:
        questions_path: a question file, or the name of a shipped one, such as ``coco/adversarial``.
        answers_path: the answers.
        rule: see `parse_answer`.
        skip_bad: leave out the pairs with a problem, and count them under ``settings["n_bad"]``. Files whose rows belong to other
            questions, or could hold several answers, are refused all the same.
        answer_key: the key that holds the answers.

    Returns:
        A report as `score` gives it; settings: benchmark, questions, answers, rule, answer_key, joined_by (question_id or place),
        compared (what every answer carried and was compared with its question: of question, image and label), n_bad (pairs left
        out, and second answers).

    Raises:
        BadInput: unreadable lines, missing or wrong fields, a question_id twice, no answer to a question, unless skipped; answers
            to other questions, another number of answers without question_id, several answers in one; or no usable pair, or no
            answer that can be read.
        ValueError: another rule.
        OSError: a file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    ...     file.writelines(json.dumps({"answer": "No."}) + "\\n" for _ in range(3000))
    ...     file.flush()
    ...     score_files("coco/popular", file.name).metrics["accuracy"]
    0.5
    """
    check_rule(rule)
    shipped = {f"{source}/{kind}": (source, kind) for source in SOURCES for kind in KINDS}
    name = str(questions_path)
    if name not in shipped and not Path(name).exists():
        raise FileNotFoundError(f"{name}: no such question file; expected a file, or one of the shipped {', '.join(shipped)}")
    asked, problems = read_questions(_shipped(*shipped[name]) if name in shipped else name)
    bad_lines(name, problems, skip_bad)
    given, problems = read_places(answers_path)
    joined = join(asked, given, answer_key)
    refuse_wrong(answers_path, joined.wrong)
    problems += joined.problems
    bad_lines(answers_path, problems, skip_bad)
    if not joined.pairs:
        raise BadInput(answers_path, [*problems, f"no usable answer to a question of {name}; expected objects with answer"])
    with reading(answers_path):
        report = score([question for question, _ in joined.pairs], [answer for _, answer in joined.pairs], rule)
    places = max(len(asked), len(given) - joined.n_again)  # a second answer makes up for no missing one
    settings = {
        "benchmark": "POPE", "questions": name, "answers": str(answers_path), "rule": rule, "answer_key": answer_key,
        "joined_by": joined.by, "compared": sorted(joined.compared), "n_bad": places + joined.n_again - len(joined.pairs),
    }  # fmt: skip
    return Report(report.metrics, report.items, settings)


def write_answers(path: Path | str, questions: Sequence[Question], answers: Sequence[str]) -> None:
    """Write answers as the official script reads them, one object a line, in the order of the questions.

    Each line holds question and answer; and question_id and image, which the official script does not read, so that answers
    to other questions are noticed.

    Raises:
        ValueError: another number of answers than questions, or an answer that is no text; nothing is written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_answers(Path(folder) / "answers.json", questions("gqa", "random")[:1], ["Yes."])
    ...     (Path(folder) / "answers.json").read_text()
    '{"question": "Is there a bird in the image?", "answer": "Yes.", "question_id": 1, "image": "2405722.jpg"}\\n'
    """
    if len(questions) != len(answers):
        raise ValueError(f"{len(answers)} answers to {len(questions)} questions; expected one answer to each")
    for question, answer in zip(questions, answers, strict=True):
        if not isinstance(answer, str):
            raise ValueError(f"the answer to question_id {question.question_id!r} is {answer!r}; expected text")
    with written(Path(path)) as part, part.open("w", encoding="utf-8") as file:
        for question, answer in zip(questions, answers, strict=True):
            row = {"question": question.text, "answer": answer, "question_id": question.question_id, "image": question.image}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _shipped(source: str, kind: str) -> Path:
    return data_path("pope", f"{source}_pope_{kind}.json.gz")


def _readable(answer: str, rule: str) -> bool:
    """Whether a rule finds a yes or no in an answer, other than by taking all the rest for yes."""
    if rule == "strict":
        return first_word(answer) is not None
    return official_answer(answer) == "no" or "yes" in words(answer.split(".", 1)[0]).split()


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
