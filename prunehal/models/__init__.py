"""Models of transformers: load them, ask them; adapters, and the files of a checkpoint."""
