"""Notebook 10, second question: why the factor of the threshold is sqrt(r)."""
