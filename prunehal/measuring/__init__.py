"""Measurements: speed and memory of the engine, of decoders, of scorers and sweeps; half precision; the model card."""
