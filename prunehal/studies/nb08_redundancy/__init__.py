"""Notebook 08: pruning among redundant visual tokens."""
