"""Whether hallucinated names draw less visual attention (notebook 01): pooled, layer by layer, and with covariates.

The covariates are the mention's place in its caption, the caption's length, and the sentence that holds the mention: in training
most absent objects stood in late sentences ("There is also"), so that a model can learn to look away, or to hallucinate, from the
sentence alone.
"""

from __future__ import annotations

from types import MappingProxyType

import pandas as pd
from matplotlib.axes import Axes

from prunehal.experiments import Experiment, Store
from prunehal.figures import COLORS
from prunehal.stats.bootstrap import Interval, verdict
from prunehal.stats.clustered import over_images
from prunehal.stats.intervals import adjusted_logit, association
from prunehal.testbed.world.patterns import mention_patterns

__all__ = [
    "MODELS", "adjusted", "at_same_place", "below_mean", "by_layer", "by_pattern", "draw_layers", "draw_patterns", "in_words",
    "stored_mentions",
]  # fmt: skip

ALONE, PLACE, PATTERN = "attention alone", "+ place and length", "+ place, length and late sentence"
# Name of a regression -> its predictors.
MODELS = MappingProxyType(
    {
        ALONE: ("mass",),
        "+ place": ("mass", "index"),
        PLACE: ("mass", "index", "steps"),
        PATTERN: ("mass", "index", "steps", "late"),
        "+ place, length and template": ("mass", "index", "steps", "template"),
        "ratio + place, length and late sentence": ("mention_ratio", "index", "steps", "late"),
    }
)
POOLED, LATE, TEMPLATE = "attention, all mentions", "late sentence or not, alone", "template of the sentence, alone"
WITHIN = MappingProxyType({True: "attention, within late sentences", False: "attention, within the other sentences"})
_LAST = 7  # places from this one on are taken together
_FACTS = ["image_id", "index", "node", "hallucinated", "step", "steps"]


def stored_mentions(store: Store, test: Experiment, validation: Experiment) -> pd.DataFrame:
    """Return one line for each mention of a stored experiment, with its sentence.

    Args:
        store: holds the rows of both experiments.
        test: the experiment whose mentions are returned.
        validation: the same on the validation split, from which the rates of the templates are taken.

    Returns:
        image_id, index, node, hallucinated, step, steps; mass, entropy, step_ratio and mention_ratio as the mean of the layers;
        pattern, group and late as `prunehal.testbed.world.patterns.mention_patterns` returns them; template (on the validation
        split, the share of hallucinated mentions in sentences of the same template; of all mentions, if that template is not
        there).

    >>> experiments = [Experiment(split=split, n_images=20) for split in ("test", "validation")]
    >>> found = stored_mentions(Store.shipped(), *experiments)
    >>> bool(found["late"].mean() < 0.3), bool(found.loc[found["late"], "template"].mean() > 0.5)
    (True, True)
    """
    found, before = (_with_sentences(store, experiment) for experiment in (test, validation))
    rates = before.groupby("pattern")["hallucinated"].mean()
    return found.assign(template=found["pattern"].map(rates).fillna(before["hallucinated"].mean()))


def _with_sentences(store: Store, experiment: Experiment) -> pd.DataFrame:
    values = ["mass", "entropy", "step_ratio", "mention_ratio"]
    mentions = store.mentions(experiment).groupby(_FACTS, as_index=False)[values].mean()
    texts = store.captions(experiment).set_index("image_id")["caption"].to_dict()
    sentences = mention_patterns(texts, store.score(experiment))
    return mentions.merge(sentences, on=["image_id", "index"], how="left", validate="one_to_one")


def by_layer(rows: pd.DataFrame, n_resamples: int = 500) -> pd.DataFrame:
    """Return the AUC of attention in each layer, raw (mass) and over the mean of the caption's mentions (mention_ratio).

    Args:
        rows: one line for each mention and layer, as `Store.mentions`.
        n_resamples: of each interval.

    Returns:
        layer, value, auc, low, high.
    """
    lines = []
    for layer, part in rows.groupby("layer"):
        for value in ("mass", "mention_ratio"):
            auc = _auc(part, value, n_resamples)
            lines.append({"layer": layer, "value": value, "auc": auc.estimate, "low": auc.low, "high": auc.high})
    return pd.DataFrame(lines)


def draw_layers(axis: Axes, table: pd.DataFrame) -> None:
    """Draw what :func:`by_layer` returned, with intervals as whiskers."""
    labels = {"mass": "raw attention", "mention_ratio": "attention / mean over the mentions"}
    for shift, (value, part) in zip((-0.08, 0.08), table.groupby("value"), strict=True):
        errors = [part["auc"] - part["low"], part["high"] - part["auc"]]
        axis.errorbar(part["layer"] + shift, part["auc"], yerr=errors, fmt="o", capsize=3, label=labels[value])
    axis.axhline(0.5, color="grey", linestyle=":")
    axis.set(xlabel="layer", ylabel="AUC, faithful over hallucinated")
    axis.legend(frameon=False, loc="lower right")


def by_pattern(mentions: pd.DataFrame, n_resamples: int = 2000) -> pd.DataFrame:
    """Return how well attention, and the sentence, separate faithful from hallucinated mentions: AUC, and number of each kind.

    Args:
        mentions: as :func:`stored_mentions`.
        n_resamples: of each interval.

    Returns:
        One line each for attention pooled, the kind of sentence alone (late or not), its template alone, and attention among
        mentions of one kind of sentence: estimate, low, high, faithful, hallucinated.
    """
    alone = mentions.assign(no_late=~mentions["late"], faithful_rate=1 - mentions["template"])
    parts = {POOLED: (mentions, "mass"), LATE: (alone, "no_late"), TEMPLATE: (alone, "faithful_rate")}
    parts |= {name: (mentions[mentions["late"] == late], "mass") for late, name in WITHIN.items()}
    lines = {}
    for name, (part, column) in parts.items():
        auc, wrong = _auc(part, column, n_resamples), int(part["hallucinated"].sum())
        held = {"faithful": len(part) - wrong, "hallucinated": wrong}
        lines[name] = {"estimate": auc.estimate, "low": auc.low, "high": auc.high} | held
    return pd.DataFrame(lines).T.astype({"faithful": int, "hallucinated": int})


def draw_patterns(axis: Axes, table: pd.DataFrame) -> None:
    """Draw what :func:`by_pattern` returned: an AUC in each line, with its interval; the sentence alone in another colour."""
    for place, (name, line) in enumerate(table.iterrows()):
        color = COLORS["accent"] if name in (LATE, TEMPLATE) else COLORS["faithful"]
        errors = [[line["estimate"] - line["low"]], [line["high"] - line["estimate"]]]
        axis.errorbar([line["estimate"]], [place], xerr=errors, fmt="o", markersize=7, capsize=4, color=color)
        axis.text(line["high"] + 0.012, place, f"{line['estimate']:.2f}", va="center", color=color)
    labels = [
        f"{name}\n{line['faithful']:,.0f} faithful, {line['hallucinated']:,.0f} hallucinated" for name, line in table.iterrows()
    ]
    axis.set_yticks(range(len(table)), labels, fontsize=10)
    axis.axvline(0.5, color=COLORS["none"], linestyle=":", linewidth=1.2)
    axis.set(xlabel="AUC, faithful over hallucinated (0.5: no difference)", xlim=(0.45, 1), ylim=(len(table) - 0.5, -0.5))


def adjusted(mentions: pd.DataFrame) -> pd.DataFrame:
    """Return the odds ratios of all MODELS, one line for each model and term: odds_ratio, low, high, p."""
    fits = {name: adjusted_logit(mentions, predictors=terms).set_index("term") for name, terms in MODELS.items()}
    return pd.concat(fits, names=["model", "term"])


def at_same_place(mentions: pd.DataFrame) -> pd.DataFrame:
    """Return the AUC of attention among mentions at the same place of their caption (7: 7 and later), and number of each kind."""
    found = {}
    for place, part in mentions.groupby(mentions["index"].clip(upper=_LAST)):
        wrong = int(part["hallucinated"].sum())
        found[place] = {"AUC": _auc(part, "mass"), "hallucinated": wrong, "faithful": len(part) - wrong}
    return pd.DataFrame(found).T.rename_axis("place")


def below_mean(mentions: pd.DataFrame, column: str) -> str:
    """Return in words whether hallucinated mentions typically lie below a mean: more than half of them do.

    Args:
        mentions: as :func:`stored_mentions`.
        column: "step_ratio" (the mean of all steps, the paper's wording) or "mention_ratio".
    """
    mean = {"step_ratio": "all steps of the caption (the paper's wording)", "mention_ratio": "the caption's mentions"}[column]
    below, wrong = mentions.assign(below=mentions[column] < 1), mentions["hallucinated"]
    share = over_images(below[wrong], "below")
    found = "found" if share["low"] > 0.5 else "not found" if share["high"] < 0.5 else "unclear"
    shares = f"{share['estimate']:.0%} [{share['low']:.0%}, {share['high']:.0%}] of the hallucinated mentions"
    faithful, least = below.loc[~wrong, "below"].mean(), mentions[column].min()
    return (
        f"Deficit against the mean of {mean}: {found}.\n  Below it: {shares}, {faithful:.0%} of the faithful ones; "
        f"smallest ratio {least:.2f}."
    )


def in_words(patterns: pd.DataFrame, fits: pd.DataFrame, same_place: pd.DataFrame) -> list[str]:
    """Return the notebook's answer: how much of the association the sentence explains, and at which places it holds.

    Args:
        patterns: as :func:`by_pattern`.
        fits: as :func:`adjusted`.
        same_place: as :func:`at_same_place`.
    """
    aucs = {name: f"{line['estimate']:.2f} [{line['low']:.2f}, {line['high']:.2f}]" for name, line in patterns.iterrows()}
    odds = {name: fits.loc[(name, "mass")] for name in (ALONE, PLACE, PATTERN)}
    written = {name: f"{fit['odds_ratio']:.2f} [{fit['low']:.2f}, {fit['high']:.2f}]" for name, fit in odds.items()}
    with_pattern = verdict(odds[PATTERN]["low"], odds[PATTERN]["high"], nothing=1)
    places: dict[str, list[str]] = {}
    for place, auc in same_place["AUC"].items():
        attention = verdict(1 - auc.high, 1 - auc.low, nothing=0.5)  # of hallucinated mentions against faithful ones
        places.setdefault(attention, []).append(str(place))
    return [
        f"Visual attention tells faithful from hallucinated mentions: AUC {aucs[POOLED]}.",
        f"Much of that is the sentence pattern: late sentence or not, AUC {aucs[LATE]} without a look at attention;",
        f"  among mentions of late sentences attention gives AUC {aucs[WITHIN[True]]}, among the others {aucs[WITHIN[False]]}.",
        f"Odds ratio of hallucination for one SD more attention: {written[ALONE]} alone, {written[PLACE]} with place and length;",
        f"  with the late sentence as a covariate, too: {with_pattern}, {written[PATTERN]}.",
        "Attention at hallucinated mentions against faithful ones of the same place: "
        + "; ".join(f"{word} at {', '.join(at)}" for word, at in places.items())
        + ".",
    ]


def _auc(part: pd.DataFrame, column: str, n_resamples: int = 2000) -> Interval:
    return association(part[column], ~part["hallucinated"], clusters=part["image_id"], n_resamples=n_resamples).auc
