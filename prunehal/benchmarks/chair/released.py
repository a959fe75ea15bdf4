"""Real captions: what OPERA's authors released, and the numbers that they published for them.

Source: shikiw/OPERA (MIT licence), ``log/chair_eval_results``: 500 images of COCO val2014 each, prompt "Please describe this
image in detail.", at most 512 new tokens; greedy decoding, beam search with 5 beams, and OPERA ("ours").

The published numbers are those of the `wordnet` scorer with the `pattern` ground truth: 23 of 24 are met so, and 11 with the
`wordnet` one, although that is the truth which this scorer's own code builds. The two differ in 9 of the 500 images (8 of
InstructBLIP's).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import pandas as pd

from prunehal.benchmarks.chair.captions import read_captions
from prunehal.benchmarks.chair.length import difference
from prunehal.benchmarks.chair.mentions import ChairScorer
from prunehal.files.paths import data_path
from prunehal.files.records import read_shipped
from prunehal.stats.pooled import NUMBERS

__all__ = [
    "DECODINGS",
    "LENGTHS",
    "MODELS",
    "lower_in",
    "met",
    "opera_against_greedy",
    "opera_in_words",
    "published_scores",
    "released_captions",
    "scores_with_wordnet_truth",
]

MODELS = {"llava-1.5": "LLaVA-1.5", "instructblip": "InstructBLIP", "minigpt4": "MiniGPT-4", "shikra": "Shikra"}
DECODINGS = {"greedy": "greedy", "beam5": "beam 5", "ours": "OPERA"}
# How captions are compared -> what `prunehal.benchmarks.chair.length.difference` makes equal. Words are what OPERA's authors
# compare.
LENGTHS = {"as written": None, "equal words": "words", "equal objects": "objects"}

# Hallucinated captions (of 500), hallucinated mentions and all mentions that the `wordnet` scorer counts in each with the
# `wordnet` ground truth. Stored, because that truth is not shipped; a test counts them again where it is at hand.
_WITH_WORDNET_TRUTH = {
    ("llava-1.5", "greedy"): (224, 481, 3787),
    ("llava-1.5", "beam5"): (244, 526, 3798),
    ("llava-1.5", "ours"): (223, 464, 3653),
    ("instructblip", "greedy"): (294, 524, 2214),
    ("instructblip", "beam5"): (278, 625, 3965),
    ("instructblip", "ours"): (232, 486, 3431),
    ("minigpt4", "greedy"): (158, 252, 2567),
    ("minigpt4", "beam5"): (151, 217, 2310),
    ("minigpt4", "ours"): (129, 192, 2047),
    ("shikra", "greedy"): (279, 578, 3754),
    ("shikra", "beam5"): (251, 486, 3662),
    ("shikra", "ours"): (180, 317, 2633),
}


def released_captions() -> dict[tuple[str, str], dict[Hashable, str]]:
    """Return ``{(model, decoding): {image_id: caption}}``, keys as in MODELS and DECODINGS.

    >>> captions = released_captions()
    >>> len(captions), len(captions["llava-1.5", "greedy"])
    (12, 500)
    """
    files = {(model, decoding): f"{decoding}.jsonl.gz" for model in MODELS for decoding in DECODINGS}
    return {key: read_captions(data_path("captions", "opera", key[0], name))[0] for key, name in files.items()}


def published_scores() -> dict[tuple[str, str], tuple[float, float]]:
    """Return the published CHAIR_s and CHAIR_i of each, in percent (OPERA, arXiv 2311.17911, its table of CHAIR results).

    >>> published_scores()["llava-1.5", "beam5"]
    (48.8, 13.9)
    """
    scores = read_shipped("captions", "opera", "published.json")["scores"]
    return {(model, decoding): tuple(scores[model][decoding]) for model in MODELS for decoding in DECODINGS}


def scores_with_wordnet_truth() -> dict[tuple[str, str], tuple[float, float]]:
    """Return CHAIR_s and CHAIR_i of each, in percent, by the `wordnet` scorer with the `wordnet` ground truth, as stored.

    >>> [round(score, 2) for score in scores_with_wordnet_truth()["llava-1.5", "greedy"]]
    [44.8, 12.7]
    """
    counts = _WITH_WORDNET_TRUTH.items()
    return {key: (100 * (captions / 500), 100 * (wrong / mentions)) for key, (captions, wrong, mentions) in counts}


def met(scores: Mapping[tuple[str, str], tuple[float, float]]) -> int:
    """Return how many of the published numbers are met to their last digit, the first decimal.

    Args:
        scores: CHAIR_s and CHAIR_i of each, in percent.

    >>> met(published_scores()), met(scores_with_wordnet_truth())
    (24, 11)
    """
    published = published_scores()
    return sum(round(ours, 1) == theirs for key in published for ours, theirs in zip(scores[key], published[key], strict=True))


def opera_against_greedy(
    captions: Mapping[tuple[str, str], Mapping[Hashable, str]],
    ground_truth: Mapping[Hashable, Iterable[str]],
    scorer: str | ChairScorer = "wordnet",
    *,
    n_resamples: int = 5000,
) -> pd.DataFrame:
    """Return OPERA minus greedy decoding of each model, as written, at equal words and at an equal number of distinct objects.

    Args:
        captions: what :func:`released_captions` returns.
        ground_truth: of the images.
        scorer: of CHAIR.
        n_resamples: of the bootstrap over images (BCa).

    Returns:
        One line for each model and way of LENGTHS, with the columns model (its name), length, and for each metric of
        `prunehal.benchmarks.chair.length.COMPARED` the difference, in points (absent and words: numbers of a caption), and
        _low, _high.

    >>> few = {key: dict(list(texts.items())[:20]) for key, texts in released_captions().items()}
    >>> truth = {image: {"person"} for texts in few.values() for image in texts}
    >>> table = opera_against_greedy(few, truth, "pattern", n_resamples=100)
    >>> table["length"].tolist()[:3]
    ['as written', 'equal words', 'equal objects']
    """
    lines = []
    for model, name in MODELS.items():
        for length, equal in LENGTHS.items():
            pair = captions[model, "greedy"], captions[model, "ours"]
            line = {"model": name, "length": length}
            for metric, d in difference(*pair, ground_truth, scorer, equal=equal, n_resamples=n_resamples).items():
                unit = 1 if metric in NUMBERS else 100
                line |= {metric: unit * d.estimate, f"{metric}_low": unit * d.low, f"{metric}_high": unit * d.high}
            lines.append(line)
    return pd.DataFrame(lines)


def lower_in(table: pd.DataFrame, metrics: Iterable[str] = ("chair_i", "distinct_chair_i", "recall")) -> pd.DataFrame:
    """Return for how many models a metric is lower with OPERA: the whole interval of the difference lies below 0.

    Args:
        table: what :func:`opera_against_greedy` returned.
        metrics: some of its metrics.

    Returns:
        Indexed by the ways of LENGTHS, a column for each metric.

    >>> table = pd.DataFrame({"length": ["as written"] * 2, "chair_i_high": [-0.1, 0.2]})
    >>> lower_in(table, ["chair_i"]).loc["as written", "chair_i"]
    np.int64(1)
    """
    below = pd.DataFrame({metric: table[f"{metric}_high"] < 0 for metric in metrics})
    return below.groupby(table["length"], sort=False).sum()


def opera_in_words(table: pd.DataFrame) -> list[str]:
    """Return for which models OPERA is lower than greedy decoding, a sentence for each way of LENGTHS.

    Args:
        table: what :func:`opera_against_greedy` returned.

    >>> line = {"model": "Shikra", "length": "as written", "chair_i": -3.3, "chair_i_low": -5.0, "chair_i_high": -1.5}
    >>> line |= {"distinct_chair_i": -0.2, "distinct_chair_i_low": -1.0, "distinct_chair_i_high": 0.6}
    >>> line |= {"recall": -8.7, "recall_low": -10.9, "recall_high": -6.8}
    >>> opera_in_words(pd.DataFrame([line]))[0].split("; ")[:2]
    ['as written, of 1 models: CHAIR_i lower in 1 (Shikra -3.3 [-5.0, -1.5])', 'distinct CHAIR_i lower in 0']
    """
    said = []
    for length, part in table.groupby("length", sort=False):
        said_of = []
        for metric, label in {"chair_i": "CHAIR_i", "distinct_chair_i": "distinct CHAIR_i", "recall": "recall"}.items():
            below = part[part[f"{metric}_high"] < 0]
            ends = zip(below["model"], *(below[f"{metric}{end}"] for end in ("", "_low", "_high")), strict=True)
            named = ", ".join(f"{model} {d:+.1f} [{low:.1f}, {high:.1f}]" for model, d, low, high in ends)
            said_of.append(f"{label} lower in {len(below)}{f' ({named})' if named else ''}")
        said.append(f"{length}, of {len(part)} models: {'; '.join(said_of)}")
    return said
