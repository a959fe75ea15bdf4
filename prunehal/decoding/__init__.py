"""Mitigation decoders, one file each, on stock generate() and a pruning cache: see `base.Decoder`."""
