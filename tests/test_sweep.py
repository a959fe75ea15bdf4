"""Sweeps: the rows of the naive loop, whatever the batch, the company and the executor; and none lost, doubled or torn."""

import gzip
import importlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image
from reference_sweep import rows as naive_rows
from reference_sweep import same_rows
from typer.testing import CliRunner

import prunehal as ph
from prunehal.benchmarks import BadInput
from prunehal.commands.app import app
from prunehal.core import NoPruning, PruneHal, SharedPrefill, TopK
from prunehal.decoding import PAI, KVSmooth
from prunehal.experiments import Experiment, Store, grid, read_grid, sweep
from prunehal.experiments.images import image_keys
from prunehal.experiments.versions import made_by
from prunehal.experiments.worker import Made, Task, work

MODULE = importlib.import_module("prunehal.experiments.sweep")  # the name in the package is the function
WORKER = importlib.import_module("prunehal.experiments.worker")
PREFILL = importlib.import_module("prunehal.experiments.prefill")
KEYS = image_keys(Experiment(n_images=3))
GREEDY = Experiment(n_images=3, max_new_tokens=30)
EXPERIMENTS = {
    "none": GREEDY,
    "default": replace(GREEDY, policy=PruneHal()),
    "random": replace(GREEDY, policy=PruneHal(selection="random", seed=3)),
    "head": replace(GREEDY, policy=PruneHal(r=0.7, t=2, kept="head")),
    "all layers": replace(GREEDY, policy=PruneHal(r=0.9, t=9, majority=1.0)),
    "topk": replace(GREEDY, policy=TopK(20)),
    "short": replace(GREEDY, policy=PruneHal(r=0.7), max_new_tokens=5),  # ends within a mention
    "nucleus": replace(GREEDY, decoding="nucleus", seed=1),
    "nucleus random": replace(GREEDY, decoding="nucleus", seed=1, policy=PruneHal(selection="random")),
    "beam": replace(GREEDY, decoding="beam", policy=PruneHal(), n_images=2),
    "beam head": replace(GREEDY, decoding="beam", policy=PruneHal(kept="head", beam_state="shared"), n_images=2),
    "vcd": replace(GREEDY, decoding="vcd", policy=PruneHal()),
    "pai": replace(GREEDY, decoding=PAI(gamma=1.5), policy=PruneHal()),
    "dola": replace(GREEDY, decoding="dola"),
    "kvsmooth": replace(GREEDY, decoding=KVSmooth(ref=0.7), policy=PruneHal(r=0.7)),
    "fastv": replace(GREEDY, decoding="fastv", policy=PruneHal()),  # shares no prefill
    "opera": replace(GREEDY, decoding="opera", policy=PruneHal(), max_new_tokens=12),  # one image at a time
    "tiles": replace(GREEDY, tiles=1, clutter=True, policy=PruneHal(), n_images=2),
}


def stored(store, experiments):
    """Return the rows of all experiments, in the order of the images."""
    return {each: {key: store.rows(each)[key] for key in image_keys(each)} for each in experiments}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Rows of all experiments, by one sweep."""
    store = sweep(EXPERIMENTS.values(), tmp_path_factory.mktemp("all"), batch_size=3, progress=False)
    return stored(store, EXPERIMENTS.values())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_are_those_of_the_naive_loop(ours, name):
    experiment = EXPERIMENTS[name]
    same_rows(ours[experiment], naive_rows(*ph.load(), experiment, image_keys(experiment)))


def test_the_experiments_differ_in_what_is_compared(ours):
    """Without this the tests above could pass on rows that no policy and no sampling changed."""
    captions = {name: [row["caption"] for row in ours[each].values()] for name, each in EXPERIMENTS.items()}
    assert captions["nucleus"] != captions["none"]
    assert captions["random"] != captions["default"] != captions["none"]
    visual = {name: next(iter(ours[each].values()))["visual"] for name, each in EXPERIMENTS.items()}
    assert len({visual[name] for name in ("none", "default", "head", "topk", "tiles")}) == 5
    assert any(row["voted"] for row in ours[EXPERIMENTS["all layers"]].values())
    assert any(row["mentions"] for row in ours[EXPERIMENTS["beam"]].values())


def test_batch_order_and_company_change_nothing(ours, tmp_path):
    some = [EXPERIMENTS[name] for name in ("nucleus random", "random", "beam", "head")]
    together = stored(sweep(reversed(some), tmp_path / "a", batch_size=2, progress=False), some)
    for experiment in some:
        same_rows(together[experiment], ours[experiment])
    alone = sweep([EXPERIMENTS["random"]], tmp_path / "b", batch_size=1, progress=False)
    same_rows(stored(alone, [EXPERIMENTS["random"]])[EXPERIMENTS["random"]], ours[EXPERIMENTS["random"]])


def test_policies_of_a_prompt_share_its_prefill_and_a_task_is_no_larger_than_asked(monkeypatch, tmp_path):
    prefills, tasks = [], []
    monkeypatch.setattr(PREFILL, "SharedPrefill", lambda *args: prefills.append(1) or SharedPrefill(*args))
    monkeypatch.setattr(MODULE, "work", lambda task: tasks.append(task) or work(task))
    wanted = [Experiment(n_images=2, max_new_tokens=2, policy=TopK(k)) for k in range(1, 11)]
    sweep(wanted, tmp_path, batch_size=2, progress=False)
    # The first policy learns the lengths; the other nine go out eight at a time.
    assert [(len(task.experiments), len(task.keys)) for task in tasks] == [(1, 2), (8, 2), (1, 2)]
    assert len(prefills) == 1


def test_a_decoder_that_takes_one_input_gets_one(monkeypatch, tmp_path):
    tasks = []
    monkeypatch.setattr(MODULE, "work", lambda task: tasks.append(task) or work(task))
    opera = [Experiment(n_images=2, max_new_tokens=3, decoding="opera", policy=policy) for policy in (NoPruning(), PruneHal())]
    vcd = replace(opera[0], decoding="vcd")
    store = sweep([*opera, vcd], tmp_path, progress=False)
    assert [(len(task.experiments), len(task.keys)) for task in tasks] == [(1, 1), (1, 1), (1, 1), (1, 1), (1, 2)]
    assert not any(store.missing(each) for each in (*opera, vcd))


def test_images_of_like_length_are_captioned_together(monkeypatch, tmp_path):
    tasks = []
    lengths = {key: tokens for key, tokens in zip(image_keys(Experiment(n_images=6)), (3, 9, 4, 8, 2, 7), strict=True)}
    monkeypatch.setattr(MODULE, "work", lambda task: tasks.append(task) or fake(task, lengths))
    sweep([Experiment(n_images=6, policy=TopK(k)) for k in (1, 2)], tmp_path, batch_size=2, progress=False)
    assert [[lengths[key] for key in task.keys] for task in tasks[3:]] == [[9, 8], [7, 4], [3, 2]]


# Nothing is lost, doubled or torn.


def fake(task, lengths=None):
    """Stand in for work(): rows that say which experiment and image they are of."""
    row = {"finished": True, "visual": 1.0, "events": [], "voted": [], "layers": [0], "mass": [0.5], "mentions": []}
    lengths = lengths or {}
    rows = {
        each.key: [{"key": key, "caption": f"{each.key} {key}", "tokens": lengths.get(key, key % 7)} | row for key in task.keys]
        for each in task.experiments
    }
    return Made(rows, {each.key: made_by(each) for each in task.experiments})


WANTED = [Experiment(n_images=7, policy=policy) for policy in (NoPruning(), TopK(3), PruneHal())] + [
    Experiment(n_images=5, seed=1)
]
CAPTIONS = 7 * 3 + 5


class Counted:
    """Count which captions are made, and fail at one task."""

    def __init__(self, fail_at=None, error=None):
        self.tasks, self.made, self.fail_at, self.error = 0, [], fail_at, error

    def __call__(self, task):
        self.tasks += 1
        if self.tasks == self.fail_at:
            raise self.error
        self.made += [(each.key, key) for each in task.experiments for key in task.keys]
        return fake(task)


def assert_complete(folder, wanted=WANTED):
    """Read the packed files with nothing of the store's code: every row once, in whole lines, and no other file."""
    files = {path for path in folder.iterdir() if not path.name.startswith("run.")}
    assert files == {Store(folder).path(each) for each in wanted}
    for each in wanted:
        header, *lines = map(json.loads, gzip.decompress(Store(folder).path(each).read_bytes()).decode().splitlines())
        assert header["key"] == ""
        assert header["experiment"]["policy"]["name"] == type(each.policy).__name__
        assert sorted(line["key"] for line in lines) == image_keys(each)
        assert all(line["caption"] == f"{each.key} {line['key']}" for line in lines)


@pytest.mark.parametrize("error", [RuntimeError("lost"), KeyboardInterrupt(), ValueError("no picture")], ids=repr)
def test_a_sweep_that_fails_at_any_task_goes_on_there(monkeypatch, tmp_path, capsys, error):
    whole = Counted()
    monkeypatch.setattr(MODULE, "work", whole)
    assert_complete(sweep(WANTED, tmp_path / "whole", batch_size=2, progress=False).folder)
    assert whole.tasks > 6
    for fail_at in range(1, whole.tasks + 1):
        folder = tmp_path / f"{fail_at}"
        first, second = Counted(fail_at, error), Counted()
        monkeypatch.setattr(MODULE, "work", first)
        capsys.readouterr()
        with pytest.raises(type(error)):
            sweep(WANTED, folder, batch_size=2, progress=False)
        before = {(each.key, key) for each in WANTED for key in Store(folder).rows(each)}
        said = capsys.readouterr().err
        goes_on = (
            f"{len(before)} of {CAPTIONS} captions are stored, {CAPTIONS - len(before)} are left; the same call goes on there"
        )
        assert (goes_on in said, "goes on there" in said, folder.exists()) == (bool(before),) * 3
        assert sorted(before) == sorted(first.made)
        monkeypatch.setattr(MODULE, "work", second)
        sweep(WANTED, folder, batch_size=2, progress=False)
        assert_complete(folder)
        assert len(second.made) == CAPTIONS - len(before)


def test_nothing_is_made_twice(monkeypatch, tmp_path):
    counted = Counted()
    monkeypatch.setattr(MODULE, "work", counted)
    sweep(WANTED, tmp_path, batch_size=2, progress=False)
    assert len(counted.made) == len({*counted.made}) == CAPTIONS
    again = Counted()
    monkeypatch.setattr(MODULE, "work", again)
    sweep(WANTED, tmp_path, batch_size=2, progress=False)
    assert again.made == []
    assert_complete(tmp_path)


def test_more_images_later_add_only_the_new_ones(monkeypatch, tmp_path):
    monkeypatch.setattr(MODULE, "work", Counted())
    sweep(WANTED, tmp_path, progress=False)
    more = [replace(each, n_images=9) for each in WANTED]
    counted = Counted()
    monkeypatch.setattr(MODULE, "work", counted)
    sweep(more, tmp_path, progress=False)
    assert sorted(counted.made) == sorted(
        (b.key, key) for a, b in zip(WANTED, more, strict=True) for key in image_keys(b)[a.n_images :]
    )
    assert_complete(tmp_path, more)
    assert Store(tmp_path).missing(WANTED[0]) == []  # fewer of the same are still there
    assert len(Store(tmp_path).captions(WANTED[0])) == 7


def test_the_same_experiment_with_more_and_with_fewer_images_is_made_once(monkeypatch, tmp_path):
    counted = Counted()
    monkeypatch.setattr(MODULE, "work", counted)
    sweep([replace(GREEDY, n_images=n) for n in (5, 2, 4)], tmp_path, progress=False)
    assert sorted(counted.made) == [(GREEDY.key, key) for key in image_keys(replace(GREEDY, n_images=5))]


@pytest.mark.parametrize("cut", [1, 2, 30, 200])
def test_a_torn_last_line_is_made_again(monkeypatch, tmp_path, cut):
    counted = Counted(fail_at=3, error=KeyboardInterrupt())
    monkeypatch.setattr(MODULE, "work", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(WANTED[:1], tmp_path, batch_size=2, progress=False)
    (path,) = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    lines = whole[:-cut].count(b"\n") - 1  # without the header
    assert len(Store(tmp_path).rows(WANTED[0])) == lines
    assert path.read_bytes() == whole[:-cut]  # a reader repairs nothing: the writer may be in the middle of that line
    again = Counted()
    monkeypatch.setattr(MODULE, "work", again)
    sweep(WANTED[:1], tmp_path, batch_size=2, progress=False)
    assert len(again.made) == 7 - lines
    assert_complete(tmp_path, WANTED[:1])


def test_a_file_torn_in_its_header_is_begun_again(monkeypatch, tmp_path):
    monkeypatch.setattr(MODULE, "work", Counted())
    Store(tmp_path).path(WANTED[0]).with_suffix("").write_bytes(b'{"key": "", "exper')
    sweep(WANTED[:1], tmp_path, progress=False)
    assert_complete(tmp_path, WANTED[:1])


def test_a_crash_between_packing_and_removing_doubles_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(MODULE, "work", Counted())
    with monkeypatch.context() as patched:
        unlink = type(tmp_path).unlink

        def crash(path, missing_ok=False):
            if path.suffix == ".jsonl":
                raise KeyboardInterrupt
            unlink(path, missing_ok)

        patched.setattr(type(tmp_path), "unlink", crash)
        with pytest.raises(KeyboardInterrupt):
            sweep(WANTED[:1], tmp_path, progress=False)
    assert len([*tmp_path.glob("*.jsonl*")]) == 2
    assert len(Store(tmp_path).rows(WANTED[0])) == 7
    more = replace(WANTED[0], n_images=9)
    again = Counted()
    monkeypatch.setattr(MODULE, "work", again)
    sweep([more], tmp_path, progress=False)
    assert len(again.made) == 2
    assert_complete(tmp_path, [more])


def test_a_killed_process_costs_only_what_was_under_way(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    grid = tmp_path / "grid.toml"
    grid.write_text(
        '[experiment]\nn_images = 8\nmax_new_tokens = 12\n[[grid]]\npolicy = [{name = "NoPruning"}, {name = "PruneHal"}]'
    )
    folder = tmp_path / "rows"
    wanted = [Experiment(n_images=8, max_new_tokens=12, policy=policy) for policy in (NoPruning(), PruneHal())]
    command = [sys.executable, "-m", "prunehal", "sweep", str(grid), "--store", str(folder), "--batch-size", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl")) > 4, process)
            with pytest.raises(BlockingIOError, match=rf"another run writes here \(process {process.pid} on "):
                sweep(wanted, folder, progress=False)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    before = {(each.key, key) for each in wanted for key in Store(folder).rows(each)}
    assert 4 <= len(before) < 16
    made = []
    monkeypatch.setattr(MODULE, "work", lambda task: made.append(task) or work(task))
    resumed = stored(sweep(wanted, folder, progress=False), wanted)
    assert not before & {(each.key, key) for task in made for each in task.experiments for key in task.keys}
    assert not [*folder.glob("*.jsonl")]
    whole = stored(sweep(wanted, tmp_path / "whole", progress=False), wanted)
    for each in wanted:
        same_rows(resumed[each], whole[each])


def until(true, process, seconds=240):
    """Wait until something is true, and fail when the process ends or the time is over."""
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, f"the process ended with {process.returncode}"
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


# Executors.


def test_threads_give_the_same_rows(ours, tmp_path):
    some = [EXPERIMENTS[name] for name in ("none", "random", "nucleus random")]
    with ThreadPoolExecutor(3) as executor:
        rows = stored(sweep(some, tmp_path, executor, batch_size=1, progress=False), some)
    for each in some:
        same_rows(rows[each], ours[each])


def test_processes_give_the_same_rows_and_a_killed_one_costs_no_row(ours, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    some = [EXPERIMENTS[name] for name in ("none", "random", "nucleus random")]
    appended = []

    def killing(store, experiment, rows, by, append=Store.append):
        append(store, experiment, rows, by)
        appended.extend(row["key"] for row in rows)
        if len(appended) == 4:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "append", killing)
        with (
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor,
            pytest.raises(RuntimeError, match=r"was lost with \d+ captions out \(BrokenProcessPool.*start the cluster again"),
        ):
            sweep(some, tmp_path, executor, batch_size=1, progress=False)
    kept = sum(len(Store(tmp_path).rows(each)) for each in some)
    assert 4 <= kept == len(appended) < 9
    assert f"{kept} of 9 captions are stored, {9 - kept} are left" in capsys.readouterr().err
    made = []
    monkeypatch.setattr(MODULE, "work", lambda task: made.append(task) or work(task))
    rows = stored(sweep(some, tmp_path, batch_size=1, progress=False), some)
    assert sum(len(task.keys) * len(task.experiments) for task in made) == 9 - kept
    for each in some:
        same_rows(rows[each], ours[each])


def other_code():
    """Make a worker one of other code: rows come out otherwise, and its number says so."""
    versions, worker = (importlib.import_module(f"prunehal.experiments.{name}") for name in ("versions", "worker"))
    versions.CODE = 0
    plain = worker._rows
    worker._rows = lambda *args: [row | {"caption": "of old code"} for row in plain(*args)]


def test_rows_of_a_worker_of_other_code_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    short = replace(GREEDY, max_new_tokens=2)
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, initializer=other_code) as executor,
        pytest.raises(ValueError, match=r"validation_max_new_tokens-2_nopruning: a worker has other code: 0 there, 1 here"),
    ):
        sweep([short], tmp_path, executor, progress=False)
    assert Store(tmp_path).rows(short) == {}
    assert not [*tmp_path.glob("*.jsonl*")]


def test_rows_carry_the_versions_of_the_process_that_made_them(tmp_path, monkeypatch):
    theirs = {GREEDY.key: made_by(GREEDY) | {"torch": "99.0"}}
    monkeypatch.setattr(MODULE, "work", lambda task: replace(fake(task), made_by=theirs))
    sweep([GREEDY], tmp_path, progress=False)
    header = json.loads(gzip.decompress(Store(tmp_path).path(GREEDY).read_bytes()).partition(b"\n")[0])
    assert header["made_by"] == made_by(GREEDY) | {"torch": "99.0"}


def test_forked_processes_are_refused_and_spawned_ones_work_once_the_model_has_run_here(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    short = replace(GREEDY, max_new_tokens=2)
    torch.set_num_threads(2)  # a fork of this process would wait for the second thread
    try:
        sweep([short], tmp_path / "here", progress=False)
    finally:
        torch.set_num_threads(1)
    fork, spawn = map(multiprocessing.get_context, ("fork", "spawn"))
    with (
        ProcessPoolExecutor(1, fork) as executor,
        pytest.raises(ValueError, match=r"a ProcessPoolExecutor that forks; .*mp_context=multiprocessing.get_context\('spawn'\)"),
    ):
        sweep([short], tmp_path / "rows", executor, progress=False)
    assert not (tmp_path / "rows").exists()
    with ProcessPoolExecutor(1, spawn) as executor:
        there = stored(sweep([short], tmp_path / "rows", executor, progress=False), [short])
    same_rows(there[short], stored(Store(tmp_path / "here"), [short])[short])


class AtOnce(Executor):
    """End all tasks together, some of them with an error; the rest in vain."""

    def __init__(self, error):
        self.error, self.futures = error, []

    def submit(self, fn, task):
        self.futures.append(future := Future())
        if len(self.futures) == 2:
            future.set_exception(self.error)
        elif len(self.futures) < 5:
            future.set_result(fake(task))
        return future


@pytest.mark.parametrize("error", [ValueError("no picture"), MemoryError()], ids=repr)
def test_a_task_that_fails_takes_nothing_from_the_others(tmp_path, error):
    executor = AtOnce(error)
    with pytest.raises(type(error)):
        sweep(WANTED[:1], tmp_path, executor, batch_size=1, progress=False)
    assert len(Store(tmp_path).rows(WANTED[0])) == 3
    assert all(future.cancelled() for future in executor.futures[4:])
    assert len(executor.futures) == 7


def test_a_loss_with_the_last_task_counts_its_captions(tmp_path):
    executor = AtOnce(BrokenExecutor("gone"))
    executor.submit = lambda fn, task: lost(executor.error)
    with pytest.raises(RuntimeError, match=r"was lost with 7 captions out \(BrokenExecutor: gone\)"):
        sweep(WANTED[:1], tmp_path, executor, batch_size=7, progress=False)


def lost(error):
    future = Future()
    future.set_exception(error)
    return future


def test_memory_that_runs_out_halves_the_batch(monkeypatch):
    sizes, worked = [], WORKER._worked

    def limited(task):
        sizes.append(len(task.keys))
        if len(task.keys) > 1:
            raise MemoryError
        return worked(task)

    monkeypatch.setattr(WORKER, "_worked", limited)
    wanted = [Experiment(max_new_tokens=3, policy=policy) for policy in (NoPruning(), PruneHal())]
    rows = work(Task(tuple(wanted), tuple(KEYS))).rows
    assert sizes == [3, 1, 2, 1, 1]
    assert [[row["key"] for row in rows[each.key]] for each in wanted] == [KEYS, KEYS]


def test_memory_that_does_not_suffice_for_one_image_is_an_error(monkeypatch):
    monkeypatch.setattr(WORKER, "_worked", lambda task: (_ for _ in ()).throw(MemoryError("one is too many")))
    with pytest.raises(MemoryError, match="one is too many"):
        work(Task((GREEDY,), tuple(KEYS)))


# What is refused, and the command line.


@pytest.mark.parametrize(
    ("wanted", "size", "said"),
    [
        ([], 1, "at least one Experiment"),
        (["a"], 1, r"got \['a'\]"),
        (WANTED, 0, "batch_size=0: expected at least 1"),
        (WANTED, 2.5, r"batch_size=2\.5: expected at least 1, as an integer"),
        (GREEDY, 1, r"got Experiment\(.*; expected a list of Experiment; write sweep\(\[experiment\], store\)"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, wanted, size, said):
    with pytest.raises(ValueError, match=said):
        sweep(wanted, tmp_path / "rows", batch_size=size)
    assert not (tmp_path / "rows").exists()


def test_a_header_that_does_not_say_what_made_its_rows_is_refused(tmp_path):
    store = Store(tmp_path)
    store.path(GREEDY).with_suffix("").write_text('{"key": "", "experiment": {}}\n')
    with pytest.raises(ValueError, match="does not say what made its rows; expected a header; remove the file"):
        store.rows(GREEDY)


def command(*args):
    done = CliRunner().invoke(app, ["sweep", *map(str, args)])
    return done.exit_code, re.sub(r"\s+", " ", done.output)


def test_the_command_line_wants_resume_where_rows_are(monkeypatch, tmp_path):
    counted = Counted()
    monkeypatch.setattr(MODULE, "work", counted)
    grid, other, folder = tmp_path / "a.toml", tmp_path / "b.toml", tmp_path / "rows"
    grid.write_text('[experiment]\nn_images = 3\n[[grid]]\npolicy = {name = "TopK", k = 3}\n"policy.k" = [1, 2]')
    other.write_text("[experiment]\nn_images = 2\n[[grid]]\n")
    assert command(grid, "--store", folder)[0] == 0
    code, said = command(grid, other, "--store", folder)
    assert code == 2
    assert said == (
        f"Error: {folder}: holds rows of 2 of the 3 experiments; expected none; add --resume to make only what is missing, or "
        "name another --store "
    )
    assert len(counted.made) == 6
    assert command(grid, other, "--store", folder, "--resume", "--batch-size", 1)[0] == 0
    assert len(counted.made) == 8
    code, said = command(grid, "--store", folder, "--resume")
    assert (code, said) == (0, f"{folder}: 6 captions of 2 experiments are stored ")  # no bar, for there is nothing to do


def test_the_command_line_counts_each_caption_once(monkeypatch, tmp_path):
    monkeypatch.setattr(MODULE, "work", Counted())
    grid, folder = tmp_path / "grid.toml", tmp_path / "rows"
    grid.write_text("[[grid]]\nn_images = [5, 3]\nseed = [0, 1]\n[[grid]]\nn_images = 4\n")
    code, said = command(grid, "--store", folder)
    assert code == 0
    assert said.endswith(f"{folder}: 10 captions of 2 experiments are stored ")
    code, said = command(grid, "--store", folder)
    assert code == 2
    assert "holds rows of 2 of the 2 experiments; expected none" in said


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("one image is too many")], ids=repr)
def test_the_command_line_names_lack_of_memory_without_a_traceback(monkeypatch, tmp_path, error):
    monkeypatch.setattr(MODULE, "work", Counted(fail_at=1, error=error))
    grid = tmp_path / "grid.toml"
    grid.write_text("[[grid]]\nn_images = 2\n")
    code, said = command(grid, "--store", tmp_path / "rows")
    assert code == 2
    assert "Error: memory does not suffice" in said
    assert str(error) in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("[[grid]\n", [], "is no TOML file"),
        ("[[grid]]\nn_imges = [3]\n", [], "unknown name(s) 'n_imges'; expected some of model"),
        ('[[grid]]\npolicy = {name = "PruneHall"}\n', [], "policy name='PruneHall': expected one of 'NoPruning'"),
        ("[[grid]]\n", ["--gpus"], "--gpus: speaks of workers of a cluster"),
        ("[[grid]]\n", ["--batch-size", "0"], "batch_size=0: expected at least 1"),
        ('[[grid]]\npolicy = {name = ["PruneHal"]}\n', [], "policy name=['PruneHal']: expected one of 'NoPruning'"),
        (None, [], "grid.toml cannot be read (No such file or directory); expected"),
        ("[[grid]]\nseed = 1\nseed = 2\n", [], "grid.toml: is no TOML file (Cannot overwrite a value (at line 3, column 9))"),
        (
            "[experiment]\n[experiment]\n[[grid]]\n",
            [],
            "grid.toml: is no TOML file (Cannot declare ('experiment',) twice (at line 2",
        ),
        ("a = " + "[" * 9999, [], "grid.toml: is no TOML file ("),
        ("[[grid]]\nn_images = 1000000000000\n", [], "n_images=1000000000000: expected 1 to 1,000,000 scenes of the testbed"),
        ("[[grid]]\ntiles = 1000000000000\n", [], "tiles=1000000000000: expected an integer from 0 to 1,000"),
        (
            "[[grid]]\nmax_new_tokens = 1000000000000\n",
            [],
            "max_new_tokens=1000000000000: expected an integer from 1 to 1,000,000",
        ),
    ],
)
def test_the_command_line_names_what_is_wrong(tmp_path, text, options, said):
    grid = tmp_path / "grid.toml"
    if text is not None:
        grid.write_text(text)
    code, output = command(grid, "--store", tmp_path / "rows", *options)
    assert code == 2
    assert output.startswith("Error: ")
    assert said in output
    assert "Traceback" not in output
    assert {path.name for path in tmp_path.iterdir()} <= {"grid.toml"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_grid_is_read_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "grid.toml").write_bytes('[[grid]]\nprompt = "Où ?"\n'.encode(encoding))
    assert [experiment.prompt for experiment in read_grid(tmp_path / "grid.toml")] == ["Où ?"]


def test_a_grid_of_another_encoding_is_named(tmp_path):
    (tmp_path / "grid.toml").write_bytes('[[grid]]\nprompt = "Où ?"\n'.encode("latin-1"))
    with pytest.raises(BadInput, match=r"(?s)grid\.toml: 1 problem.*line 2: no UTF-8"):
        read_grid(tmp_path / "grid.toml")


def test_files_of_other_formats_are_counted(tmp_path, monkeypatch, capsys):
    for name in ("42.png", "2.webp", "3.WEBP", "notes.txt", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "42.png")
    monkeypatch.setattr(MODULE, "work", Counted(fail_at=1, error=RuntimeError("worker")))
    with pytest.raises(RuntimeError, match="worker"):
        sweep([Experiment(images=tmp_path, split="mine", n_images=1)], tmp_path / "rows", progress=False)
    assert f"{tmp_path}: files of other formats are left out: 1 .txt, 2 .webp; expected" in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()


def test_images_that_the_truth_lacks_are_refused_before_the_model_is_asked_for(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("42.png", "300000001.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    asked = []
    monkeypatch.setattr(MODULE, "made_by", asked.append)
    monkeypatch.setattr(MODULE, "work", asked.append)
    wanted = [Experiment(images=folder, split="mine", n_images=n) for n in (2, 1)]
    with pytest.raises(ValueError, match=r"COCO's truth lacks 1 of the images, 300000001; expected images of COCO"):
        sweep(wanted, tmp_path / "rows", progress=False)
    assert (asked, (tmp_path / "rows").exists()) == ([], False)


# The size of a grid.


def test_a_product_is_counted_before_it_is_made(monkeypatch):
    base, axes = Experiment(policy=PruneHal()), {"policy.r": [0.4, 0.7, 0.9], "policy.t": [1, 2, 3], "seed": [0, 1]}
    made, with_options = [], Experiment.with_options
    monkeypatch.setattr(Experiment, "with_options", lambda self, options: made.append(options) or with_options(self, options))
    huge = {name: range(3000) for name in ("policy.r", "policy.t", "seed")}
    for product, options, said in (
        (huge, {}, r"the product has 27,000,000,000 points; expected at most 1,000,000; draw some by sample"),
        (
            huge,
            {"sample": 1_000_001},
            r"sample=1000001: expected a number in 1\.\.1000000; the product has 27,000,000,000 points",
        ),
        (axes, {"sample": 19}, r"sample=19: expected a number in 1\.\.18; the product has 18 points"),
        ({str(i): range(2) for i in range(63)}, {"sample": 1}, r"the product has about 1e18 points; expected at most 2\*\*62"),
        (axes, {"seed": -1, "sample": 2}, "seed=-1: expected an integer of at least 0"),
    ):
        with pytest.raises(ValueError, match=said):
            grid(base, product, **options)
    assert made == []
    assert len(grid(base, axes)) == 18
    assert len(set(grid(base, axes, sample=17, seed=3))) == 17
    monkeypatch.setattr("prunehal.experiments.grids.MOST_POINTS", 17)
    with pytest.raises(ValueError, match="the product has 18 points; expected at most 17"):
        grid(base, axes)


def test_a_few_points_of_a_huge_product_are_drawn(monkeypatch):
    monkeypatch.setattr(Experiment, "with_options", lambda self, options: tuple(options.values()))
    axes = {name: range(3000) for name in "abc"}
    drawn = grid(Experiment(), axes, sample=50, seed=1)
    assert len(set(drawn)) == 50
    assert drawn == grid(Experiment(), axes, sample=50, seed=1) != grid(Experiment(), axes, sample=50, seed=2)
    assert len({a for a, _, _ in drawn}) > 40


@pytest.mark.parametrize("seed", ["-1", '"x"', "1.5", "true"])
def test_a_seed_of_a_sample_that_cannot_be_is_named(tmp_path, seed):
    path = tmp_path / "grid.toml"
    path.write_text(f'[[grid]]\npolicy = {{name = "PruneHal"}}\n"policy.r" = [0.4, 0.7]\nsample = 1\nsample_seed = {seed}\n')
    with pytest.raises(
        ValueError, match=rf"\[\[grid\]\] number 1: sample_seed={seed.replace(chr(34), '.').capitalize()}: expected an"
    ):
        read_grid(path)
