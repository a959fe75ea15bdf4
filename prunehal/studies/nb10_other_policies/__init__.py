"""Notebook 10: policies beyond the paper."""
