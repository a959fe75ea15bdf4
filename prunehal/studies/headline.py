"""The README's findings, section by section: computed from the stored rows, never typed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import pandas as pd

from prunehal.benchmarks import ground_truth_coco, score
from prunehal.benchmarks.chair.length import difference
from prunehal.benchmarks.chair.released import MODELS, met, released_captions, scores_with_wordnet_truth
from prunehal.core import NoPruning, PruneHal
from prunehal.decoding import Decoder
from prunehal.experiments import Experiment, Store, changes, equal_lengths, graded, grid, read_grid
from prunehal.experiments.choosing import Chosen, choose_by_rule
from prunehal.experiments.compare import LEVELS, METRICS, N_RESAMPLES, PRIMARY
from prunehal.experiments.readable import between, head_of_table, levels
from prunehal.files.paths import data_path
from prunehal.stats.testing import holm
from prunehal.studies import claims
from prunehal.studies.nb01_deficit import compare as deficit
from prunehal.studies.nb07_decoders.matrix import POLICIES, chosen_decoders, matrix
from prunehal.studies.nb08_redundancy import rules as redundancy
from prunehal.studies.nb09_causal.comparisons import comparisons, responses
from prunehal.studies.nb09_causal.in_words import answer, reading
from prunehal.studies.nb09_causal.rows import interventions
from prunehal.studies.nb10_other_policies import compare as beyond
from prunehal.studies.nb11_seeds import in_words as seeds_reading
from prunehal.studies.nb11_seeds import rows as seeds

__all__ = [
    "all_claims",
    "beyond_the_paper",
    "causal",
    "chosen_on_validation",
    "decoders",
    "findings",
    "redundant",
    "released",
    "thresholds",
    "training_seeds",
]

STORED = Store.shipped()
_CHANGES = ["change of distinct CHAIR_i", "at equal objects", "change of recall", "at equal objects"]
_UNITS = (
    "percent and changes in points, absent objects and words a caption; at equal objects: both captions of an image name equally "
    "many distinct objects"
)
_TILES = ("clean", "cluttered")


def chosen_on_validation() -> Chosen:
    """Return the (r, t) that `prunehal.experiments.choosing.choose_by_rule` chooses on the validation split."""
    return choose_by_rule(graded(STORED, [*thresholds("validation")]), NoPruning())


def thresholds(split: str) -> list[Experiment]:
    """Return the stored grid of r and t of a split, no pruning first."""
    published = Experiment(split=split, policy=PruneHal())
    return [Experiment(split=split), *grid(published, {"policy.r": [0.4, 0.7, 0.9], "policy.t": [1, 2, 3]})]


def findings() -> str:
    """Return the README's section of findings as markdown, from the stored rows of the test split."""
    plain = Experiment(split="test")
    published = replace(plain, policy=PruneHal(0.4, 3))
    chosen = chosen_on_validation()
    best = replace(plain, policy=chosen.setting)
    redundant = replace(plain, tiles=3)
    mild = replace(plain, policy=PruneHal(0.4, 1))
    conditions = {"no pruning": plain}
    for name, experiment in {"t = 1": mild, "t = 3 (published for LLaVA-1.5)": published}.items():
        conditions |= {
            f"PruneHal, r = 0.4, {name}": experiment,
            f"the same, {name[:5]}, random tokens": experiment.with_options({"policy.selection": "random"}),
            f"the same, {name[:5]}, lowest attention": experiment.with_options({"policy.selection": "lowest"}),
        }
    conditions |= {
        f"PruneHal, r = {best.policy.r}, t = {best.policy.t} ({_how(chosen)})": best,
        "no pruning, 576 visual tokens (3 background tiles)": redundant,
        "PruneHal, r = 0.4, t = 3, 576 visual tokens": replace(redundant, policy=published.policy),
    }
    head = ["test split", *LEVELS.values(), *_CHANGES]
    lines = head_of_table(head)
    for name, experiment in conditions.items():
        base = redundant if experiment.tiles else plain
        line = changes(STORED, [experiment], base).join(equal_lengths(STORED, [experiment], base)).iloc[0]
        lines.append(f"| {name} | {' | '.join([*levels(line), *([''] * 4 if experiment == base else _changes(line))])} |")
    note = f"{plain.n_images} images; {_UNITS}; paired 95% BCa intervals over images."
    return "\n".join([*_observation(), "", *lines, "", note])


def released() -> str:
    """Return the README's tables of the released captions of OPERA's authors: scored again, and OPERA against greedy decoding."""
    truth, captions = ground_truth_coco("pattern"), released_captions()
    scored = {key: score(texts, truth, "wordnet").metrics for key, texts in captions.items()}
    n_met = met({key: (100 * metrics["chair_s"], 100 * metrics["chair_i"]) for key, metrics in scored.items()})
    head = ["model", "decoding", *LEVELS.values()]
    lines = head_of_table(head)
    for model, name in MODELS.items():
        for decoding, label in (("greedy", "greedy"), ("ours", "OPERA")):
            in_units = pd.Series({metric: METRICS[metric] * scored[model, decoding][metric] for metric in LEVELS})
            lines.append(f"| {name} | {label} | {' | '.join(levels(in_units))} |")
    kinds = {"CHAIR_i, as written": ("chair_i", None), "CHAIR_i, at equal words": ("chair_i", "words")}
    kinds |= {"distinct CHAIR_i, as written": ("distinct_chair_i", None)}
    kinds |= {"distinct CHAIR_i, at equal objects": ("distinct_chair_i", "objects")}
    lines += ["", *head_of_table(["OPERA minus greedy", *kinds])]
    lower = dict.fromkeys(kinds, 0)
    for model, name in MODELS.items():
        cells, pair = [], (captions[model, "greedy"], captions[model, "ours"])
        for kind, (metric, equal) in kinds.items():
            d = difference(*pair, truth, "wordnet", equal=equal, n_resamples=N_RESAMPLES)[metric]
            cells.append(f"{100 * d.estimate:+.1f} [{100 * d.low:.1f}, {100 * d.high:.1f}]")
            lower[kind] += d.high < 0
        lines.append(f"| {name} | {' | '.join(cells)} |")
    counts = "; ".join(f"{kind}: {count}" for kind, count in lower.items())
    said = (
        f"{n_met} of {2 * len(scored)} published numbers are reproduced exactly (`wordnet` scorer, `pattern` ground truth; "
        f"with the `wordnet` one {met(scores_with_wordnet_truth())}). For how many of {len(MODELS)} models OPERA is lower than "
        f"greedy decoding, with its whole interval: {counts}."
    )
    note = (
        "500 images a model; percent, absent objects and words a caption; unfinished: the text ends in no mark that ends a "
        "sentence; paired 95% BCa intervals over images, uncorrected"
    )
    return "\n".join([said, "", *lines, "", f"{note}."])


def decoders() -> str:
    """Return the README's table of mitigation decoders on the test split, alone and with pruning."""
    chosen = chosen_decoders(STORED)
    shown = list(POLICIES)[:2]
    table = matrix(STORED, chosen, policies=shown).set_index(["policy", "decoding"])
    plain, published = (table.loc[policy] for policy in shown)
    head = ["decoding", *LEVELS.values(), *_CHANGES, "what PruneHal (r = 0.4, t = 3) adds to distinct CHAIR_i"]
    lines = head_of_table(head)
    for name, line in plain.iterrows():
        setting = "" if name not in chosen else _values(chosen[name].setting)
        told = [""] * 4 if line["experiment"].decoding == "greedy" else _changes(line)
        added = between(published.loc[name], "own_distinct_chair_i")
        lines.append(f"| {name}{setting} | " + " | ".join([*levels(line), *told, added]) + " |")
    images = plain["experiment"].iloc[0].n_images
    for word, sign in (("lower", -1), ("higher", 1)):
        shown = plain.index[plain["rejected"].fillna(False).astype(bool) & (sign * plain["d_distinct_chair_i"] > 0)]
        lines += ["", f"Distinct CHAIR_i {word} than greedy decoding's (Holm, over this table): {', '.join(shown) or 'none'}."]
    lines += ["", _fallbacks(chosen)]
    return "\n".join([*lines, "", f"{images} images; {_UNITS}; paired 95% BCa intervals over images, against greedy decoding."])


def beyond_the_paper() -> str:
    """Return the README's table of policies beyond the paper and their controls on the test split."""
    chosen = beyond.chosen_policies(STORED)
    settings = {family: each.setting for family, each in chosen.items()} | beyond.controls(chosen)
    base = Experiment(split="test", n_images=300)
    table = beyond.as_table(beyond.compare(STORED, settings, base), settings, chosen)
    return f"{table}\n\n{base.n_images} images; {_UNITS}; paired 95% BCa intervals over images, against no pruning."


def causal() -> str:
    """Return the README's section of interventions on attention: what they say, and the comparisons behind it."""
    rows = interventions()
    table = comparisons(responses(rows), N_RESAMPLES)
    lines = head_of_table(["intervention", "mentions", "n", "change, nats", "p (Holm)"])
    groups = table.index.get_level_values("group").isin(["hallucinated", "faithful", "hallucinated - faithful, matched"])
    for (name, group), line in table[groups & table["p"].notna()].iterrows():
        change = f"{line['estimate']:+.3f} [{line['low']:.3f}, {line['high']:.3f}]"
        lines.append(f"| {name} | {group} | {line['n']:,} | {change} | {_p(line['p_holm'])} |")
    what = (
        f"{rows['image_id'].nunique()} images; log-probability of the word; 95% BCa intervals over images; Holm's correction over"
    )
    said = [f"- {sentence}" for sentence in (*answer(table), *reading(table))]
    return "\n".join([*said, "", *lines, "", f"{what} all {table['p'].notna().sum()} comparisons of notebook 09."])


def redundant() -> str:
    """Return the README's table of rules among three background tiles, and what of the oracle's gain each wins."""
    chosen = redundancy.chosen_rules(STORED)
    rules = redundancy.all_rules(chosen)
    base = replace(read_grid(data_path("grids", "redundancy_test.toml"))[0], tiles=0)
    table = redundancy.responses(STORED, base, rules, [(3, kind == "cluttered") for kind in _TILES])
    table = table.set_index(["clutter", "rule"])
    head = [
        "rule",
        "setting",
        *(f"{kind} tiles: {what}" for kind in _TILES for what in ("distinct CHAIR_i", "recall", "share of the oracle's gain")),
    ]
    lines = head_of_table(head)
    cells = {kind: replace(base, tiles=3, clutter=kind == "cluttered") for kind in _TILES}
    for name, rule in rules.items():
        found = [name, rule.label]
        for cell in cells.values():
            line = table.loc[(cell.clutter, name)]
            ours, oracle = (each.on(cell) for each in (rule, rules[redundancy.ORACLE]))
            _, won = redundancy.share_of_gain(STORED, ours, oracle, cell)
            share = "no gain shown" if won is None else f"{won.estimate:.2f} [{won.low:.2f}, {won.high:.2f}]"
            found += [between(line, "d_distinct_chair_i"), between(line, "d_recall"), share]
        lines.append(f"| {' | '.join(found)} |")
    shown = holm(pd.concat([table.assign(metric=metric, p=table[f"p_{metric}"]) for metric in PRIMARY]), "p")
    shown = shown[shown["rejected"] & (shown["metric"] == PRIMARY[0])].drop(index=redundancy.ORACLE, level="rule")
    for clutter, kind in enumerate(_TILES):
        part = shown[shown.index.get_level_values("clutter") == bool(clutter)]
        names, changed = part.index.get_level_values("rule"), part["d_distinct_chair_i"]
        ends = [", ".join(names[sign * changed > 0]) or "no rule" for sign in (-1, 1)]
        lines += [
            "",
            f"Distinct CHAIR_i lower without labels (Holm, over this table), {kind} tiles: {ends[0]}; higher: {ends[1]}.",
        ]
    lines += ["", _fallbacks(chosen)]
    head = ["no pruning", *LEVELS.values()]
    without = head_of_table(head)
    for kind, cell in cells.items():
        without.append(f"| {kind} tiles | {' | '.join(levels(changes(STORED, [cell], cell, n_resamples=100).iloc[0]))} |")
    note = f"{base.n_images} images; changes against no pruning, percent points; paired 95% BCa intervals over images."
    return "\n".join([*without, "", *lines, "", note])


def training_seeds() -> str:
    """Return the README's section of training seeds: what is left of the headline, and what each rule changes over all seeds."""
    rows = seeds.stored()
    table = seeds_reading.effects(rows, n_resamples=N_RESAMPLES)
    left = seeds_reading.claims(table)
    lines = [f"| | {' | '.join(left.columns)} |", "|---" * (1 + left.shape[1]) + "|"]
    lines += [f"| {claim} | {' | '.join(each)} |" for claim, each in left.iterrows()]
    over = table[table["seed"] == seeds_reading.ALL].set_index(["clutter", "rule"])
    n = f"{rows['seed'].nunique()} seeds, {rows['image_id'].nunique()} scenes of the test split"
    note = f"{n}, {over['captions'].max():,} captions in a cell; percent points against no pruning; 95% BCa intervals over scenes"
    said = [f"- {sentence}" for sentence in seeds_reading.headline(table)]
    return "\n".join([*lines, "", *said, "", f"{note}, uncorrected."])


def all_claims() -> str:
    """Return the README's count of what the notebooks claim: one line for each notebook, from the corrected table of all."""
    table = claims.stored()
    shown = table[table["verdict"] != "unclear"]
    counted = {}
    for label, end, verdict in (
        ("distinct CHAIR_i lower (better)", ", distinct CHAIR_i", "lower"),
        ("distinct CHAIR_i higher (worse)", ", distinct CHAIR_i", "higher"),
        ("recall higher (better)", ", recall", "higher"),
        ("recall lower (worse)", ", recall", "lower"),
    ):
        counted[label] = shown["claim"].str.endswith(end) & (shown["verdict"] == verdict) & (shown["unit"] == "points")
    counted["other, shown"] = ~pd.DataFrame(counted).any(axis=1)
    sums = pd.DataFrame(counted).groupby(shown["notebook"]).sum().reindex(table["notebook"].unique(), fill_value=0)
    sums["unclear"] = (table["verdict"] == "unclear").groupby(table["notebook"]).sum()
    lines = head_of_table(["notebook", *sums.columns])
    lines += [f"| {number} | {' | '.join(map(str, sums.loc[number]))} |" for number in sums.index]
    other = "other: the odds ratio of attention (01), official CHAIR_i (04), a share of variance (05) and vote rates (06)"
    return "\n".join([*lines, "", f"{len(table)} claims; Holm's correction over all of them; {other}."])


def _how(chosen: Chosen) -> str:
    """Return in short how a setting was chosen."""
    return "of highest recall on the validation split, where none keeps it" if chosen.missed else "chosen on the validation split"


def _changes(line: pd.Series) -> list[str]:
    """Return the changes of distinct CHAIR_i and of recall, each as written and at equal length."""
    return [between(line, f"{start}_{metric}") for metric in PRIMARY for start in ("d", "equal")]


def _fallbacks(chosen: Mapping[str, Chosen]) -> str:
    """Return a sentence that names the choices whose recall no setting kept."""
    names = [name for name, each in chosen.items() if each.missed]
    if not names:
        return "Every choice keeps the recall on the validation split to a point."
    return f"Fallbacks, of highest recall on the validation split because no setting keeps it to a point: {', '.join(names)}."


def _observation() -> list[str]:
    """Return the findings of notebook 01: attention at hallucinated names, and what of it is the sentence pattern."""
    test, validation = (Experiment(split=split, n_images=n) for split, n in (("test", 1000), ("validation", 400)))
    mentions = deficit.stored_mentions(STORED, test, validation)
    patterns = deficit.by_pattern(mentions, N_RESAMPLES)
    auc = {name: "{:.2f} [{:.2f}, {:.2f}]".format(*line[["estimate", "low", "high"]]) for name, line in patterns.iterrows()}
    fits = deficit.adjusted(mentions)
    placed, late = (fits.loc[(name, "mass"), ["odds_ratio", "low", "high"]] for name in (deficit.PLACE, deficit.PATTERN))
    within, of_all = deficit.WITHIN, f"{mentions['image_id'].nunique():,} captions of the test split"
    return [
        f"Of {len(mentions):,} object mentions in {of_all} {mentions['hallucinated'].mean():.1%} are hallucinated.",
        f"A faithful mention draws more visual attention than a hallucinated one (AUC {auc[deficit.POOLED]}), but much of that",
        'is the sentence: training held most absent objects behind late sentences such as "There is also", and the kind of',
        f"sentence alone separates them (AUC {auc[deficit.LATE]}). Attention has {auc[within[True]]} among",
        f"mentions of late sentences, and {auc[within[False]]} among the others. The odds ratio of hallucinating for one",
        "standard deviation more visual attention is {:.2f} [{:.2f}, {:.2f}] with place and length as".format(*placed),
        "covariates, and {:.2f} [{:.2f}, {:.2f}] with the late sentence, too.".format(*late),
        "The paper's wording, attention below the mean of all steps, is not found here: each mention draws at least",
        f"{mentions['step_ratio'].min():.1f} times that mean.",
    ]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _values(decoder: Decoder) -> str:
    """Return what of a decoder differs from its published values."""
    own = [f"{f.name} = {getattr(decoder, f.name)}" for f in fields(decoder) if getattr(decoder, f.name) != f.default]
    return f", {', '.join(own)}" if own else ""
