"""Notebook 06: how often, when and at which words the vote calls for a prune."""
