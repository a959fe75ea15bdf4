"""Tables of notebook 07 (settings tried, decoders alone, policies beside decoders, time) and its answer in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from prunehal.core import Keep
from prunehal.decoding.named import name_of
from prunehal.experiments import Experiment, Store, changes, read_grid
from prunehal.experiments.choosing import Chosen
from prunehal.experiments.compare import LEVELS
from prunehal.experiments.readable import between
from prunehal.files.paths import data_path
from prunehal.stats.bootstrap import verdict
from prunehal.studies.nb07_decoders.matrix import POLICIES, front

__all__ = ["added", "alone", "answer", "oracle", "timed", "tried", "verdicts", "verdicts_by_interval"]

PLAIN, PUBLISHED, *_ = POLICIES
_METRICS = ("chair_i", "distinct_chair_i", "recall")


def tried(store: Store, chosen: Mapping[str, Chosen]) -> pd.DataFrame:
    """Return every setting of every decoder on the validation split, against greedy decoding, without pruning.

    Args:
        store: holds the rows of data/grids/decoders_validation.toml.
        chosen: what `prunehal.studies.nb07_decoders.matrix.chosen_decoders` returns.

    Returns:
        Indexed by the setting, the columns of `prunehal.experiments.changes`, and decoding (the name), choice: "chosen",
        "fallback" (chosen, although no setting of the decoder keeps the recall) or "".
    """
    greedy, *others = read_grid(data_path("grids", "decoders_validation.toml"))
    table = changes(store, others, greedy)
    how = {each.setting: "fallback" if each.missed else "chosen" for each in chosen.values()}
    decodings = [each.decoding for each in others]
    names = [each.name.removeprefix("validation_").removesuffix("_nopruning") for each in others]
    table["decoding"] = [name_of(each) for each in decodings]
    table["choice"] = [how.get(each, "") for each in decodings]
    return table.set_index(pd.Index(names, name="setting"))


def oracle(store: Store, n_images: int) -> pd.Series:
    """Return what the oracle, which keeps exactly the patches of the objects, changes on one tile against no pruning.

    Args:
        store: holds the rows of the oracle on the test split.
        n_images: number of images, the first ones; at most 300.

    Returns:
        The line of `prunehal.experiments.changes`.

    >>> bool(oracle(Store.shipped(), 50)["visual"] < 100)
    True
    """
    base = Experiment(split="test", n_images=n_images)
    return changes(store, [replace(base, policy=Keep(), mode="first-token")], base).iloc[0]


def verdicts(table: pd.DataFrame) -> pd.Series:
    """Return "lower", "higher" or "unclear" for distinct CHAIR_i against greedy decoding; "" for the baseline itself.

    Args:
        table: what `prunehal.studies.nb07_decoders.matrix.matrix` returned, whose ``rejected`` is corrected (Holm) over the
            matrix.

    >>> table = pd.DataFrame({"d_distinct_chair_i": [-3.0, -1.0, None], "rejected": [True, False, None]})
    >>> verdicts(table).tolist()
    ['lower', 'unclear', '']
    """
    shown = (table["d_distinct_chair_i"] < 0).map({True: "lower", False: "higher"})
    shown = shown.where(table["rejected"].eq(True), "unclear")
    return shown.where(table["d_distinct_chair_i"].notna(), "")


def verdicts_by_interval(table: pd.DataFrame, name: str) -> pd.Series:
    """Return "lower", "higher" or "unclear" for each line of a table, by its uncorrected interval.

    Args:
        table: holds the columns name_low and name_high.
        name: of the difference.

    >>> verdicts_by_interval(pd.DataFrame({"d_low": [-3.0, -1.0], "d_high": [-1.0, 2.0]}), "d").tolist()
    ['lower', 'unclear']
    """
    ends = zip(table[f"{name}_low"], table[f"{name}_high"], strict=True)
    return pd.Series([verdict(low, high) for low, high in ends], table.index)


def alone(table: pd.DataFrame, chosen: Mapping[str, Chosen]) -> pd.DataFrame:
    """Return each decoding without pruning against greedy decoding, for reading.

    Args:
        table: what `prunehal.studies.nb07_decoders.matrix.matrix` returned.
        chosen: the choices among its decodings.

    Returns:
        Indexed by the decoding (a fallback marked): the changes of CHAIR_i, distinct CHAIR_i and recall, and of distinct CHAIR_i
        at an equal number of objects, each with its interval; repeats, unfinished (percent); verdict.
    """
    plain = table[table["policy"] == PLAIN]
    lines = [{LEVELS[metric]: _change(line, f"d_{metric}") for metric in _METRICS} for _, line in plain.iterrows()]
    found = pd.DataFrame(lines)
    found["distinct CHAIR_i at equal objects"] = [_change(line, "equal_distinct_chair_i") for _, line in plain.iterrows()]
    found[["repeats", "unfinished"]] = plain[["repeats", "unfinished"]].round(1).to_numpy()
    found["verdict"] = verdicts(plain).to_numpy()
    missed = {name for name, each in chosen.items() if each.missed}
    return found.set_index(
        pd.Index([f"{name} (fallback)" if name in missed else name for name in plain["decoding"]], name="decoding")
    )


def added(table: pd.DataFrame) -> pd.DataFrame:
    """Return what each policy changes beside each decoding, against the same decoding without pruning, for reading.

    Args:
        table: what `prunehal.studies.nb07_decoders.matrix.matrix` returned.

    Returns:
        Indexed by the decoding, two columns for each policy: the change of distinct CHAIR_i and of recall, with intervals.
    """
    own = {LEVELS["distinct_chair_i"]: "own_distinct_chair_i", LEVELS["recall"]: "own_recall"}
    columns = {}
    for policy in [name for name in table["policy"].unique() if name != PLAIN]:
        part = table[table["policy"] == policy].set_index("decoding")
        columns |= {(policy, label): {name: between(line, key) for name, line in part.iterrows()} for label, key in own.items()}
    return pd.DataFrame(columns)


def timed(table: pd.DataFrame, ratios: pd.DataFrame) -> pd.DataFrame:
    """Return the time of each decoding beside what it does, without pruning and with the published setting of PruneHal.

    FastV is left out, as it was timed at another setting than the one that is scored; sampling takes the time of greedy search.

    Args:
        table: what `prunehal.studies.nb07_decoders.matrix.matrix` returned.
        ratios: what `prunehal.measuring.decoders.ratios` returned for one model.

    Returns:
        The lines of the table that were timed, and: pruned, cost (time, ratio to stock greedy search), front (no other has a
        lower distinct CHAIR_i and a higher recall; time does not count).
    """
    cost = {(line.decoding, line.policy == "PruneHal"): line.over_greedy for line in ratios.itertuples()}
    cost |= {("nucleus", pruned): cost["greedy", pruned] for pruned in (False, True)}
    shown = table[table["policy"].isin([PLAIN, PUBLISHED]) & (table["decoding"] != "fastv")].copy()
    shown["pruned"] = shown["policy"] != PLAIN
    shown["cost"] = [cost[key] for key in zip(shown["decoding"], shown["pruned"], strict=True)]
    return shown.assign(front=front(-shown["recall"], shown["distinct_chair_i"]))


def answer(table: pd.DataFrame, chosen: Mapping[str, Chosen], times: pd.DataFrame, rounds: int, model: str) -> list[str]:
    """Return the answer of notebook 07: verdicts with numbers and intervals, a sentence for each question.

    Args:
        table: what `prunehal.studies.nb07_decoders.matrix.matrix` returned.
        chosen: the choices among its decodings.
        times: what :func:`timed` returned.
        rounds: of timing.
        model: that was timed.
    """
    base, *_ = table.to_dict("records")
    plain = table[table["policy"] == PLAIN].iloc[1:]
    corrected, said = verdicts(plain), []
    levels = ", ".join(f"{LEVELS[metric]} {base[metric]:.1f}%" for metric in _METRICS)
    said.append(f"Greedy decoding without pruning: {levels}.")
    for which in ("lower", "higher", "unclear"):
        named = [f"{line['decoding']} {between(line, 'd_distinct_chair_i')}" for _, line in plain[corrected == which].iterrows()]
        said.append(f"Distinct CHAIR_i of a decoder alone, {which}: {'; '.join(named) or 'none'}.")
    where = verdicts_by_interval(plain, "equal_distinct_chair_i")
    equal = [
        f"{which} " + ", ".join(f"{line['decoding']} {between(line, 'equal_distinct_chair_i')}" for _, line in part.iterrows())
        for which, part in plain.groupby(where, sort=False)
    ]
    said.append(f"The same at an equal number of distinct objects, by uncorrected intervals: {'; '.join(equal)}.")
    for line in plain[plain["repeats"] > 2 * base["repeats"]].to_dict("records"):
        said.append(
            f"{line['decoding']} repeats {line['repeats']:.0f}% of its mentions (greedy {base['repeats']:.0f}%) and leaves "
            f"{line['unfinished']:.1f}% of its captions unfinished: CHAIR_i {between(line, 'd_chair_i')}, distinct CHAIR_i "
            f"{between(line, 'd_distinct_chair_i')}."
        )
    for policy, part in table[table["policy"] != PLAIN].groupby("policy", sort=False):
        change, by_interval = part["own_distinct_chair_i"], verdicts_by_interval(part, "own_distinct_chair_i")
        counts = ", ".join(f"{which} in {(by_interval == which).sum()}" for which in ("higher", "lower", "unclear"))
        said.append(
            f"{policy} beside {len(part)} decodings, by uncorrected intervals: distinct CHAIR_i {counts} "
            f"({change.min():+.1f} to {change.max():+.1f}); "
            f"recall {part['own_recall'].min():+.1f} to {part['own_recall'].max():+.1f}."
        )
    best = ", ".join(f"{line.decoding}{' + PruneHal' if line.pruned else ''}" for line in times[times["front"]].itertuples())
    slowest = times.loc[times["cost"].idxmax()]
    said.append(f"By the estimates alone no other is better in both distinct CHAIR_i and recall than: {best}.")
    said.append(
        f"Time ({model}, {rounds} round{'s' if rounds > 1 else ''}{', so without a spread' if rounds == 1 else ''}): "
        f"{times['cost'].min():.2f} to {slowest['cost']:.1f} times greedy search, most by {slowest['decoding']}."
    )
    missed = ", ".join(name for name, each in chosen.items() if each.missed)
    return [*said, f"Fallbacks, as no setting keeps the recall on validation: {missed or 'none'}."]


def _change(line: pd.Series, name: str) -> str:
    """Return a change with its interval; nothing on the line of the baseline itself."""
    return between(line, name) if pd.notna(line[name]) else ""
