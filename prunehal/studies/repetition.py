"""What repetition hides: the controls of the paper, counted by mentions and by distinct objects.

CHAIR_i counts mentions, so a caption that repeats a true sentence has a lower one. Pruned captions repeat themselves, so CHAIR_i
orders the controls differently from distinct CHAIR_i.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from prunehal.core import PruneHal
from prunehal.experiments import Experiment, Store, changes
from prunehal.experiments.compare import LEVELS, N_RESAMPLES
from prunehal.experiments.readable import between, head_of_table, levels
from prunehal.studies.nb03_thresholds.compare import SELECTIONS

__all__ = ["SETTINGS", "as_table", "repetition", "settings"]

SETTINGS = ((0.4, 1), (0.4, 3))  # r and t


def settings(base: Experiment) -> dict[str, Experiment]:
    """Return no pruning, and each selection at each r and t of SETTINGS, by name.

    >>> list(settings(Experiment(split="test")))[:3]
    ['no pruning', 'r = 0.4, t = 1, top', 'r = 0.4, t = 1, random']
    """
    pruned = {
        f"r = {r}, t = {t}, {selection}": replace(base, policy=PruneHal(r=r, t=t, selection=selection))
        for r, t in SETTINGS
        for selection in SELECTIONS
    }
    return {"no pruning": base} | pruned


def repetition(store: Store, base: Experiment | None = None, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return the controls of the paper beside each other: what they score by mentions, and by distinct objects.

    Args:
        store: holds the rows.
        base: without pruning; by default 400 scenes of the test split.
        n_resamples: of the bootstrap over images.

    Returns:
        Indexed by the names of :func:`settings`: the columns of `prunehal.experiments.changes`.

    Raises:
        FileNotFoundError: rows are missing.

    >>> table = repetition(Store.shipped(), n_resamples=100)
    >>> table.loc["r = 0.4, t = 3, lowest", ["chair_i", "distinct_chair_i", "repeats"]].round(1).tolist()
    [21.4, 33.6, 42.7]
    """
    named = settings(Experiment(split="test") if base is None else base)
    table = changes(store, list(named.values()), named["no pruning"], n_resamples=n_resamples)
    return table.set_index(pd.Index(named, name="setting"))


def as_table(table: pd.DataFrame) -> str:
    """Return what :func:`repetition` returned as Markdown: the columns of LEVELS, and the changes of both CHAIR_i.

    >>> as_table(repetition(Store.shipped(), n_resamples=100)).splitlines()[2].split(" | ")[:3]
    ['| no pruning', '15.7', '16.3']
    """
    both = ("chair_i", "distinct_chair_i")
    head = ["setting", *LEVELS.values(), *(f"change of {LEVELS[metric]}" for metric in both)]
    lines = head_of_table(head)
    for number, (name, line) in enumerate(table.iterrows()):
        changed = [between(line, f"d_{metric}") if number else "" for metric in both]
        lines.append(f"| {' | '.join([str(name), *levels(line), *changed])} |")
    return "\n".join(lines)
