"""Slow, loop-written twins of the core: eager attention, a full stock cache, -inf masks, Python lists.

They share no code with prunehal: tokens are dropped by masking them in every layer of a stock model, and every vote and
choice is worked out again from the attention weights that eager attention returns.
"""

import itertools
import math
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from prunehal.core.keyword import as_option

__all__ = ["Pool", "Run", "attend", "entropy", "generate", "keep_best"]


def keep_best(scores: list[float], budget: int) -> list[int]:
    """Return the positions of the ``budget`` largest scores, sorted; of equal scores the lower position wins."""
    ranked = sorted(range(len(scores)), key=lambda position: (-scores[position], position))
    return sorted(ranked[:budget])


def entropy(weights: list[float]) -> float:
    """Return the entropy in nats of the weights renormalised to 1."""
    total = sum(weights)
    return -sum(w / total * math.log(w / total) for w in weights if w > 0)


def attend(query, key, value, visible, scaling, softcap=None, sinks=None):
    """Attend head by head and slot by slot: query (head, dim), key and value (kv_head, slot, dim), visible (slot,)."""
    group = len(query) // len(key)
    outputs, rows = [], []
    for head, q in enumerate(query):
        scores = []
        for slot, k in enumerate(key[head // group]):
            score = sum(float(a) * float(b) for a, b in zip(q, k, strict=True)) * scaling
            if softcap is not None:
                score = softcap * math.tanh(score / softcap)
            scores.append(score if visible[slot] else -math.inf)
        exponents = [math.exp(score) for score in scores]
        total = sum(exponents) + (0 if sinks is None else math.exp(float(sinks[head])))
        rows.append([e / total for e in exponents])
        columns = value[head // group].T.tolist()
        outputs.append([sum(w * v for w, v in zip(rows[-1], column, strict=True)) for column in columns])
    return outputs, rows


@dataclass
class Pool:
    """Hold what is pruned together: kept positions by layer and head, and what it saw at each step."""

    kept: list[list[list[int]]]
    histories: list[list[float]]
    prunes: int = 0
    events: list[tuple[int, str, int]] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    masses: list[list[float]] = field(default_factory=list)


@dataclass
class Run:
    """Hold what the reference saw: tokens, logits by step, and the pools of visual tokens: one, or one for each image."""

    pools: list[Pool]
    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    step: int = 0

    @property
    def whole(self) -> Pool:
        """Return the only pool."""
        (pool,) = self.pools
        return pool


def generate(
    model, layers, inputs, policy, placeholders: list[int], new_tokens: int, per_image=False, prefill=None, decide=None
) -> Run:
    """Generate greedily for one row with a stock model in eager attention, dropping visual tokens by masks.

    ``layers`` are the decoder's, whose ``self_attn`` is hooked; ``placeholders`` are the ids of visual tokens. A layer that
    uses the K and V of an earlier one has no kept set, no vote and no reference of its own. With ``per_image`` each run of
    placeholders is a pool of its own. ``prefill(run, index, row)`` is told each layer's last row of the prompt, (position,),
    averaged over the heads, and may drop tokens of later layers. ``decide(pool, policy, weights, step)`` is another policy's
    twin in the place of PruneHal's.
    """
    ids = inputs["input_ids"]
    visual = [position for position, token in enumerate(ids[0].tolist()) if token in placeholders]
    text = model.config.get_text_config()
    heads = n_heads = 1  # of the masks, and of the kept sets; the number of heads may differ between layers
    if policy.kept == "head":
        heads = text.num_attention_heads
        n_heads = getattr(text, "num_key_value_heads", heads)
    owners = [index for index in range(len(layers)) if _owner(layers, index) == index]
    images = [visual]
    if per_image:
        starts = [position for position in visual if position - 1 not in visual] + [len(ids[0])]
        images = [[p for p in visual if start <= p < end] for start, end in itertools.pairwise(starts)]
    run = Run([Pool([[list(image) for _ in range(n_heads)] for _ in owners], [[] for _ in owners]) for image in images])
    weights: dict[int, torch.Tensor] = {}
    state = {"seen": 0}

    def mask_dropped(index):
        def hook(module, args, kwargs):
            mask = kwargs["attention_mask"]  # (1, 1, query, position), additive
            if index == 0:
                state["seen"] += mask.shape[2]
            first = state["seen"] - mask.shape[3]  # the stock cache of a sliding-window layer drops the oldest
            mask = mask.expand(-1, heads, -1, -1).clone()
            for head in range(heads):
                owner = owners.index(_owner(layers, index))
                kept = [position for pool in run.pools for position in pool.kept[owner][head // (heads // n_heads)]]
                for position in visual:
                    if position not in kept and position >= first:
                        mask[0, head, :, position - first] = -math.inf
            return args, kwargs | {"attention_mask": mask}

        return hook

    def read_row(index):
        def hook(module, args, kwargs, output):
            row = output[1][0, :, -1]  # (head, position)
            if prefill is not None and run.step == 0:
                prefill(run, index, row.mean(0).tolist())
            if index in owners:
                weights[owners.index(index)] = torch.nn.functional.pad(row, (state["seen"] - row.shape[1], 0))
            if index == len(layers) - 1:
                run.step += 1
                for pool in run.pools:
                    (decide or _decide)(pool, policy, weights, run.step)

        return hook

    handles = []
    for index, layer in enumerate(layers):
        handles.append(layer.self_attn.register_forward_pre_hook(mask_dropped(index), with_kwargs=True))
        handles.append(layer.self_attn.register_forward_hook(read_row(index), with_kwargs=True))
    try:
        cache = DynamicCache(config=model.config)
        out = model.generate(
            **inputs, **as_option(cache), max_new_tokens=new_tokens, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    run.tokens = out.sequences[0, ids.shape[1] :].tolist()
    run.logits = [logits[0] for logits in out.logits]
    return run


def _owner(layers, index):
    attention = [layer.self_attn for layer in layers[: index + 1]]
    if not getattr(attention[index], "is_kv_shared_layer", False):
        return index
    return max(
        place
        for place, other in enumerate(attention)
        if not other.is_kv_shared_layer and other.layer_type == attention[index].layer_type
    )


def _decide(pool, policy, weights, step):
    votes, values, masses, rows = 0, [], [], []
    for index, heads in enumerate(pool.kept):
        group = len(weights[index]) // len(heads)
        layer_rows = []
        for head, kept in enumerate(heads):
            part = weights[index][head * group : (head + 1) * group]
            layer_rows.append([sum(float(w[position]) for w in part) / group for position in kept])
        rows.append(layer_rows)
        mass = sum(sum(row) for row in layer_rows) / len(layer_rows)
        value = mass if policy.statistic == "sum" else mass / len(heads[0])
        masses.append(mass)
        values.append(value)
        votes += _votes(value, pool.histories[index], policy)
        if not (step == 1 and policy.first == "decode"):
            pool.histories[index].append(value)
    pool.values.append(values)
    pool.masses.append(masses)

    forced = policy.forced_first and step == 2
    enough = votes == len(values) if policy.majority == 1 else votes > policy.majority * len(values)
    if not (enough or forced) or pool.prunes >= policy.t:
        return
    budgets = []
    for heads in pool.kept:
        exact = round(policy.r * len(heads[0]), 6)
        budgets.append(max(1, math.ceil(exact) if policy.rounding == "ceil" else math.floor(exact)))
    if all(budget >= len(heads[0]) for budget, heads in zip(budgets, pool.kept, strict=True)):
        return
    pool.prunes += 1
    pool.events.append((step, "forced" if forced else "vote", budgets[0]))
    for index, (heads, budget) in enumerate(zip(pool.kept, budgets, strict=True)):
        for head, kept in enumerate(heads):
            scores = rows[index][head]
            if policy.kept == "shared":
                scores = [sum(row[head][i] for row in rows) for i in range(len(kept))]
            if policy.selection == "lowest":
                scores = [-score for score in scores]
            heads[head] = [kept[i] for i in keep_best(scores, budget)]
    if policy.after_prune == "restart":
        for history in pool.histories:
            history.clear()


def _votes(value, history, policy):
    if not history:
        return False
    if policy.reference == "mean":
        average = sum(history) / len(history)
    elif policy.reference == "first":
        average = history[0]
    elif policy.reference == "previous":
        average = history[-1]
    else:
        average = history[0]
        for later in history[1:]:
            average = policy.decay * average + (1 - policy.decay) * later
    factor = math.sqrt(policy.r) if policy.factor is None else policy.factor
    return value < factor * average
