"""Policies beyond the paper: one setting of each family, chosen on the validation split and reported on test, beside controls.

A family is a way to choose what stays. Its controls are as many random tokens, and an oracle that keeps the patches of objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from prunehal.core import Bank, Informative, Keep, NoPruning, Policy, PruneHal, StepTopK
from prunehal.experiments import Experiment, Store, changes, equal_lengths, read_grid
from prunehal.experiments.compare import N_RESAMPLES
from prunehal.gain import part_of_change
from prunehal.inference import holm
from prunehal.loading import EMBEDDED
from prunehal.redundancy import at_random
from prunehal.resources import data_path
from prunehal.selection_rule import CHOSEN_BY, Chosen, Graded, choose

__all__ = [
    "CHOSEN_BY",
    "Setting",
    "as_table",
    "between",
    "candidates",
    "chosen_policies",
    "compare",
    "controls",
    "footnotes",
    "lowers",
    "shown_parts",
    "verdict",
]

MARGIN = 100 * CHOSEN_BY["recall"]  # the same in points: recall is equal where its interval shows no larger loss
ALPHA = 0.05  # of Holm's correction
ORACLE = "oracle"
PUBLISHED = PruneHal(r=0.4, t=3)  # for LLaVA-1.5
_SAID = ("r", "t", "k", "p", "z")  # options that a label always has


class Setting(NamedTuple):
    """A policy and when it acts; what is chosen and reported, whatever the images.

    >>> Setting(PruneHal(r=0.9, t=1)).on(Experiment(split="test")).name
    'test_prunehal_r0.9_t1'
    >>> Setting(PruneHal(r=0.9, t=1), "first-token").label
    'PruneHal(r = 0.9, t = 1), first-token'
    """

    policy: Policy
    mode: str = "decoding"

    @property
    def label(self) -> str:
        """The policy with the options that are always said or not the defaults, and the mode if it is not decoding."""
        values = {f.name: (getattr(self.policy, f.name), f.default) for f in fields(self.policy) if f.init}
        said = [f"{name} = {value}" for name, (value, usual) in values.items() if name in _SAID or value != usual]
        return f"{type(self.policy).__name__}({', '.join(said)})" + ("" if self.mode == "decoding" else f", {self.mode}")

    def on(self, experiment: Experiment) -> Experiment:
        """Return the experiment with this policy and mode."""
        return replace(experiment, policy=self.policy, mode=self.mode)


def candidates(tiles: int = 0, model: str = EMBEDDED) -> dict[str, list[Experiment]]:
    """Return the stored settings of each family on the validation split.

    Args:
        tiles: background tiles around each scene: 0, or 3.
        model: as in `Experiment`.

    >>> sorted(candidates(tiles=3))
    ['Informative', 'MassShare', 'PruneHal']
    """
    grids = [each for name in ("thresholds", "beyond_validation") for each in read_grid(data_path("grids", f"{name}.toml"))]
    families: dict[str, list[Experiment]] = {}
    for each in grids:
        if each.split == "validation" and each.tiles == tiles and each.policy != NoPruning():
            families.setdefault(_family(each), []).append(replace(each, model=model))
    return families


def chosen_policies(store: Store, tiles: int = 0, model: str = EMBEDDED) -> dict[str, Chosen]:
    """Choose one setting of each family on the validation split.

    The one of lowest CHAIR_i among those that lose at most a point of recall against no pruning; where none does, the one of
    highest recall.

    Args:
        store: holds the rows of data/grids/beyond_validation.toml and thresholds.toml.
        tiles, model: as in :func:`candidates`.

    Returns:
        Name of the family -> the choice, whose ``setting`` is a `Setting`.

    Raises:
        FileNotFoundError: rows are missing.

    >>> chosen_policies(Store.shipped())["PruneHal"].n_candidates
    9
    """
    chosen, none = {}, Setting(NoPruning())
    for family, experiments in candidates(tiles, model).items():
        scores = {none: store.score(none.on(experiments[0]))}
        scores |= {Setting(each.policy, each.mode): store.score(each) for each in experiments}
        graded = Graded("validation", scores)
        chosen[family] = choose(graded, subject_to=CHOSEN_BY, otherwise="recall", baseline=none)
    return chosen


def controls(chosen: Mapping[str, Chosen]) -> dict[str, Setting]:
    """Return what the chosen settings are compared with: the published one, as many random tokens, and the oracle.

    >>> list(controls(chosen_policies(Store.shipped())))
    ['PruneHal, published', 'PruneHal, random tokens', 'MassShare, random tokens', 'Informative, random tokens', 'oracle']
    """
    found = {"PruneHal, published": Setting(PUBLISHED)}
    for family in ("PruneHal", "MassShare", "Informative"):
        policy, mode = chosen[family].setting
        found[f"{family}, random tokens"] = Setting(at_random(policy), mode)
    return found | {ORACLE: Setting(Keep(), "first-token")}


def compare(store: Store, settings: Mapping[str, Setting], base: Experiment, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return every setting against no pruning, on the same images.

    Args:
        store: holds the rows of all.
        settings: name -> setting.
        base: without pruning; its model, split, images and tiles are those of all.
        n_resamples: of the bootstrap over images.

    Returns:
        Indexed by the names: the columns of `prunehal.experiments.changes` (visual is what the cache held), and attended (what
        a step attends to of it; in percent of no pruning, too, and without a draft); equal_chair_i, equal_low, equal_high,
        equal_recall, equal_recall_low, equal_recall_high (differences in percent after both were cut to the shorter mean
        length); p_holm and rejected (of chair_i, over the settings), p_holm_recall, lowers (:func:`lowers`). With a setting
        named "oracle" also part_chair_i, part_recall, and their _low and _high: the change as a part of the oracle's.

    Raises:
        FileNotFoundError: rows are missing.

    >>> base = Experiment(split="test", n_images=50)
    >>> table = compare(Store.shipped(), {"published": Setting(PUBLISHED)}, base, n_resamples=200)
    >>> bool(table.loc["published", "visual"] < 100)
    True
    """
    cells = [setting.on(base) for setting in settings.values()]
    table = changes(store, cells, base, p_values=True, n_resamples=n_resamples)
    table = table.join(equal_lengths(store, cells, base, n_resamples=n_resamples))
    table["attended"] = [_attended(store, cell, base) for cell in cells]
    table["p_holm_recall"] = holm(table, "p_recall")["p_holm"]
    table = holm(table, "p_chair_i").set_index(pd.Index(settings, name="policy"))
    for metric in ("chair_i", "recall") if ORACLE in settings else ():
        bound, plain = (store.score(each).items for each in (settings[ORACLE].on(base), base))
        parts = [part_of_change(store.score(each).items, bound, plain, metric, n_resamples=n_resamples) for each in cells]
        table[[f"part_{metric}{end}" for end in ("", "_low", "_high")]] = [(each.estimate, each.low, each.high) for each in parts]
    return table.assign(lowers=lowers(table))


def lowers(table: pd.DataFrame) -> pd.Series:
    """Return which settings are shown to lower CHAIR_i at equal recall and length.

    CHAIR_i is lower after Holm's correction, its interval at equal length is below 0, and that of recall shows a loss of at
    most a point; an estimate alone shows nothing.

    Args:
        table: with the columns rejected, d_chair_i, equal_high and d_recall_low of :func:`compare`.

    >>> line = {"rejected": True, "d_chair_i": -3.0, "equal_high": -0.5, "d_recall": -0.9}
    >>> lowers(pd.DataFrame([line | {"d_recall_low": -1.0}, line | {"d_recall_low": -3.5}])).tolist()
    [True, False]
    """
    lower = table["rejected"] & (table["d_chair_i"] < 0) & (table["equal_high"] < 0)
    return lower & (table["d_recall_low"] >= -MARGIN)


def shown_parts(table: pd.DataFrame, metric: str) -> pd.Series | None:
    """Return which policies are shown to win a part of the oracle's gain, or None where the oracle is not shown to gain.

    Shown is a part whose interval lies above 0, where the change is also one after Holm's correction.

    Args:
        table: what :func:`compare` returned, with an oracle.
        metric: "chair_i" (less is better) or "recall".

    >>> oracle = {"d_recall_low": 2.0, "d_recall_high": 6.0, "part_recall_low": 1.0, "p_holm_recall": 0.01}
    >>> lines = {"a": {"part_recall_low": 0.1, "p_holm_recall": 0.2}, "b": {"part_recall_low": 0.1, "p_holm_recall": 0.01}}
    >>> shown_parts(pd.DataFrame.from_dict(lines | {"oracle": oracle}, orient="index"), "recall").to_dict()
    {'a': False, 'b': True}
    """
    sign = -1 if metric == "chair_i" else 1
    ends = sign * table.loc[ORACLE, [f"d_{metric}_low", f"d_{metric}_high"]].astype(float)
    if ends.min() <= 0:
        return None
    p = table["p_holm" if metric == "chair_i" else "p_holm_recall"]
    return ((table[f"part_{metric}_low"] > 0) & (p <= ALPHA)).drop(ORACLE)


def as_table(table: pd.DataFrame, settings: Mapping[str, Setting]) -> str:
    """Return what :func:`compare` returned as markdown, and what it says in words.

    >>> base, settings = Experiment(split="test", n_images=50), {"a": Setting(PUBLISHED), "oracle": Setting(PruneHal(r=0.9, t=1))}
    >>> as_table(compare(Store.shipped(), settings, base, n_resamples=200), settings).splitlines()[1]
    '|---|---|---|---|---|---|---|---|---|'
    """
    head = ["policy", "setting", "held in the cache", "attended to", "CHAIR_i", "recall"]
    head += ["change of CHAIR_i", "at equal length", "of recall"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, line in table.iterrows():
        cells = [name, settings[name].label, f"{line['visual']:.0f}%", f"{line['attended']:.0f}%"]
        cells += [f"{line['chair_i']:.1f}", f"{line['recall']:.1f}"]
        cells += [between(line, "d_chair_i"), between(line, "equal_chair_i", "equal"), between(line, "d_recall")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {each}" for each in footnotes(settings)), *(f"- {each}." for each in verdict(table))])


def footnotes(settings: Mapping[str, Setting]) -> list[str]:
    """Return in words what the columns of visual tokens mean, and which settings cost more than these say.

    >>> footnotes({"Draft": Setting(PruneHal(), "draft")})[1]
    'Draft: before, a whole draft without pruning is written, one more decoding on all visual tokens, which is in neither column.'
    """
    costs = {
        "before, a whole draft without pruning is written, one more decoding on all visual tokens, which is in neither column": (
            lambda each: each.mode == "draft"
        ),
        "before, the prompt is run once more to read its visual tokens": lambda each: isinstance(each.policy, Informative),
        "all visual tokens stay in the cache, and each step attends to k of them": lambda each: isinstance(each.policy, StepTopK),
        "what has left the cache is kept beside it": lambda each: isinstance(each.policy, Bank),
    }
    said = ["Held in the cache, attended to: mean share of the visual tokens over the steps of the caption, against no pruning."]
    for what, pays in costs.items():
        if names := [name for name, each in settings.items() if pays(each)]:
            said.append(f"{', '.join(names)}: {what}.")
    return said


def verdict(table: pd.DataFrame) -> list[str]:
    """Return in words which policies are shown to lower CHAIR_i, which raise it, and what of the oracle's gain they win.

    Args:
        table: what :func:`compare` returned; "oracle" and names with a comma are controls.
    """
    own = table[[name != ORACLE and "," not in name for name in table.index]]
    lower = own["rejected"] & (own["d_chair_i"] < 0)
    kinds = {
        "Lower CHAIR_i after Holm's correction, lower at equal length, recall shown to be at most a point lower": own["lowers"],
        "Lower CHAIR_i after Holm's correction, but not shown at equal length or at equal recall": lower & ~own["lowers"],
        "Higher CHAIR_i after Holm's correction": own["rejected"] & (own["d_chair_i"] > 0),
    }
    said = [f"{what}: {', '.join(own.index[which]) or 'no policy'}" for what, which in kinds.items()]
    for metric, label in (("chair_i", "CHAIR_i"), ("recall", "recall")):
        oracle, shown = between(table.loc[ORACLE], f"d_{metric}"), shown_parts(table, metric)
        if shown is None:
            said.append(f"The oracle changes {label} by {oracle}: there is no gain of which a selection could win a part")
            continue
        parts = own.sort_values(f"part_{metric}", ascending=False)
        columns = parts[[f"part_{metric}{end}" for end in ("", "_low", "_high")]]
        shares = ", ".join(f"{name} {part:.0%} [{low:.0%}, {high:.0%}]" for name, part, low, high in columns.itertuples())
        said.append(f"The oracle changes {label} by {oracle}; the policies' parts of that: {shares}")
        winners = ", ".join(name for name in parts.index if shown[name]) or "no policy"
        said.append(f"Shown to win a part of it (interval above 0, and a change after Holm's correction): {winners}")
    return said


def between(line: pd.Series, name: str, ends: str = "") -> str:
    """Return an estimate with its interval, such as ``+1.2 [0.3, 2.1]``."""
    return f"{line[name]:+.1f} [{line[f'{ends or name}_low']:.1f}, {line[f'{ends or name}_high']:.1f}]"


def _family(experiment: Experiment) -> str:
    """Return the name of the family of a stored setting."""
    if isinstance(experiment.policy, Bank):
        return f"Bank by {experiment.policy.back}"
    if isinstance(experiment.policy, Informative):
        return "Informative"
    names = {"draft": "Draft", "first-token": "FirstToken"}
    return names.get(experiment.mode, type(experiment.policy).__name__)


def _attended(store: Store, experiment: Experiment, base: Experiment) -> float:
    """Return the visual tokens that a step attends to in the mean, in percent of those without pruning."""
    rows, before = store.captions(experiment), store.captions(base)["visual"].sum()
    held, policy = rows["visual"], experiment.policy
    if isinstance(policy, StepTopK):
        steps = rows["tokens"] + rows["finished"]
        free = np.minimum(policy.step - 1, steps) / steps  # the part of the steps that are not restricted
        held = free * held + (1 - free) * np.minimum(policy.k, held)
    return 100 * held.sum() / before
