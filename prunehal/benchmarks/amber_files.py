"""The files of AMBER: its queries, annotations and word lists as shipped, and response files of the official layout.

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

from prunehal.benchmarks.files import BadInput, bad_lines, read_records, read_shipped
from prunehal.resources import data_path, written

__all__ = [
    "KINDS", "annotations", "associations", "check_responses", "initial_counters", "queries", "read_responses", "safe_words",
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
    """Check responses that are in memory.

    Raises:
        ValueError: none at all; an id that is unknown or of the other kind; a response that is no text, or an empty caption.

    >>> check_responses({1005: "A lake."}, "generative")
    Traceback (most recent call last):
    ValueError: id 1005 is discriminative; expected a generative id, from 1 to 1004
    """
    if not responses:
        raise ValueError(f"there are no responses; expected at least one to a {kind} query")
    for number, response in responses.items():
        if problem := _problem(number, response, kind):
            raise ValueError(problem)


def read_responses(path: Path | str, kind: str, skip_bad: bool = False) -> tuple[dict[int, str], dict[str, int]]:
    """Read ``{id: response}`` from a file of the official layout: a JSON list of objects with id and response.

    The file may hold responses of the other kind too, as for the official evaluation of everything; they are left out.

    Args:
        path: the file; JSON lines and packed files (``.gz``) are taken as well.
        kind: the kind of ids that are wanted.
        skip_bad: go on without the bad lines, keeping the first of several responses to an id.

    Returns:
        The responses in the order of the file; and n_bad and n_other: how many bad ones, and of the other kind, were left out.

    Raises:
        BadInput: lines that cannot be read; ids that are missing, unknown or repeated; responses that are
            missing or no text; empty captions; unless they are skipped; or no response at all.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    ...     _ = file.write('[{"id": 1, "response": "A lake."}, {"id": 1005, "response": "Yes"}]')
    ...     file.flush()
    ...     read_responses(file.name, "discriminative")
    ({1005: 'Yes'}, {'n_bad': 0, 'n_other': 1})
    """
    records, problems = read_records(path)
    responses: dict[int, str] = {}
    first: dict[int, str] = {}
    other = 0
    for record in records:
        value = record.value
        if absent := [key for key in ("id", "response") if key not in value]:
            problem = f"no {' and no '.join(absent)}; expected the keys id and response, found {sorted(value)}"
        elif _is_id(value["id"]) and _kind(value["id"]) != kind:
            other += 1
            continue
        elif problem := _problem(value["id"], value["response"], kind):
            pass
        elif value["id"] in first:
            problem = f"id {value['id']} again, first on {first[value['id']]}; expected one response to each"
        else:
            responses[value["id"]], first[value["id"]] = value["response"], record.where
            continue
        problems.append(f"{record.where}: {problem}")
    counts = {"n_bad": bad_lines(path, problems, skip_bad), "n_other": other}
    if not responses:
        raise BadInput(path, [*problems, f"no response to a {kind} query is left; expected objects with id and response"])
    return responses, counts


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


def _kind(number: int) -> str:
    return "generative" if annotations()[number]["type"] == "generative" else "discriminative"


def _problem(number: Any, response: Any, kind: str | None) -> str | None:
    """Say what is wrong with one response; kind None takes ids of both kinds and empty captions."""
    if not _is_id(number):
        return f"unknown id {number!r}; expected a number from 1 to {len(annotations())}"
    if kind is not None and _kind(number) != kind:
        ids = "from 1 to 1004" if kind == "generative" else "from 1005 to 15220"
        return f"id {number} is {_kind(number)}; expected a {kind} id, {ids}"
    if not isinstance(response, str):
        return f"the response to id {number} is {repr(response)[:40]}; expected text"
    if kind == "generative" and not response.strip():
        return f"the response to id {number} is empty; expected at least a word"
    return None
