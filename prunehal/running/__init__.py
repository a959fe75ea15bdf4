"""Run real models on benchmarks: what is asked (tasks), by which settings and model (settings, engine), kept where (rows)."""

from prunehal.running.loop import run
from prunehal.running.settings import POLICIES, Run, named_policy

__all__ = ["POLICIES", "Run", "named_policy", "run"]
