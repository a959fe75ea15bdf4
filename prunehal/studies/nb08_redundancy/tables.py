"""Tables of notebook 08 beyond `prunehal.studies.nb08_redundancy.rules.levels` and ``responses``, and its answer in words.

All of them are over cells, (background tiles, cluttered), and rules, name -> setting, as
`prunehal.studies.nb08_redundancy.rules.all_rules` returns them. Changes are in percent points with paired 95% intervals over
scenes; corrections are within one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from prunehal.experiments import Experiment, Store, changes
from prunehal.experiments.choosing import Chosen
from prunehal.experiments.compare import LEVELS, METRICS, N_RESAMPLES, PRIMARY
from prunehal.experiments.readable import between
from prunehal.stats.intervals import paired_bootstrap
from prunehal.stats.power import images_needed
from prunehal.stats.testing import holm
from prunehal.studies.nb08_redundancy.rules import (
    CELLS,
    ORACLE,
    PUBLISHED,
    controls,
    recall_by_patches,
    share_of_gain,
)
from prunehal.studies.settings import Setting
from prunehal.testbed.world.captions import BRIEF

__all__ = [
    "NONE",
    "THREE",
    "against_random",
    "answer",
    "by_cell",
    "by_patches",
    "cell_name",
    "lengths",
    "needed",
    "scores",
    "shares",
    "spelled",
    "verdicts",
]

NONE, STANDOUT = "no pruning", "standout tokens"
THREE = ((3, False), (3, True))  # the cells in which settings were chosen, on other scenes
FORMS = {"brief": {"prompt": BRIEF}, "usual": {}, "100 tokens": {"min_new_tokens": 100}, "140 tokens": {"min_new_tokens": 140}}


def cell_name(tiles: int, clutter: bool) -> str:
    """Return a cell in words.

    >>> cell_name(1, True), cell_name(3, False), cell_name(0, False)
    ('1 cluttered tile', '3 clean tiles', 'the scene alone')
    """
    return f"{tiles} {'cluttered' if clutter else 'clean'} tile{'s' if tiles > 1 else ''}" if tiles else "the scene alone"


def scores(
    store: Store, base: Experiment, rules: Mapping[str, Setting], cells: Iterable[tuple[int, bool]] = THREE
) -> pd.DataFrame:
    """Return the scores without pruning and with every rule.

    Args:
        store: holds the rows of all.
        base: split, number of images, model.
        rules: name -> rule.
        cells: (tiles, cluttered) of each.

    Returns:
        Indexed by cell and rule; the columns are the labels of `prunehal.experiments.compare.LEVELS`, in percent but for absent
        objects and words.

    Raises:
        FileNotFoundError: rows are missing.

    >>> scores(Store.shipped(), Experiment(split="test", n_images=50), {}).round(1)["recall"].index[0]
    ('3 clean tiles', 'no pruning')
    """
    lines = {}
    for tiles, clutter in cells:
        cell = replace(base, tiles=tiles, clutter=clutter)
        for name, experiment in {NONE: cell, **{name: rule.on(cell) for name, rule in rules.items()}}.items():
            metrics = store.score(experiment).metrics
            lines[cell_name(tiles, clutter), name] = {label: METRICS[key] * metrics[key] for key, label in LEVELS.items()}
    return pd.DataFrame.from_dict(lines, orient="index")


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Return whether each rule changes distinct CHAIR_i and recall in each cell, corrected (Holm) within this table.

    Args:
        table: what `prunehal.studies.nb08_redundancy.rules.responses` returned.

    Returns:
        Indexed by metric and rule, a column for each cell: "lower", "higher" or "unclear".
    """
    long = pd.concat([table.assign(metric=metric, p=table[f"p_{metric}"], d=table[f"d_{metric}"]) for metric in PRIMARY])
    long = holm(long, "p")
    long["verdict"] = np.where(long["rejected"], np.where(long["d"] < 0, "lower", "higher"), "unclear")
    long["cell"] = [cell_name(*cell) for cell in zip(long["tiles"], long["clutter"], strict=True)]
    long["metric"] = long["metric"].map(LEVELS)
    return long.pivot_table(index=["metric", "rule"], columns="cell", values="verdict", aggfunc="first", sort=False)


def by_cell(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the columns tiles, clutter and rule, indexed by the cell's name and the rule.

    >>> by_cell(pd.DataFrame([{"tiles": 3, "clutter": True, "rule": "a"}])).index.tolist()
    [('3 cluttered tiles', 'a')]
    """
    cells = [cell_name(*cell) for cell in zip(table["tiles"], table["clutter"], strict=True)]
    return table.set_index(pd.MultiIndex.from_arrays([cells, table["rule"]], names=["cell", "rule"]))


def spelled(table: pd.DataFrame, columns: Mapping[str, str], digits: int = 1) -> pd.DataFrame:
    """Return estimates with their intervals as text, under the table's own index.

    Args:
        table: holds each column, and the same with _low and _high.
        columns: label -> column.
        digits: of the numbers.

    >>> line = {"d_recall": 2.0, "d_recall_low": -1.0, "d_recall_high": 5.0}
    >>> spelled(pd.DataFrame([line]), {"recall": "d_recall"}).to_dict("records")
    [{'recall': '+2.0 [-1.0, 5.0]'}]
    """
    found = {label: [between(line, name, digits=digits) for _, line in table.iterrows()] for label, name in columns.items()}
    return pd.DataFrame(found, index=table.index)


def against_random(
    store: Store, base: Experiment, chosen: Mapping[str, Chosen], *, n_resamples: int = N_RESAMPLES
) -> pd.DataFrame:
    """Return the rules that act at a time of their own against as many random tokens at the same time, among three tiles.

    Returns:
        The columns of `prunehal.experiments.changes`, whose d_ are rule minus random tokens, and: rule, tiles, clutter.

    Raises:
        FileNotFoundError: rows are missing.
    """
    parts = []
    for tiles, clutter in THREE:
        cell = replace(base, tiles=tiles, clutter=clutter)
        for name, control in controls(chosen).items():
            rule = name.removesuffix(": random")
            ours, random = (each.on(cell) for each in (chosen[rule].setting, control))
            part = changes(store, [ours], random, n_resamples=n_resamples)
            parts.append(part.assign(rule=rule, tiles=tiles, clutter=clutter))
    return pd.concat(parts, ignore_index=True)


def shares(
    store: Store,
    base: Experiment,
    rules: Mapping[str, Setting],
    cells: Iterable[tuple[int, bool]] = CELLS,
    *,
    n_resamples: int = N_RESAMPLES,
) -> pd.DataFrame:
    """Return the oracle's gain in F1 of distinct objects, and what share of it each other rule wins.

    Returns:
        tiles, clutter, rule; gain (points) and won (1 is the oracle, 0 no pruning), each with _low and _high; won is NaN where
        the oracle's gain is not shown to be above 0.

    Raises:
        FileNotFoundError: rows are missing.
    """
    lines = []
    for tiles, clutter in cells:
        cell = replace(base, tiles=tiles, clutter=clutter)
        oracle = rules[ORACLE].on(cell)
        for name in [name for name in rules if name != ORACLE]:
            gain, won = share_of_gain(store, rules[name].on(cell), oracle, cell, n_resamples=n_resamples)
            line = {"tiles": tiles, "clutter": clutter, "rule": name}
            line |= {"gain": 100 * gain.estimate, "gain_low": 100 * gain.low, "gain_high": 100 * gain.high}
            ends = (np.nan,) * 3 if won is None else (won.estimate, won.low, won.high)
            lines.append(line | dict(zip(("won", "won_low", "won_high"), ends, strict=True)))
    return pd.DataFrame(lines)


def lengths(store: Store, base: Experiment, rules: Mapping[str, Setting], *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return what rules change in captions that are asked to be brief, in usual ones and in those that must go on.

    Returns:
        The columns of `prunehal.experiments.changes`, and: rule, form, clutter, tiles (3), base_words and
        base_distinct_chair_i (without pruning).

    Raises:
        FileNotFoundError: rows are missing.
    """
    parts = []
    for form, options in FORMS.items():
        for tiles, clutter in THREE:
            cell = replace(base, tiles=tiles, clutter=clutter, **options)
            part = changes(store, [rule.on(cell) for rule in rules.values()], cell, n_resamples=n_resamples)
            metrics = store.score(cell).metrics
            before = {"base_words": metrics["words"], "base_distinct_chair_i": 100 * metrics["distinct_chair_i"]}
            parts.append(part.assign(rule=list(rules), form=form, clutter=clutter, tiles=tiles, **before))
    return pd.concat(parts, ignore_index=True)


def by_patches(store: Store, base: Experiment, rules: Mapping[str, Setting], *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return the change of recall of objects on few patches and on many, among three tiles.

    Returns:
        clutter, rule, evidence ("local" or "spread", as `prunehal.studies.nb08_redundancy.rules.recall_by_patches`), d_recall
        with _low and _high.

    Raises:
        FileNotFoundError: rows are missing.
    """
    lines = []
    for tiles, clutter in THREE:
        cell = replace(base, tiles=tiles, clutter=clutter)
        before = recall_by_patches(store, cell)
        for name, rule in rules.items():
            for kind, items in recall_by_patches(store, rule.on(cell)).items():
                d = paired_bootstrap(before[kind], items, "recall", n_resamples)
                lines.append((clutter, name, kind, 100 * d.estimate, 100 * d.low, 100 * d.high))
    return pd.DataFrame(lines, columns=["clutter", "rule", "evidence", "d_recall", "d_recall_low", "d_recall_high"])


def needed(store: Store, base: Experiment, rules: Mapping[str, Setting], points: float = 1) -> int:
    """Return how many scenes would resolve a change of distinct CHAIR_i, for the rule and kind of three tiles that need most.

    Args:
        store: holds the rows.
        base: split, number of images, model.
        rules: name -> rule.
        points: the change, in percent points.
    """
    cells = [replace(base, tiles=tiles, clutter=clutter) for tiles, clutter in THREE]
    pairs = [(store.score(each).items for each in (cell, rule.on(cell))) for cell in cells for rule in rules.values()]
    return max(images_needed(*pair, "distinct_chair_i", points / 100) for pair in pairs)


def answer(
    levels: pd.DataFrame, table: pd.DataFrame, against: pd.DataFrame, won: pd.DataFrame, scenes: int, most: int
) -> list[str]:
    """Return the notebook's answer: one sentence for each question, with its numbers.

    Args:
        levels, table: what `prunehal.studies.nb08_redundancy.rules.levels` and ``responses`` returned.
        against, won: what :func:`against_random` and :func:`shares` returned.
        scenes, most: scenes of each cell, and what :func:`needed` returned.
    """
    alone = levels[levels["tiles"] == 7].set_index("kind")
    text = ", ".join(f"{kind} {between(line, 'd_distinct_chair_i')}" for kind, line in alone.iterrows())
    said = [f"7 tiles without pruning, against the scene alone: distinct CHAIR_i {text}."]
    for name in (PUBLISHED, ORACLE):
        said.append(f"{name}: {_in_three(table[table['rule'] == name])}.")
    verdict = verdicts(table).loc[LEVELS["distinct_chair_i"]].drop(index=ORACLE, errors="ignore")
    for clutter, kind in enumerate(("clean", "cluttered")):
        of_kind = [cell_name(*cell) for cell in CELLS if cell[0] and cell[1] == bool(clutter)]
        lower = verdict.index[(verdict[of_kind] == "lower").any(axis=1)]
        said.append(f"Without labels, lower distinct CHAIR_i in a cell of {kind} tiles: {', '.join(lower) or 'no rule'}.")
    tokens = against[against["rule"] == STANDOUT]
    said.append(f"{STANDOUT}: {_in_three(table[table['rule'] == STANDOUT])}.")
    said.append(f"{STANDOUT}, against as many random ones at the same time: {_in_three(tokens)}.")
    gains = won[won["rule"] == STANDOUT]
    part = spelled(by_cell(gains[gains["won"].notna()]), {"won": "won"}, digits=2)["won"].str.lstrip("+")
    text = ", ".join(f"{cell} {share}" for (cell, _), share in part.items())
    said.append(f"{STANDOUT}, share of the oracle's gain in F1: {text or 'no gain to share'}.")
    no_gain = [cell_name(line.tiles, line.clutter) for line in gains[gains["won"].isna()].itertuples()]
    said.append(
        f"The oracle is not shown to gain F1, so that no rule could be seen to help: {', '.join(no_gain) or 'in no cell'}."
    )
    return [*said, f"{scenes} scenes a cell: unclear is not equal; a change of one point needs up to {most:,} scenes."]


def _in_three(part: pd.DataFrame) -> str:
    """Return the changes of distinct CHAIR_i and of recall of one rule among three tiles in words."""
    parts = []
    for _, line in part[part["tiles"] == 3].iterrows():
        changed = f"distinct CHAIR_i {between(line, 'd_distinct_chair_i')}, recall {between(line, 'd_recall')}"
        parts.append(f"{cell_name(3, line['clutter'])}: {changed}")
    return "; ".join(parts)
