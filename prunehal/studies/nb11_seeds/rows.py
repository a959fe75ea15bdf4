"""Training seeds: does what pruning does hold for the same model, trained from other initial weights?

Three background tiles, clean and cluttered, many scenes of the test split, one model for each seed. Each seed chooses its
settings on its own captions of the validation split; fewer scenes are captioned under the settings that other seeds chose, too,
which shows what a setting is worth elsewhere. Weights of one seed ship with the package, of the others these counts.

The shipped counts are of captions whose text is gone, and hold n_mentions, n_hallucinated and n_recalled only: neither distinct
absent objects nor unfinished captions were counted, and settings were chosen by the lowest CHAIR_i, an earlier rule. What such
counts leave open is bounded (`prunehal.stats.distinct_bounds`). A new measurement counts all of COUNTS and chooses by today's
rule.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import pandas as pd

from prunehal.core import NoPruning
from prunehal.experiments import Experiment, Store, sweep
from prunehal.experiments.choosing import Chosen
from prunehal.experiments.tables import read_marked, write_marked
from prunehal.experiments.versions import made_by
from prunehal.files.paths import data_path
from prunehal.models.load import EMBEDDED
from prunehal.studies.nb08_redundancy.rules import all_rules, candidates, chosen_rules
from prunehal.studies.settings import Setting

__all__ = ["COUNTS", "FAMILIES", "FILE", "NONE", "measure", "setting_name", "stored"]

FILE = "seeds.csv.gz"  # among the shipped results
NONE = "no pruning"
FAMILIES = ("accumulated steps", "standout tokens")  # ways of selecting whose settings are chosen
TILES = 3
COUNTS = ["n_mentions", "n_hallucinated", "n_recalled", "n_distinct", "n_absent", "n_repeats", "unfinished"]


def measure(
    others: Sequence[str | Path],
    work: Path,
    out: Path,
    n_images: int = 1000,
    n_transfer: int = 300,
    executor: Executor | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Caption with the embedded model, which is seed 0, and with models of other seeds, and write what the captions count.

    Args:
        others: folders of finished models of ``python -m prunehal train``, seed 1 first.
        work: folder of the rows under way; a second call goes on there.
        out: compressed file to write.
        n_images: scenes of the test split for no pruning, the published setting, each seed's own choices and the oracle.
        n_transfer: scenes for the settings that only other seeds chose.
        executor: of `prunehal.sweep`.
        progress: show bars with the time left.

    Returns:
        One line for each seed, rule, kind of tiles and scene: seed, weights (mark of the model), rule (no pruning, published, one
        of FAMILIES, oracle), setting, own (whether the seed chose the setting, or nobody has to), clutter, image_id, words,
        n_truth, and those of COUNTS.

    Raises:
        ValueError: no other model, or two with the same weights.
        OSError: a model is not there.
    """
    models = {seed: str(model) for seed, model in enumerate((EMBEDDED, *others))}
    marks = {seed: made_by(_of(model))["weights"] for seed, model in models.items()}
    if len(set(marks.values())) < max(2, len(models)):
        raise ValueError(f"others={[*others]}: weights {marks}; expected one or more models, each trained from another seed")
    stores = {seed: Store(work / f"seed{seed}") for seed in models}
    chosen = {seed: _chosen(model, stores[seed], executor, progress) for seed, model in models.items()}
    parts = []
    for seed, model in models.items():
        rules = _rules(chosen, seed)
        wanted = {
            (line, clutter): rule.on(replace(_of(model, n_images if line[2] else n_transfer), clutter=clutter))
            for line, rule in rules.items()
            for clutter in (False, True)
        }
        sweep(wanted.values(), stores[seed], executor, progress=progress)
        for (line, clutter), experiment in wanted.items():
            found = stores[seed].score(experiment).items[["image_id", "words", "n_truth", *COUNTS]]
            told = {"seed": seed, "weights": marks[seed]} | dict(zip(("rule", "setting", "own"), line, strict=True))
            parts.append(found.assign(**told, clutter=clutter))
    frame = pd.concat(parts, ignore_index=True)
    write_marked(out, frame.to_csv(index=False), _of(EMBEDDED, n_images))
    return frame


def stored(path: Path | None = None) -> pd.DataFrame:
    """Read the lines that :func:`measure` wrote; by default the shipped ones, which lack the last four of COUNTS.

    Raises:
        FileNotFoundError, ValueError, BadInput: as `prunehal.experiments.tables.read_marked`.
    """
    path = data_path("results", FILE, must_exist=False) if path is None else path
    _, table = read_marked(path, _of(EMBEDDED), "python -m prunehal seeds MODEL MODEL")
    return pd.read_csv(io.StringIO(table))


def _of(model: str, n_images: int = 1) -> Experiment:
    """Return captions of a model without pruning among the background tiles."""
    return Experiment(model=model, dtype=_dtype(model), split="test", n_images=n_images, tiles=TILES)


def _dtype(model: str) -> str:
    """Return the data type of computation: float32 for all, which the embedded model has by itself."""
    return "auto" if model == EMBEDDED else "float32"


def _chosen(model: str, store: Store, executor: Executor | None, progress: bool) -> dict[str, Chosen]:
    """Return the choices of a model on its own captions of the validation split."""
    if model == EMBEDDED:
        return chosen_rules(Store.shipped())
    experiments = [replace(each, model=model, dtype=_dtype(model)) for each in candidates()]
    return chosen_rules(sweep(experiments, store, executor, progress=progress), experiments)


def _rules(chosen: Mapping[int, Mapping[str, Chosen]], seed: int) -> dict[tuple[str, str, bool], Setting]:
    """Return (rule, setting, own) -> rule of what a seed's model is captioned under."""
    fixed = {NONE: Setting(NoPruning())} | all_rules({})
    rules = {(name, setting_name(rule), True): rule for name, rule in fixed.items()}
    for family in FAMILIES:
        mine = chosen[seed][family].setting
        for rule in dict.fromkeys((mine, *(each[family].setting for each in chosen.values()))):
            rules[family, setting_name(rule), rule == mine] = rule
    return rules


def setting_name(rule: Setting) -> str:
    """Return the name of a rule's setting, as it stands in the rows.

    >>> setting_name(Setting(NoPruning()))
    'nopruning'
    """
    return rule.on(Experiment()).name.removeprefix("validation_")
