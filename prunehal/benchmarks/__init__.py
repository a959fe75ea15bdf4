"""Score captions and answers with the rules of the published hallucination benchmarks."""

from prunehal.benchmarks.chair.captions import drop_unfinished, read_captions
from prunehal.benchmarks.chair.mentions import ChairScorer, Mention, load_scorer
from prunehal.benchmarks.chair.score import ChairResult, Truncation, score, truncate, truncate_to_mean
from prunehal.benchmarks.chair.truth import (
    ground_truth_coco,
    ground_truth_from_coco,
    ground_truth_testbed,
    load_ground_truth,
    truth_of_scorer,
)
from prunehal.files.records import BadInput, Report

__all__ = [
    "BadInput",
    "ChairResult",
    "ChairScorer",
    "Mention",
    "Report",
    "Truncation",
    "drop_unfinished",
    "ground_truth_coco",
    "ground_truth_from_coco",
    "ground_truth_testbed",
    "load_ground_truth",
    "load_scorer",
    "read_captions",
    "score",
    "truncate",
    "truncate_to_mean",
    "truth_of_scorer",
]
