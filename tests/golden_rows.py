"""Golden rows: a few tokens of every way of decoding and every kind of policy, as the code of one number makes them.

python tests/golden_rows.py --write      # after raising CODE in prunehal/experiments/versions.py
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from prunehal.core import NoPruning, PruneHal, TopK
from prunehal.decoding.named import NAMES
from prunehal.experiments import Experiment, sweep
from prunehal.experiments.versions import CODE

__all__ = ["EXPERIMENTS", "PATH", "made"]

PATH = Path(__file__).with_suffix(".json")
SHORT = Experiment(n_images=1, max_new_tokens=28)
MANY = PruneHal(r=0.9, t=9)
POLICIES = {
    "none": NoPruning(),
    "topk": TopK(20),
    "default": PruneHal(),
    "many": MANY,
    "factor": replace(MANY, factor=0.6, majority=0.25, forced_first=False),
    "sum": replace(MANY, statistic="sum", rounding="ceil"),
    "decode": replace(MANY, first="decode", reference="first"),
    "exponential": replace(MANY, reference="exponential", decay=0.5, after_prune="restart"),
    "previous": replace(MANY, reference="previous", majority=1.0),
    "random": PruneHal(r=0.7, selection="random", seed=3),
    "lowest": PruneHal(r=0.7, selection="lowest"),
    "shared": PruneHal(r=0.7, kept="shared"),
    "head": PruneHal(r=0.7, kept="head"),
}
EXPERIMENTS = {f"greedy, {name}": replace(SHORT, policy=policy) for name, policy in POLICIES.items()}
EXPERIMENTS |= {f"{name}, default": replace(SHORT, decoding=name, policy=PruneHal()) for name in NAMES if name != "greedy"}
EXPERIMENTS |= {
    "beam, shared state": replace(SHORT, decoding="beam", policy=PruneHal(beam_state="shared")),
    "tiles": replace(SHORT, tiles=1, clutter=True, policy=PruneHal()),
    "prompt": replace(SHORT, split="test", prompt="What is here?", policy=PruneHal()),
}


def made():
    """Return the rows as this code makes them, ``{name: row}``."""
    with tempfile.TemporaryDirectory() as folder:
        store = sweep(EXPERIMENTS.values(), folder, progress=False)
        return {name: next(iter(store.rows(each).values())) for name, each in EXPERIMENTS.items()}


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in made().items()]
    PATH.write_text(f'{{"code": {CODE}, "rows": {{\n' + ",\n".join(lines) + "\n}}\n")
