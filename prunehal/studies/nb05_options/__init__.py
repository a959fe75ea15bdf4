"""Notebook 05: which options of the method matter."""
