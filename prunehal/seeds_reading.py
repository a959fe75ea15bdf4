"""Read the captions of several training seeds: what each rule changes, what a setting is worth elsewhere, and both in words.

Over seeds, the counts of a scene are added up: metrics are pooled over all captions, and intervals draw whole scenes.
"""

from __future__ import annotations

import pandas as pd

from prunehal.beyond import between
from prunehal.bootstrap import Interval
from prunehal.experiments.compare import METRICS, N_RESAMPLES
from prunehal.gain import gain_in_f1
from prunehal.inference import holm, paired_p_value
from prunehal.redundancy import ORACLE, PUBLISHED
from prunehal.seeds import COUNTS, CUTS, FAMILIES, NONE
from prunehal.statistics import paired_bootstrap

__all__ = ["ALL", "claims", "effects", "headline", "transfer"]

ALL = "all"  # in the place of a seed: all seeds together
EQUAL = 1  # percent points that CHAIR_i may rise and still count as no higher


def effects(rows: pd.DataFrame, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return what each rule changes against no pruning, for each seed and for all seeds together.

    Args:
        rows: as :func:`measure` returns them.
        n_resamples: of the bootstrap over scenes (BCa).

    Returns:
        One line for each seed (the last is "all"), kind of tiles and rule: seed, clutter, rule, setting, captions (how many);
        chair_i, recall (percent) and words; d_ of each with _low and _high, p_chair_i and p_recall; equal_chair_i and
        equal_recall with _low and _high, both cut to the mean length of the shorter; won with _low and _high, the share of the
        oracle's gain in F1 (nan where it has none).
    """
    own = rows[rows["own"]]
    seeds, lines = own["seed"].unique().tolist(), []
    for seed in (*seeds, ALL):
        of_seed = own if seed == ALL else own[own["seed"] == seed]
        for clutter, cell in of_seed.groupby("clutter"):
            items = {rule: _summed(part) for rule, part in cell.groupby("rule", sort=False)}
            for rule, ours in items.items():
                settings = cell.loc[cell["rule"] == rule, "setting"].unique()
                line = {"seed": str(seed), "clutter": clutter, "rule": rule, "setting": "; ".join(settings)}
                line |= {"captions": int((cell["rule"] == rule).sum())} | _levels(ours)
                if rule != NONE:
                    line |= _changes(items[NONE], ours, n_resamples)
                    _, won = gain_in_f1(ours, items[ORACLE], items[NONE], n_resamples=n_resamples)
                    line |= {} if won is None else {"won": won.estimate, "won_low": won.low, "won_high": won.high}
                lines.append(line)
    return pd.DataFrame(lines)


def transfer(rows: pd.DataFrame, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
    """Return what settings that other seeds chose are worth for a seed, beside its own choice on the same scenes.

    Returns:
        One line for each seed, kind of tiles, way of selecting and setting of others: seed, clutter, rule, setting, chosen_by
        (seeds), d_chair_i and d_recall against the own setting (percent points) with _low and _high. No line where all seeds
        chose alike.
    """
    chosen_by = rows[rows["own"]].groupby(["rule", "setting"])["seed"].unique()
    lines = []
    for (seed, clutter, rule, setting), part in rows[~rows["own"]].groupby(["seed", "clutter", "rule", "setting"]):
        of_cell = rows[(rows["seed"] == seed) & (rows["clutter"] == clutter) & (rows["rule"] == rule) & rows["own"]]
        mine = of_cell[of_cell["image_id"].isin(part["image_id"])]
        theirs = ", ".join(map(str, chosen_by[rule, setting]))
        line = {"seed": seed, "clutter": clutter, "rule": rule, "setting": setting, "chosen_by": theirs}
        for metric in ("chair_i", "recall"):
            line |= _ends(f"d_{metric}", paired_bootstrap(mine, part, metric, n_resamples), METRICS[metric])
        lines.append(line)
    return pd.DataFrame(lines)


def headline(table: pd.DataFrame) -> list[str]:
    """Return what the seeds say about each rule, in sentences whose words follow tests and intervals.

    A rule hurts if it raises CHAIR_i or lowers recall and improves neither, and the other way round it helps, by p-values that
    are corrected (Holm) over all rules, kinds of tiles and both metrics; else it is not shown to do either.

    Args:
        table: what :func:`effects` returns.
    """
    verdicts = {seed: _verdicts(part) for seed, part in table[table["rule"] != NONE].groupby("seed")}
    over, seeds = verdicts.pop(ALL), len(verdicts)
    lines = []
    for (clutter, rule), line in table[table["seed"] == ALL].set_index(["clutter", "rule"]).drop(NONE, level=1).iterrows():
        alike = sum(each[clutter, rule] == over[clutter, rule] for each in verdicts.values())
        changes = ", ".join(f"{name} {between(line, f'd_{key}')}" for key, name in (("chair_i", "CHAIR_i"), ("recall", "recall")))
        won = (
            ""
            if pd.isna(line["won"]) or rule == ORACLE
            else f"; {between(line, 'won', digits=2).lstrip('+')} of the oracle's gain in F1"
        )
        lines.append(
            f"{'cluttered' if clutter else 'clean'} tiles, {rule}: {changes}, {line['captions']:,.0f} captions{won}: it "
            f"{over[clutter, rule]}; {alike} of {seeds} seeds say the same alone."
        )
    return lines


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """Return what is left of the headline of an earlier study of a similar model, and of the goal, over all seeds.

    That study found that the published selection hurts among redundant tokens, that accumulated attention turns the loss into a
    gain of recall at equal CHAIR_i (here: not EQUAL points higher), and that an oracle shows what is left to win. The goal is a
    selection without labels that wins half of the oracle's gain in F1.

    Args:
        table: what :func:`effects` returns.

    Returns:
        Index: the claim; a column for each kind of tiles. Confirmed where it is shown, refuted where the opposite is shown.
    """
    over = table[(table["seed"] == ALL) & (table["rule"] != NONE)]
    verdicts, columns = _verdicts(over), {}
    for clutter, part in over.groupby("clutter"):
        line = part.set_index("rule")
        steps = line.loc["accumulated steps"]
        gained, equal = steps["d_recall_low"] > 0, steps["d_chair_i_high"] <= EQUAL
        against = steps["d_recall_high"] < 0 or steps["d_chair_i_low"] > EQUAL
        held = "confirmed" if gained and equal else "refuted" if against else "not shown"
        told = f"recall {between(steps, 'd_recall')}, CHAIR_i {between(steps, 'd_chair_i')}"
        columns[f"{'cluttered' if clutter else 'clean'} tiles"] = {
            "the published selection hurts": _confirmed(verdicts[clutter, PUBLISHED], "hurts"),
            "accumulated attention gains recall at equal CHAIR_i": f"{held} ({told})",
            "the oracle shows what is left to win": _confirmed(verdicts[clutter, ORACLE], "helps"),
        } | {f"half of the oracle's gain in F1, by {rule}": _half(line.loc[rule]) for rule in FAMILIES}
    return pd.DataFrame(columns)


def _confirmed(verdict: str, claimed: str) -> str:
    return "confirmed" if verdict == claimed else "refuted" if verdict in ("hurts", "helps") else f"not shown: it {verdict}"


def _half(line: pd.Series) -> str:
    """Return whether half of the oracle's gain is won."""
    if pd.isna(line["won"]):
        return "no gain shown"
    reached = "shown" if line["won_low"] >= 0.5 else "by the estimate" if line["won"] >= 0.5 else "missed"
    return f"{reached} ({between(line, 'won', digits=2).lstrip('+')})"


def _verdicts(part: pd.DataFrame) -> dict[tuple[bool, str], str]:
    """Return (clutter, rule) -> what is shown of a rule by the tests of one table."""
    long = pd.concat([part.assign(p=part[f"p_{m}"], worse=part[f"d_{m}"] * sign) for m, sign in (("chair_i", 1), ("recall", -1))])
    found = {}
    for key, both in holm(long, "p").groupby(["clutter", "rule"]):
        signs = set((both["worse"] > 0)[both["rejected"]])
        names = {(): "is not shown to help or to hurt", (True,): "hurts", (False,): "helps"}
        found[key] = names.get(tuple(signs), "buys the one with the other")
    return found


def _summed(part: pd.DataFrame) -> pd.DataFrame:
    """Return the counts of each scene added up over seeds; words are the mean."""
    grouped = part.groupby("image_id")
    columns = ["n_truth", *COUNTS, *(prefix + name for prefix in CUTS.values() for name in COUNTS)]
    return grouped[columns].sum().assign(words=grouped["words"].mean()).reset_index()


def _levels(items: pd.DataFrame) -> dict[str, float]:
    total = items.sum()
    chair_i, recall = total["n_hallucinated"] / max(total["n_mentions"], 1), total["n_recalled"] / total["n_truth"]
    return {"chair_i": 100 * chair_i, "recall": 100 * recall, "words": items["words"].mean()}


def _changes(base: pd.DataFrame, ours: pd.DataFrame, n_resamples: int) -> dict[str, float]:
    line = {}
    for metric in ("chair_i", "recall", "words"):
        line |= _ends(f"d_{metric}", paired_bootstrap(base, ours, metric, n_resamples), METRICS[metric])
    cut = [
        ours[["image_id", "n_truth", *(prefix + name for name in COUNTS)]].rename(columns=lambda c, p=prefix: c.removeprefix(p))
        for prefix in (CUTS["base"], CUTS["ours"])
    ]
    for metric in ("chair_i", "recall"):
        line[f"p_{metric}"] = paired_p_value(base, ours, metric)
        line |= _ends(f"equal_{metric}", paired_bootstrap(*cut, metric, n_resamples), METRICS[metric])
    return line


def _ends(name: str, found: Interval, unit: float) -> dict[str, float]:
    return {name: unit * found.estimate, f"{name}_low": unit * found.low, f"{name}_high": unit * found.high}
