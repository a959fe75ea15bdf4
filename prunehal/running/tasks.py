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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from prunehal.benchmarks.amber import score as amber
from prunehal.benchmarks.amber.responses import read_queries
from prunehal.benchmarks.chair.captions import image_number
from prunehal.benchmarks.judged import mmhal as judged
from prunehal.benchmarks.pope import score as pope
from prunehal.benchmarks.pope.files import read_questions
from prunehal.files.images import image_pixels
from prunehal.files.paths import written
from prunehal.files.reading import read_text, reading
from prunehal.files.records import BadInput, read_records

__all__ = ["BENCHMARKS", "CAPTION_PROMPT", "Item", "Task", "image_key", "images_of", "items_of", "left_out", "write_result"]

CAPTION_PROMPT = "Please describe this image in detail."

_Answer = Mapping[str, Any]  # text and finished, among others
_SUFFIXES = (".jpg", ".jpeg", ".png")
# Where the images lie below the folder that the user names: as COCO, AMBER and MMHal-Bench unpack.
_FOLDERS = ("", "val2014", "image", "images")
_HEADERS = ("image_id", "image_ids", "file_name")  # a first line of a list of images that names none


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to ask: its key in the benchmark, the file name of its image, the text."""

    key: int | str
    image: str
    text: str


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
    if doubled := [key for key, times in Counter(str(item.key) for item in items).items() if times > 1]:
        raise BadInput(questions or images, [f"{key!r} comes twice" for key in doubled], "Expected each item once; remove one.")
    return items


def images_of(items: Sequence[Item], folder: Path, skip_missing: bool = False) -> tuple[list[Item], dict[str, tuple[Path, int]]]:
    """Find the items' images in the folder, or in its val2014, image or images folder, and read their headers.

    Returns:
        The items whose image is there, and ``{file name: (path, pixels)}``.

    Raises:
        BadInput: images that are missing (unless they are to be skipped) or no pictures.
        ValueError: none is there.

    >>> from prunehal.files.paths import data_path
    >>> kept, found = images_of([Item(1, "sprites.png", ""), Item(2, "no.png", "")], data_path("sprites"), skip_missing=True)
    >>> kept, found["sprites.png"][0].name
    ([Item(key=1, image='sprites.png', text='')], 'sprites.png')
    """
    found: dict[str, tuple[Path, int]] = {}
    missing: list[str] = []
    broken: list[str] = []
    for name in dict.fromkeys(item.image for item in items):
        path = next((path for part in _FOLDERS if (path := folder / part / name).is_file()), None)
        if path is None:
            missing.append(name)
            continue
        try:
            found[name] = path, image_pixels(path)
        except OSError as error:
            broken.append(str(error))
    problems = broken + ([] if skip_missing else [f"{name} is missing" for name in missing])
    if problems:
        raise BadInput(
            folder, problems,
            f"Expected the images of {len(found) + len(missing) + len(broken)} names here, or in its "
            f"{', '.join(_FOLDERS[1:-1])} or {_FOLDERS[-1]} folder; complete them, or pass --skip-missing (skip_missing=True).",
        )  # fmt: skip
    if not found:
        raise ValueError(f"{folder}: none of {len(missing)} images is there; expected such as {missing[:1]}; check the folder")
    return [item for item in items if item.image in found], found


def left_out(benchmark: str, images: Path, questions: str | None = None) -> dict[str, int]:
    """Return how many files of other formats, ``{".webp": 3}``, a folder holds whose images are all prompted.

    Hidden files do not count; where the questions name the images, nothing is left out.

    >>> from prunehal.files.paths import data_path
    >>> left_out("chair", data_path("sprites"))
    {'.json': 1, '.txt': 1}
    """
    if not BENCHMARKS[benchmark].prompted or questions is not None:
        return {}
    others = (path for path in _files_in(images) if path.suffix.lower() not in _SUFFIXES and not path.name.startswith("."))
    return dict(sorted(Counter(path.suffix.lower() or "without suffix" for path in others).items()))


def image_key(name: str) -> int | str:
    """Return what an image is called in results: its COCO number, or the name without suffix.

    >>> image_key("COCO_val2014_000000123456.jpg"), image_key("cat_1.png"), image_key("42")
    (123456, 'cat_1', 42)
    """
    path, number = PurePosixPath(name), image_number(name)
    if number is not None:
        return number
    return path.stem if path.suffix.lower() in _SUFFIXES else path.name


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


def _ask_captions(images: Path, questions: str | None, prompt: str | None) -> list[Item]:
    if not images.is_dir():
        raise ValueError(f"images={str(images)!r}: is no folder; expected one with .jpg or .png files; check the path")
    names = dict.fromkeys(path.name for path in _files_in(images) if path.suffix.lower() in _SUFFIXES)
    if not names:
        raise ValueError(f"images={str(images)!r}: holds no image; expected .jpg or .png files, in it or in its val2014 folder")
    by_key: dict[int | str, str] = {}
    problems = []
    for name in names:
        if (other := by_key.setdefault(image_key(name), name)) != name:
            problems.append(f"{other} and {name} are both image {image_key(name)!r}")
    if problems:
        raise BadInput(images, problems, "Expected one image of each number or name; move the others away.")
    if questions is None:
        keys: Iterable[int | str] = sorted(by_key, key=lambda key: (isinstance(key, str), key))
    else:
        keys = _listed_images(Path(questions))
    text = CAPTION_PROMPT if prompt is None else prompt
    return [
        Item(key, by_key.get(key, f"COCO_val2014_{key:012d}.jpg" if isinstance(key, int) else str(key)), text) for key in keys
    ]


def _files_in(images: Path) -> Iterator[Path]:
    """Yield the files of a folder of images and of its val2014 folder, each in the order of their names."""
    for part in _FOLDERS[:2]:
        if (images / part).is_dir():
            yield from (path for path in sorted((images / part).iterdir()) if path.is_file())


def _listed_images(path: Path) -> list[int | str]:
    """Read image ids: a JSON list, JSON objects with image_id, or one id or file name a line, with or without a header line."""
    text = read_text(path)
    begin = text.lstrip()[:1]
    values: dict[str, Any] = {}
    if begin == "[":
        with reading(path):
            listed = json.loads(text)
        values = {f"entry {place}": value for place, value in enumerate(listed, 1)}
    elif begin != "{":
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        headed = bool(lines) and lines[0][1].casefold() in _HEADERS
        values = {f"line {number}": line for number, line in lines[headed:]}
    if begin == "{" or any(isinstance(value, dict) for value in values.values()):
        records, problems = read_records(path)
        problems += [
            f"{record.where}: image_id is {record.value['image_id']!r} and image {record.value['image']!r}; expected one image"
            for record in records
            if len({str(image_key(str(record.value[name]))) for name in ("image_id", "image") if name in record.value}) > 1
        ]
        if problems:
            raise BadInput(path, problems, "Expected objects with image_id.")
        values = {record.where: record.value.get("image_id", record.value.get("image")) for record in records}
    if bad := {
        where: value
        for where, value in values.items()
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip()
    }:
        problems = [f"{where}: {value!r} is no image id" for where, value in bad.items()]
        raise BadInput(path, problems, "Expected numbers or file names of images.")
    if not values:
        raise BadInput(path, ["it holds no image id"], "Expected numbers or file names of images.")
    return list(dict.fromkeys(value if isinstance(value, int) else image_key(value.strip()) for value in values.values()))


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
