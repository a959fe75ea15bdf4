"""Plant bugs in the engine, one at a time, and see which test catches each: ``python tests/mutants.py --write`` (make mutants).

Every mutant runs in a copy of the package, against the engine's tests, until the first one fails. A mutant that survives
is a hole in the tests, and the exit code is 1. With --write the table of what caught which goes to tests/MUTANTS.md.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

__all__ = ["MUTANTS", "TABLE", "Mutant"]

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "MUTANTS.md"
TESTS = (
    "policy",
    "attention",
    "cache",
    "generate",
    "images",
    "families",
    "family_search",
    "pruning",
    "same_inputs",
    "acting",
    "wrapped_models",
    "bad_input",
    "sync",
    "bank",
)


@dataclass(frozen=True)
class Mutant:
    """Name a bug, and say what to write in place of what in a file of prunehal/core."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "stale positions after a prune",
        "table.py",
        "self.positions = positions.masked_fill(~alive, -1).gather(3, order)",
        "self.positions = positions[..., : order.shape[-1]]",
    ),
    Mutant("no valid mask: filling counts as attention", "forward.py", "rows.masked_fill(~valid, 0.0)", "rows"),
    Mutant(
        "one layer's indices everywhere",
        "cache.py",
        "zip(self._pruned, slots, strict=True)",
        "zip(self._pruned, slots[:1] * len(slots), strict=True)",
    ),
    Mutant("reorder before the pending prune", "cache.py", "        self._settle(read[len(rows) :])\n", ""),
    Mutant(
        "history not reordered",
        "memory.py",
        "self._reference, self._entered = self._reference.index_select(1, index), self._entered.index_select(0, index)",
        "pass",
    ),
    Mutant("scores not reordered", "memory.py", "self._scores = self._scores.index_select(1, index)", "pass"),
    Mutant(
        "off by one: forced prune at m = 3", "prunehal.py", "self.forced_first and step == 2", "self.forced_first and step == 3"
    ),
    Mutant(
        "a step's value enters the reference before its own vote",
        "memory.py",
        "vote = policy.judge(seen, self._reference, self._entered)",
        "vote = policy.judge(seen, *policy.learn(seen, self._reference, self._entered))",
    ),
    Mutant("forgotten scaling", "attention.py", " * (dim**-0.5 if scaling is None else scaling)", ""),
    Mutant(
        "wrong head grouping",
        "attention.py",
        "grouped = query.reshape(batch, kv_heads, heads // kv_heads, dim)",
        "grouped = query.reshape(batch, heads // kv_heads, kv_heads, dim).transpose(1, 2)",
    ),
    Mutant(
        "sinks left out of the softmax",
        "attention.py",
        "    if s_aux is not None:\n        sinks",
        "    if False:\n        sinks",
    ),
    Mutant("physical instead of logical length", "blocks.py", "        return self.seen\n", "        return self.length\n"),
    Mutant(
        "V does not follow its beam",
        "blocks.py",
        "for stored in (self._keys, self._values):\n            part",
        "for stored in (self._keys,):\n            part",
    ),
    Mutant(
        "beams share a pruned prompt",
        "cache.py",
        "first = len(self._prompt) if within and self.table.positions is None else 0",
        "first = len(self._prompt) - 10 if within else 0",
    ),
    Mutant(
        "mask not gathered by slot",
        "layer.py",
        "where = stored >= 0, stored.clamp_min(0)",
        "where = stored >= 0, torch.arange(stored.shape[-1]).expand_as(stored)",
    ),
    Mutant(
        "dead slots stay visible",
        "layer.py",
        "        if table.has_dead:\n            hidden",
        "        if False:\n            hidden",
    ),
    Mutant(
        "ended rows go on voting",
        "forward.py",
        "self._pending = (self.step, wishes & live)",
        "self._pending = (self.step, wishes)",
    ),
    Mutant("memory is not freed", "layer.py", "picked(stored, slots), self.length", "picked(stored, slots), stored.shape[2]"),
    Mutant(
        "the last chunk of a prompt taken for a step",
        "forward.py",
        "self._observing = seen + key.shape[2] >= len(self._prompt)",
        "self._observing = key.shape[2] == 1 or not seen",
    ),
    Mutant(
        "a layer that borrows K votes too",
        "forward.py",
        "        if self._awaited is not layer:\n            return",
        "        if False:\n            return",
    ),
    Mutant("index of a layer taken for its place among the pruned", "cache.py", "place=len(self._pruned)", "place=index"),
    Mutant(
        "half is a majority",
        "prunehal.py",
        "math.floor(self.majority * layers + ROUNDING_GUARD) + 1",
        "math.ceil(self.majority * layers)",
    ),
    Mutant(
        "images of one row take each other's place",
        "table.py",
        "weights = weights.repeat_interleave(self.pools, dim=1)",
        "weights = weights.repeat(1, self.pools, 1, 1)",
    ),
    Mutant(
        "prune count not reordered",
        "memory.py",
        "self.prunes, self._keys = [self.prunes[pool] for pool in pools], [",
        "self.prunes, self._keys = self.prunes, [",
    ),
    Mutant(
        "number of tokens from before the prune",
        "table.py",
        "self.left, self.counts = [list(of_layer) for of_layer in left], sent(left, keep.device)",
        "self.left = [list(of_layer) for of_layer in left]",
    ),
    Mutant(
        "the largest weight of all heads in place of the mean of each head's largest",
        "trace.py",
        "rows.amax(-1).mean(-1)",
        "rows.amax(-1).amax(-1)",
    ),
    Mutant(
        "a later prompt may start at the last position",
        "forward.py",
        "if bool((start <= end).all()):",
        "if bool((start < end).all()):",
    ),
    Mutant("another image goes unnoticed", "prompt.py", "int(same) != 1 + (same_images is not None)", "int(same) < 1"),
    Mutant(
        "tokens of a later turn's history are not compared",
        "forward.py",
        "whole if whole.shape[1] == seen else known",
        "known",
    ),
    Mutant("attention that is no number goes unnoticed", "forward.py", "(present & ~summary[0].isfinite())", "(present & False)"),
    Mutant("a part of a method that never acted is no error", "acting.py", "if idle := self.idle():", "if idle := []:"),
    Mutant(
        "hooks stand on the wrapper of a model",
        "wrapped.py",
        "            model = model.get_base_model()\n",
        "            return model\n",
    ),
    Mutant("banked tokens do not follow their beam", "banking.py", "vault.reorder(rows)", "pass"),
    Mutant("a layer that stores less is read at the others' slots", "bank_table.py", "(1, filling - self._front)", "(1, 0)"),
]


def caught_by(mutant: Mutant, tests: list[Path]) -> str | None:
    """Return the first test that fails on the mutant; None if it survives."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("prunehal", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("data", "pyproject.toml", "README.md"):
            (copy / part).symlink_to(ROOT / part)
        path = copy / "prunehal" / "core" / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise ValueError(
                f"{mutant.name}: {mutant.old!r} occurs {text.count(mutant.old)} times in {mutant.file}; expected once"
            )
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", *map(str, tests)]
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+?::\w+)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return failed[1]
    if done.returncode == 0:
        return None
    raise RuntimeError(f"{mutant.name}: the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def read() -> dict[str, str]:
    """Return the committed table: which test caught which planted bug."""
    text = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
    return dict(re.findall(r"^\| (.+?) \| \w+\.py \| (.+?) \|$", text, re.MULTILINE))


def write(found: dict[str, str | None]) -> None:
    """Put what was found into the table; bugs that were not planted this time keep their line."""
    known = read() | {name: test or "**survived**" for name, test in found.items()}
    lines = [
        "# Planted bugs, and the test that caught each",
        "",
        "Written by `make mutants`. Each bug was planted alone; the engine's tests ran until the first one failed.",
        "",
        "| planted bug | in prunehal/core | caught by |",
        "|---|---|---|",
        *(f"| {mutant.name} | {mutant.file} | {known[mutant.name]} |" for mutant in MUTANTS if mutant.name in known),
    ]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Run the mutants, print the table, and say by the exit code whether all were caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table to tests/MUTANTS.md")
    parser.add_argument("--only", default="", help="run the mutants whose name holds this text")
    options = parser.parse_args()
    tests = [path for name in TESTS if (path := Path("tests") / f"test_{name}.py") and (ROOT / path).exists()]
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    rows = []
    for mutant in (bar := tqdm(chosen, desc="mutants")):
        bar.set_postfix_str(mutant.name)
        rows.append((mutant, caught_by(mutant, tests)))
        tqdm.write(f"{mutant.name}: {rows[-1][1] or 'SURVIVED'}")
    if options.write:
        write({mutant.name: test for mutant, test in rows})
    return int(any(test is None for _, test in rows))


if __name__ == "__main__":
    sys.exit(main())
