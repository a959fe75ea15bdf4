"""Policies beyond the paper: one setting of each family, chosen on the validation split and reported on test, beside controls.

A family is a way to choose what stays. Its controls are as many random tokens, and an oracle that keeps the patches of objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from prunehal.core import Bank, Keep, NoPruning, Policy, PruneHal
from prunehal.experiments import Experiment, Store, at_equal_length, changes, read_grid
from prunehal.experiments.compare import N_RESAMPLES
from prunehal.inference import holm
from prunehal.loading import EMBEDDED
from prunehal.resources import data_path
from prunehal.selection_rule import Chosen, Graded, choose

__all__ = [
    "CHOSEN_BY",
    "Setting",
    "as_table",
    "between",
    "candidates",
    "chosen_policies",
    "compare",
    "controls",
    "of_oracle",
    "verdict",
]

CHOSEN_BY = {"recall": 0.01}  # how much recall a setting may lose on the validation split, as in notebooks 03 and 07
MARGIN = 100 * CHOSEN_BY["recall"]  # the same in points: what counts as equal recall on the test split
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
    ['MassShare', 'PruneHal']
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
        try:
            chosen[family] = choose(graded, subject_to=CHOSEN_BY, baseline=none)
        except ValueError:  # no setting keeps the recall
            chosen[family] = choose(graded, by="recall", baseline=none)
    return chosen


def controls(chosen: Mapping[str, Chosen]) -> dict[str, Setting]:
    """Return what the chosen settings are compared with: the published one, as many random tokens, and the oracle.

    >>> list(controls(chosen_policies(Store.shipped())))
    ['PruneHal, published', 'PruneHal, random tokens', 'MassShare, random tokens', 'oracle']
    """
    found = {"PruneHal, published": Setting(PUBLISHED)}
    for family in ("PruneHal", "MassShare"):
        found[f"{family}, random tokens"] = Setting(replace(chosen[family].setting.policy, selection="random"))
    return found | {"oracle": Setting(Keep(), "first-token")}


def compare(store: Store, settings: Mapping[str, Setting], base: Experiment, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return every setting against no pruning, on the same images.

    Args:
        store: holds the rows of all.
        settings: name -> setting.
        base: without pruning; its model, split, images and tiles are those of all.
        n_resamples: of the bootstrap over images.

    Returns:
        Indexed by the names: the columns of `prunehal.experiments.changes`, and equal_chair_i, equal_low, equal_high,
        equal_recall, equal_recall_low, equal_recall_high (differences in percent after both were cut to the shorter mean
        length), p_holm (of chair_i, over the settings), rejected, and lowers: whether CHAIR_i is lower after that correction
        and recall is not more than a point lower.

    Raises:
        FileNotFoundError: rows are missing.

    >>> base = Experiment(split="test", n_images=50)
    >>> table = compare(Store.shipped(), {"published": Setting(PUBLISHED)}, base, n_resamples=200)
    >>> bool(table.loc["published", "visual"] < 100)
    True
    """
    cells = [setting.on(base) for setting in settings.values()]
    table = changes(store, cells, base, p_values=True, n_resamples=n_resamples)
    for row, cell in enumerate(cells):
        found = at_equal_length(store, cell, base, n_resamples=n_resamples)
        for metric, start in (("chair_i", "equal"), ("recall", "equal_recall")):
            d = found[metric]
            columns = [f"equal_{metric}", f"{start}_low", f"{start}_high"]
            table.loc[row, columns] = 100 * np.array([d.estimate, d.low, d.high])
    table = holm(table, "p_chair_i")
    lowers = table["rejected"] & (table["d_chair_i"] < 0) & (table["d_recall"] >= -MARGIN)
    return table.assign(lowers=lowers).set_index(pd.Index(settings, name="policy"))


def of_oracle(table: pd.DataFrame, metric: str, oracle: str = "oracle") -> pd.Series | None:
    """Return what part of the oracle's gain each policy wins, or None where the oracle's interval shows no gain.

    Args:
        table: what :func:`compare` returned.
        metric: "chair_i" (less is better) or "recall".
        oracle: its name there.

    >>> table = pd.DataFrame({"d_recall": [1.0, 4.0], "d_recall_low": [0.0, 2.0], "d_recall_high": [2.0, 6.0]}, ["a", "oracle"])
    >>> of_oracle(table, "recall").to_dict()
    {'a': 0.25}
    """
    sign = -1 if metric == "chair_i" else 1
    ends = sign * table.loc[oracle, [f"d_{metric}_low", f"d_{metric}_high"]].astype(float)
    if ends.min() <= 0:
        return None
    return table[f"d_{metric}"].drop(oracle) / table.loc[oracle, f"d_{metric}"]


def as_table(table: pd.DataFrame, settings: Mapping[str, Setting]) -> str:
    """Return what :func:`compare` returned as markdown, and what it says in words.

    >>> base, settings = Experiment(split="test", n_images=50), {"a": Setting(PUBLISHED), "oracle": Setting(PruneHal(r=0.9, t=1))}
    >>> as_table(compare(Store.shipped(), settings, base, n_resamples=200), settings).splitlines()[1]
    '|---|---|---|---|---|---|---|---|'
    """
    head = ["policy", "setting", "visual tokens", "CHAIR_i", "recall", "change of CHAIR_i", "at equal length", "of recall"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, line in table.iterrows():
        cells = [name, settings[name].label, f"{line['visual']:.0f}%", f"{line['chair_i']:.1f}", f"{line['recall']:.1f}"]
        cells += [between(line, "d_chair_i"), between(line, "equal_chair_i", "equal"), between(line, "d_recall")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {sentence}." for sentence in verdict(table))])


def verdict(table: pd.DataFrame) -> list[str]:
    """Return in words which policies lower CHAIR_i at equal recall, which raise it, and what of the oracle's gain they win.

    Args:
        table: what :func:`compare` returned; "oracle" and names with a comma are controls.
    """
    own = table[[name != "oracle" and "," not in name for name in table.index]]
    kinds = {
        "Lower CHAIR_i at equal recall (after Holm's correction; recall at most a point lower)": own[own["lowers"]],
        "Lower CHAIR_i at a loss of recall": own[own["rejected"] & (own["d_chair_i"] < 0) & ~own["lowers"]],
        "Higher CHAIR_i": own[own["rejected"] & (own["d_chair_i"] > 0)],
    }
    said = [f"{what}: {', '.join(part.index) or 'no policy'}" for what, part in kinds.items()]
    for metric, label in (("chair_i", "CHAIR_i"), ("recall", "recall")):
        oracle, won = between(table.loc["oracle"], f"d_{metric}"), of_oracle(table, metric)
        if won is None:
            said.append(f"The oracle changes {label} by {oracle}: there is no gain of which a selection could win a part")
        else:
            parts = won[own.index].sort_values(ascending=False)
            shares = ", ".join(f"{name} {part:.0%}" for name, part in parts.items())
            said.append(f"The oracle changes {label} by {oracle}; of that the policies win: {shares}")
    return said


def between(line: pd.Series, name: str, ends: str = "") -> str:
    """Return an estimate with its interval, such as ``+1.2 [0.3, 2.1]``."""
    return f"{line[name]:+.1f} [{line[f'{ends or name}_low']:.1f}, {line[f'{ends or name}_high']:.1f}]"


def _family(experiment: Experiment) -> str:
    """Return the name of the family of a stored setting."""
    if isinstance(experiment.policy, Bank):
        return f"Bank by {experiment.policy.back}"
    names = {"draft": "Draft", "first-token": "FirstToken"}
    return names.get(experiment.mode, type(experiment.policy).__name__)
