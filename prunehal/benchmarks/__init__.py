"""Score captions and answers with the rules of the published hallucination benchmarks."""

from prunehal.benchmarks.chair import (
    ChairResult,
    ChairScorer,
    Mention,
    Truncation,
    ground_truth_from_coco,
    load_scorer,
    score,
    truncate,
    truncate_to_mean,
)

__all__ = [
    "ChairResult",
    "ChairScorer",
    "Mention",
    "Truncation",
    "ground_truth_from_coco",
    "load_scorer",
    "score",
    "truncate",
    "truncate_to_mean",
]
