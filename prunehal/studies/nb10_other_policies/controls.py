"""What the ranking adds: each policy beyond the paper against itself with one change."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from prunehal.experiments import Experiment, Store, changes, equal_lengths
from prunehal.experiments.compare import N_RESAMPLES
from prunehal.stats.testing import holm
from prunehal.studies.nb10_other_policies.compare import AT_RANDOM, INT8
from prunehal.studies.settings import Setting

__all__ = ["against_controls"]


def against_controls(
    store: Store, settings: Mapping[str, Setting], base: Experiment, *, n_resamples: int = N_RESAMPLES
) -> pd.DataFrame:
    """Return each policy against itself with one change: as many random tokens, or banks that round against those that do not.

    Args:
        store: holds the rows of all.
        settings: name -> setting, those of `prunehal.studies.nb10_other_policies.compare.controls` among them.
        base: as in `prunehal.studies.nb10_other_policies.compare.compare`.
        n_resamples: of the bootstrap over images.

    Returns:
        Indexed by policy and against: the columns of `prunehal.experiments.changes` and ``equal_lengths``; other (captions that
        are not the same, percent); p_holm and rejected, of distinct_chair_i over these lines.

    Raises:
        FileNotFoundError: rows are missing.

    >>> from prunehal.core import PruneHal
    >>> from prunehal.studies.settings import at_random
    >>> pair = {"P": Setting(PruneHal(r=0.9, t=1)), "P, random tokens": Setting(at_random(PruneHal(r=0.9, t=1)))}
    >>> base = Experiment(split="test", n_images=50)
    >>> against_controls(Store.shipped(), pair, base, n_resamples=200).index.tolist()
    [('P', 'P, random tokens')]
    """
    pairs = [(name, name + AT_RANDOM) for name in settings if name + AT_RANDOM in settings]
    pairs += [(name + INT8, name) for name in settings if name + INT8 in settings]
    parts = []
    for name, against in pairs:
        ours, theirs = (settings[each].on(base) for each in (name, against))
        part = changes(store, [ours], theirs, p_values=True, n_resamples=n_resamples)
        part = part.join(equal_lengths(store, [ours], theirs, n_resamples=n_resamples))
        texts = [store.captions(each).set_index("image_id")["caption"] for each in (ours, theirs)]
        parts.append(part.assign(policy=name, against=against, other=100 * texts[0].ne(texts[1]).mean()))
    return holm(pd.concat(parts, ignore_index=True), "p_distinct_chair_i").set_index(["policy", "against"])
