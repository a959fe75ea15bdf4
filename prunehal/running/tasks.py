"""What a model is asked in each benchmark, where the images lie, and the file that the benchmark's own scorer reads.

- ``chair``: every image of a folder (or a list of image ids), one prompt for all; ``captions.jsonl`` with image_id, caption,
  finished (whether the caption ended by itself, and not at the limit of tokens).
- ``pope``: yes-or-no questions, a shipped file or one of the user's; ``answers.jsonl`` with question, answer,
  question_id, image.
- ``amber``: the generative and the discriminative queries; ``responses.json`` with id, response.
- ``mmhal``: 96 questions; ``responses.json``, the official template with model_answer filled in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from prunehal.benchmarks.amber import score as amber
from prunehal.benchmarks.amber.responses import read_queries
from prunehal.benchmarks.chair.images import Item, distinct_items, items_in
from prunehal.benchmarks.judged import mmhal as judged
from prunehal.benchmarks.pope import score as pope
from prunehal.benchmarks.pope.files import read_questions
from prunehal.files.paths import written
from prunehal.files.records import BadInput
from prunehal.models.chat import CAPTION_PROMPT

__all__ = ["BENCHMARKS", "Task", "items_of", "write_result"]

_Answer = Mapping[str, Any]  # text and finished, among others


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked in a benchmark, and how its result is written.

    Attributes:
        ask: from the folder of images, ``questions`` and ``prompt`` (each may be None) to the items, in the benchmark's order.
        result: name of the result file.
        write: writes the rows of items (text, finished) to that file.
        prompted: whether the user chooses the prompt; otherwise the benchmark's questions are the prompts.
    """

    ask: Callable[[Path, str | None, str | None], list[Item]]
    result: str
    write: Callable[[Path, Sequence[Item], Sequence[_Answer]], None]
    prompted: bool = False


def items_of(benchmark: str, images: Path, questions: str | None = None, prompt: str | None = None) -> list[Item]:
    """Return what a benchmark asks, in its own order; nothing says yet that the images are there.

    Args:
        benchmark: a name of BENCHMARKS.
        images: the folder of images; ``chair`` asks about those in it.
        questions: ``chair``: a file of image ids, or None for all images; ``pope``: a question file, or a shipped one such as
            ``"coco/adversarial"``; ``amber``: ``"generative"``, ``"discriminative"``, a query file, or None for both.
        prompt: of ``chair``; CAPTION_PROMPT if left out.

    Raises:
        BadInput: a file has lines that cannot be used.
        ValueError: no such benchmark or questions, or no image in the folder.
        OSError: a file cannot be read.

    >>> items_of("pope", Path("val2014"), "coco/random")[0].text, len(items_of("mmhal", Path("images")))
    ('Is there a snowboard in the image?', 96)
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark={benchmark!r}: expected one of {', '.join(map(repr, BENCHMARKS))}")
    items = BENCHMARKS[benchmark].ask(Path(images), questions, prompt)
    return distinct_items(items, questions or images)


def _ask_captions(images: Path, questions: str | None, prompt: str | None) -> list[Item]:
    return items_in(images, questions, CAPTION_PROMPT if prompt is None else prompt)


def write_result(benchmark: str, folder: Path, items: Sequence[Item], rows: Mapping[int | str, _Answer]) -> Path:
    """Write the benchmark's own result file, whole, in the benchmark's order; return its path.

    Args:
        benchmark: a name of BENCHMARKS.
        folder: where to.
        items: as `items_of` gives them, or the first of them.
        rows: by key, what was answered: text, and finished (whether it ended by itself), as the rows of a run have them.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_result("chair", Path(folder), [Item(42, "42.jpg", "")], {42: {"text": "A cat.", "finished": True}})
    ...     path.name, path.read_text()
    ('captions.jsonl', '{"image_id": 42, "caption": "A cat.", "finished": true}\\n')
    """
    task = BENCHMARKS[benchmark]
    path = Path(folder) / task.result
    task.write(path, items, [rows[item.key] for item in items])
    return path


def _write_captions(path: Path, items: Sequence[Item], rows: Sequence[_Answer]) -> None:
    pairs = zip(items, rows, strict=True)
    lines = [{"image_id": item.key, "caption": row["text"], "finished": row["finished"]} for item, row in pairs]
    with written(path) as part:
        part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _ask_pope(images: Path, questions: str | None, prompt: str | None) -> list[Item]:
    shipped = [f"{source}/{kind}" for source in pope.SOURCES for kind in pope.KINDS]
    if questions in shipped:
        asked = pope.questions(*questions.split("/"))
        return [Item(question.question_id, question.image, question.text) for question in asked]
    if questions is None or not Path(questions).is_file():
        raise ValueError(f"questions={questions!r}: expected a POPE question file that exists, or one of {', '.join(shipped)}")
    places, problems = read_questions(questions, labelled=False)
    if problems or not places:
        raise BadInput(questions, problems or ["it holds no question"], "Expected objects with question_id, image and text.")
    return [Item(place.content.question_id, place.content.image, place.content.text) for place in places]


def _write_pope(path: Path, items: Sequence[Item], rows: Sequence[_Answer]) -> None:
    questions = [pope.Question(item.key, item.image, item.text, "") for item in items]
    pope.write_answers(path, questions, [row["text"] for row in rows])


def _ask_amber(images: Path, questions: str | None, prompt: str | None) -> list[Item]:
    kinds = ("generative", "discriminative")
    own = {kind: [Item(query["id"], query["image"], query["query"]) for query in amber.queries(kind)] for kind in kinds}
    if questions is None or questions in kinds:
        return [item for kind in kinds if questions in (None, kind) for item in own[kind]]
    if not Path(questions).is_file():
        raise ValueError(f"questions={questions!r}: expected a query file that exists, generative, discriminative or none")
    return [Item(query["id"], query["image"], query["query"]) for query in read_queries(questions)]


def _write_amber(path: Path, items: Sequence[Item], rows: Sequence[_Answer]) -> None:
    amber.write_responses(path, {item.key: row["text"] for item, row in zip(items, rows, strict=True)})


def _ask_mmhal(images: Path, questions: str | None, prompt: str | None) -> list[Item]:
    if questions is not None:
        raise ValueError(f"questions={questions!r}: MMHal-Bench has its own 96 questions; expected none; leave questions out")
    return [
        Item(index, PurePosixPath(record["image_src"]).name, record["question"])
        for index, record in enumerate(judged.questions())
    ]


def _write_mmhal(path: Path, items: Sequence[Item], rows: Sequence[_Answer]) -> None:
    records = judged.questions()
    filled = [records[item.key] | {"model_answer": row["text"]} for item, row in zip(items, rows, strict=True)]
    with written(path) as part:  # of the first items only, where a limit was set
        part.write_text(json.dumps(filled, indent=2) + "\n", encoding="utf-8")


BENCHMARKS: dict[str, Task] = {
    "chair": Task(_ask_captions, "captions.jsonl", _write_captions, prompted=True),
    "pope": Task(_ask_pope, "answers.jsonl", _write_pope),
    "amber": Task(_ask_amber, "responses.json", _write_amber),
    "mmhal": Task(_ask_mmhal, "responses.json", _write_mmhal),
}
