"""Read and write the questions of MMHal-Bench with a model's answers, and make the judge's prompts from them.

Layout and judge prompt follow MMHal-Bench-eval/eval_gpt4.py of llava-rlhf/LLaVA-RLHF (commit 5fcdf4d; the prompt is
data/mmhal/judge_prompt.txt).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from prunehal.benchmarks.replies import refuse_another_question
from prunehal.files.paths import data_path, written
from prunehal.files.reading import convert
from prunehal.files.records import BadInput, read_records, read_shipped

__all__ = [
    "COMPARED", "N", "Response", "absent", "as_index", "judge_prompts", "place_of", "places", "questions", "read_responses",
    "responses", "write_responses",
]  # fmt: skip

N = 96  # questions
COMPARED = ("image_id", "image_src", "image_content", "question", "gt_answer", "question_type")  # what a row may carry


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
        place = as_index(index)
        if place is None:
            problems.append(f"answer {index!r}: expected an index from 0 to {N - 1}")
        elif place in by_index:
            problems.append(f"answer {index!r}: question {place} is answered twice")
        elif not isinstance(answer, str):
            problems.append(f"answer {index!r}: {answer!r}; expected text")
        by_index.setdefault(place, answer)
    problems += absent(by_index, "answer")
    if problems:
        raise BadInput("MMHal-Bench answers", problems, f"Give one answer for each of the {N} questions.")
    return [{**record, "model_answer": by_index[index]} for index, record in enumerate(questions())]


def write_responses(path: Path | str, answers: Sequence[str] | Mapping[int | str, str]) -> None:
    """Write the response file that the official eval_gpt4.py reads: the template with ``model_answer`` filled in.

    Args:
        path: the file.
        answers: as for `responses`.

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
    with written(path) as part:
        part.write_text(json.dumps(filled, indent=2) + "\n", encoding="utf-8")


class Response(msgspec.Struct):
    """The entries of a record that the judge's prompt contains."""

    image_content: list[str]
    question: str
    gt_answer: str
    model_answer: str


def read_responses(path: Path | str) -> list[dict[str, Any]]:
    """Read the response file that eval_gpt4.py reads, and return its records in the order of the questions.

    A record belongs to the question with its ``image_src`` (or ``image_id``), wherever it stands in the file.

    Raises:
        BadInput: a line cannot be read, a record belongs to no question, two belong to one, or a question has none.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_responses(Path(folder) / "response_mine.json", ["Yellow."] * 96)
    ...     read_responses(Path(folder) / "response_mine.json")[0]["model_answer"]
    'Yellow.'
    """
    records, problems = read_records(path)
    asked = questions()
    by_image = places(asked)
    by_index: dict[int, dict[str, Any]] = {}
    for record in records:
        value = record.value
        try:
            convert(value, Response)
            index = place_of(value, by_image)
            refuse_another_question(value, {key: asked[index][key] for key in COMPARED}, f"question {index}")
            if index in by_index:
                raise ValueError(f"question {index} is answered twice; expected one record for each")
            by_index[index] = value
        except ValueError as error:
            problems.append(f"{record.where}: {error}")
    problems += absent(by_index, "record")
    if problems:
        raise BadInput(path, problems, f"Expected the template with all {N} answers, as `run --benchmark mmhal` writes it.")
    return [by_index[index] for index in range(N)]


def judge_prompts(filled: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return ``{"index", "prompt"}`` for each response: the published prompt, to be sent alone as one user message.

    The judge of the official script is gpt-4-0314 at temperature 0.

    Args:
        filled: the records of all questions in their order, with image_content, question, gt_answer and model_answer, as
            `responses` and `read_responses` give them.

    Raises:
        BadInput: not one record for each question; a record lacks one of these entries; or no record has an answer.

    >>> print(judge_prompts(responses(["It is yellow."] * 96))[0]["prompt"].split("?\\n\\n")[-1].rstrip())
    ### Standard Human-Generated Answer
    The color of the fire hydrant cap in the image is yellow.
    <BLANKLINE>
    ### LMM Response to Evaluate
    It is yellow.
    """
    template = data_path("mmhal", "judge_prompt.txt").read_text(encoding="utf-8")
    problems, rows = [], []
    for index, record in enumerate(filled):
        try:
            rows.append(convert(record, Response, f"response {index}"))
        except ValueError as error:
            problems.append(str(error))
    if len(filled) != N:
        problems.append(f"{len(filled)} responses; expected {N}, one for each question in their order")
    if not problems and not any(row.model_answer.strip() for row in rows):
        problems.append("no response has a model_answer; expected the template filled in")
    if problems:
        raise BadInput("MMHal-Bench responses", problems, "Fill the template in with `responses` or write_responses.")
    return [
        {
            "index": index,
            "prompt": template.format(", ".join(row.image_content), row.question, row.gt_answer, row.model_answer),
        }
        for index, row in enumerate(rows)
    ]


def places(asked: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the index of the question that each image_id and each image_src belongs to; no two questions share an image."""
    return {question[key]: index for index, question in enumerate(asked) for key in ("image_id", "image_src")}


def place_of(record: Mapping[str, Any], by_image: Mapping[str, int]) -> int:
    """Return the index of the question whose image a record names.

    Raises:
        ValueError: it names no image, or that of no question.

    >>> place_of({"image_id": questions()[7]["image_id"]}, places(questions()))
    7
    """
    named = [key for key in ("image_src", "image_id") if key in record]
    index = by_image.get(str(record[named[0]])) if named else None
    if index is None:
        shown = f"{named[0]} {record[named[0]]!r}" if named else "no image_src or image_id"
        raise ValueError(f"{shown}; expected that of one of the {N} questions")
    return index


def as_index(value: Any) -> int | None:
    """Return the index of a question, given as a number or as its digits; None if it is no such index."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < N else None


def absent(given: Mapping[Any, Any], what: str) -> list[str]:
    """Return one problem that lists the questions without an entry, or an empty list if all have one."""
    missing = [index for index in range(N) if index not in given]
    return [f"no {what} for {len(missing)} question(s): {', '.join(map(str, missing[:10]))}"] if missing else []
