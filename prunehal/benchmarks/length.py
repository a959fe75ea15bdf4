"""Length, the confound of every caption benchmark: hallucination against the place in the caption, and against a cap on words."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise

import pandas as pd

from prunehal.benchmarks.chair import ChairResult, score, truncate
from prunehal.benchmarks.mentions import ChairScorer
from prunehal.statistics import bootstrap_interval

__all__ = ["rate_by_position", "truncation_curve"]


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
