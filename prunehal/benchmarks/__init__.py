"""Score captions and answers with the rules of the published hallucination benchmarks."""

from prunehal.benchmarks.chair import (
    ChairResult,
    Truncation,
    ground_truth_from_coco,
    score,
    truncate,
    truncate_to_mean,
)
from prunehal.benchmarks.mentions import ChairScorer, Mention, load_scorer

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
