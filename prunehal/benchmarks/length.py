"""Length, the confound of caption benchmarks: hallucination by place in the caption, by a cap on words, and at equal length."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise

import pandas as pd

from prunehal.benchmarks.chair import ChairResult, score, truncate, truncate_to_mean
from prunehal.benchmarks.mentions import ChairScorer
from prunehal.bootstrap import Interval
from prunehal.statistics import bootstrap_interval, paired_bootstrap

__all__ = ["difference", "rate_by_position", "truncation_curve"]


def rate_by_position(result: ChairResult, edges: Sequence[int], n_resamples: int = 1000) -> pd.DataFrame:
    """Return the share of hallucinated mentions by their place in the caption, counted in words.

    Args:
        result: scored captions.
        edges: bounds of the bins, rising: bin k holds word indices from edges[k] up to, not including, edges[k + 1].
        n_resamples: of the bootstrap over images.

    Returns:
        One row for each bin with at least two captions: start, stop, n_mentions, rate, and low, high (95% interval).

    >>> result = score({1: "A dog by a cat.", 2: "A dog by a bus.", 3: "A cat."}, {1: {"dog"}, 2: {"dog"}, 3: {"cat"}})
    >>> rate_by_position(result, [0, 2, 6])[["start", "n_mentions", "rate"]].values.tolist()
    [[0.0, 3.0, 0.0], [2.0, 2.0, 1.0]]
    """
    mentions, rows = result.mentions, []
    for start, stop in pairwise(edges):
        inside = mentions[(mentions["word_index"] >= start) & (mentions["word_index"] < stop)]
        items = inside.groupby("image_id")["hallucinated"].agg(n_mentions="count", n_hallucinated="sum").reset_index()
        if len(items) < 2:
            continue
        rate = bootstrap_interval(items, "chair_i", n_resamples)
        rows.append((start, stop, len(inside), rate.estimate, rate.low, rate.high))
    return pd.DataFrame(rows, columns=["start", "stop", "n_mentions", "rate", "low", "high"])


def truncation_curve(
    captions: Mapping[Hashable, str],
    ground_truth: Mapping[Hashable, Iterable[str]],
    scorer: str | ChairScorer,
    caps: Sequence[int],
) -> pd.DataFrame:
    """Return CHAIR and recall of captions that are cut after so many words: what shorter text alone gives.

    Returns:
        One row for each cap: n_words (the cap), words (mean length), chair_i, chair_s, recall.

    >>> curve = truncation_curve({1: "A dog by a cat."}, {1: {"dog"}}, "fixed", [3, 9])
    >>> curve[["n_words", "chair_i", "recall"]].values.tolist()
    [[3.0, 0.0, 1.0], [9.0, 0.5, 1.0]]
    """
    rows = []
    for cap in caps:
        metrics = score({image: truncate(text, cap) for image, text in captions.items()}, ground_truth, scorer).metrics
        rows.append({"n_words": cap} | {name: metrics[name] for name in ("words", "chair_i", "chair_s", "recall")})
    return pd.DataFrame(rows)


def difference(
    base: Mapping[Hashable, str],
    other: Mapping[Hashable, str],
    ground_truth: Mapping[Hashable, Iterable[str]],
    scorer: str | ChairScorer,
    *,
    equal_length: bool,
    n_resamples: int = 2000,
) -> dict[str, Interval]:
    """Return the paired differences, other minus base, of chair_i, chair_s, recall and words, on the images of both.

    Args:
        base, other: captions of two methods.
        ground_truth: of the images.
        scorer: of CHAIR.
        equal_length: cut both to the mean length (in words) of the shorter one first.
        n_resamples: of the bootstrap over images (BCa).

    >>> texts = {1: "A dog.", 2: "A cat by a bus."}
    >>> found = difference(texts, texts, {1: {"dog"}, 2: {"cat"}}, "fixed", equal_length=True, n_resamples=100)
    >>> found["chair_i"].estimate, sorted(found)
    (0.0, ['chair_i', 'chair_s', 'recall', 'words'])
    """
    shared = [image for image in base if image in other]
    pair = [{image: texts[image] for image in shared} for texts in (base, other)]
    if equal_length:
        target = min(sum(len(text.split()) for text in texts.values()) / len(shared) for texts in pair)
        pair = [truncate_to_mean(texts, target).captions for texts in pair]
    a, b = (score(texts, ground_truth, scorer).items for texts in pair)
    return {
        metric: paired_bootstrap(a, b, metric, n_resamples=n_resamples) for metric in ("chair_i", "chair_s", "recall", "words")
    }
