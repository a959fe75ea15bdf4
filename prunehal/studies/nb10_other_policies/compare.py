"""Policies beyond the paper: one setting of each family, chosen on the validation split and reported on test, beside controls.

The families and their settings are in `prunehal.studies.nb10_other_policies.families`. Controls are as many random tokens, a
bank that rounds what it holds, and an oracle that keeps the patches of objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from prunehal.core import Bank, Keep, NoPruning, PruneHal, StepTopK
from prunehal.core.informative import Telling
from prunehal.experiments import Experiment, Store, changes, equal_lengths
from prunehal.experiments.choosing import CHOSEN_BY, Chosen, Graded, choose_by_rule
from prunehal.experiments.compare import LEVELS, METRICS, N_RESAMPLES, PRIMARY
from prunehal.experiments.readable import between, head_of_table, levels
from prunehal.models.load import EMBEDDED
from prunehal.stats.gain import part_of_change
from prunehal.stats.testing import holm
from prunehal.studies.nb10_other_policies.families import FALLBACK, candidates, standing
from prunehal.studies.settings import Setting, at_random

__all__ = [
    "as_table",
    "both_changes",
    "chosen_policies",
    "compare",
    "controls",
    "footnotes",
    "lowers",
    "shown_parts",
    "verdict",
]

MARGIN = METRICS["recall"] * CHOSEN_BY["recall"]  # the same in points: recall is equal where its interval shows no larger loss
ALPHA = 0.05  # of Holm's correction
ORACLE = "oracle"
AT_RANDOM, INT8 = ", random tokens", ", int8"  # ends of the names of controls
PUBLISHED = PruneHal(r=0.4, t=3)  # for LLaVA-1.5
# Families with a control of as many random tokens.
WITH_RANDOM = ("PruneHal", "RobustVote", "MassShare", "Informative", "Standout")


def chosen_policies(store: Store, tiles: int = 0, model: str = EMBEDDED) -> dict[str, Chosen]:
    """Choose one setting of each family on the validation split, against no pruning, by `selection_rule.choose_by_rule`.

    Args:
        store: holds the rows of data/grids/beyond_validation.toml and thresholds.toml.
        tiles, model: as in `prunehal.studies.nb10_other_policies.families.candidates`.

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
        chosen[family] = choose_by_rule(graded, none)
    return chosen


def controls(chosen: Mapping[str, Chosen]) -> dict[str, Setting]:
    """Return what the chosen settings are compared with.

    The published setting, as many random tokens (in those families where it is one change), banks that round to 8 bits what they
    hold, and the oracle.

    >>> list(controls(chosen_policies(Store.shipped())))[5:]
    ['Standout, random tokens', 'Bank by fall, int8', 'Bank by key, int8', 'oracle']
    """
    found = {"PruneHal, published": Setting(PUBLISHED)}
    for family in WITH_RANDOM:
        policy, mode = chosen[family].setting
        found[family + AT_RANDOM] = Setting(at_random(policy), mode)
    for family, each in chosen.items():
        if isinstance(each.setting.policy, Bank):
            found[family + INT8] = Setting(replace(each.setting.policy, store="int8"), each.setting.mode)
    return found | {ORACLE: Setting(Keep(), "first-token")}


def compare(store: Store, settings: Mapping[str, Setting], base: Experiment, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return every setting against no pruning, on the same images.

    Args:
        store: holds the rows of all.
        settings: name -> setting.
        base: without pruning; its model, split, images and tiles are those of all.
        n_resamples: of the bootstrap over images.

    Returns:
        Indexed by the names: the columns of `prunehal.experiments.changes` (visual is what the cache held) and of
        ``equal_lengths`` (differences where both captions name equally many distinct objects); attended (what a step attends to
        of what is held; in percent of no pruning, too, and without a draft); p_holm and rejected (of distinct_chair_i, over the
        settings), p_holm_recall, lowers (:func:`lowers`). With a setting named "oracle" also part_distinct_chair_i, part_recall,
        and their _low and _high: the change as a part of the oracle's.

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
    table = holm(table, "p_distinct_chair_i").set_index(pd.Index(settings, name="policy"))
    for metric in PRIMARY if ORACLE in settings else ():
        bound, plain = (store.score(each).items for each in (settings[ORACLE].on(base), base))
        parts = [part_of_change(store.score(each).items, bound, plain, metric, n_resamples=n_resamples) for each in cells]
        table[[f"part_{metric}{end}" for end in ("", "_low", "_high")]] = [(each.estimate, each.low, each.high) for each in parts]
    return table.assign(lowers=lowers(table))


def lowers(table: pd.DataFrame) -> pd.Series:
    """Return which settings are shown to lower distinct CHAIR_i at equal recall and an equal number of distinct objects.

    Distinct CHAIR_i is lower after Holm's correction, its interval at an equal number of objects is below 0, and that of recall
    shows a loss of at most a point; an estimate alone shows nothing.

    Args:
        table: with the columns rejected, d_distinct_chair_i, equal_distinct_chair_i_high and d_recall_low of :func:`compare`.

    >>> line = {"rejected": True, "d_distinct_chair_i": -3.0, "equal_distinct_chair_i_high": -0.5, "d_recall": -0.9}
    >>> lowers(pd.DataFrame([line | {"d_recall_low": -1.0}, line | {"d_recall_low": -3.5}])).tolist()
    [True, False]
    """
    lower = table["rejected"] & (table["d_distinct_chair_i"] < 0) & (table["equal_distinct_chair_i_high"] < 0)
    return lower & (table["d_recall_low"] >= -MARGIN)


def shown_parts(table: pd.DataFrame, metric: str) -> pd.Series | None:
    """Return which policies are shown to win a part of the oracle's gain, or None where the oracle is not shown to gain.

    The oracle gains where its interval is on the better side of 0 and it is a change after Holm's correction: a part of next to
    nothing means nothing. A part is shown where its interval lies above 0 and the policy's change is one after the correction.

    Args:
        table: what :func:`compare` returned, with an oracle.
        metric: "distinct_chair_i" (less is better) or "recall".

    >>> oracle = {"d_recall_low": 2.0, "d_recall_high": 6.0, "p_holm_recall": 0.01}
    >>> lines = {"a": {"part_recall_low": 0.1, "p_holm_recall": 0.2}, "b": {"part_recall_low": 0.1, "p_holm_recall": 0.01}}
    >>> shown_parts(pd.DataFrame.from_dict(lines | {"oracle": oracle}, orient="index"), "recall").to_dict()
    {'a': False, 'b': True}
    """
    sign = 1 if metric == "recall" else -1
    ends = sign * table.loc[ORACLE, [f"d_{metric}_low", f"d_{metric}_high"]].astype(float)
    p = table["p_holm_recall" if metric == "recall" else "p_holm"]
    if ends.min() <= 0 or p[ORACLE] > ALPHA:
        return None
    return ((table[f"part_{metric}_low"] > 0) & (p <= ALPHA)).drop(ORACLE)


def as_table(table: pd.DataFrame, settings: Mapping[str, Setting], chosen: Mapping[str, Chosen] | None = None) -> str:
    """Return what :func:`compare` returned as markdown, no pruning first, and what it says in words.

    Args:
        table: what :func:`compare` returned for the settings.
        settings: name -> setting.
        chosen: the choices among them, so that those which are only a fallback are marked.

    >>> base, settings = Experiment(split="test", n_images=50), {"a": Setting(PUBLISHED), "oracle": Setting(PruneHal(r=0.9, t=1))}
    >>> as_table(compare(Store.shipped(), settings, base, n_resamples=200), settings).splitlines()[1]
    '|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|'
    """
    head = ["policy", "setting", "held in the cache", "attended to", *LEVELS.values()]
    head += ["change of distinct CHAIR_i", "of recall", "of distinct CHAIR_i at equal objects", "of recall at equal objects"]
    lines = head_of_table(head)
    first = table.iloc[0]
    plain = {metric: first[metric] - first[f"d_{metric}"] for metric in LEVELS}
    lines.append(f"| {' | '.join(['no pruning', '', '100%', '100%', *levels(plain), '', '', '', ''])} |")
    for name, line in table.iterrows():
        mark = f" ({FALLBACK})" if name in (chosen or {}) and standing(chosen[name]) == FALLBACK else ""
        cells = [f"{name}{mark}", settings[name].label, f"{line['visual']:.0f}%", f"{line['attended']:.0f}%"]
        cells += [*levels(line), *(between(line, f"{kind}_{metric}") for kind in ("d", "equal") for metric in PRIMARY)]
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
        "before, the prompt is run once more to read its visual tokens": lambda each: isinstance(each.policy, Telling),
        "all visual tokens stay in the cache, and each step attends to k of them": lambda each: isinstance(each.policy, StepTopK),
        "what has left the cache is kept beside it": lambda each: isinstance(each.policy, Bank) and each.policy.store != "int8",
        "what has left the cache is kept beside it, as 8-bit integers, and returns rounded": (
            lambda each: isinstance(each.policy, Bank) and each.policy.store == "int8"
        ),
    }
    said = ["Held in the cache, attended to: mean share of the visual tokens over the steps of the caption, against no pruning."]
    for what, pays in costs.items():
        if names := [name for name, each in settings.items() if pays(each)]:
            said.append(f"{'; '.join(names)}: {what}.")
    return said


def verdict(table: pd.DataFrame) -> list[str]:
    """Return in words which policies are shown to lower distinct CHAIR_i, which raise it, and what of the oracle's gain they win.

    Args:
        table: what :func:`compare` returned; "oracle", "..., random tokens" and "..., int8" are controls.
    """
    own = table[[name != ORACLE and not name.endswith((AT_RANDOM, INT8)) for name in table.index]]
    change = own["d_distinct_chair_i"]
    kinds = {
        "Distinct CHAIR_i lower, lower at equal objects too, recall shown to be at most a point lower": own["lowers"],
        "Distinct CHAIR_i lower, but not shown at equal objects or at equal recall": own["rejected"]
        & (change < 0)
        & ~own["lowers"],
        "Distinct CHAIR_i higher": own["rejected"] & (change > 0),
        "Distinct CHAIR_i unclear": ~own["rejected"].astype(bool),
    }
    said = []
    for what, which in kinds.items():
        named = [f"{name} {between(line, 'd_distinct_chair_i')}" for name, line in own[which].iterrows()]
        said.append(f"{what}: {', '.join(named) or 'no policy'}")
    for metric in PRIMARY:
        label = LEVELS[metric]
        oracle, shown = between(table.loc[ORACLE], f"d_{metric}"), shown_parts(table, metric)
        if shown is None:
            said.append(
                f"The oracle changes {label} by {oracle}: no gain is shown after Holm's correction, so no part of it is asked for"
            )
            continue
        parts = own.sort_values(f"part_{metric}", ascending=False)
        columns = parts[[f"part_{metric}{end}" for end in ("", "_low", "_high")]]
        shares = ", ".join(f"{name} {part:.0%} [{low:.0%}, {high:.0%}]" for name, part, low, high in columns.itertuples())
        said.append(f"The oracle changes {label} by {oracle}; the policies' parts of that: {shares}")
        winners = ", ".join(name for name in parts.index if shown[name]) or "no policy"
        said.append(f"Shown to win a part of it (interval above 0, and a change after Holm's correction): {winners}")
    return said


def both_changes(line: Mapping[str, float], kind: str = "d") -> str:
    """Return the changes of distinct CHAIR_i and of recall with their intervals, of the columns that begin with ``kind``.

    >>> line = {f"d_{metric}{end}": value for metric in PRIMARY for end, value in (("", 1.0), ("_low", 0.5), ("_high", 1.5))}
    >>> both_changes(line)
    'distinct CHAIR_i +1.0 [0.5, 1.5], recall +1.0 [0.5, 1.5]'
    """
    return ", ".join(f"{LEVELS[metric]} {between(line, f'{kind}_{metric}')}" for metric in PRIMARY)


def _attended(store: Store, experiment: Experiment, base: Experiment) -> float:
    """Return the visual tokens that a step attends to in the mean, in percent of those without pruning."""
    rows, before = store.captions(experiment), store.captions(base)["visual"].sum()
    held, policy = rows["visual"], experiment.policy
    if isinstance(policy, StepTopK):
        steps = rows["tokens"] + rows["finished"]
        free = np.minimum(policy.step - 1, steps) / steps  # the part of the steps that are not restricted
        held = free * held + (1 - free) * np.minimum(policy.k, held)
    return 100 * held.sum() / before
