"""MMHal-Bench: 96 questions whose answers a judge rates from 0 to 6; write what the judge reads, score what it says.

Source: Sun et al. 2023, "Aligning Large Multimodal Models with Factually Augmented RLHF", arXiv 2309.14525. Rules, file
layout and judge prompt follow MMHal-Bench-eval/eval_gpt4.py of llava-rlhf/LLaVA-RLHF (commit 5fcdf4d; the prompt is
data/mmhal/judge_prompt.txt). No judge is called here: the user brings its replies, and names the judge with the scores,
because the published numbers are those of gpt-4-0314.

What the official rule does, and is kept: "rating: 10" reads as a rating of 1; a reply that repeats the list of options holds
several ratings and scores 0. Such replies without exactly one rating are counted under ``unreadable``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunehal.benchmarks.files import BadInput, Report, read_records, read_shipped
from prunehal.resources import data_path, written

__all__ = [
    "TYPES",
    "judge_prompts",
    "questions",
    "rating",
    "read_judgements",
    "reply_text",
    "responses",
    "score",
    "write_responses",
]

TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")

_N = 96
_HALLUCINATED_BELOW = 3
_FIX = f"Give one judgement for each of the {_N} questions, in their order or with their index."


def questions() -> list[dict[str, Any]]:
    """Return the 96 records of the official template.

    Each has question_type, question_topic, image_id, image_src, image_content, question, gt_answer and an empty
    model_answer. The type of record i is ``TYPES[i % 8]``. The images themselves are not shipped: ``image_src`` is the
    address of each.

    >>> len(questions()), questions()[0]["question"], questions()[9]["question_type"]
    (96, 'What color is the fire hydrant cap in the picture?', 'adversarial')
    """
    return read_shipped("mmhal", "mmhal-bench_answer_template.json.gz")


def responses(answers: Sequence[str] | Mapping[int | str, str]) -> list[dict[str, Any]]:
    """Return the records with the answers filled in as ``model_answer``.

    Args:
        answers: 96 texts in the order of the questions, or texts by index (0 to 95; as JSON keys, "0" to "95").

    Raises:
        BadInput: answers that are missing, too many, or no text.

    >>> responses(["Yellow."] * 96)[0]["model_answer"]
    'Yellow.'
    """
    by_index: dict[Any, Any] = {}
    problems: list[str] = []
    for index, answer in answers.items() if isinstance(answers, Mapping) else enumerate(answers):
        place = _index(index)
        if place is None:
            problems.append(f"answer {index!r}: expected an index from 0 to {_N - 1}")
        elif place in by_index:
            problems.append(f"answer {index!r}: question {place} is answered twice")
        elif not isinstance(answer, str):
            problems.append(f"answer {index!r}: {answer!r}; expected text")
        by_index.setdefault(place, answer)
    problems += _missing(by_index, "answer")
    if problems:
        raise BadInput("MMHal-Bench answers", problems, f"Give one answer for each of the {_N} questions.")
    return [{**record, "model_answer": by_index[index]} for index, record in enumerate(questions())]


def write_responses(path: Path | str, answers: Sequence[str] | Mapping[int | str, str]) -> None:
    """Write the response file that the official eval_gpt4.py reads: the template with ``model_answer`` filled in.

    Raises:
        BadInput: see `responses`.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_responses(Path(folder) / "response_mine.json", {index: "Yellow." for index in range(96)})
    ...     json.loads((Path(folder) / "response_mine.json").read_text())[95]["model_answer"]
    'Yellow.'
    """
    filled = responses(answers)
    with written(Path(path)) as part:
        part.write_text(json.dumps(filled, indent=2) + "\n", encoding="utf-8")


def judge_prompts(filled: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return ``{"index", "prompt"}`` for each response: the published prompt, to be sent alone as one user message.

    The official script asks gpt-4-0314 at temperature 0.

    Args:
        filled: records with image_content, question, gt_answer and model_answer, as `responses` gives them.

    Raises:
        BadInput: a record lacks one of these entries, or no record has an answer.

    >>> print(judge_prompts(responses(["It is yellow."] * 96))[0]["prompt"].split("?\\n\\n")[-1].rstrip())
    ### Standard Human-Generated Answer
    The color of the fire hydrant cap in the image is yellow.
    <BLANKLINE>
    ### LMM Response to Evaluate
    It is yellow.
    """
    template = data_path("mmhal", "judge_prompt.txt").read_text(encoding="utf-8")
    kinds = {"image_content": list, "question": str, "gt_answer": str, "model_answer": str}
    problems = [
        f"response {index}: {key} is {record.get(key)!r}; expected {'a list of words' if kind is list else 'text'}"
        for index, record in enumerate(filled)
        for key, kind in kinds.items()
        if not isinstance(record.get(key), kind)
    ]
    if not problems and not any(record["model_answer"] for record in filled):
        problems.append("no response has a model_answer; expected the template filled in")
    if problems:
        raise BadInput("MMHal-Bench responses", problems, "Fill the template in with `responses` or write_responses.")
    return [
        {
            "index": index,
            "prompt": template.format(
                ", ".join(record["image_content"]), record["question"], record["gt_answer"], record["model_answer"]
            ),
        }
        for index, record in enumerate(filled)
    ]


def reply_text(record: Any) -> str | None:
    """Return the text of a judge's reply, or None: a chat completion, an object with ``judgement`` or ``text``, or the text.

    >>> reply_text({"choices": [{"message": {"content": "Rating: 3"}}]}), reply_text({"judgement": "Rating: 3"}), reply_text({})
    ('Rating: 3', 'Rating: 3', None)
    """
    if isinstance(record, Mapping):
        try:
            record = record["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            record = record.get("judgement", record.get("text"))
    return record if isinstance(record, str) else None


def rating(text: str) -> int | None:
    """Return the rating that a reply holds, or None unless it is exactly one from 0 to 6.

    >>> rating("It is grounded.\\nRating: 5, very informative"), rating("Rating: 5 or rating: 4"), rating("Good.")
    (5, None, None)
    """
    found = [value for value in range(7) if f"rating: {value}" in text.lower()]
    return found[0] if len(found) == 1 else None


def read_judgements(path: Path | str) -> list[str]:
    """Read the replies from a file, in the order of the questions.

    Taken are the list of chat completions that eval_gpt4.py writes (``--evaluation``), and objects with ``judgement`` or
    ``text``, in order or with ``index`` (or ``id``), as a JSON list or JSON lines.

    Raises:
        BadInput: lines that cannot be read, replies that are missing, repeated or too many.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    ...     file.writelines(f'{{"index": {95 - i}, "judgement": "Rating: {i % 7}"}}\\n' for i in range(96))
    ...     file.flush()
    ...     read_judgements(file.name)[-1]
    'Rating: 0'
    """
    records, problems = read_records(path)
    given = [(record.where, record.value) for record in records]
    texts, more = _in_order(given)
    if problems + more:
        raise BadInput(path, problems + more, _FIX)
    return texts


def score(judgements: Sequence[Any]) -> Report:
    """Score the replies of a judge with the official rule.

    Args:
        judgements: 96 replies, each in one of the shapes of `reply_text`, in the order of the questions or with ``index``
            (or ``id``).

    Returns:
        A report; metrics: ``average`` (0 to 6), ``hallucination_rate`` (share of scores below 3), ``types`` (average of each
        of the 8 types), ``unreadable`` (replies without exactly one rating, which score 0), ``n``. Items: index, type,
        score, hallucination, readable.

    Raises:
        BadInput: replies that are missing, repeated, too many or without text.

    >>> report = score(["Rating: 6", "Rating: 2", "no idea"] * 32)
    >>> report.metrics["average"], report.metrics["hallucination_rate"], report.metrics["unreadable"]
    (2.6666666666666665, 0.6666666666666666, 32)
    """
    texts, problems = _in_order([(f"judgement {place}", judgement) for place, judgement in enumerate(judgements)])
    if problems:
        raise BadInput("MMHal-Bench judgements", problems, _FIX)
    ratings = [rating(text) for text in texts]
    items = [
        {
            "index": index,
            "type": TYPES[index % len(TYPES)],
            "score": value or 0,
            "hallucination": (value or 0) < _HALLUCINATED_BELOW,
            "readable": value is not None,
        }
        for index, value in enumerate(ratings)
    ]
    types = {name: [item["score"] for item in items if item["type"] == name] for name in TYPES}
    metrics = {
        "average": sum(item["score"] for item in items) / _N,
        "hallucination_rate": sum(item["hallucination"] for item in items) / _N,
        "types": {name: sum(scores) / len(scores) for name, scores in types.items()},
        "unreadable": ratings.count(None),
        "n": _N,
    }
    return Report(metrics, items, {"benchmark": "MMHal-Bench", "rule": "eval_gpt4.py of LLaVA-RLHF"})


def _in_order(given: Sequence[tuple[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the texts in the order of the questions, and the problems: texts by index where indices are given."""
    problems, texts = [], {}
    # A chat completion has an "id" of its own, which is no index.
    indexed = [isinstance(r, Mapping) and "choices" not in r and ("index" in r or "id" in r) for _, r in given]
    if any(indexed) and not all(indexed):
        problems.append("some judgements have an index and some have none; expected all or none")
    for place, (where, record) in enumerate(given):
        index: Any = place
        if indexed[place]:
            raw = record["index"] if "index" in record else record["id"]
            index = _index(raw)
            if index is None:
                problems.append(f"{where}: index {raw!r}; expected a number from 0 to {_N - 1}")
                continue
        if index in texts:
            problems.append(f"{where}: question {index} is judged twice")
            continue
        texts[index] = reply_text(record)
        if texts[index] is None:
            problems.append(f"{where}: no text; expected a chat completion, or the key judgement or text")
    if not any(indexed) and len(given) != _N:
        problems.append(f"{len(given)} judgements; expected {_N}")
    elif any(indexed):
        problems += _missing(texts, "judgement")
    return [texts.get(index) for index in range(_N)], problems


def _index(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _N else None


def _missing(given: Mapping[Any, Any], what: str) -> list[str]:
    absent = [index for index in range(_N) if index not in given]
    return [f"no {what} for {len(absent)} question(s): {', '.join(map(str, absent[:10]))}"] if absent else []
