"""Notebook 07: mitigation decoders, alone and with pruning."""
