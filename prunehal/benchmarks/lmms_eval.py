"""Write results in the sample files of lmms-eval, so that its users and viewers can read them.

Source: EvolvingLMMs-Lab/lmms-eval, what ``--log_samples`` writes: JSON lines named ``<timestamp>_samples_<task>.jsonl``
in a folder with the name of the model. Two layouts are in use:

- "0.7" (since v0.7 of 2026-02-27; docs/releases/lmms-eval-0.7.md, sections 10.4 and 12, at commit 9c25ff5, and pull request
  1103): doc_id, input, target, resps, filtered_resps, token_counts, doc_hash, then the metrics. For one request, resps is a
  list of its outputs and filtered_resps the text itself.
- "0.6" (earlier; loggers/evaluation_tracker.py at commit 0716c69 and evaluator.py at commit 03cbb1f): resps and
  filtered_resps have one more list around them, and prompt_hash and target_hash stand after doc_hash, token_counts nowhere.

In both, ``resps`` is left out where it equals filtered_resps, ``target`` is text, and the in-memory entries ``doc`` and
``arguments`` are not written: of the document remains its hash, of the arguments the prompt, as ``input``. The entry input
comes last there; readers go by name.

Deviation: lmms-eval hashes documents with their images, as the text of a Python object, which differs from run to run. Here
the hash is that of the fields given. token_counts is ``[null]``, as where a backend counts no tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from prunehal.files.paths import written
from prunehal.files.records import BadInput, read_records

__all__ = ["LAYOUTS", "export", "read"]

LAYOUTS = ("0.7", "0.6")

_TAKEN = {"doc_id", "doc", "input", "target", "arguments", "resps", "filtered_resps", "token_counts"}
_TAKEN |= {"doc_hash", "prompt_hash", "target_hash"}
_STAMP = re.compile(r"\d{8}_\d{6}")


def export(
    rows: Sequence[Mapping[str, Any]],
    folder: Path | str,
    task: str,
    *,
    prompt: str,
    answer: str,
    target: str | None = None,
    metrics: Sequence[str] = (),
    raw: str | None = None,
    doc: Sequence[str] | None = None,
    doc_id: str | None = None,
    timestamp: str | datetime | None = None,
    layout: str = "0.7",
) -> Path:
    """Write one sample for each row, in the order given, and return the path.

    Args:
        rows: the results, all fields in plain JSON types.
        folder: where to write; lmms-eval itself uses ``<output path>/<model name>``.
        task: name of the task, such as "pope_adv" or "coco2014_cap_val".
        prompt, answer: names of the fields with the text sent and the text that is scored.
        target: name of the field with the reference; None writes an empty one.
        metrics: names of the fields that are metrics of the row: numbers, or the objects that the task's own
            process_results returns. For captions, the items of `ChairResult.report` hold them: name distinct_chair_i, recall,
            repeats and unfinished beside chair_i, which a repeated object lowers.
        raw: name of the field with the output before it was filtered, when that differs from the answer.
        doc: names of the fields that make up the document; None takes all but answer, raw and metrics.
        doc_id: name of the field that identifies the question. Where it is a number in all rows, it is the doc_id; where it is
            text, the doc_id is the row's place, and the field is written beside it under its own name. None: the row's place.
        timestamp: "YYYYMMDD_HHMMSS" or a datetime; None takes the time of the call.
        layout: one of `LAYOUTS`.

    Raises:
        BadInput: no row, a row without one of the fields, a prompt or answer that is no text, a question named twice, values
            that JSON cannot hold.
        ValueError: an unknown layout, a timestamp or task that would break the file name, a metric with a reserved name.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> rows = [{"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes", "said": "Yes.", "correct": 1}]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = export(rows, folder, "pope_adv", prompt="text", answer="said", target="label", metrics=["correct"],
    ...                   timestamp="20260301_120000")
    ...     sample = json.loads(path.read_text())
    >>> path.name, sample["doc_hash"][:8]
    ('20260301_120000_samples_pope_adv.jsonl', 'dea1dcd8')
    >>> {name: value for name, value in sample.items() if name != "doc_hash"}
    {'doc_id': 0, 'target': 'yes', 'filtered_resps': 'Yes.', 'token_counts': [None], 'correct': 1, 'input': 'Is there a dog?'}
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; expected one of {LAYOUTS}; '0.7' is the current one")
    if reserved := sorted(_TAKEN & {*metrics, doc_id}):
        raise ValueError(f"fields named {reserved} would replace entries of lmms-eval; rename these fields")
    path = Path(folder) / f"{_stamp(timestamp)}_samples_{_task(task)}.jsonl"
    needed = [name for name in (prompt, answer, target, raw, doc_id, *metrics, *(doc or ())) if name is not None]
    problems = [] if rows else ["there are none; expected at least one"]
    lines = []
    named: dict[str, int] = {}
    numbered = doc_id is not None and all(type(row.get(doc_id)) is int for row in rows)
    for place, row in enumerate(rows):
        if absent := [name for name in needed if name not in row]:
            problems.append(f"row {place}: no {', '.join(absent)}")
            continue
        texts = [name for name in (prompt, answer, raw) if name is not None]
        if wrong := [name for name in texts if not isinstance(row[name], str)]:
            problems.append(f"row {place}: {wrong[0]} is {row[wrong[0]]!r}; expected text")
            continue
        number = row[doc_id] if numbered else place
        if doc_id is not None and (first := named.setdefault(str(row[doc_id]), place)) != place:
            problems.append(f"row {place}: {doc_id} {row[doc_id]!r} again, first in row {first}; expected each question once")
            continue
        left_out = {answer, raw, *metrics}
        names = [name for name in row if name not in left_out] if doc is None else doc
        try:
            sample = _sample(number, {name: row[name] for name in names}, row[prompt], row[answer], row[raw or answer], layout)
            sample["target"] = "" if target is None else str(row[target])
            if layout == "0.6":
                sample["target_hash"] = _hash(sample["target"])
            sample |= {name: row[name] for name in metrics} | {"input": row[prompt]}
            if doc_id is not None and not numbered:
                sample[doc_id] = row[doc_id]
            lines.append(json.dumps(sample, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            problems.append(f"row {place}: {error}; expected plain JSON values")
    if problems:
        raise BadInput("rows for lmms-eval", problems, "Check the names of the fields against the rows.")
    with written(path) as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path | str) -> list[dict[str, Any]]:
    """Read a sample file of either layout, in the order of doc_id.

    Lists are restored to what they are in memory, and ``resps`` is filled in where it was left out: ``filtered_resps`` holds
    one text for each request, ``resps`` a list of outputs for each.

    Raises:
        BadInput: lines that cannot be read, lack doc_id, target or filtered_resps, or repeat a doc_id; no sample.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    ...     _ = file.write('{"doc_id": 0, "target": "cat", "resps": ["<think>A cat</think>cat"], "filtered_resps": "cat"}')
    ...     file.flush()
    ...     read(file.name)
    [{'doc_id': 0, 'target': 'cat', 'resps': [['<think>A cat</think>cat']], 'filtered_resps': ['cat']}]
    """
    records, problems = read_records(path)
    samples: dict[Any, dict[str, Any]] = {}
    for record in records:
        sample = dict(record.value)
        doc_id = sample.get("doc_id")
        if absent := [name for name in ("doc_id", "target", "filtered_resps") if name not in sample]:
            problems.append(f"{record.where}: no {', '.join(absent)}")
        elif isinstance(doc_id, bool) or not isinstance(doc_id, int):
            problems.append(f"{record.where}: doc_id {doc_id!r}; expected a whole number")
        elif doc_id in samples:
            problems.append(f"{record.where}: doc_id {doc_id} again")
        else:
            sample |= _restored(sample["filtered_resps"], sample.get("resps"))
            samples[doc_id] = sample
    if not records and not problems:
        problems.append("there are no samples; expected one for each document")
    if problems:
        raise BadInput(path, problems, "Expected the JSON lines that lmms-eval writes with --log_samples.")
    return [samples[doc_id] for doc_id in sorted(samples)]


def _sample(doc_id: int, doc: Mapping[str, Any], prompt: str, answer: str, raw: str, layout: str) -> dict[str, Any]:
    nested = layout == "0.6"
    sample: dict[str, Any] = {"doc_id": doc_id, "target": ""}
    if raw != answer:
        sample["resps"] = [[raw]] if nested else [raw]
    sample["filtered_resps"] = [answer] if nested else answer
    if not nested:
        sample["token_counts"] = [None]
    sample["doc_hash"] = _hash(json.dumps(doc, indent=2, ensure_ascii=False, allow_nan=False))
    if nested:
        sample["prompt_hash"] = _hash(prompt)
    return sample


def _restored(filtered: Any, resps: Any) -> dict[str, list[Any]]:
    filtered = filtered if isinstance(filtered, list) else [filtered]
    if resps is None:
        resps = filtered
    elif not isinstance(resps, list):
        resps = [resps]
    elif len(filtered) == 1 and not any(isinstance(outputs, list) for outputs in resps):
        resps = [resps]  # the outer list of a single request was taken off
    return {"resps": [outputs if isinstance(outputs, list) else [outputs] for outputs in resps], "filtered_resps": filtered}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _stamp(timestamp: str | datetime | None) -> str:
    if timestamp is None or isinstance(timestamp, datetime):
        return (timestamp or datetime.now()).strftime("%Y%m%d_%H%M%S")
    if not _STAMP.fullmatch(timestamp):
        raise ValueError(f"timestamp is {timestamp!r}; expected YYYYMMDD_HHMMSS, such as 20260301_120000, or a datetime")
    return timestamp


def _task(task: str) -> str:
    if not task or re.search(r"[/\\]", task):
        raise ValueError(f"task is {task!r}; expected the name of a task of lmms-eval, such as pope_adv")
    return task
