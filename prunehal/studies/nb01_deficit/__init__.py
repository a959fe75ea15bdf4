"""Notebook 01: whether the model looks less at the image when it names what is not there."""
