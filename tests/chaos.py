"""Kill sweeps, runs and trainings at random, go on with them, and compare the end with one that was not killed.

    python tests/chaos.py --kills 30 --seed 0

Half of the kills come at a random moment, half at a random operation on a file of the folder (open, rename, remove, truncate,
make or remove a folder), so that each gap between two operations is met. Beside some of the processes a second one starts in
the same folder, or one that reads it. Faults: a row that is lost, doubled or torn; a result that differs; a start that a folder
or lock of a killed process blocks; a reader that fails; a second writer that is let in. The exit code is 1 after a fault.
"""

import argparse
import dataclasses
import gzip
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

__all__ = ["WORKS", "chaos", "torn"]

EVENTS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir")
DONE, BLOCKED, FAILED, KILLED = 0, 3, 4, -signal.SIGKILL
N_IMAGES = 4


# What is done, in processes of its own.


def do_sweep(folder):
    from prunehal.core import PruneHal
    from prunehal.experiments import Experiment, sweep

    few = {"n_images": N_IMAGES, "max_new_tokens": 6}
    wanted = [Experiment(**few), Experiment(policy=PruneHal(), **few), Experiment(decoding="nucleus", seed=1, **few)]
    sweep(wanted, folder / "out", batch_size=1, progress=False)


def do_run(folder):
    from prunehal.core import PruneHal
    from prunehal.running import Run, run
    from prunehal.testbed.world.scenes import scene

    (folder / "images").mkdir(exist_ok=True)
    for index in range(N_IMAGES):
        scene("test", index).image().save(folder / f"images/{index + 1}.png")
    settings = {"model": "embedded", "benchmark": "chair", "images": folder / "images", "policy": PruneHal(), "device": "cpu"}
    run(Run(out=folder / "out", max_new_tokens=6, batch_size=1, progress=False, **settings))


def do_train(folder):
    from test_training import tiny

    from prunehal.testbed.training import loop as training
    from prunehal.testbed.training import train

    make_stages = train.make_stages

    def short(*arguments):
        stages = make_stages(*arguments)
        return [dataclasses.replace(s, data=dataclasses.replace(s.data, count=8), batch_size=2) for s in stages]

    training._SAVE_EVERY, training._LOG_EVERY, train.make_stages, train.build_model = 2, 2, short, tiny
    train.train(folder / "out", scale=1e-5, device="cpu", workers=1)


def read_sweep(folder):
    from prunehal.experiments.stored_rows import read_stored

    for path in (folder / "out").glob("*.jsonl*"):
        if not path.name.endswith(".part"):
            read_stored(path)


def read_run(folder):
    from prunehal.running.finished import finished

    if (folder / "out/rows.jsonl").exists():
        finished(folder / "out", partial=True)


def read_train(folder):
    for path in (folder / "out").glob("*.json"):
        json.loads(path.read_text())


# What must be equal at the end.


def of_sweep(folder):
    found = {}
    for path in sorted((folder / "out").glob("*.jsonl.gz")):
        header, *rows = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
        found[path.name] = header, rows
    return found, sorted(path.name for path in (folder / "out").iterdir() if not path.name.startswith("run."))


def of_run(folder):
    rows = [json.loads(line) for line in (folder / "out/rows.jsonl").read_text().splitlines()]
    rows = sorted(({name: value for name, value in row.items() if name != "seconds"} for row in rows), key=lambda row: row["key"])
    settings = json.loads((folder / "out/settings.json").read_text())["settings"]
    names = sorted(path.name for path in (folder / "out").iterdir() if not path.name.startswith("run."))
    return rows, settings, (folder / "out/captions.jsonl").read_text(), names


def of_train(folder):
    import torch

    found: dict[str, object] = {}
    for path in sorted((folder / "out").rglob("*")):
        name = str(path.relative_to(folder / "out"))
        if path.suffix == ".pt":
            saved = torch.load(path, weights_only=True)
            weights = [{key: value.tolist() for key, value in module.items()} for module in saved["modules"]]
            found[name] = saved["step"], saved["curve"], weights
        elif path.is_file() and not name.startswith("run."):
            found[name] = path.read_bytes()
    return found


@dataclasses.dataclass(frozen=True)
class Work:
    """A process that writes a folder, how the folder is read meanwhile, and what must be equal at its end."""

    do: Callable[[Path], None]
    read: Callable[[Path], None]
    end: Callable[[Path], object]


WORKS = {
    "sweep": Work(do_sweep, read_sweep, of_sweep),
    "run": Work(do_run, read_run, of_run),
    "train": Work(do_train, read_train, of_train),
}


# Processes.


def child(name, folder, kill_at, note):
    """Do the work, kill this process at the given operation on a file of the folder, and note the number of operations."""
    import torch

    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(f"{note}.log", "w")  # noqa: SIM115
    counted, started = 0, time.monotonic()

    def count(event, arguments):
        nonlocal counted
        if event in EVENTS and any(str(argument).startswith(str(folder)) for argument in arguments[:2]):
            counted += 1
            if counted == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        WORKS[name].do(folder)
    except BlockingIOError:
        os._exit(BLOCKED)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(FAILED)
    note.write_text(json.dumps([counted, time.monotonic() - started]))
    os._exit(DONE)


def reader(name, folder, note):
    """Read the folder again and again until the process is killed; end with FAILED when that fails."""
    sys.stdout = sys.stderr = open(f"{note}.log", "w")  # noqa: SIM115
    while True:
        try:
            WORKS[name].read(folder)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(FAILED)


class Chaos:
    """A sequence of kills of one work, each episode in a folder of its own."""

    def __init__(self, name, root, dice):
        self.name, self.work, self.root, self.dice = name, WORKS[name], root, dice
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["torch", "transformers", "prunehal.experiments", "prunehal.running", "test_training"]
        )
        self.faults, self.met = [], Counter()
        self.number = 0
        code, note = self.ended(self.start(self.folder("whole")))
        if code != DONE:
            raise RuntimeError(f"{name}: the run that nothing kills ended with {code}: {self.log(note)}")
        self.events, self.seconds = json.loads(note.read_text())
        self.whole = self.work.end(self.root / "whole")

    def folder(self, name):
        (self.root / name).mkdir()
        return self.root / name

    def start(self, folder, kill_at=0):
        self.number += 1
        note = self.root / f"note{self.number}"
        process = self.context.Process(target=child, args=(self.name, folder, kill_at, note))
        process.start()
        return process, note

    def ended(self, started):
        process, note = started
        process.join(240)
        if process.exitcode is None:
            process.kill()
            process.join()
            self.fault(f"did not end in 240 s: {self.log(note)}")
        return process.exitcode, note

    def fault(self, what):
        self.faults.append(f"{self.name}: {what}")

    @staticmethod
    def log(note):
        return " | ".join(Path(f"{note}.log").read_text().splitlines()[-3:])

    def episode(self, number, kills, bar):
        """Kill a work up to so many times, let it go on to its end, and compare; return how often it was killed."""
        folder, killed = self.folder(f"episode{number}"), 0
        while killed < kills:
            company = self.dice.choice(["alone", "alone", "rival", "reader"])
            at_event = self.dice.random() < 0.5
            kill_at = self.dice.randint(1, self.events) if at_event else 0
            first = self.start(folder, kill_at)
            watcher = rival = None
            if company == "reader":
                note = self.root / f"reader{self.number}"
                watcher = self.context.Process(target=reader, args=(self.name, folder, note)), note
                watcher[0].start()
            elif company == "rival":
                time.sleep(self.dice.uniform(0, self.seconds / 2))
                rival = self.start(folder)
            if not at_event:
                first[0].join(self.dice.uniform(0, self.seconds))
                first[0].kill()
            code, note = self.ended(first)
            self.met[f"{company}, {'at an operation' if at_event else 'at a moment'}"] += code == KILLED
            if code == FAILED or (code == BLOCKED and rival is None):
                self.fault(f"{folder.name}: a start ended with {code}: {self.log(note)}")
            if rival is not None:
                rival_code, note = self.ended(rival)
                if rival_code not in (DONE, BLOCKED):
                    self.fault(f"{folder.name}: a second process ended with {rival_code}: {self.log(note)}")
            if watcher is not None:
                if not watcher[0].is_alive():
                    self.fault(f"{folder.name}: a reader failed: {self.log(watcher[1])}")
                watcher[0].kill()
                watcher[0].join()
            self.faults += [f"{self.name}: {folder.name}: {problem}" for problem in torn(folder)]
            if code != KILLED:
                break  # it ended before its time came
            killed += 1
            bar.update(1)
        code, note = self.ended(self.start(folder))
        if code != DONE:
            self.fault(f"{folder.name}: after {killed} kills the last start ended with {code}: {self.log(note)}")
        elif not same(self.work.end(folder), self.whole):
            self.fault(f"{folder.name}: after {killed} kills the end differs from the one that nothing killed")
        return killed


def torn(folder):
    """Return what is wrong with the rows of a folder: a whole line that is no row, a key that a file has twice."""
    problems = []
    for path in folder.rglob("*.jsonl"):
        keys = Counter()
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                keys[str(json.loads(line).get("key", json.loads(line).get("image_id")))] += 1
            except ValueError:
                problems.append(f"{path.name}, line {number}: {line[:40]!r}")
        problems += [f"{path.name}: key {key} {times} times" for key, times in keys.items() if times > 1]
    return problems


def same(one, other):
    """Return whether two ends are equal, numbers up to the rounding of four decimals."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1.01e-4
    return one == other


def chaos(kills, seed, names=tuple(WORKS)):
    """Kill each work its share of the kills, and return the faults and how the processes were met."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(Path(__file__).parent))
    faults, met = [], Counter()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=kills, unit="kill", desc="chaos", smoothing=0.1) as bar:
        for place, name in enumerate(names):
            share = kills // len(names) + (place < kills % len(names))
            if not share:
                continue
            dice = random.Random(f"{seed} {name}")
            (Path(folder) / name).mkdir()
            work = Chaos(name, Path(folder) / name, dice)
            bar.set_postfix_str(f"{name}, {work.seconds:.1f} s and {work.events} operations when it is not killed")
            number = 0
            while share > 0:
                number += 1
                share -= work.episode(number, min(share, dice.randint(1, 4)), bar)
            faults += work.faults
            met.update({f"{name}, {how}": times for how, times in work.met.items()})
    return faults, met


def main():
    """Read the options, kill, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=45, help="in all; 45 by default")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; the same seed draws the same")
    parser.add_argument("--only", choices=[*WORKS], action="append", help="one work; several are possible")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error(f"--kills {options.kills}: expected at least 1")
    faults, met = chaos(options.kills, options.seed, tuple(options.only or WORKS))
    for how, times in sorted(met.items()):
        print(f"{times:4d}  {how}")
    print(f"{sum(met.values())} kills, {len(faults)} faults; seed {options.seed}")
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
