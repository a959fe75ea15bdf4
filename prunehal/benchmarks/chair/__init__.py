"""CHAIR: objects that captions name, scored by mentions and by distinct objects; truths, lengths, published captions."""

from prunehal.benchmarks.chair.score import ChairResult, Truncation, score, truncate, truncate_to_mean, unmatched

__all__ = ["ChairResult", "Truncation", "score", "truncate", "truncate_to_mean", "unmatched"]
