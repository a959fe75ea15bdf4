"""Read files of responses to AMBER's queries, in the official layout or in those of other evaluation programs.

Responses are joined with queries by id. Where the ids are row numbers instead, every response would be joined with a wrong query.
Unknown ids, and files whose captions are mostly yes or no, are therefore refused; and a query, image or truth in a row must be
the one that belongs to its id.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from prunehal.benchmarks.amber.files import KINDS, annotations, kind_of, queries
from prunehal.benchmarks.answer_rows import (
    ANSWER_KEYS,
    Asked,
    Taken,
    WrongRows,
    answer_in,
    compared,
    one_key,
    only_truth,
    refuse_wrong,
    typed,
    words,
)
from prunehal.benchmarks.yes_or_no import first_word
from prunehal.files.records import BadInput, bad_lines, read_records

__all__ = ["official_answer", "read_queries", "read_responses"]

_ID_KEYS = ("id", "question_id")


def official_answer(text: str) -> str | None:
    """Return the answer by the official rule, which reads exactly Yes and No, and otherwise None.

    >>> official_answer("No"), official_answer("No.")
    ('No', None)
    """
    return text if text in ("Yes", "No") else None


def read_responses(
    path: Path | str, kind: str, skip_bad: bool = False, answer_key: str | None = None
) -> tuple[dict[int, str], dict[str, Any]]:
    """Read ``{id: response}`` from a file of the official layout: a JSON list of objects with id and response.

    Other keys are taken for response as `prunehal.benchmarks.answer_rows.answer_in` describes, question_id for id, and ids may be
    text ("1005") or 1005.0. An empty response is a response. The file may hold responses of the other kind too, as for the
    official evaluation of everything; they are left out.

    Args:
        path: the file; JSON lines and packed files (``.gz``) are taken as well.
        kind: the kind of ids that are wanted.
        skip_bad: go on without the bad lines, keeping the first of several responses to an id. Files whose rows belong to other
            queries, or could hold several responses, are refused all the same.
        answer_key: the key that holds the responses, where several could.

    Returns:
        The responses in the order of the file; and for a report's settings: n_bad and n_other (how many bad ones, and of the
        other kind, were left out), n_missing (queries of the kind that have no response), compared (what every response carried
        and was compared with its query: of question, image and label).

    Raises:
        BadInput: a line cannot be read, an id is missing or repeated, or a response is missing or no text (unless such lines are
            skipped); an id is unknown, a row belongs to another query, or several keys could hold the response; or no response
            is left.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    ...     _ = file.write('[{"id": 1, "response": "A lake."}, {"id": "1005", "image": "AMBER_1.jpg", "text": "Yes"}]')
    ...     file.flush()
    ...     read_responses(file.name, "discriminative")
    ({1005: 'Yes'}, {'n_bad': 0, 'n_missing': 14215, 'n_other': 1, 'compared': ['image']})
    """
    records, problems = read_records(path)
    responses: dict[int, str] = {}
    first: dict[int, str] = {}
    wrong: list[str] = []
    able: dict[tuple[str, ...], str] = {}
    answered: list[tuple[Mapping[str, Any], Taken, str | None]] = []
    carried = {"question", "image", "label"}
    ids: list[tuple[int, Mapping[str, Any]]] = []
    for record in records:
        try:
            number = _number(record.value)
            ids.append((number, record.value))
            if kind_of(number) != kind:
                continue
            asked = _asked(number)
            taken = answer_in(record.value, asked, answer_key, _read if asked.label else str.strip)
            also = compared(record.value, asked, taken.key)
            if number in first:
                raise ValueError(f"id {number} again, first on {first[number]}; expected one response to each")
        except WrongRows as error:
            wrong.append(f"{record.where}: {error}")
        except ValueError as error:
            problems.append(f"{record.where}: {error}")
        else:
            responses[number], first[number] = taken.text, record.where
            able.setdefault(taken.able, record.where)
            answered.append((record.value, taken, asked.label))
            carried &= also
    refuse_wrong(path, wrong or one_key(able) or _shifted(ids, answer_key) or ([] if answer_key else only_truth(answered)))
    n_other = sum(kind_of(number) != kind for number, _ in ids)
    counts = {
        "n_bad": bad_lines(path, problems, skip_bad),
        "n_missing": sum(kind_of(number) == kind for number in annotations()) - len(responses),
        "n_other": n_other,
        "compared": sorted(carried),
    }
    if not responses:
        raise BadInput(path, [*problems, f"no response to a {kind} query is left; expected objects with id and response"])
    return responses, counts


def read_queries(path: Path | str) -> list[dict[str, Any]]:
    """Read the user's own query file: objects with id, image and query, as `prunehal.benchmarks.amber.files.queries` gives them.

    Every query must be one of AMBER's, because its annotations score the responses: the image must be that of the id, and a
    yes-or-no query must contain the words of AMBER's (other words may stand around them).

    Raises:
        BadInput: lines that cannot be read, missing fields, unknown ids or ids that come twice, another query or image.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    ...     _ = file.write('[{"id": "1", "image": "AMBER_1.jpg", "query": "What is there?"}]')
    ...     file.flush()
    ...     read_queries(file.name)
    [{'id': 1, 'image': 'AMBER_1.jpg', 'query': 'What is there?'}]
    """
    records, problems = read_records(path)
    by_id: dict[int, dict[str, Any]] = {}
    for record in records:
        row = record.value
        try:
            number = _number(row)
            image, query = (typed(row.get(name), str, name, "text") for name in ("image", "query"))
            compared(row, _asked(number), "")
            if number in by_id:
                raise ValueError(f"id {number} comes twice; expected each once")
            by_id[number] = {"id": number, "image": image, "query": query}
        except ValueError as error:
            problems.append(f"{record.where}: {error}")
    if problems or not by_id:
        raise BadInput(path, problems or ["it holds no query"], "Expected objects with id, image and query, as AMBER has them.")
    return list(by_id.values())


def _number(row: Mapping[str, Any]) -> int:
    """Return the id of a row, which may be text, or a number such as 1005.0."""
    there = {key: _as_number(row[key]) for key in _ID_KEYS if key in row}
    if not there:
        raise ValueError(f"no id; expected the keys id and response, found {sorted(row)}")
    known = {key: number for key, number in there.items() if number in annotations()}
    if len(set(known.values())) > 1:
        raise WrongRows(
            f"{' and '.join(f'{key} is {number}' for key, number in known.items())}; expected one id; Fix: keep one key"
        )
    if not known:
        key = next(iter(there))
        error = ValueError if there[key] is None else WrongRows
        raise error(f"unknown {key} {row[key]!r}; expected a number from 1 to {len(annotations())}")
    return next(iter(known.values()))


def _as_number(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value) if len(value) < 20 else -1
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None  # True is no id


def _shifted(ids: list[tuple[int, Mapping[str, Any]]], answer_key: str | None) -> list[str]:
    """Return a problem if most responses to generative ids are yes or no, as they are where ids are places in the file."""
    captions = [row for number, row in ids if kind_of(number) == "generative"]
    keys = ANSWER_KEYS if answer_key is None else (answer_key,)
    texts = [[row[key] for key in keys if isinstance(row.get(key), str)] for row in captions]
    n = sum(any(words(text) in ("yes", "no") for text in of_row) for of_row in texts)
    if 2 * n <= len(captions):
        return []
    return [
        f"{n} of {len(captions)} responses to ids from 1 to 1004 are yes or no; expected captions there; Fix: give "
        "each answer the id of its query, from 1005 to 15220"
    ]


@cache
def _queries() -> tuple[dict[int, dict[str, Any]], frozenset[str]]:
    asked = {query["id"]: query for kind in KINDS for query in queries(kind)}
    return asked, frozenset(words(query["query"]) for query in asked.values())


@cache
def _asked(number: int) -> Asked:
    """Return the query of an id, with its image and truth, to compare a row with."""
    asked, others = _queries()
    label = None if kind_of(number) == "generative" else annotations()[number]["truth"]
    return Asked(f"id {number}", asked[number]["query"], asked[number]["image"], label, others)


def _read(text: str) -> Hashable:
    """Return what the official and the strict rule read in an answer; keys that are equal in both give the same scores."""
    return official_answer(text), first_word(text)
