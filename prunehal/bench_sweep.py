"""Measure sweeps: against the loop that one would write first, and on one or two workers of a Dask cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from tqdm import tqdm

from prunehal.bench import cpu_name
from prunehal.core import PruneHal, attach
from prunehal.experiments import Experiment, grid, sweep
from prunehal.experiments.pictures import image_keys, pictures
from prunehal.loading import load
from prunehal.resources import written
from prunehal.testbed.model import build_prompt

__all__ = ["as_table", "measure", "naive", "settings"]


def settings(n_images: int = 300) -> list[Experiment]:
    """Return twenty settings of r and t on the test split."""
    published = Experiment(split="test", n_images=n_images, policy=PruneHal())
    return grid(published, {"policy.r": [0.4, 0.5, 0.6, 0.7, 0.9], "policy.t": [1, 2, 3, 4]})


def naive(experiments: Sequence[Experiment], progress: bool = True) -> dict[str, dict[int | str, str]]:
    """Caption one image after the other under one policy after the other, and return the captions by key and image.

    >>> [len(captions) for captions in naive(settings(1)[:2], progress=False).values()]
    [1, 1]
    """
    model, processor = load()
    made = {}
    for experiment in tqdm(experiments, desc="naive", unit="setting", disable=not progress):
        texts = {}
        for key in image_keys(experiment):
            (images,) = pictures(experiment, [key])
            inputs = processor(images=images, text=[build_prompt()], return_tensors="pt")
            cache = attach(model, inputs, experiment.policy, seeds=[key])
            ids = model.generate(**inputs, past_key_values=cache, max_new_tokens=experiment.max_new_tokens, do_sample=False)
            texts[key] = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        made[experiment.key] = texts
    return made


def measure(out: Path, n_images: int = 300) -> pd.DataFrame:
    """Time a sweep before and after the naive loop, and on 1 and 2 workers; write and return the rows.

    Returns:
        Columns: how, workers, threads (of each), captions, seconds, equal (share of captions that are those of the naive loop),
        machine, torch.

    Raises:
        ImportError: Dask is not installed.
    """
    from dask.distributed import Client, LocalCluster

    experiments, lines = settings(n_images), []

    def timed(how: str, workers: int, executor: object = None) -> dict[str, dict[int | str, str]]:
        with TemporaryDirectory() as folder:
            begun = time.perf_counter()
            store = sweep(experiments, folder, executor)
            seconds = time.perf_counter() - begun
            made = {each.key: dict(store.captions(each)[["image_id", "caption"]].itertuples(index=False)) for each in experiments}
        lines.append({"how": how, "workers": workers, "threads": torch.get_num_threads() if executor is None else 1})
        lines[-1] |= {"captions": sum(map(len, made.values())), "seconds": round(seconds, 1), "texts": made}
        return made

    timed("sweep", 0)
    begun = time.perf_counter()
    expected = naive(experiments)
    lines.append({"how": "naive loop", "workers": 0, "threads": torch.get_num_threads(), "texts": expected})
    lines[-1] |= {"captions": sum(map(len, expected.values())), "seconds": round(time.perf_counter() - begun, 1)}
    timed("sweep", 0)
    for workers in (1, 2):
        options = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
        with LocalCluster(n_workers=workers, **options) as cluster, Client(cluster) as client:
            client.run(_warm)
            timed("sweep on Dask", workers, client.get_executor(pure=False))
    for line in lines:
        made = line.pop("texts")
        pairs = [(made[key][image], text) for key, texts in expected.items() for image, text in texts.items()]
        line["equal"] = sum(ours == theirs for ours, theirs in pairs) / len(pairs)
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


def _warm() -> None:
    """Load the model, which a worker does once."""
    from prunehal.experiments.worker import Task, work

    experiment = Experiment(n_images=1, max_new_tokens=1)
    work(Task((experiment,), tuple(image_keys(experiment))))
