"""OPERA: beam search that looks back at over-trusted tokens."""

from prunehal.decoding.opera.opera import OPERA

__all__ = ["OPERA"]
