"""The matrix of decoders and pruning policies: each decoder at the setting that the validation split chose, reported on test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from prunehal.core import NoPruning, Policy, PruneHal
from prunehal.decoding.base import Decoder
from prunehal.decoding.named import STOCK, Decoding, name_of
from prunehal.experiments import Experiment, Store, changes, equal_lengths, read_grid
from prunehal.experiments.choosing import Chosen, Graded, choose_by_rule
from prunehal.experiments.compare import PRIMARY
from prunehal.files.paths import data_path
from prunehal.stats.testing import holm

__all__ = ["POLICIES", "chosen_decoders", "front", "matrix", "name_of"]

POLICIES: dict[str, Policy] = {
    "no pruning": NoPruning(),
    "PruneHal r = 0.4, t = 3": PruneHal(r=0.4, t=3),  # published for LLaVA-1.5
    "PruneHal r = 0.9, t = 1": PruneHal(r=0.9, t=1),  # chosen on the validation split, notebook 03
}


def chosen_decoders(store: Store) -> dict[str, Chosen]:
    """Choose one setting of each decoder on the validation split, without pruning.

    By the project's one rule (`prunehal.experiments.choosing.choose_by_rule`): the lowest distinct CHAIR_i among those that
    lose at most a point of recall against greedy decoding; where none does, the highest recall, a fallback (``missed``).

    Args:
        store: holds the rows of data/grids/decoders_validation.toml.

    Returns:
        Name of the decoder -> the choice, whose ``setting`` is the decoder.

    Raises:
        FileNotFoundError: rows are missing.

    >>> sorted(chosen_decoders(Store.shipped()))
    ['deco', 'dola', 'fastv', 'kvsmooth', 'opera', 'pai', 'vcd']
    """
    experiments = read_grid(data_path("grids", "decoders_validation.toml"))
    scores = {each.decoding: store.score(each) for each in experiments}
    chosen = {}
    for name in dict.fromkeys(name_of(decoding) for decoding in scores if isinstance(decoding, Decoder)):
        of_kind = {decoding: result for decoding, result in scores.items() if name_of(decoding) in ("greedy", name)}
        chosen[name] = choose_by_rule(Graded("validation", of_kind), "greedy")
    return chosen


def matrix(
    store: Store,
    chosen: Mapping[str, Chosen],
    *,
    policies: Sequence[str] = tuple(POLICIES),
    n_images: int = 200,
    n_resamples: int = 5000,
) -> pd.DataFrame:
    """Return every decoding beside every policy on the test split, compared with greedy decoding without pruning.

    Args:
        store: holds the rows of data/grids/decoders_test.toml.
        chosen: what :func:`chosen_decoders` returns.
        policies: names of POLICIES, the first of them "no pruning".
        n_images: the first so many of the test split.
        n_resamples: of the bootstrap over images.

    Returns:
        The columns of `prunehal.experiments.changes`, and: decoding (its name), policy (a name of POLICIES); those of
        `prunehal.experiments.equal_lengths`; p_holm (of distinct_chair_i, over the whole matrix) and rejected;
        own_distinct_chair_i and own_recall, each with _low and _high (what the policy changes beside this decoding: difference
        from the same decoding without pruning, NaN without pruning). The baseline's own differences are NaN.

    Raises:
        FileNotFoundError: rows are missing.
    """
    decodings: list[Decoding] = [*STOCK, *(each.setting for each in chosen.values())]
    base = Experiment(split="test", n_images=n_images)
    parts = []
    for decoding in decodings:
        cells = [replace(base, decoding=decoding, policy=POLICIES[name]) for name in policies]
        part = changes(store, cells, base, p_values=True, n_resamples=n_resamples)
        own = changes(store, cells, cells[0], n_resamples=n_resamples)
        for column in (f"{metric}{end}" for metric in PRIMARY for end in ("", "_low", "_high")):
            part[f"own_{column}"] = own[f"d_{column}"].where(own.index > 0)
        part = part.join(equal_lengths(store, cells, base, n_resamples=n_resamples))
        parts.append(part.assign(decoding=name_of(decoding), policy=list(policies)))
    table = pd.concat(parts, ignore_index=True)
    is_base = table["experiment"] == base
    columns = [column for column in table if column.startswith("d_")]
    table.loc[is_base, columns] = np.nan
    tested = holm(table[~is_base], "p_distinct_chair_i")
    return table.join(tested[["p_holm", "rejected"]])


def front(cost: pd.Series, harm: pd.Series) -> pd.Series:
    """Return which points no other beats in both, less cost and less harm (the Pareto front).

    >>> front(pd.Series([1, 2, 3]), pd.Series([9, 5, 6])).tolist()
    [True, True, False]
    """
    beaten = [((cost <= x) & (harm <= y) & ((cost < x) | (harm < y))).any() for x, y in zip(cost, harm, strict=True)]
    return ~pd.Series(beaten, cost.index)
