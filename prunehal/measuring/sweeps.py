"""Measure sweeps: against the loop that one would write first, and on one or two workers of a Dask cluster.

The loop gets as many threads as make it fastest; captions are compared token by token.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from prunehal.core import PruneHal, attach
from prunehal.experiments import Experiment, Store, grid, sweep
from prunehal.experiments.images import image_keys, pictures
from prunehal.files.paths import written
from prunehal.measuring.engine import cpu_name
from prunehal.models.load import load
from prunehal.testbed.training.model import build_prompt

__all__ = ["as_table", "equal_share", "fastest_threads", "measure", "naive", "settings"]

Tokens = dict[str, dict[int | str, list[int]]]  # key of an experiment -> image -> ids of its caption, without the end token


def settings(n_images: int = 300) -> list[Experiment]:
    """Return twenty settings of r and t on the test split."""
    published = Experiment(split="test", n_images=n_images, policy=PruneHal())
    return grid(published, {"policy.r": [0.4, 0.5, 0.6, 0.7, 0.9], "policy.t": [1, 2, 3, 4]})


def naive(experiments: Sequence[Experiment], progress: bool = True) -> Tokens:
    """Caption one image after the other under one policy after the other, and return the token ids.

    >>> [len(captions) for captions in naive(settings(1)[:2], progress=False).values()]
    [1, 1]
    """
    model, processor = load()
    end, made = processor.tokenizer.eos_token_id, {}
    for experiment in tqdm(experiments, desc="naive", unit="setting", disable=not progress):
        captions = {}
        for key in image_keys(experiment):
            (images,) = pictures(experiment, [key])
            inputs = processor(images=images, text=[build_prompt()], return_tensors="pt")
            cache = attach(model, inputs, experiment.policy, seeds=[key])
            ids = model.generate(**inputs, **cache.options, max_new_tokens=experiment.max_new_tokens, do_sample=False)
            tokens = ids[0, inputs["input_ids"].shape[1] :].tolist()
            captions[key] = tokens[: tokens.index(end)] if end in tokens else tokens
        made[experiment.key] = captions
    return made


def fastest_threads(experiments: Sequence[Experiment], at_most: int | None = None) -> int:
    """Return the number of threads, 1, 2, 4, ... up to all processors, with which the naive loop is fastest.

    Args:
        experiments: to be captioned; two images of the first one are timed.
        at_most: processors to use; by default those of the machine.

    >>> fastest_threads(settings(1)[:1], at_most=1)
    1
    """
    at_most = (os.cpu_count() or 1) if at_most is None else at_most
    few = [replace(experiments[0], n_images=min(2, experiments[0].n_images))]
    seconds = {}
    for threads in sorted({*(2**power for power in range(at_most.bit_length())), at_most}):
        with _threads(threads):
            naive(few, progress=False)  # the first run of a thread count starts the threads
            begun = time.perf_counter()
            naive(few, progress=False)
            seconds[threads] = time.perf_counter() - begun
    return min(seconds, key=seconds.get)


def equal_share(ours: Tokens, expected: Tokens) -> float:
    """Return the share of the captions that are equal token by token.

    >>> equal_share({"a": {1: [5, 6], 2: [7]}}, {"a": {1: [5, 6], 2: [7, 8]}})
    0.5
    """
    pairs = [(ours[key][image], tokens) for key, captions in expected.items() for image, tokens in captions.items()]
    return sum(tokens == other for tokens, other in pairs) / len(pairs)


def measure(out: Path, n_images: int = 300) -> pd.DataFrame:
    """Time a sweep before and after the naive loop, and on 1 and 2 workers; write and return the rows.

    Returns:
        Columns: how, workers, threads (of each), captions, seconds, equal (share of captions that are those of the naive loop,
        token by token), machine, torch.

    Raises:
        ImportError: Dask is not installed.
    """
    from dask.distributed import Client, LocalCluster

    experiments, lines = settings(n_images), []
    tokenizer = load()[1].tokenizer

    def timed(how: str, workers: int, executor: object = None) -> None:
        with TemporaryDirectory() as folder:
            begun = time.perf_counter()
            store = sweep(experiments, folder, executor)
            seconds = time.perf_counter() - begun
            made = {each.key: _tokens_of(store, each, tokenizer) for each in experiments}
        lines.append({"how": how, "workers": workers, "threads": torch.get_num_threads() if executor is None else 1})
        lines[-1] |= {"captions": sum(map(len, made.values())), "seconds": round(seconds, 1), "tokens": made}

    timed("sweep", 0)
    with _threads(fastest_threads(experiments)) as threads:
        begun = time.perf_counter()
        expected = naive(experiments)
        seconds = time.perf_counter() - begun
    lines.append({"how": "naive loop", "workers": 0, "threads": threads, "tokens": expected})
    lines[-1] |= {"captions": sum(map(len, expected.values())), "seconds": round(seconds, 1)}
    timed("sweep", 0)
    for workers in (1, 2):
        options = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
        with LocalCluster(n_workers=workers, **options) as cluster, Client(cluster) as client:
            client.run(_warm)
            timed("sweep on Dask", workers, client.get_executor(pure=False))
    for line in lines:
        line["equal"] = equal_share(line.pop("tokens"), expected)
    frame = pd.DataFrame(lines).assign(machine=cpu_name(), torch=torch.__version__)
    with written(out) as part:
        frame.to_csv(part, index=False)
    return frame


def as_table(frame: pd.DataFrame) -> str:
    """Return the rows as a markdown table, with the naive loop's time over each."""
    base = frame.loc[frame["how"] == "naive loop", "seconds"].iloc[0]
    lines = [
        "| how | workers x threads | captions a second | naive loop's time over this | captions that equal the naive loop's |",
        "|---|---|---|---|---|",
    ]
    for line in frame.itertuples():
        where = f"{line.workers} x {line.threads}" if line.workers else f"this process x {line.threads}"
        rate = f"{line.captions / line.seconds:.1f}"
        lines.append(f"| {line.how} | {where} | {rate} | {base / line.seconds:.1f} | {line.equal:.2%} |")
    return "\n".join(lines)


def _tokens_of(store: Store, experiment: Experiment, tokenizer: PreTrainedTokenizerBase) -> dict[int | str, list[int]]:
    """Return image -> ids of the stored caption; a count that is not that of the row shows a text that two rows of ids have."""
    captions = store.captions(experiment)
    found = {}
    for image, text, count in captions[["image_id", "caption", "tokens"]].itertuples(index=False):
        found[image] = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(found[image]) != count:
            raise ValueError(
                f"caption of image {image} under {experiment.name}: {len(found[image])} tokens, its row says {count}; expected a "
                "tokenizer that gives the ids of a text back; compare captions of the embedded model"
            )
    return found


@contextmanager
def _threads(number: int) -> Iterator[int]:
    """Let torch use so many threads, and then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield number
    finally:
        torch.set_num_threads(before)


def _warm() -> None:
    """Load the model, which a worker does once."""
    from prunehal.experiments.worker import Task, work

    experiment = Experiment(n_images=1, max_new_tokens=1)
    work(Task((experiment,), tuple(image_keys(experiment))))
