"""Training seeds: does what pruning does hold for the same model, trained from other initial weights?

Three background tiles, clean and cluttered, many scenes of the test split, one model for each seed. Each seed chooses its
settings on its own captions of the validation split; fewer scenes are captioned under the settings that other seeds chose, too,
which shows what a setting is worth elsewhere. Weights of one seed ship with the package, of the others these counts.

Over seeds, the counts of a scene are added up: metrics are pooled over all captions, and intervals draw whole scenes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import pandas as pd

from prunehal.benchmarks.chair import score, truncate_to_mean
from prunehal.beyond import between
from prunehal.bootstrap import Interval
from prunehal.core import NoPruning
from prunehal.experiments import Experiment, Store, sweep
from prunehal.experiments.compare import METRICS, N_RESAMPLES
from prunehal.experiments.pictures import truth
from prunehal.experiments.versions import made_by
from prunehal.gain import gain_in_f1
from prunehal.inference import holm, paired_p_value
from prunehal.loading import EMBEDDED
from prunehal.marked import read_marked, write_marked
from prunehal.redundancy import ORACLE, Rule, all_rules, candidates, chosen_rules, with_rule
from prunehal.resources import data_path
from prunehal.selection_rule import Chosen
from prunehal.statistics import paired_bootstrap

__all__ = ["ALL", "FAMILIES", "FILE", "NONE", "effects", "headline", "measure", "stored", "transfer"]

FILE = "seeds.csv.gz"  # among the shipped results
NONE, ALL = "no pruning", "all"
FAMILIES = ("one step", "accumulated steps", "informative tokens")  # ways of selecting whose settings are chosen
TILES = 3

_COUNTS = ["n_mentions", "n_hallucinated", "n_recalled"]
_CUTS = {"ours": "equal_", "base": "base_"}  # prefixes of the counts of captions that were cut to equal length


def measure(
    others: Sequence[str | Path],
    work: Path,
    out: Path,
    n_images: int = 1000,
    n_transfer: int = 300,
    executor: Executor | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Caption with the embedded model, which is seed 0, and with models of other seeds, and write what the captions count.

    Args:
        others: folders of finished models of ``python -m prunehal train``, seed 1 first.
        work: folder of the rows under way; a second call goes on there.
        out: compressed file to write.
        n_images: scenes of the test split for no pruning, the published setting, each seed's own choices and the oracle.
        n_transfer: scenes for the settings that only other seeds chose.
        executor: of `prunehal.sweep`.
        progress: show bars with the time left.

    Returns:
        One line for each seed, rule, kind of tiles and scene: seed, weights (mark of the model), rule (no pruning, published, one
        of FAMILIES, oracle), setting, own (whether the seed chose the setting, or nobody has to), clutter, image_id, words,
        n_truth, n_mentions, n_hallucinated, n_recalled; the last three once more with equal_ and base_, of this caption and of
        the one without pruning after both sets were cut to the mean length of the shorter one.

    Raises:
        ValueError: no other model, or two with the same weights.
        OSError: a model is not there.
    """
    models = {seed: str(model) for seed, model in enumerate((EMBEDDED, *others))}
    marks = {seed: made_by(_of(model))["weights"] for seed, model in models.items()}
    if len(set(marks.values())) < max(2, len(models)):
        raise ValueError(f"others={[*others]}: weights {marks}; expected one or more models, each trained from another seed")
    stores = {seed: Store(work / f"seed{seed}") for seed in models}
    chosen = {seed: _chosen(model, stores[seed], executor, progress) for seed, model in models.items()}
    parts = []
    for seed, model in models.items():
        rules = _rules(chosen, seed)
        wanted = {
            (line, clutter): with_rule(replace(_of(model, n_images if line[2] else n_transfer), clutter=clutter), rule)
            for line, rule in rules.items()
            for clutter in (False, True)
        }
        sweep(wanted.values(), stores[seed], executor, progress=progress)
        for (line, clutter), experiment in wanted.items():
            base = replace(experiment, policy=NoPruning(), mode="decoding")
            told = {"seed": seed, "weights": marks[seed]} | dict(zip(("rule", "setting", "own"), line, strict=True))
            parts.append(_counted(stores[seed], experiment, base).assign(**told, clutter=clutter))
    frame = pd.concat(parts, ignore_index=True)
    write_marked(out, frame.to_csv(index=False), _of(EMBEDDED, n_images))
    return frame


def stored(path: Path | None = None) -> pd.DataFrame:
    """Read the lines that :func:`measure` wrote; by default the shipped ones.

    Raises:
        FileNotFoundError, ValueError, BadInput: as `prunehal.marked.read_marked`.
    """
    path = data_path("results", FILE, must_exist=False) if path is None else path
    _, table = read_marked(path, _of(EMBEDDED), "python -m prunehal seeds MODEL MODEL")
    return pd.read_csv(io.StringIO(table))


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


def _verdicts(part: pd.DataFrame) -> dict[tuple[bool, str], str]:
    """Return (clutter, rule) -> what is shown of a rule by the tests of one table."""
    long = pd.concat([part.assign(p=part[f"p_{m}"], worse=part[f"d_{m}"] * sign) for m, sign in (("chair_i", 1), ("recall", -1))])
    found = {}
    for key, both in holm(long, "p").groupby(["clutter", "rule"]):
        signs = set((both["worse"] > 0)[both["rejected"]])
        names = {(): "is not shown to help or to hurt", (True,): "hurts", (False,): "helps"}
        found[key] = names.get(tuple(signs), "buys the one with the other")
    return found


def _of(model: str, n_images: int = 1) -> Experiment:
    """Return captions of a model without pruning among the background tiles."""
    return Experiment(model=model, dtype=_dtype(model), split="test", n_images=n_images, tiles=TILES)


def _dtype(model: str) -> str:
    """Return the data type of computation: float32 for all, which the embedded model has by itself."""
    return "auto" if model == EMBEDDED else "float32"


def _chosen(model: str, store: Store, executor: Executor | None, progress: bool) -> dict[str, Chosen]:
    """Return the choices of a model on its own captions of the validation split."""
    if model == EMBEDDED:
        return chosen_rules(Store.shipped())
    experiments = [replace(each, model=model, dtype=_dtype(model)) for each in candidates()]
    return chosen_rules(sweep(experiments, store, executor, progress=progress), experiments)


def _rules(chosen: Mapping[int, Mapping[str, Chosen]], seed: int) -> dict[tuple[str, str, bool], Rule]:
    """Return (rule, setting, own) -> rule of what a seed's model is captioned under."""
    fixed = {NONE: ("decoding", NoPruning())} | all_rules({})
    rules = {(name, _setting(rule), True): rule for name, rule in fixed.items()}
    for family in FAMILIES:
        mine = chosen[seed][family].setting
        for rule in dict.fromkeys((mine, *(each[family].setting for each in chosen.values()))):
            rules[family, _setting(rule), rule == mine] = rule
    return rules


def _setting(rule: Rule) -> str:
    return with_rule(Experiment(), rule).name.removeprefix("validation_")


def _counted(store: Store, experiment: Experiment, base: Experiment) -> pd.DataFrame:
    """Return the counts of an experiment's captions, and of both sets of captions at equal length, one line for each scene."""
    known = truth(experiment)
    texts = {name: store.captions(each) for name, each in (("ours", experiment), ("base", base))}
    whole = {name: score(frame, known) for name, frame in texts.items()}
    shorter = min(result.metrics["words"] for result in whole.values())
    found = whole["ours"].items[["image_id", "words", "n_truth", *_COUNTS]]
    for name, prefix in _CUTS.items():
        cut = score(truncate_to_mean(texts[name], shorter).captions, known).items.set_index("image_id")[_COUNTS]
        found = found.join(cut.add_prefix(prefix), on="image_id")
    return found


def _summed(part: pd.DataFrame) -> pd.DataFrame:
    """Return the counts of each scene added up over seeds; words are the mean."""
    grouped = part.groupby("image_id")
    columns = ["n_truth", *_COUNTS, *(prefix + name for prefix in _CUTS.values() for name in _COUNTS)]
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
        ours[["image_id", "n_truth", *(prefix + name for name in _COUNTS)]].rename(columns=lambda c, p=prefix: c.removeprefix(p))
        for prefix in (_CUTS["base"], _CUTS["ours"])
    ]
    for metric in ("chair_i", "recall"):
        line[f"p_{metric}"] = paired_p_value(base, ours, metric)
        line |= _ends(f"equal_{metric}", paired_bootstrap(*cut, metric, n_resamples), METRICS[metric])
    return line


def _ends(name: str, found: Interval, unit: float) -> dict[str, float]:
    return {name: unit * found.estimate, f"{name}_low": unit * found.low, f"{name}_high": unit * found.high}
