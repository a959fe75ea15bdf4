"""What was tried on the validation split: the settings of each family of policies, and what became of each.

A family is a way to choose what stays. `prunehal.studies.nb10_other_policies.compare` chooses one setting of each and reports
it on the test split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import NamedTuple

import pandas as pd

from prunehal.core import Bank, NoPruning, Policy
from prunehal.core.informative import Telling
from prunehal.experiments import Experiment, Store, changes, read_grid
from prunehal.experiments.choosing import Chosen
from prunehal.experiments.compare import N_RESAMPLES
from prunehal.files.paths import data_path
from prunehal.models.load import EMBEDDED

__all__ = ["FALLBACK", "Setting", "candidates", "standing", "tried"]

FALLBACK = "fallback: no setting kept the recall"
_SAID = ("r", "t", "k", "p", "part", "z")  # options that a label always has


class Setting(NamedTuple):
    """A policy and when it acts; what is chosen and reported, whatever the images.

    >>> from prunehal.core import PruneHal
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
    ['Informative', 'MassShare', 'PruneHal', 'Standout']
    """
    grids = [each for name in ("thresholds", "beyond_validation") for each in read_grid(data_path("grids", f"{name}.toml"))]
    families: dict[str, list[Experiment]] = {}
    for each in grids:
        if each.split == "validation" and each.tiles == tiles and each.policy != NoPruning():
            families.setdefault(_family(each), []).append(replace(each, model=model))
    return families


def standing(chosen: Chosen) -> str:
    """Return in words how a setting was chosen: as the one of lowest distinct CHAIR_i that kept the recall, or for want.

    >>> from prunehal.studies.nb10_other_policies.compare import chosen_policies
    >>> {family: standing(each) for family, each in chosen_policies(Store.shipped(), tiles=3).items()}["PruneHal"]
    'fallback: no setting kept the recall'
    """
    return FALLBACK if chosen.missed else "chosen"


def tried(
    store: Store, chosen: Mapping[str, Chosen], tiles: int = 0, model: str = EMBEDDED, *, n_resamples: int = N_RESAMPLES
) -> pd.DataFrame:
    """Return every candidate of each family against no pruning on the validation split, where the choice was made.

    The best of many looks better here than it is: what a chosen setting is worth stands on the test split.

    Args:
        store: holds the rows of data/grids/beyond_validation.toml and thresholds.toml.
        chosen: what `prunehal.studies.nb10_other_policies.compare.chosen_policies` returned for the same tiles and model.
        tiles, model: as in :func:`candidates`.
        n_resamples: of the bootstrap over images.

    Returns:
        One line for each candidate: family, setting (`Setting.label`), choice (:func:`standing` of the chosen one, "" for the
        others), images; and the columns of `prunehal.experiments.changes`.

    Raises:
        FileNotFoundError: rows are missing.
    """
    parts = []
    for family, experiments in candidates(tiles, model).items():
        settings = [Setting(each.policy, each.mode) for each in experiments]
        part = changes(store, experiments, Setting(NoPruning()).on(experiments[0]), n_resamples=n_resamples)
        part["choice"] = [standing(chosen[family]) if each == chosen[family].setting else "" for each in settings]
        part["images"] = [each.n_images for each in experiments]
        parts.append(part.assign(family=family, setting=[each.label for each in settings]))
    return pd.concat(parts, ignore_index=True)


def _family(experiment: Experiment) -> str:
    """Return the name of the family of a stored setting."""
    if isinstance(experiment.policy, Bank):
        return f"Bank by {experiment.policy.back}"
    if isinstance(experiment.policy, Telling):
        return type(experiment.policy).__name__
    names = {"draft": "Draft", "first-token": "FirstToken"}
    return names.get(experiment.mode, type(experiment.policy).__name__)
