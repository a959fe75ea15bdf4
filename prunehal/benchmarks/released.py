"""Real captions: what OPERA's authors released, and the numbers that they published for them.

Source: shikiw/OPERA (MIT licence), ``log/chair_eval_results``: 500 images of COCO val2014 each, prompt "Please describe this
image in detail.", at most 512 new tokens; greedy decoding, beam search with 5 beams, and OPERA ("ours").

The published numbers are those of the `wordnet` scorer with the `pattern` ground truth: 23 of 24 are met so, and 11 with the
`wordnet` one, although that is the truth which this scorer's own code builds. The two differ in 9 of the 500 images (8 of
InstructBLIP's).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from prunehal.benchmarks.captions import read_captions
from prunehal.benchmarks.files import read_shipped
from prunehal.resources import data_path

__all__ = ["DECODINGS", "MODELS", "met", "published_scores", "released_captions", "scores_with_wordnet_truth"]

MODELS = {"llava-1.5": "LLaVA-1.5", "instructblip": "InstructBLIP", "minigpt4": "MiniGPT-4", "shikra": "Shikra"}
DECODINGS = {"greedy": "greedy", "beam5": "beam 5", "ours": "OPERA"}

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
