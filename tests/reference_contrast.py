"""Slow twins of VCD and PAI: one row, the whole sequence through an eager model anew for every new token, without any cache.

Scores are worked out query by query and column by column where PAI boosts them; what a policy has dropped is left out by
column. No code is shared with prunehal.
"""

import hashlib
import math
import sys
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch

__all__ = ["attending", "cut", "diffusion", "noised", "pai", "text_of", "vcd", "whole"]


def diffusion(step):
    """Return the shares of signal and noise."""
    kept = 1.0
    for s in range(step + 1):
        u = -6 + 12 * s / 999
        kept *= 1 - ((0.005 - 1e-5) / (1 + math.exp(-u)) + 1e-5)
    return math.sqrt(kept), math.sqrt(1 - kept)


def noised(inputs, step, seed):
    """Return the inputs with noise on each image, as the docstring of VCD defines its seed."""
    signal, share = diffusion(step)
    pixels, grids = inputs["pixel_values"], inputs.get("image_grid_thw")
    sizes = [1] * len(pixels) if grids is None else [t * h * w for t, h, w in grids.tolist()]
    images, first = [], 0
    for size in sizes:
        image = pixels[first : first + size]
        key = int.from_bytes(hashlib.sha256(image.numpy().tobytes()).digest()[:8], "big")
        noise = np.random.default_rng((seed, key)).standard_normal(tuple(image.shape), dtype=np.float32)
        images.append(signal * image + share * torch.tensor(noise))
        first += size
    return inputs | {"pixel_values": torch.cat(images)}


def text_of(inputs, visual):
    """Return the row without its visual tokens."""
    kept = [token for place, token in enumerate(inputs["input_ids"][0].tolist()) if place not in visual]
    return {"input_ids": torch.tensor([kept]), "attention_mask": torch.ones(1, len(kept), dtype=torch.long)}


def whole(model, inputs, tokens):
    """Return the logits that follow a prompt and some tokens, (vocabulary,), from one forward without a cache."""
    longer = dict(inputs)
    for name, value in inputs.items():
        if value.shape == inputs["input_ids"].shape:
            new = {"input_ids": tokens, "attention_mask": [1] * len(tokens)}.get(name, [0] * len(tokens))
            longer[name] = torch.cat([value, torch.tensor([new], dtype=value.dtype)], dim=1)
    with torch.no_grad():
        return model(**longer, use_cache=False).logits[0, -1]


def cut(scores, logits, beta):
    """Return the scores with -inf where the probability is below beta times the largest one."""
    chances = logits.double().softmax(-1).tolist()
    kept = [score if chance >= beta * max(chances) else -math.inf for score, chance in zip(scores.tolist(), chances, strict=True)]
    return torch.tensor(kept)


def vcd(model, inputs, tokens, alpha, beta, step, seed=0):
    """Return the contrasted logits that follow a prompt and some tokens."""
    logits, other = (whole(model, prompt, tokens) for prompt in (inputs, noised(inputs, step, seed)))
    return cut((1 + alpha) * logits - alpha * other, logits, beta)


def pai(model, inputs, tokens, visual, alpha, gamma, beta, layers, kept=None):
    """Return the logits, boosted and contrasted, that follow a prompt and some tokens; kept as in `attending`."""
    prompt = inputs["input_ids"].shape[1]
    with attending(model, prompt, visual, alpha, layers, kept):
        logits = whole(model, inputs, tokens)
    if gamma == 1:
        return logits
    other = whole(model, text_of(inputs, visual), tokens)
    return cut(gamma * logits.log_softmax(-1) - (gamma - 1) * other.log_softmax(-1), logits, beta)


@contextmanager
def attending(model, prompt, visual, alpha, layers, kept=None):
    """Let the decoder's eager attention boost the visual columns of every query from the prompt's last one on.

    ``kept(layer, step, head)`` names the visual columns that the query of step m sees; None: all.
    """
    attention = model.model.language_model.layers[0].self_attn
    module = sys.modules[type(attention).__module__]
    stock = module.eager_attention_forward

    def eager(part, query, key, value, mask, scaling, **options):
        if type(part) is not type(attention):
            return stock(part, query, key, value, mask, scaling=scaling, **options)
        _, heads, length, _ = query.shape
        output = torch.zeros(1, length, heads, value.shape[-1])
        for head in range(heads):
            group = head // (heads // key.shape[1])
            for place in range(length):
                scores = [float(score) * scaling for score in key[0, group, : place + 1] @ query[0, head, place]]
                step = place - prompt + 2  # the prompt's last query is step 1
                for column in visual:
                    if column > place or step < 1:
                        continue
                    if part.layer_idx in layers:
                        scores[column] += alpha * abs(scores[column])
                    if kept is not None and column not in kept(part.layer_idx, step, group):
                        scores[column] = -math.inf
                output[0, place, head] = torch.tensor(scores).softmax(-1) @ value[0, group, : place + 1]
        return output, None

    with mock.patch.object(module, "eager_attention_forward", eager):
        yield
