"""Slow twins of the decoders that change the KV cache: stock models, stock caches, and hooks that edit them number by number."""

import math
from contextlib import ExitStack, contextmanager

import torch

from prunehal.core.keyword import cache_among

__all__ = ["fastv", "hiding", "hooked", "smoothing"]


@contextmanager
def hooked(layers, before=None, after=None, chosen=None):
    """Keep hooks on the attention of the chosen layers (all by default) inside the block; each is made by the layer's index."""
    with ExitStack() as stack:
        for index in range(len(layers)) if chosen is None else chosen:
            attention = layers[index].self_attn
            if before is not None:
                stack.enter_context(attention.register_forward_pre_hook(before(index), with_kwargs=True))
            if after is not None:
                stack.enter_context(attention.register_forward_hook(after(index), with_kwargs=True))
        yield


@contextmanager
def hiding(layers, dropped):
    """Hide columns of each (layer, KV head) from all single-token forwards of eager attention, for one row."""

    def before(index):
        def hook(module, args, kwargs):
            query = kwargs["hidden_states"].shape[1]
            if query > 1:
                return args, kwargs
            seen = cache_among(kwargs).layers[index].keys.shape[2] + 1
            heads = module.config.num_attention_heads
            mask = torch.zeros(1, heads, 1, seen)
            for (layer, head), columns in dropped.items():
                if layer == index:
                    group = heads // module.config.num_key_value_heads
                    mask[0, head * group : (head + 1) * group, 0, columns] = -math.inf
            return args, kwargs | {"attention_mask": mask}

        return hook

    with hooked(layers, before=before):
        yield


@contextmanager
def smoothing(layers, chosen, ref, radius, window):
    """Smooth K and V of the stock cache after each single-token forward of eager attention, for one row."""
    history = {index: [] for index in chosen}

    def after(index):
        def hook(module, args, kwargs, output):
            rows = output[1][0, :, -1].tolist()  # for each head its weights
            if output[1].shape[2] > 1:
                return
            entropies = [-sum(w * math.log(w) for w in row if w > 0) for row in rows]
            mean = sum(entropies) / len(entropies)
            smaller = sum(1 for other in history[index][-window:] if other < mean)
            share = max(0.0, ref - radius, min(1.0, ref + radius, smaller / window))
            history[index].append(mean)
            stored = cache_among(kwargs).layers[index]
            heads = stored.keys.shape[1]
            group = len(rows) // heads
            for part in (stored.keys, stored.values):
                for head in range(heads):
                    before_is_masked = all(row[-2] == 0 for row in rows[head * group : (head + 1) * group])
                    if before_is_masked:
                        continue
                    old, before = part[0, head, -1].tolist(), part[0, head, -2].tolist()
                    mixed = [(1 - share) * a + share * b for a, b in zip(old, before, strict=True)]
                    part[0, head, -1] = torch.tensor(mixed)

        return hook

    with hooked(layers, after=after, chosen=chosen):
        yield


def fastv(block, ratio):
    """Return what drops tokens from block ``block`` on in tests/reference.py, which masks them there for all queries."""

    def prefill(run, index, row):
        if index == block - 1:
            for pool in run.pools:
                visual = pool.kept[0][0]
                stay = max(1, round((1 - ratio) * len(visual)))
                best = sorted(visual, key=lambda position: (-row[position], position))[:stay]
                for heads in pool.kept[block:]:
                    heads[:] = [sorted(best) for _ in heads]

    return prefill
