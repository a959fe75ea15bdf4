"""The script that kills sweeps, runs and trainings: a short one finds no fault, and what it looks at finds planted ones."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import chaos
import pytest

ROOT = Path(__file__).parents[1]


def test_a_killed_run_goes_on_to_the_same_end():
    """One kill at an operation on a file, one at a moment, one of either."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/chaos.py", "--kills", "3", "--only", "run"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills, 0 faults; seed 0" in done.stdout


def test_rows_that_are_torn_or_doubled_are_faults(tmp_path):
    path = tmp_path / "out/rows.jsonl"
    path.parent.mkdir()
    path.write_text('{"key": 1}\n{"key": 2}\n{"key": 3, "te')  # a torn last line is cut off by the next start
    assert chaos.torn(tmp_path) == []
    path.write_text('{"key": 1}\n{"key"\n{"key": 1}\n')
    assert chaos.torn(tmp_path) == ["rows.jsonl, line 2: b'{\"key\"'", "rows.jsonl: key 1 2 times"]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"a": [1, (0.5, "x")]}, {"a": [1, (0.50009, "x")]}, True),
        ({"a": [0.5]}, {"a": [0.5003]}, False),
        ({"a": [1]}, {"a": [2]}, False),
        ({"a": [1]}, {"a": [1, 1]}, False),
        ({"a": 1}, {"b": 1}, False),
        (b"whole", b"half", False),
    ],
)
def test_ends_are_compared_in_all_they_hold(one, other, equal):
    assert chaos.same(one, other) is equal


class Planted(chaos.Chaos):
    """Episodes of a work that only writes files, by fakes of the processes: what each start does is given."""

    def __init__(self, root, starts):
        self.name, self.work, self.root, self.dice = "run", chaos.Work(None, None, lambda folder: "end"), root, random.Random(0)
        self.faults, self.met, self.number = [], chaos.Counter(), 0
        self.seconds, self.events, self.whole, self.starts = 0.0, 3, "end", iter(starts)

    def start(self, folder, kill_at=0):
        self.number += 1
        (self.root / f"note{self.number}.log").write_text("")
        return Ended(next(self.starts)), self.root / f"note{self.number}"


class Ended:
    def __init__(self, code):
        self.exitcode = code

    def join(self, seconds=None):
        pass

    def kill(self):
        pass


class Bar:
    def update(self, number):
        pass


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ([-signal.SIGKILL, chaos.DONE], []),
        ([-signal.SIGKILL, chaos.BLOCKED], ["run: episode1: after 1 kills the last start ended with 3: "]),
        ([-signal.SIGKILL, chaos.FAILED], ["run: episode1: after 1 kills the last start ended with 4: "]),
        ([chaos.FAILED, chaos.DONE], ["run: episode1: a start ended with 4: "]),
        ([chaos.BLOCKED, chaos.DONE], ["run: episode1: a start ended with 3: "]),
    ],
)
def test_a_start_that_fails_or_is_blocked_is_a_fault(tmp_path, starts, said, monkeypatch):
    monkeypatch.setattr(random.Random, "choice", lambda self, values: "alone")
    planted = Planted(tmp_path, starts)
    planted.episode(1, 1, Bar())
    assert planted.faults == said


def test_an_end_that_differs_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(random.Random, "choice", lambda self, values: "alone")
    planted = Planted(tmp_path, [-signal.SIGKILL, chaos.DONE])
    planted.whole = "another end"
    planted.episode(1, 1, Bar())
    assert planted.faults == ["run: episode1: after 1 kills the end differs from the one that nothing killed"]


def test_the_end_of_a_run_is_all_of_its_rows_but_their_seconds(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/rows.jsonl").write_text('{"key": 2, "seconds": 1}\n{"key": 1, "seconds": 2}\n')
    (tmp_path / "out/settings.json").write_text(json.dumps({"settings": {"seed": 0}, "free": {"batch_size": 1}}))
    (tmp_path / "out/captions.jsonl").write_text("text")
    (tmp_path / "out/run.lock").write_text("")
    names = ["captions.jsonl", "rows.jsonl", "settings.json"]
    assert chaos.of_run(tmp_path) == ([{"key": 1}, {"key": 2}], {"seed": 0}, "text", names)
    assert os.listdir(tmp_path) == ["out"]
