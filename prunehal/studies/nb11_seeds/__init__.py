"""Notebook 11: models of other training seeds."""
