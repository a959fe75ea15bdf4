"""What was tried on the validation split: the settings of each family of policies, and what became of each.

A family is a way to choose what stays. `prunehal.studies.nb10_other_policies.compare` chooses one setting of each and reports
it on the test split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from prunehal.core import Bank, NoPruning
from prunehal.core.informative import Telling
from prunehal.experiments import Experiment, Store, changes, read_grid
from prunehal.experiments.choosing import Chosen
from prunehal.experiments.compare import N_RESAMPLES
from prunehal.files.paths import data_path
from prunehal.models.load import EMBEDDED
from prunehal.studies.settings import Setting

__all__ = ["FALLBACK", "candidates", "standing", "tried"]

FALLBACK = "fallback: no setting kept the recall"


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
