"""Sweep: make the rows that a grid of experiments lacks, here or on a cluster, and never lose one.

    store = sweep(grid(Experiment(policy=PruneHal()), {"policy.r": [0.4, 0.7, 0.9], "policy.t": [1, 2, 3]}), "results")
    store.score(experiment).metrics

Only this process writes. Work goes out in tasks of one batch of images under a few policies, which share the batch's prefill; the
rows of a task are on the disk before they count as done. So whatever is killed - a worker, the scheduler, this process - costs
at most the tasks under way, and the same call goes on with what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prunehal.benchmarks.chair.images import left_out
from prunehal.core.checks import as_count
from prunehal.experiments.experiment import TESTBED, Experiment
from prunehal.experiments.images import truth
from prunehal.experiments.store import Store
from prunehal.experiments.versions import made_by, refuse_other_worker
from prunehal.experiments.worker import Made, Task, same_prefill, work

__all__ = ["sweep"]

EXPERIMENTS_PER_TASK = 8  # sharing a prefill among more saves little, and a lost task costs more
_PATIENCE = 20.0  # seconds without a result after which the bar says what it waits for


def sweep(
    experiments: Iterable[Experiment],
    store: Store | str | Path = "results",
    executor: Executor | None = None,
    *,
    batch_size: int = 50,
    progress: bool = True,
) -> Store:
    """Make all rows that are missing, and return the store.

    Args:
        experiments: as `grid` makes them; those with the same prompt share their prefill.
        store: folder of the rows, as a path or a `Store`.
        executor: anything with the interface of ``concurrent.futures``, such as ``dask.distributed.Client.get_executor()``;
            by default all is done in this process. A ``ProcessPoolExecutor`` needs ``multiprocessing.get_context("spawn")``:
            a forked copy of a process in which torch has run threads waits for them for ever.
        batch_size: images decoded at once. Rows do not depend on it, up to rounding of the data type.
        progress: show a bar over the captions, with the time left.

    Raises:
        ValueError: no experiments, a batch size below 1, images that COCO's truth lacks, a pool of forked processes, or rows
            that other code, weights or images made, in the store or on a worker.
        OSError: there is no such model.
        BlockingIOError: another sweep writes to the folder.
        RuntimeError: the executor broke or was lost; what it had finished is stored.

    >>> import tempfile
    >>> from prunehal.core import PruneHal
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     wanted = [Experiment(n_images=2, max_new_tokens=5, policy=PruneHal(r=r)) for r in (0.4, 0.9)]
    ...     store = sweep(wanted, folder, progress=False)
    ...     store.captions(wanted[0])["prunes"].tolist(), store.missing(wanted[1])
    ([1, 1], [])
    """
    if isinstance(experiments, Experiment):
        raise ValueError(f"experiments: got {experiments!r}; expected a list of Experiment; write sweep([experiment], store)")
    wanted = list(dict.fromkeys(experiments))
    if not wanted or not all(isinstance(each, Experiment) for each in wanted):
        raise ValueError(f"experiments: got {wanted[:2]}; expected at least one Experiment; make them by grid(...)")
    if as_count(batch_size) is None or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: expected at least 1, as an integer; the default is 50")
    _check_executor(executor)
    for experiment in wanted if executor is not None else ():
        _refuse_main(experiment)
    for (folder, _), experiment in {(e.images, e.questions): e for e in sorted(wanted, key=lambda e: e.n_images)}.items():
        if folder != TESTBED:
            truth(experiment)  # which every caption is compared with
    for experiment in {same_prefill(each): each for each in wanted}.values():
        _check_model(experiment, here=executor is None)
    for folder, questions in dict.fromkeys((each.images, each.questions) for each in wanted if each.images != TESTBED):
        if others := left_out(Path(folder), questions):
            counted = ", ".join(f"{count} {suffix}" for suffix, count in others.items())
            _say(f"{folder}: files of other formats are left out: {counted}; expected .jpg, .jpeg or .png")
    store = store if isinstance(store, Store) else Store(store)
    with store.writing():
        by_key = {experiment.key: experiment for experiment in sorted(wanted, key=lambda each: each.n_images)}
        missing = {key: dict.fromkeys(store.missing(experiment)) for key, experiment in by_key.items()}
        total = sum(map(len, missing.values()))
        bar = tqdm(desc="sweep", total=total, unit="caption", smoothing=0.1, disable=not progress or not total)
        try:
            with bar:
                # The first round captions each prompt once and so learns how long the captions are; the second sorts by it.
                for plan in (_scouting, _sorted):
                    tasks = plan(store, list(by_key.values()), missing, batch_size)
                    for made in _done(tasks, executor, bar):
                        _keep(store, by_key, missing, made)
                        bar.update(sum(map(len, made.rows.values())))
        except BaseException:
            left = sum(map(len, missing.values()))
            if left < sum(each.n_images for each in by_key.values()):  # without rows the folder is removed
                _say(
                    f"{store.folder}: {total - left} of {total} captions are stored, {left} are left; the same call goes on there"
                )
            raise
        for experiment in by_key.values():
            store.pack(experiment)
    return store


def _check_executor(executor: Executor | None) -> None:
    if isinstance(executor, ProcessPoolExecutor) and executor._mp_context.get_start_method() == "fork":
        raise ValueError(
            "executor: a ProcessPoolExecutor that forks; expected processes that are spawned, because a fork of a process in "
            "which torch has run threads hangs; give it mp_context=multiprocessing.get_context('spawn')"
        )


def _refuse_main(experiment: Experiment) -> None:
    """Raise a ValueError for a policy that other processes cannot import."""
    kind = type(experiment.policy)
    if kind.__module__ == "__main__":
        raise ValueError(
            f"policy={experiment.policy!r}: is a class of this notebook or script, which worker processes cannot import; "
            f"expected one of a module; move {kind.__qualname__} to a file such as my_policies.py and import it from there, or "
            "sweep without an executor"
        )


def _check_model(experiment: Experiment, here: bool) -> None:
    """Raise an OSError if a model is not there; of one on the hub only if it is to be loaded in this process."""
    by = made_by(experiment)
    if here and by["weights"] is None:
        raise OSError(
            f"model {experiment.model!r} at revision {experiment.revision!r}: neither the hub nor its cache on this machine has "
            "it; expected one of them; check name, revision and network"
        )
    folder = Path(experiment.model).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise OSError(
            f"model folder {folder} holds no config.json; expected a folder written by save_pretrained; point to that one"
        )


def _keep(store: Store, by_key: Mapping[str, Experiment], missing: Mapping[str, dict], made: Made) -> None:
    for key in made.rows:
        refuse_other_worker(by_key[key], made.made_by[key])
    for key, rows in made.rows.items():
        store.append(by_key[key], rows, made.made_by[key])
        for row in rows:
            del missing[key][row["key"]]


def _scouting(store: Store, experiments: Sequence[Experiment], missing: Mapping[str, dict], size: int) -> list[Task]:
    """Return the tasks of the first experiment of each prompt, for images of which no length is known."""
    tasks = []
    for group in _by_prefill(experiments):
        known = _lengths(store, group)
        first = next((each for each in group if missing[each.key]), None)
        if first is not None and len(group) > 1:
            unknown = [key for key in missing[first.key] if key not in known]
            tasks += [Task((first,), keys) for keys in _cut(unknown, 1 if first.one_input else size)]
    return tasks


def _sorted(store: Store, experiments: Sequence[Experiment], missing: Mapping[str, dict], size: int) -> list[Task]:
    """Return the tasks of all that is missing: images of like length together, so that few rows wait for the longest."""
    tasks = []
    for group in _by_prefill(experiments):
        lengths = _lengths(store, group)
        lacking: dict[int | str, list[Experiment]] = {}  # image -> who has no row of it
        for experiment in group:
            for key in missing[experiment.key]:
                lacking.setdefault(key, []).append(experiment)
        alike: dict[tuple[Experiment, ...], list[int | str]] = {}  # so that no task makes a row that is there
        for key in sorted(lacking, key=lambda key: -lengths.get(key, 0)):
            alike.setdefault(tuple(lacking[key]), []).append(key)
        for who, keys in alike.items():
            parts = _cut(keys, 1 if group[0].one_input else size)
            tasks += [Task(some, part) for part in parts for some in _cut(who, EXPERIMENTS_PER_TASK)]
    return tasks


def _by_prefill(experiments: Sequence[Experiment]) -> list[list[Experiment]]:
    groups: dict[Experiment, list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(same_prefill(experiment), []).append(experiment)
    return list(groups.values())


def _lengths(store: Store, group: Sequence[Experiment]) -> dict[int | str, int]:
    """Return how many tokens the captions of each image have, from the rows of any experiment of the group."""
    return {key: row["tokens"] for experiment in group for key, row in store.rows(experiment).items()}


def _done(tasks: Sequence[Task], executor: Executor | None, bar: tqdm) -> Iterator[Made]:
    """Do the tasks, and yield what each gave as it ends."""
    if executor is None:
        yield from map(work, tasks)
        return
    waiting: set[Future] = set()
    out = sum(len(task.experiments) * len(task.keys) for task in tasks)
    try:
        waiting = {executor.submit(work, task) for task in tasks}
        while waiting:
            ended, waiting = wait(waiting, timeout=_PATIENCE, return_when=FIRST_COMPLETED)
            bar.set_postfix_str("" if ended else f"waiting for workers: {len(waiting)} tasks are out")
            if not ended and _without_scheduler(executor):
                raise CancelledError("the connection to the scheduler was lost")
            for future in sorted(ended, key=_failed):  # a task that failed takes nothing from those that ended beside it
                made = future.result()
                out -= sum(map(len, made.rows.values()))
                yield made
    except Exception as error:
        if not _is_loss(error):
            raise
        raise RuntimeError(
            f"executor={executor!r}: was lost with {out} captions out ({type(error).__name__}: {error}); expected workers "
            "until all is done. What they had finished is stored. Fix: start the cluster again and call sweep() as before"
        ) from error
    finally:
        for future in waiting:
            future.cancel()


def _failed(future: Future) -> bool:
    return future.cancelled() or future.exception() is not None


def _is_loss(error: Exception) -> bool:
    """Say whether an error is about workers that are gone, not about the task; Dask's errors have no common class."""
    return isinstance(error, BrokenExecutor | CancelledError) or type(error).__module__.partition(".")[0] == "distributed"


def _without_scheduler(executor: Executor) -> bool:
    """Say whether a Dask client lost its scheduler, or has no task left: a result that was lost on its way never ends."""
    client = getattr(executor, "_client", None)
    if client is None:
        return False
    return client.status != "running" or all(state.status not in ("pending", "lost") for state in client.futures.values())


def _cut(values: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return [tuple(values[start : start + size]) for start in range(0, len(values), size)]


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)
