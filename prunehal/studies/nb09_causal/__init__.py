"""Notebook 09: attention changed at the step that chooses a word."""
