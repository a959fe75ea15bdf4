"""Sweeps on a Dask cluster: the same rows; killed workers and a lost scheduler cost no row and never hang."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from distributed import Client, LocalCluster
from reference_sweep import same_rows
from test_sweep import command, fake, until

from prunehal.commands.sweep import cluster
from prunehal.core import NoPruning, PruneHal
from prunehal.experiments import Experiment, Store, sweep
from prunehal.experiments.images import image_keys

MODULE = importlib.import_module("prunehal.experiments.sweep")
WANTED = [Experiment(n_images=8, max_new_tokens=8, policy=policy) for policy in (NoPruning(), PruneHal(selection="random"))]
CAPTIONS = 16
GRID = """
[experiment]
n_images = 8
max_new_tokens = 8
[[grid]]
policy = [{name = "NoPruning"}, {name = "PruneHal", selection = "random"}]
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The rows as this process makes them."""
    store = sweep(WANTED, tmp_path_factory.mktemp("here"), progress=False)
    return [store.rows(each) for each in WANTED]


def assert_same(folder, here):
    for each, rows in zip(WANTED, here, strict=True):
        ours = Store(folder).rows(each)
        same_rows({key: ours[key] for key in image_keys(each)}, {key: rows[key] for key in image_keys(each)})
        assert len(ours) == 8


def after(monkeypatch, count, act):
    """Act once when so many captions are in the store."""
    done = []

    def appending(store, experiment, rows, by, append=Store.append):
        append(store, experiment, rows, by)
        before = len(done)
        done.extend(rows)
        if before < count <= len(done):
            act()

    monkeypatch.setattr(Store, "append", appending)


def loads():
    """Say how often this process loaded a model, and how often it found one loaded; and which process it is."""
    info = importlib.import_module("prunehal.experiments.worker")._loaded.cache_info()
    return os.getpid(), info.misses, info.hits


@pytest.fixture(scope="module")
def workers():
    """Two workers, processes of their own, with a nanny each that starts them anew."""
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as workers:
        yield workers


def test_the_command_line_makes_the_same_rows_and_a_worker_loads_its_model_once(tmp_path, here, workers):
    grid = tmp_path / "grid.toml"
    grid.write_text(GRID)
    code, said = command(grid, "--store", tmp_path / "rows", "--dask", workers.scheduler_address, "--batch-size", 2)
    assert code == 0, said
    assert f"{tmp_path / 'rows'}: 16 captions of 2 experiments are stored" in said
    assert_same(tmp_path / "rows", here)
    with Client(workers) as client:
        found = client.run(loads).values()
    assert len({pid for pid, *_ in found} | {os.getpid()}) == 3
    assert all(misses <= 1 for _, misses, _ in found)
    assert sum(misses + hits for _, misses, hits in found) == 4 + 4  # tasks: the first policy learns the lengths


def test_a_killed_worker_costs_no_row(monkeypatch, tmp_path, here, workers):
    with cluster(workers.scheduler_address) as executor, Client(workers) as client:
        before = {pid for pid, *_ in client.run(loads).values()}
        killed = min(before)
        after(monkeypatch, 4, lambda: os.kill(killed, signal.SIGKILL))
        sweep(WANTED, tmp_path, executor, batch_size=1, progress=False)
        with pytest.raises(ProcessLookupError):
            os.kill(killed, 0)
    assert_same(tmp_path, here)


@pytest.fixture
def threads():
    """A cluster within this process, for what needs no model."""
    options = {"threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(n_workers=1, resources={"GPU": 1}, protocol="tcp", **options) as threads:
        yield threads


def test_a_result_that_is_lost_on_its_way_is_an_error_not_a_hang(monkeypatch, tmp_path, threads):
    monkeypatch.setattr(MODULE, "work", fake)
    monkeypatch.setattr(MODULE, "_PATIENCE", 0.5)
    with cluster(threads.scheduler_address) as executor:
        gather, calls = Client._gather_remote, []

        async def failing(client, *args):
            calls.append(1)
            if len(calls) == 2:
                raise OSError("the connection broke")
            return await gather(client, *args)

        monkeypatch.setattr(Client, "_gather_remote", failing)
        with pytest.raises(RuntimeError, match=r"was lost with \d captions out \(CancelledError: the connection"):
            sweep(WANTED[:1], tmp_path, executor, batch_size=1, progress=False)
    kept = Store(tmp_path).rows(WANTED[0])
    assert len(kept) < 8
    sweep(WANTED[:1], tmp_path, progress=False)
    assert len(Store(tmp_path).rows(WANTED[0])) == 8


def test_a_task_that_fails_on_a_worker_says_why(monkeypatch, tmp_path, threads):
    monkeypatch.setattr(MODULE, "work", no_picture)
    with cluster(threads.scheduler_address, gpus=True) as executor, pytest.raises(OSError, match="image 'a' cannot be read"):
        sweep(WANTED[:1], tmp_path, executor, batch_size=1, progress=False)
    assert Store(tmp_path).rows(WANTED[0]) == {}


def no_picture(task):
    raise OSError("image 'a' cannot be read")


def test_the_command_line_names_a_scheduler_that_is_not_there(monkeypatch, tmp_path):
    grid = tmp_path / "grid.toml"
    grid.write_text(GRID)
    monkeypatch.setattr("dask.distributed.Client", lambda address, timeout: Client(address, timeout="1s"))
    for address in ("tcp://127.0.0.1:9", "nowhere://a"):
        code, said = command(grid, "--store", tmp_path / "rows", "--dask", address)
        assert code == 2
        assert f"Error: --dask {address}: no scheduler answers" in said
        assert "start it, or check the address" in said
        assert "Traceback" not in said
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    code, said = command(grid, "--store", tmp_path / "rows", "--dask", "tcp://127.0.0.1:9")
    assert code == 2
    assert "expected Dask; pip install 'prunehal[cluster]'" in said
    assert not (tmp_path / "rows").exists()


@contextmanager
def started(*args):
    """Run a part of Dask as a process of its own, and end it whatever happens."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", "dask", *args], **quiet) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def running(folder, workers):
    """Start a scheduler and workers; yield the scheduler's process and address."""
    file = folder / "scheduler.json"
    with started("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)) as process:
        until(lambda: file.exists() and file.read_text().endswith("}"), process)
        address = json.loads(file.read_text())["address"]
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(folder))
        with started("worker", address, *options) if workers else started("--version"):
            yield process, address


def test_a_lost_scheduler_is_an_error_in_bounded_time_and_costs_no_row(monkeypatch, tmp_path, here, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with running(tmp_path, workers=1) as (scheduler, address), cluster(address) as executor:
        lost = []

        def lose():
            scheduler.kill()
            lost.append(time.monotonic())

        with monkeypatch.context() as patched:
            after(patched, 3, lose)
            with pytest.raises(RuntimeError, match=r"was lost with \d+ captions out .*Fix: start the cluster again"):
                sweep(WANTED, tmp_path / "rows", executor, batch_size=1, progress=False)
        assert time.monotonic() - lost[0] < 60
    kept = sum(len(Store(tmp_path / "rows").rows(each)) for each in WANTED)
    assert 3 <= kept < CAPTIONS
    assert f"{kept} of {CAPTIONS} captions are stored, {CAPTIONS - kept} are left" in capsys.readouterr().err
    sweep(WANTED, tmp_path / "rows", progress=False)
    assert_same(tmp_path / "rows", here)
