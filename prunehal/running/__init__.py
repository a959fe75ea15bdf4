"""Run real models on benchmarks: what is asked (tasks), in which words (chat), by which model (engine), kept where (rows)."""

from prunehal.running.loop import POLICIES, Run, named_policy, run

__all__ = ["POLICIES", "Run", "named_policy", "run"]
