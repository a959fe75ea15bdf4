"""Notebook 03: r and t, against controls."""
