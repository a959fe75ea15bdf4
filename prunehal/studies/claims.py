"""Every confirmatory claim of the notebooks in one table, with one correction for all of them.

A claim is confirmatory if it answers the question at the head of a notebook. Twelve notebooks ask many questions of the same
scenes, so that some of their answers would come out by chance: Holm's correction here is over all claims of all notebooks
together. All other numbers of the notebooks are exploratory: their intervals and p-values are uncorrected, or corrected within
one table only.

Notebooks 00, 02, 09 and 11 make no confirmatory claim: 00 and 02 show single captions, the doses, the control and the split of 09
were set after first results, and the captions of the other seeds of 11 are no longer at hand.

The p-values of paired differences come from at most 99,999 random swaps, so they have a smallest value, which many claims share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd

from prunehal.benchmarks import ground_truth_coco, score
from prunehal.benchmarks.chair.length import equal_objects, equal_words
from prunehal.benchmarks.chair.released import MODELS, released_captions
from prunehal.benchmarks.chair.score import ChairResult
from prunehal.core import NoPruning, PruneHal, TopK
from prunehal.decoding.named import STOCK, name_of
from prunehal.experiments import Experiment, Store, graded, read_grid
from prunehal.experiments.choosing import choose_by_rule
from prunehal.experiments.compare import LEVELS, METRICS, N_RESAMPLES, PRIMARY
from prunehal.experiments.over_images import SharedImages
from prunehal.files.paths import data_path, written
from prunehal.stats.intervals import adjusted_logit, paired_bootstrap
from prunehal.stats.testing import holm, paired_p_value
from prunehal.studies.nb01_deficit.compare import MODELS as COVARIATES
from prunehal.studies.nb01_deficit.compare import PATTERN, stored_mentions
from prunehal.studies.nb05_options.compare import at_equal_budget, sampled
from prunehal.studies.nb06_trigger.at_names import votes_at_names
from prunehal.studies.nb06_trigger.votes import vote_rate
from prunehal.studies.nb07_decoders.matrix import chosen_decoders
from prunehal.studies.nb08_redundancy import rules as redundancy
from prunehal.studies.nb10_other_policies import compare as beyond
from prunehal.studies.nb10_other_policies.compare import PUBLISHED

__all__ = ["ALPHA", "Claim", "claims", "corrected", "in_words", "lines", "of", "stored", "write"]

ALPHA = 0.05  # of Holm's correction: P(any false claim) of all notebooks together
FILE = "claims.csv"  # among the shipped results
_NULLS = {"points": 0.0, "odds ratio": 1.0, "share": 0.0}  # unit -> no difference
# Random swaps of a test; a p-value below _SMALL is estimated again by more: Holm multiplies it by the number of claims.
_SWAPS, _SMALL, _MANY_SWAPS = 9_999, 0.005, 99_999


@dataclass(frozen=True)
class Claim:
    """One comparison that answers a notebook's question, with its interval and p-value.

    Attributes:
        notebook: its number, such as "03".
        claim: what is compared, and in which measure.
        unit: of estimate, low and high: "points", "odds ratio" (1 is no difference) or "share" (of variance; never negative).
        estimate, low, high: with its 95% interval, uncorrected.
        p: two-sided, uncorrected.
    """

    notebook: str
    claim: str
    unit: str
    estimate: float
    low: float
    high: float
    p: float


def claims(store: Store) -> list[Claim]:
    """Return every confirmatory claim, computed from stored rows; takes a minute or two.

    Args:
        store: holds the rows of all grids in data/grids.

    Raises:
        FileNotFoundError: rows are missing.
    """
    return [claim for number in _OF_NOTEBOOK for claim in _OF_NOTEBOOK[number](store)]


def corrected(found: list[Claim]) -> pd.DataFrame:
    """Return claims as a table with Holm's correction over all of them, and what each shows.

    Returns:
        The attributes of Claim, p_holm, and verdict: "lower", "higher" ("matters" for a share), or "unclear".

    Raises:
        ValueError: no claims, or one in an unknown unit.

    >>> two = [Claim("03", "a", "points", -2.0, -3.0, -1.0, 0.01), Claim("03", "b", "points", 1.0, -1.0, 3.0, 0.3)]
    >>> corrected(two)["verdict"].tolist()
    ['lower', 'unclear']
    """
    table = holm(pd.DataFrame([asdict(claim) for claim in found]), "p", ALPHA)
    if unknown := set(table["unit"]) - set(_NULLS):
        raise ValueError(f"unknown unit(s) {sorted(unknown)}; expected some of {list(_NULLS)}; name one of these")
    null = table["unit"].map(_NULLS)
    shown = (table["estimate"] > null).map({True: "higher", False: "lower"}).where(table["unit"] != "share", "matters")
    return table.assign(verdict=shown.where(table["rejected"], "unclear")).drop(columns="rejected")


def write(store: Store, path: Path | None = None) -> pd.DataFrame:
    """Compute all claims and write them; by default to the shipped table that the notebooks read.

    Returns:
        What :func:`corrected` returned.
    """
    table = corrected(claims(store))
    with written(data_path("results", FILE, must_exist=False) if path is None else path) as part:
        table.to_csv(part, index=False, float_format="%.6g")
    return table


def stored() -> pd.DataFrame:
    """Return the shipped table, as :func:`corrected` returns it; ``python -m prunehal claims`` makes it.

    Raises:
        FileNotFoundError: it is not there.

    >>> stored()["p_holm"].between(0, 1).all()
    np.True_
    """
    return pd.read_csv(data_path("results", FILE), dtype={"notebook": str})


def of(notebook: str) -> pd.DataFrame:
    """Return the claims of one notebook, corrected over those of all notebooks.

    Raises:
        ValueError: the notebook makes none.

    >>> of("03")["notebook"].unique().tolist()
    ['03']
    """
    table = stored()
    if notebook not in set(table["notebook"]):
        raise ValueError(f"notebook {notebook!r}: makes no confirmatory claim; expected one of {sorted(set(table['notebook']))}")
    return table[table["notebook"] == notebook].reset_index(drop=True)


def lines(table: pd.DataFrame) -> list[str]:
    """Return claims in words, one line each: the verdict, then the number with its interval and the corrected p.

    Args:
        table: what :func:`corrected` returned, or some of its lines.

    >>> lines(corrected([Claim("03", "published pruning, distinct CHAIR_i", "points", 2.0, 1.0, 3.0, 0.01)]))
    ['published pruning, distinct CHAIR_i: higher, +2.0 points [1.0, 3.0], p = 0.01']
    """
    return [f"{line.claim}: {line.verdict}, {_number(line)}, p {_p(line.p_holm)}" for line in table.itertuples()]


def in_words(notebook: str) -> str:
    """Return the claims of one notebook in words: a heading, then a line for each, the unclear ones last.

    >>> in_words("06").splitlines()[0]
    'Claims of this notebook, 0 of 2 unclear (Holm over all claims of all notebooks; 95% intervals uncorrected):'
    """
    table = of(notebook)
    unclear = table["verdict"] == "unclear"
    counted = f"Claims of this notebook, {unclear.sum()} of {len(table)} unclear"
    heading = f"{counted} (Holm over all claims of all notebooks; 95% intervals uncorrected):"
    return "\n".join([heading, *(f"  {line}" for line in (*lines(table[~unclear]), *lines(table[unclear])))])


def _number(line: Claim) -> str:
    """Return the estimate with its unit and interval."""
    if line.unit == "points":
        return f"{line.estimate:+.1f} points [{line.low:.1f}, {line.high:.1f}]"
    unit = {"share": "share of variance"}.get(line.unit, line.unit)
    return f"{unit} {line.estimate:.2f} [{line.low:.2f}, {line.high:.2f}]"


def _p(value: float) -> str:
    """Return a p-value in three digits, or in as many as tell on which side of ALPHA it lies."""
    if value < 0.001:
        return "< 0.001"
    texts = (f"{value:.{digits}g}" for digits in range(3, 18))
    return f"= {next(text for text in texts if (float(text) == ALPHA) == (value == ALPHA))}"


# What is compared, notebook by notebook.


def _paired(notebook: str, what: str, base: pd.DataFrame, ours: pd.DataFrame, metric: str) -> Claim:
    """Return the claim about a paired difference, ours minus base, in one metric.

    Args:
        notebook, what: the notebook's number, and what is compared.
        base, ours: items of `prunehal.benchmarks.score`, of the same images.
        metric: a name of `prunehal.experiments.compare.METRICS`.
    """
    found, unit = paired_bootstrap(base, ours, metric, N_RESAMPLES), METRICS[metric]
    ends = (unit * found.estimate, unit * found.low, unit * found.high)
    p = paired_p_value(base, ours, metric, _SWAPS)
    if p < _SMALL:
        p = paired_p_value(base, ours, metric, _MANY_SWAPS)
    return Claim(notebook, f"{what}, {LEVELS[metric]}", "points", *ends, p)


def _compared(
    store: Store, notebook: str, pairs: Mapping[str, tuple[Experiment, Experiment]], metrics: tuple[str, ...]
) -> Iterator[Claim]:
    """Yield the claims about pairs of (baseline, condition), by name."""
    read: Callable[[Experiment], ChairResult] = cache(store.score)
    for what, (base, ours) in pairs.items():
        for metric in metrics:
            yield _paired(notebook, what, read(base).items, read(ours).items, metric)


def _deficit(store: Store) -> Iterator[Claim]:
    on = (Experiment(split=split, n_images=n) for split, n in (("test", 1000), ("validation", 400)))
    mentions = stored_mentions(store, *on)
    fit = adjusted_logit(mentions, predictors=COVARIATES[PATTERN]).set_index("term").loc["mass"]
    what = "hallucination for one SD more visual attention, with place, length and late sentence as covariates"
    yield Claim("01", what, "odds ratio", fit["odds_ratio"], fit["low"], fit["high"], fit["p"])


def _thresholds(store: Store) -> Iterator[Claim]:
    plain = Experiment(split="test")
    published, few = replace(plain, policy=PUBLISHED), replace(plain, policy=TopK(9))
    on_validation = [e for e in read_grid(data_path("grids", "thresholds.toml")) if e.split == "validation"]
    best = choose_by_rule(graded(store, on_validation), NoPruning()).setting
    chosen = {f"PruneHal (r = {best.r}, t = {best.t}), chosen on validation": (plain, replace(plain, policy=best))}
    yield from _compared(store, "03", {"PruneHal (r = 0.4, t = 3), published": (plain, published)} | chosen, PRIMARY)
    controls = {"36 tokens kept once": (plain, replace(plain, policy=TopK(36))), "9 tokens kept once": (plain, few)}
    pruned = {
        "r = 0.4, t = 1": replace(plain, policy=PruneHal(r=0.4, t=1)),
        "r = 0.4, t = 3": published,
        "9 tokens kept once": few,
    }
    for name, top in pruned.items():
        random, lowest = (top.with_options({"policy.selection": each}) for each in ("random", "lowest"))
        controls |= {f"{name}: top minus random": (random, top), f"{name}: lowest minus random": (random, lowest)}
    yield from _compared(store, "03", controls, ("distinct_chair_i",))


def _released(_: Store) -> Iterator[Claim]:
    truth, captions = ground_truth_coco("pattern"), released_captions()
    for model, name in MODELS.items():
        pair = [captions[model, decoding] for decoding in ("greedy", "ours")]
        base, ours = (score(texts, truth, "wordnet") for texts in pair)
        cut = (score(texts, truth, "wordnet").items for texts in equal_words(*pair))
        for metric in ("chair_i", "distinct_chair_i"):
            yield _paired("04", f"{name}: OPERA minus greedy, as written", base.items, ours.items, metric)
        yield _paired("04", f"{name}: OPERA minus greedy, at equal words", *cut, "chair_i")
        yield _paired("04", f"{name}: OPERA minus greedy, at equal objects", *equal_objects(base, ours), "distinct_chair_i")


def _options(store: Store) -> Iterator[Claim]:
    of_options = read_grid(data_path("grids", "options.toml"))
    sample = [each for each in of_options if each.n_images == 100 and isinstance(each.policy, PruneHal)]
    shared = SharedImages.read(store, sample, replace(sample[0], policy=NoPruning()))
    table = at_equal_budget(shared, sampled(shared, n_resamples=100), "distinct_chair_i", n_resamples=N_RESAMPLES)
    for line in table.itertuples():
        what = f"option {line.term} at an equal number of visual tokens, distinct CHAIR_i"
        yield Claim("05", what, "share", line.share, line.low, line.high, line.p)
    usual = Experiment(split="validation", n_images=200, policy=PruneHal(r=0.7, t=2))
    kept = {"kept = shared instead of layer, r = 0.7, t = 2": (usual, usual.with_options({"policy.kept": "shared"}))}
    plain, chosen = (each for each in of_options if each.split == "test")
    yield from _compared(store, "05", kept | {"combination chosen on validation": (plain, chosen)}, PRIMARY)


def _trigger(store: Store) -> Iterator[Claim]:
    for r in (0.4, 0.7):
        policy = PruneHal(r=r, t=8, forced_first=False)
        line = votes_at_names(vote_rate(store, Experiment(split="test", n_images=200, policy=policy)), n_resamples=N_RESAMPLES)
        what = f"r = {r}: votes at hallucinated against faithful names, with the step held"
        yield Claim("06", what, "odds ratio", line["odds_ratio"], line["odds_low"], line["odds_high"], line["p"])


def _decoders(store: Store) -> Iterator[Claim]:
    plain = Experiment(split="test", n_images=200)
    decodings = {name_of(each): each for each in (*STOCK, *(each.setting for each in chosen_decoders(store).values()))}
    alone = {name: replace(plain, decoding=each) for name, each in decodings.items()}
    against = {f"{name} against greedy": (plain, each) for name, each in alone.items() if each != plain}
    yield from _compared(store, "07", against, PRIMARY)
    added = {f"{name}: PruneHal (r = 0.4, t = 3) added": (each, replace(each, policy=PUBLISHED)) for name, each in alone.items()}
    yield from _compared(store, "07", added, ("distinct_chair_i",))


def _redundant(store: Store) -> Iterator[Claim]:
    base = replace(read_grid(data_path("grids", "redundancy_test.toml"))[0], tiles=3)
    rules = redundancy.all_rules(redundancy.chosen_rules(store))
    for clutter, kind in ((False, "clean"), (True, "cluttered")):
        cell = replace(base, clutter=clutter)
        pairs = {f"3 {kind} tiles, {name}": (cell, rule.on(cell)) for name, rule in rules.items()}
        yield from _compared(store, "08", pairs, PRIMARY)


def _beyond(store: Store) -> Iterator[Claim]:
    plain = Experiment(split="test", n_images=300)
    settings = {family: each.setting for family, each in beyond.chosen_policies(store).items()}
    settings |= {beyond.ORACLE: beyond.controls(beyond.chosen_policies(store))[beyond.ORACLE]}
    pairs = {name: (plain, setting.on(plain)) for name, setting in settings.items() if name != "PruneHal"}
    yield from _compared(store, "10", pairs, PRIMARY)


_OF_NOTEBOOK: dict[str, Callable[[Store], Iterator[Claim]]] = {
    "01": _deficit,
    "03": _thresholds,
    "04": _released,
    "05": _options,
    "06": _trigger,
    "07": _decoders,
    "08": _redundant,
    "10": _beyond,
}
