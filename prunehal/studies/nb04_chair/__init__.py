"""Notebook 04: what CHAIR measures."""
