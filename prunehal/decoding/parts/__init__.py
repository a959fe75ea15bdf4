"""Parts that several decoders share: a second run of the prompt, logits of early layers, plausible tokens."""
