"""The files of AMBER: its queries, annotations and word lists as shipped, and what is written in the official layout.

Source: Wang et al. 2023, "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation", arXiv
2311.07397; the files are those of junyangwang0410/AMBER. Ids 1 to 1004 are generative (one caption for each image), 1005 to
15220 discriminative (yes or no).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from prunehal.files.paths import data_path, written
from prunehal.files.records import read_shipped

__all__ = [
    "KINDS", "annotations", "associations", "check_responses", "initial_counters", "kind_of", "queries", "safe_words",
    "write_responses",
]  # fmt: skip

KINDS = ("generative", "discriminative")


def queries(kind: str) -> list[dict[str, Any]]:
    """Return what to ask: objects with id, image (a file name) and query.

    Raises:
        ValueError: another kind than generative or discriminative.

    >>> queries("generative")[0]
    {'id': 1, 'image': 'AMBER_1.jpg', 'query': 'Describe this image.'}
    >>> len(queries("discriminative"))
    14216
    """
    if kind not in KINDS:
        raise ValueError(f"AMBER queries {kind!r}; expected one of {list(KINDS)}")
    return read_shipped("amber", f"query_{kind}.json.gz")


@cache
def annotations() -> dict[int, dict[str, Any]]:
    """Return the annotation of each id: type and truth, and for generative ids the words under hallu. Not to be changed.

    >>> annotations()[1]["hallu"], annotations()[1005]
    (['cloud', 'sun', 'bird', 'dog', 'flower'], {'id': 1005, 'type': 'discriminative-attribute-state', 'truth': 'yes'})
    """
    return {record["id"]: record for record in read_shipped("amber", "annotations.json.gz")}


@cache
def associations() -> dict[str, list[str]]:
    """Return for each annotated word the words that may stand for it. Not to be changed.

    >>> associations()["person"]
    ['people', 'individual', 'man', 'woman', 'boy', 'girl']
    """
    return read_shipped("amber", "relation.json")


@cache
def safe_words() -> frozenset[str]:
    """Return the words that are never judged, because they have too many senses.

    >>> "camera" in safe_words(), len(safe_words())
    (True, 9)
    """
    return frozenset(data_path("amber", "safe_words.txt").read_text(encoding="utf-8").split("\n"))


def initial_counters() -> dict[str, float]:
    """Return the counters of the official script as they begin: scores at 0, and what divides them at 0.001.

    >>> initial_counters()["chair_score"], initial_counters()["chair_num"], len(initial_counters())
    (0, 0.001, 44)
    """
    lines = data_path("amber", "metrics.txt").read_text(encoding="utf-8").split()
    return {name: json.loads(value) for name, value in (line.split("=") for line in lines)}


def check_responses(responses: Mapping[int, str], kind: str) -> None:
    """Check responses that are in memory; an empty one is a response.

    Raises:
        ValueError: none at all; an id that is unknown or of the other kind; a response that is no text.

    >>> check_responses({1005: "A lake."}, "generative")
    Traceback (most recent call last):
    ValueError: id 1005 is discriminative; expected a generative id, from 1 to 1004
    """
    if not responses:
        raise ValueError(f"there are no responses; expected at least one to a {kind} query")
    for number, response in responses.items():
        if problem := _problem(number, response, kind):
            raise ValueError(problem)


def kind_of(number: int) -> str:
    """Return the kind of an id.

    >>> kind_of(1004), kind_of(1005)
    ('generative', 'discriminative')
    """
    return "generative" if annotations()[number]["type"] == "generative" else "discriminative"


def write_responses(path: Path | str, responses: Mapping[int, str]) -> None:
    """Write responses in the official layout, in the order given; both kinds of ids may be in one file.

    Raises:
        ValueError: an unknown id, or a response that is no text; nothing is written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_responses(Path(folder) / "responses.json", {1: "A lake.", 1005: "Yes"})
    ...     json.loads((Path(folder) / "responses.json").read_text())
    [{'id': 1, 'response': 'A lake.'}, {'id': 1005, 'response': 'Yes'}]
    """
    for number, response in responses.items():
        if problem := _problem(number, response, None):
            raise ValueError(problem)
    rows = [{"id": number, "response": response} for number, response in responses.items()]
    with written(Path(path)) as part:
        part.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _is_id(number: Any) -> bool:
    return type(number) is int and number in annotations()  # True is no id


def _problem(number: Any, response: Any, kind: str | None) -> str | None:
    """Return what is wrong with one response; kind None takes ids of both kinds."""
    if not _is_id(number):
        return f"unknown id {number!r}; expected a number from 1 to {len(annotations())}"
    if kind is not None and kind_of(number) != kind:
        ids = "from 1 to 1004" if kind == "generative" else "from 1005 to 15220"
        return f"id {number} is {kind_of(number)}; expected a {kind} id, {ids}"
    if not isinstance(response, str):
        return f"the response to id {number} is {repr(response)[:40]}; expected text"
    return None
