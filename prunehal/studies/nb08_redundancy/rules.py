"""When does pruning help? Redundancy as a knob: background tiles around a scene, clean or cluttered, and what each rule does.

A rule is a way of selecting what stays, with one setting of each chosen on the validation split (both kinds of three background
tiles together) and reported on the test split, in every cell of the grid of tiles. `prunehal.studies.nb08_redundancy.tables`
holds the notebook's other tables and its sentences, `prunehal.studies.nb08_redundancy.figures` draws them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from prunehal.benchmarks.chair.score import ChairResult, score
from prunehal.core import Accumulated, Informative, Keep, NoPruning, PruneHal, Standout, StepTopK
from prunehal.experiments import Experiment, Store, changes, equal_lengths, read_grid
from prunehal.experiments.choosing import CHOSEN_BY, ROUNDING, Chosen, Graded, choose, choose_by_rule
from prunehal.experiments.compare import LEVELS, METRICS, N_RESAMPLES
from prunehal.experiments.images import truth
from prunehal.files.paths import data_path
from prunehal.stats.bootstrap import Interval
from prunehal.stats.gain import gain_in_f1
from prunehal.stats.intervals import bootstrap_interval, paired_bootstrap
from prunehal.studies.settings import Setting, at_random
from prunehal.testbed.world.scenes import scene_of
from prunehal.testbed.world.world import NAMES

__all__ = [
    "CELLS",
    "ORACLE",
    "PUBLISHED",
    "all_rules",
    "candidates",
    "chosen_rules",
    "controls",
    "levels",
    "recall_by_patches",
    "responses",
    "share_of_gain",
]

CELLS = ((0, False), (1, False), (3, False), (7, False), (1, True), (3, True), (7, True))  # background tiles, cluttered
PUBLISHED, ORACLE = "published (r = 0.4, t = 3)", "oracle: objects only"

_ACCUMULATED, _DRAFT, _INFORMATIVE, _STANDOUT = "accumulated steps", "draft, then prune", "informative tokens", "standout tokens"
_NONE = Setting(NoPruning())
_PUBLISHED = Setting(PruneHal(r=0.4, t=3))
_ORACLE = Setting(Keep(), "first-token")


def candidates() -> list[Experiment]:
    """Return the experiments of the validation split that rules are chosen from: data/grids/redundancy_validation.toml.

    >>> {each.tiles for each in candidates()}
    {3}
    """
    return read_grid(data_path("grids", "redundancy_validation.toml"))


def chosen_rules(store: Store, experiments: Sequence[Experiment] | None = None) -> dict[str, Chosen]:
    """Choose one setting of each way of selecting on the validation split, among three background tiles.

    By the project's one rule (`prunehal.experiments.choosing.choose_by_rule`), with recall asked of both kinds of tiles: the
    setting of lowest distinct CHAIR_i over clean and cluttered scenes together among those that lose at most a point of recall
    against no pruning in each of the two; where none does, the one of highest recall over both.

    Args:
        store: holds the rows.
        experiments: to choose from, those of one model; by default :func:`candidates`.

    Returns:
        Way of selecting -> the choice, whose ``setting`` is the rule, a `Setting`.

    Raises:
        FileNotFoundError: rows are missing.
    """
    cells: dict[Setting, list[Experiment]] = {}
    for experiment in candidates() if experiments is None else experiments:
        cells.setdefault(Setting(experiment.policy, experiment.mode), []).append(experiment)
    none, before, chosen = _pooled(store, cells[_NONE]), _recall_by_kind(store, cells[_NONE]), {}
    for family in dict.fromkeys(filter(None, map(_family, cells))):
        of_family = {rule: _pooled(store, cells[rule]) for rule in cells if _family(rule) == family}
        losses = {rule: [before[kind] - own for kind, own in _recall_by_kind(store, cells[rule]).items()] for rule in of_family}
        keeping = {rule: of_family[rule] for rule in of_family if max(losses[rule]) <= CHOSEN_BY["recall"] + ROUNDING}
        if keeping:  # in each kind of tiles, and so over both
            found = choose_by_rule(Graded("validation", {_NONE: none} | keeping), _NONE)
        else:
            found = choose(Graded("validation", {_NONE: none} | of_family), "recall", baseline=_NONE)
            found = replace(found, missed=tuple(CHOSEN_BY.items()))
        chosen[family] = replace(found, n_candidates=len(of_family))
    return chosen


def _recall_by_kind(store: Store, experiments: Sequence[Experiment]) -> dict[bool, float]:
    """Return the recall among clean and among cluttered tiles, by whether they are cluttered."""
    return {each.clutter: _pooled(store, [each]).metrics["recall"] for each in experiments}


def all_rules(chosen: Mapping[str, Chosen]) -> dict[str, Setting]:
    """Return every rule that is reported, by name: the published setting, the chosen ones, the oracle that knows the objects."""
    return {PUBLISHED: _PUBLISHED} | {name: each.setting for name, each in chosen.items()} | {ORACLE: _ORACLE}


def controls(chosen: Mapping[str, Chosen]) -> dict[str, Setting]:
    """Return, for the rules that do not prune at the published step, as many random tokens at their own time.

    Whoever beats them does so by which tokens stay, not by when or how many. `Informative` and `Standout` keep the same tokens
    in all layers, and so do their controls.
    """
    later = {name: each.setting for name, each in chosen.items() if name in (_ACCUMULATED, _DRAFT, _INFORMATIVE, _STANDOUT)}
    return {f"{name}: random": Setting(at_random(policy), mode) for name, (policy, mode) in later.items()}


def _family(rule: Setting) -> str:
    """Return the way of selecting that a rule is a setting of; "" for no pruning and the oracles."""
    policy, mode = rule
    if isinstance(policy, NoPruning | Keep):
        return ""
    if mode == "draft":
        return _DRAFT
    if policy.selection == "random":
        return "random"
    names = {
        StepTopK: "per step, nothing lost",
        Accumulated: _ACCUMULATED,
        PruneHal: "one step",
        Informative: _INFORMATIVE,
        Standout: _STANDOUT,
    }
    return names[type(policy)]


def _pooled(store: Store, experiments: Sequence[Experiment]) -> ChairResult:
    """Return the scores of the captions of several experiments together."""
    texts, truths = {}, {}
    for experiment in experiments:
        known = truth(experiment)
        for line in store.captions(experiment).itertuples():
            texts[line.image_id, experiment.clutter] = line.caption
            truths[line.image_id, experiment.clutter] = known[line.image_id]
    return score(texts, truths)


def levels(store: Store, base: Experiment, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return what redundancy alone does, without pruning: the scores of every cell, and of positions without the tiles.

    Args:
        store: holds the rows of data/grids/redundancy_test.toml.
        base: split, number of images, model.
        n_resamples: of the bootstrap over images.

    Returns:
        One line for each cell: tiles, kind ("clean", "cluttered" or "positions only"); the columns of
        `prunehal.experiments.compare.LEVELS`, chair_i and distinct_chair_i among them, with _low and _high (95%); d_ of each
        against the scene alone, with _low and _high.

    Raises:
        FileNotFoundError: rows are missing.
    """
    alone = store.score(base).items
    cells = [("positions only", replace(base, tiles=k, positions_only=True)) for k, clutter in CELLS if k and not clutter]
    cells += [("cluttered" if clutter else "clean", replace(base, tiles=k, clutter=clutter)) for k, clutter in CELLS]
    lines = []
    for kind, experiment in cells:
        items = store.score(experiment).items
        line = {"tiles": experiment.tiles, "kind": kind}
        for metric in LEVELS:
            of = {
                metric: bootstrap_interval(items, metric, n_resamples),
                f"d_{metric}": paired_bootstrap(alone, items, metric, n_resamples),
            }
            for name, found in of.items():
                values = METRICS[metric] * np.array([found.estimate, found.low, found.high])
                line |= dict(zip((name, f"{name}_low", f"{name}_high"), values.tolist(), strict=True))
        lines.append(line)
    return pd.DataFrame(lines)


def responses(
    store: Store,
    base: Experiment,
    rules: Mapping[str, Setting],
    cells: Iterable[tuple[int, bool]] = CELLS,
    *,
    n_resamples: int = N_RESAMPLES,
) -> pd.DataFrame:
    """Return what each rule changes in each cell, against no pruning in the same cell.

    Args:
        store: holds the rows of data/grids/redundancy_test.toml.
        base: split, number of images, model, shortest caption.
        rules: as :func:`all_rules` returns them.
        cells: (background tiles, cluttered).
        n_resamples: of the bootstrap over images.

    Returns:
        The columns of `prunehal.experiments.changes` with p values, and: rule (its name), tiles, clutter; those of
        `prunehal.experiments.equal_lengths`, in which both captions of a scene name equally many distinct objects.

    Raises:
        FileNotFoundError: rows are missing.
    """
    parts = []
    for tiles, clutter in cells:
        cell = replace(base, tiles=tiles, clutter=clutter)
        experiments = [rule.on(cell) for rule in rules.values()]
        part = changes(store, experiments, cell, p_values=True, n_resamples=n_resamples)
        part = part.join(equal_lengths(store, experiments, cell, n_resamples=n_resamples))
        parts.append(part.assign(rule=list(rules), tiles=tiles, clutter=clutter))
    return pd.concat(parts, ignore_index=True)


def share_of_gain(
    store: Store, experiment: Experiment, oracle: Experiment, base: Experiment, *, n_resamples: int = N_RESAMPLES
) -> tuple[Interval, Interval | None]:
    """Return the oracle's gain in the objects' F1, and the share of it that an experiment wins
    (`prunehal.stats.gain.gain_in_f1`).

    Args:
        store: holds the rows of all three, on the same images.
        experiment, oracle, base: what is judged, the bound, and no pruning.
        n_resamples: of the bootstrap over images (BCa).

    Raises:
        FileNotFoundError: rows are missing.
    """
    return gain_in_f1(*(store.score(each).items for each in (experiment, oracle, base)), n_resamples=n_resamples)


def recall_by_patches(store: Store, experiment: Experiment, limit: int = 4) -> dict[str, pd.DataFrame]:
    """Return the recall's counts for objects whose evidence is local, on few patches, and spread over more.

    Args:
        store: holds the experiment's rows.
        experiment: on the testbed.
        limit: an object that shows on at most so many patches is local.

    Returns:
        "local" and "spread" -> one line for each scene that has such an object: image_id, n_recalled and n_truth, as
        `prunehal.stats.intervals.paired_bootstrap` takes them for recall. An object that others hide wholly is in neither.

    Raises:
        FileNotFoundError: rows are missing.
    """
    lines: dict[str, list] = {"local": [], "spread": []}
    for line in store.score(experiment).items.itertuples():
        labels = scene_of(line.image_id).patch_labels()
        numbers = {name: int((labels == NAMES.index(name)).sum()) for name in scene_of(line.image_id).names}
        for kind, inside in (("local", lambda n: 0 < n <= limit), ("spread", lambda n: n > limit)):
            some = [name for name, n in numbers.items() if inside(n)]
            if some:
                lines[kind].append((line.image_id, len({*some} & {*line.nodes}), len(some)))
    return {kind: pd.DataFrame(rows, columns=["image_id", "n_recalled", "n_truth"]) for kind, rows in lines.items()}
