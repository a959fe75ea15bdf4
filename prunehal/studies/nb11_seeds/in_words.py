"""Read the counts of captions of several training seeds: changes by each rule, and by settings of other seeds, also in words.

Over seeds, the counts of a scene are added up: metrics are pooled over all captions, and intervals draw whole scenes. Where
absent objects were counted by mention only, distinct CHAIR_i and F1 are ranges that hold whatever captions repeated
(`prunehal.stats.distinct_bounds`); where they were counted once a caption, both ends of a range are the same. Intervals are
95%, and uncorrected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from prunehal.experiments.compare import METRICS, N_RESAMPLES
from prunehal.experiments.readable import between
from prunehal.files.paths import data_path
from prunehal.stats.bootstrap import Interval, verdict
from prunehal.stats.distinct_bounds import Bounds, bounded, difference_bounds, level_bounds, share_bounds
from prunehal.stats.intervals import paired_bootstrap
from prunehal.studies.nb08_redundancy.rules import ORACLE, PUBLISHED
from prunehal.studies.nb11_seeds.rows import FAMILIES, NONE

__all__ = [
    "ALL",
    "CARD_SCENES",
    "RANGES",
    "answer",
    "beside_cards",
    "claims",
    "effects",
    "from_cards",
    "headline",
    "transfer",
    "verdicts",
    "within",
]

ALL = "all"  # in the place of a seed: all seeds together
EXACT = ("chair_i", "recall", "words")  # metrics that the stored counts give exactly
RANGES = ("distinct_chair_i", "f1")  # metrics that depend on how often absent objects were repeated
CARD_SCENES = 250  # scenes with background tiles that a model card is computed from; the first of the rows here are the same
_TILES = {False: "clean tiles", True: "cluttered tiles"}


def effects(rows: pd.DataFrame, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return what each rule changes against no pruning, for each seed and for all seeds together.

    Args:
        rows: as `prunehal.studies.nb11_seeds.rows.measure` returns them.
        n_resamples: of the bootstrap over scenes (BCa).

    Returns:
        One line for each seed (the last is "all"), kind of tiles and rule: seed, clutter, rule, setting, captions (how many);
        chair_i, recall (percent) and words; distinct_chair_i, absent and repeats, each with _least and _most; unfinished
        (percent; NaN where it was not counted). For rules: d_chair_i, d_recall and d_words with _low and _high;
        d_distinct_chair_i and d_f1 (points) with _least, _most, _low and _high, as a `Bounds`; won with the same, the share of
        the oracle's gain in F1 (NaN of the oracle itself, and without a gain for sure).
    """
    own = bounded(rows[rows["own"]])
    seeds, lines = own["seed"].unique().tolist(), []
    for seed in (*seeds, ALL):
        of_seed = own if seed == ALL else own[own["seed"] == seed]
        for clutter, cell in of_seed.groupby("clutter"):
            items = {rule: _summed(part) for rule, part in cell.groupby("rule", sort=False)}
            for rule, part in cell.groupby("rule", sort=False):
                settings = "; ".join(part["setting"].unique())
                line = {"seed": str(seed), "clutter": clutter, "rule": rule, "setting": settings, "captions": len(part)}
                line |= _levels(part, items[rule])
                if rule != NONE:
                    line |= _changes(items[NONE], items[rule], n_resamples)
                if rule not in (NONE, ORACLE):
                    won = share_bounds(items[rule], items[ORACLE], items[NONE], n_resamples)
                    line |= {} if won is None else _range("won", won)
                lines.append(line)
    return pd.DataFrame(lines)


def transfer(rows: pd.DataFrame, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return what settings that other seeds chose are worth for a seed, beside its own choice on the same scenes.

    Returns:
        One line for each seed, kind of tiles, way of selecting and setting of others: seed, clutter, rule, setting, chosen_by
        (seeds), d_chair_i and d_recall against the own setting (percent points) with _low and _high, d_distinct_chair_i as in
        :func:`effects`. No line where all seeds chose alike.
    """
    chosen_by = rows[rows["own"]].groupby(["rule", "setting"])["seed"].unique()
    lines, rows = [], bounded(rows)
    for (seed, clutter, rule, setting), part in rows[~rows["own"]].groupby(["seed", "clutter", "rule", "setting"]):
        of_cell = rows[(rows["seed"] == seed) & (rows["clutter"] == clutter) & (rows["rule"] == rule) & rows["own"]]
        mine = of_cell[of_cell["image_id"].isin(part["image_id"])]
        theirs = ", ".join(map(str, chosen_by[rule, setting]))
        line = {"seed": seed, "clutter": clutter, "rule": rule, "setting": setting, "chosen_by": theirs}
        for metric in ("chair_i", "recall"):
            line |= _ends(f"d_{metric}", paired_bootstrap(mine, part, metric, n_resamples), METRICS[metric])
        found = difference_bounds(mine, part, "distinct_chair_i", n_resamples)
        lines.append(line | _range("d_distinct_chair_i", found, METRICS["distinct_chair_i"]))
    return pd.DataFrame(lines)


def from_cards() -> dict[int, dict[bool, float]]:
    """Return what the model cards say of captions without pruning: seed -> clutter -> distinct CHAIR_i among three tiles.

    >>> round(from_cards()[0][True], 3)
    0.432
    """
    cards = json.loads(data_path("embedded", "seeds.json").read_text(encoding="utf-8"))
    names = {clutter: f"test, 3 {kind.split()[0]} background tiles" for clutter, kind in _TILES.items()}
    return {
        seed: {clutter: card["captions"][name]["distinct_chair_i"] for clutter, name in names.items()}
        for seed, card in enumerate(cards)
    }


def beside_cards(rows: pd.DataFrame, cards: Mapping[int, Mapping[bool, float]]) -> pd.DataFrame:
    """Return the range of each rule's change of distinct CHAIR_i on the scenes whose captions without pruning a card counted.

    The card knows distinct CHAIR_i without pruning, pooled over its scenes, which are the first ones here. That leaves open the
    repeats of the pruned captions alone; there is no interval, for single captions are not known.

    Args:
        rows: as `prunehal.studies.nb11_seeds.rows.measure` returns them.
        cards: seed -> clutter -> distinct CHAIR_i of the model card, a fraction.

    Returns:
        clutter, rule, seed; none (the card's), least and most of the rule; d_least and d_most: in percent and points.
    """
    own, lines = bounded(rows[rows["own"] & (rows["rule"] != NONE)]), []
    first = sorted(rows["image_id"].unique())[:CARD_SCENES]
    for (clutter, rule, seed), part in own[own["image_id"].isin(first)].groupby(["clutter", "rule", "seed"], sort=False):
        none, (least, most) = cards[seed][clutter], level_bounds(part, "distinct_chair_i")
        numbers = {"none": none, "least": least, "most": most, "d_least": least - none, "d_most": most - none}
        lines.append({"clutter": clutter, "rule": rule, "seed": seed} | {name: 100 * value for name, value in numbers.items()})
    return pd.DataFrame(lines)


def within(line: pd.Series, name: str, digits: int = 1) -> str:
    """Return a range in words.

    >>> line = pd.Series({"d_f1_least": 7.5, "d_f1_most": 21.8, "d_f1_low": 6.7, "d_f1_high": 22.6})
    >>> within(line, "d_f1")
    'between +7.5 and +21.8 [6.7, 22.6]'
    """
    least, most, low, high = (line[f"{name}_{end}"] for end in ("least", "most", "low", "high"))
    text = f"{least:+.{digits}f}" if least == most else f"between {least:+.{digits}f} and {most:+.{digits}f}"
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def verdicts(line: pd.Series) -> dict[str, str]:
    """Return "lower", "higher" or "unclear" for recall, distinct CHAIR_i and F1, by intervals that hold whatever was repeated.

    Args:
        line: of :func:`effects`, of a rule.
    """
    names = {"recall": "d_recall", "distinct CHAIR_i": "d_distinct_chair_i", "F1": "d_f1"}
    return {label: verdict(line[f"{name}_low"], line[f"{name}_high"]) for label, name in names.items()}


def headline(table: pd.DataFrame) -> list[str]:
    """Return what the seeds say about each rule: recall, and the ranges of distinct CHAIR_i and F1, in one sentence.

    Args:
        table: what :func:`effects` returns.
    """
    rules = table[table["rule"] != NONE]
    alone, said = rules[rules["seed"] != ALL], []
    for _, line in rules[rules["seed"] == ALL].iterrows():
        of_seeds = alone[(alone["clutter"] == line["clutter"]) & (alone["rule"] == line["rule"])]
        words = verdicts(line)
        alike = sum(verdicts(each) == words for _, each in of_seeds.iterrows())
        parts = [f"recall {between(line, 'd_recall')}, {words['recall']}"]
        parts += [f"distinct CHAIR_i {within(line, 'd_distinct_chair_i')}, {words['distinct CHAIR_i']}"]
        parts += [f"F1 {within(line, 'd_f1')}, {words['F1']}"]
        where = f"{_TILES[line['clutter']]}, {line['rule']}"
        said.append(f"{where}: {'; '.join(parts)}; {alike} of {len(of_seeds)} seeds say all three alone.")
    return said


def answer(table: pd.DataFrame, beside: pd.DataFrame) -> list[str]:
    """Return the notebook's answer on the rules among three cluttered tiles and on what stays unclear.

    Args:
        table: what :func:`effects` returned.
        beside: what :func:`beside_cards` returned.
    """
    said = [each for each in headline(table) if each.startswith(_TILES[True])]
    lower, higher = (
        {key for key, part in beside.groupby(["clutter", "rule"]) if shown(part).all()}
        for shown in (lambda part: part["d_most"] < 0, lambda part: part["d_least"] > 0)
    )
    for keys, word in ((lower, "lower"), (higher, "higher")):
        names = [f"{_TILES[clutter]}, {rule}" for clutter, rule in sorted(keys)]
        text = "; ".join(names) or "none"
        said.append(
            f"Distinct CHAIR_i {word} in every seed, whatever was repeated, on the {CARD_SCENES} scenes of the cards: {text}."
        )
    if (table["distinct_chair_i_least"] < table["distinct_chair_i_most"]).any():
        said.append("Not known: how often pruned captions repeat absent objects, and how many captions were cut at the limit.")
    return said


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """Return what is left of the headline of an earlier study of a similar model, and of the goal, over all seeds.

    That study found that the published selection hurts among redundant tokens, that accumulated attention turns the loss into a
    gain of recall at equal CHAIR_i, and that an oracle shows what is left to win. The goal is a selection without labels that
    wins half of the oracle's gain. Harm and help are meant in F1 of distinct objects, which cannot be raised by repeating.

    Args:
        table: what :func:`effects` returns.

    Returns:
        Index: the claim; a column for each kind of tiles. Confirmed where it is shown, refuted where the opposite is shown, both
        whatever captions repeated; else unclear.
    """
    over, columns = table[(table["seed"] == ALL) & (table["rule"] != NONE)], {}
    for clutter, part in over.groupby("clutter"):
        line = part.set_index("rule")
        steps = line.loc["accumulated steps"]
        gain = verdicts(steps)["recall"]
        columns[_TILES[clutter]] = {
            "the published selection hurts": _shown(line.loc[PUBLISHED], "lower"),
            "accumulated attention gains recall": f"{_word(gain, 'higher')}: {between(steps, 'd_recall')}",
            "the oracle shows what is left to win": _shown(line.loc[ORACLE], "higher"),
        } | {f"half of the oracle's gain in F1, by {rule}": _half(line.loc[rule]) for rule in FAMILIES}
    return pd.DataFrame(columns)


def _shown(line: pd.Series, claimed: str) -> str:
    return f"{_word(verdicts(line)['F1'], claimed)}: F1 {within(line, 'd_f1')}"


def _word(verdict: str, claimed: str) -> str:
    return "confirmed" if verdict == claimed else "unclear" if verdict == "unclear" else "refuted"


def _half(line: pd.Series) -> str:
    """Return whether half of the oracle's gain is won, whatever was repeated."""
    if pd.isna(line["won_least"]):
        return "unclear: no gain for sure"
    word = "confirmed" if line["won_low"] >= 0.5 else "refuted" if line["won_high"] < 0.5 else "unclear"
    return f"{word}: {within(line, 'won', digits=2)}"


def _summed(part: pd.DataFrame) -> pd.DataFrame:
    """Return the counts of each scene added up over seeds; words are the mean."""
    grouped = part.groupby("image_id")
    columns = ["n_truth", "n_mentions", "n_hallucinated", "n_recalled", "absent_least", "absent_most"]
    return grouped[columns].sum().assign(words=grouped["words"].mean()).reset_index()


def _levels(rows: pd.DataFrame, items: pd.DataFrame) -> dict[str, float]:
    """Return the scores of captions, with the smallest and the largest value of those that depend on repeats.

    Args:
        rows: one line a caption, as `prunehal.stats.distinct_bounds.bounded` returns them.
        items: their sums by scene.
    """
    total, n = items.sum(), len(rows)
    chair_i, recall = total["n_hallucinated"] / max(total["n_mentions"], 1), total["n_recalled"] / total["n_truth"]
    line = {"chair_i": 100 * chair_i, "recall": 100 * recall, "words": rows["words"].mean()}
    for metric in ("distinct_chair_i", "repeats"):
        line |= dict(zip((f"{metric}_least", f"{metric}_most"), (100 * end for end in level_bounds(items, metric)), strict=True))
    line |= {"absent_least": rows["absent_least"].sum() / n, "absent_most": rows["absent_most"].sum() / n}
    return line | {"unfinished": 100 * rows["unfinished"].mean() if "unfinished" in rows else float("nan")}


def _changes(base: pd.DataFrame, ours: pd.DataFrame, n_resamples: int) -> dict[str, Any]:
    line = {}
    for metric in EXACT:
        line |= _ends(f"d_{metric}", paired_bootstrap(base, ours, metric, n_resamples), METRICS[metric])
    for metric in RANGES:
        line |= _range(f"d_{metric}", difference_bounds(base, ours, metric, n_resamples), METRICS[metric])
    return line


def _ends(name: str, found: Interval, unit: float) -> dict[str, float]:
    return {name: unit * found.estimate, f"{name}_low": unit * found.low, f"{name}_high": unit * found.high}


def _range(name: str, found: Bounds, unit: float = 1) -> dict[str, float]:
    return {f"{name}_{end}": unit * getattr(found, end) for end in ("least", "most", "low", "high")}
