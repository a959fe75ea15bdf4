"""Slow, loop-written twins of the policies beyond the paper; like tests/reference.py they share no code with prunehal."""

import copy
import math
from contextlib import contextmanager
from dataclasses import dataclass, field

import reference
import torch
from reference_cache import hooked

from prunehal.core.keyword import as_option, cache_among

__all__ = ["decider", "hidden_from_newest", "observer", "restricted", "unhidden"]


@dataclass
class Past:
    """Hold what a pool saw: by step, layer and head the attention on each position; and by layer which steps count."""

    rows: list[list[list[dict[int, float]]]] = field(default_factory=list)
    counting: list[list[int]] = field(default_factory=list)
    entropies: list[list[float]] = field(default_factory=list)
    since: int = 0  # steps that the reference no longer holds
    whole: list[list[list[int]]] = field(default_factory=list)  # kept positions before the first prune


def decider(policy, visual, draft=None, joint=None):
    """Return the twin of Accumulated, Bank, RobustVote or MassShare, as ``reference.generate`` takes it; visual: all positions.

    With a list as ``draft`` nothing is pruned: the list is told after each step what each layer and head would keep. ``joint``
    is what ``unhidden`` fills: each layer's weights with nothing hidden, (head, position).
    """
    pasts = {}

    def decide(pool, _, weights, step):
        past = pasts.setdefault(id(pool), Past(counting=[[] for _ in pool.kept], whole=copy.deepcopy(pool.kept)))
        rows, values, masses, entropies = [], [], [], []
        for index, heads in enumerate(pool.kept):
            group = len(weights[index]) // len(heads)
            rows.append([])
            for head, kept in enumerate(heads):
                part = weights[index][head * group : (head + 1) * group].tolist()
                rows[-1].append({position: sum(w[position] for w in part) / group for position in kept})
            masses.append(sum(sum(row.values()) for row in rows[-1]) / len(heads))
            entropies.append(sum(reference.entropy(list(row.values())) for row in rows[-1]) / len(heads))
            whole = getattr(policy, "statistic", "mean") == "sum"
            values.append(masses[-1] if whole else masses[-1] / len(heads[0]))
        past.rows.append(rows)
        past.entropies.append(entropies)
        votes = 0
        for index, value in enumerate(values):
            history = [earlier[index] for earlier in pool.values][past.since :]
            if hasattr(policy, "z"):
                near = [earlier[index] for earlier in past.entropies[past.since : -1]]
                vote, level = _robust(value, history, entropies[index], near, policy)
            else:
                level = sum(history) / len(history) if history else None
                factor = math.sqrt(policy.r) if getattr(policy, "factor", 0) is None else getattr(policy, "factor", 0)
                vote = level is not None and value < factor * level
            votes += vote and step >= getattr(policy, "wait", 2)
            if not getattr(policy, "content", False) or level is None or value >= level:
                past.counting[index].append(step)
        pool.values.append(values)
        pool.masses.append(masses)
        if draft is not None:
            scores = _accumulated(pool, past, policy, visual)
            draft.append([[_best(policy, of_head, _budget(heads, policy)) for of_head in heads] for heads in scores])
            return
        forced = step == policy.wait and getattr(policy, "forced_first", True)
        enough = votes > getattr(policy, "majority", 0.5) * len(values)
        if getattr(policy, "back", None) == "fall" and enough and pool.kept != past.whole:
            pool.kept[:] = copy.deepcopy(past.whole)
            pool.events.append((step, "returned", len(pool.kept[0][0])))
            return
        scores = _accumulated(pool, past, policy, visual)
        budgets = [_budget(heads, policy) for heads in scores]
        smaller = any(budget < len(heads[0]) for budget, heads in zip(budgets, pool.kept, strict=True))
        if not ((enough or forced) and pool.prunes < getattr(policy, "t", 1) and smaller):
            if getattr(policy, "back", None) == "key" and step % policy.every == 0:
                _swap(pool, past.whole, joint, policy, step)
            return
        pool.prunes += 1
        pool.events.append((step, "forced" if forced else "vote", budgets[0]))
        for index, (heads, budget) in enumerate(zip(pool.kept, budgets, strict=True)):
            heads[:] = [_best(policy, of_head, budget) for of_head in scores[index]]
        if getattr(policy, "after_prune", "continue") == "restart":
            past.since = step

    return decide


def _swap(pool, whole, joint, policy, step):
    weights = []
    for index, heads in enumerate(pool.kept):
        group = len(joint[index]) // len(heads)
        parts = [joint[index][head * group : (head + 1) * group].mean(0).tolist() for head in range(len(heads))]
        weights.append(parts)
    if policy.kept == "shared":
        weights = [[[sum(column) / len(weights) for column in zip(*(w[0] for w in weights), strict=True)]]] * len(weights)
    moved = 0
    for heads, everything, parts in zip(pool.kept, whole, weights, strict=True):
        for kept, tokens, weight in zip(heads, everything, parts, strict=True):
            bank = [position for position in tokens if position not in kept]
            while bank:
                best = min(bank, key=lambda p: (-weight[p], p))
                worst = max(kept, key=lambda p: (-weight[p], p))
                if weight[best] <= weight[worst]:
                    break
                bank.remove(best)
                kept[kept.index(worst)] = best
                moved += 1
            kept.sort()
    if moved:
        pool.events.append((step, "swapped", len(pool.kept[0][0])))


@contextmanager
def unhidden(layers, joint, gone):
    """Tell ``joint`` each layer's weights of the newest query, (head, position), by eager attention on a copy of its cache.

    To be entered before what hides positions, so that it sees the model's own masks; for one row. ``gone`` are positions by
    layer that take no part.
    """
    seen = 0

    def before(index):
        def hook(module, args, kwargs):
            nonlocal seen
            seen += kwargs["hidden_states"].shape[1] if index == 0 else 0
            again = kwargs | as_option(copy.deepcopy(cache_among(kwargs)))
            weights = type(module).forward(module, *args, **again)[1][0, :, -1]
            weights = torch.nn.functional.pad(weights, (seen - weights.shape[1], 0))  # a window may have lost the oldest
            if gone.get(index):
                weights[:, gone[index]] = 0
                weights = weights / weights.sum(1, keepdim=True)
            joint[index] = weights

        return hook

    with hooked(layers, before=before):
        yield


def _best(policy, scores, budget):
    positions = sorted(scores)
    ranked = [-scores[p] if policy.selection == "lowest" else scores[p] for p in positions]
    return [positions[i] for i in reference.keep_best(ranked, budget)]


def _accumulated(pool, past, policy, visual):
    window, grid = (getattr(policy, name, default) for name, default in (("window", 1), ("grid", None)))
    scores = []
    for index, heads in enumerate(pool.kept):
        steps = past.counting[index] if window is None else past.counting[index][-window:]
        scores.append([])
        for head, kept in enumerate(heads):
            summed = {p: sum(past.rows[step - 1][index][head].get(p, 0.0) for step in steps) for p in kept}
            scores[-1].append(summed if grid is None else _smoothed(summed, visual, grid))
    if policy.kept == "shared":
        for head in range(len(scores[0])):
            mean = {p: sum(of_layer[head][p] for of_layer in scores) / len(scores) for p in scores[0][head]}
            for of_layer in scores:
                of_layer[head] = mean
    return scores


def _smoothed(scores, visual, side):
    smooth = {}
    for position in scores:
        tile, place = divmod(visual.index(position), side * side)
        near = []
        for other, score in scores.items():
            its_tile, its_place = divmod(visual.index(other), side * side)
            down, across = its_place // side - place // side, its_place % side - place % side
            if its_tile == tile and abs(down) <= 1 and abs(across) <= 1:
                near.append(score)
        smooth[position] = sum(near) / len(near)
    return smooth


def _budget(heads, policy):
    if hasattr(policy, "k"):
        return min(policy.k, len(heads[0]))
    if not hasattr(policy, "p"):
        exact = round(policy.r * len(heads[0]), 6)
        return max(1, math.ceil(exact) if policy.rounding == "ceil" else math.floor(exact))
    most = 1
    for scores in heads:
        held, total, n = 0.0, sum(scores.values()), 0
        for score in sorted(scores.values(), reverse=True):
            if held >= policy.p * total:
                break
            held, n = held + score, n + 1
        most = max(most, n)
    return most


def _robust(value, history, entropy, entropies, policy):
    logs = [math.log(earlier) for earlier in history]
    if policy.like is not None:
        order = sorted(range(len(logs)), key=lambda i: (abs(entropies[i] - entropy), i))
        logs = [logs[i] for i in order[: policy.like]]
    if not logs:
        return False, None
    median = _lower_median(logs)
    spread = 1.4826 * _lower_median([abs(x - median) for x in logs])
    return len(history) >= policy.least and math.log(value) < median - policy.z * spread, math.exp(median)


def _lower_median(values):
    return sorted(values)[(len(values) - 1) // 2]


@contextmanager
def restricted(layers, policy, visual, seen):
    """Let each step's query attend to its own k visual tokens, by changing what eager attention returned; for one row.

    ``visual`` are the positions of the visual tokens; ``seen[step - 1][layer][head]`` is told which of them each query saw.
    """
    totals: dict[tuple[int, int, int], float] = {}

    def after(index):
        def hook(module, args, kwargs, output):
            if index == 0:
                seen.append([])
            weights = output[1][0, :, -1]  # (head, position)
            values = cache_among(kwargs).layers[index].values[0].repeat_interleave(module.num_key_value_groups, dim=0)
            heads = len(weights) // module.num_key_value_groups if policy.kept == "head" else 1
            size, step = len(weights) // heads, len(seen)
            seen[-1].append([])
            new = weights.clone()
            for head in range(heads):
                part = weights[head * size : (head + 1) * size].tolist()
                row = [sum(w[position] for w in part) / size for position in visual]
                for place, value in enumerate(row):
                    totals[index, head, place] = totals.get((index, head, place), 0.0) + value
                scores = row if policy.by == "query" else [totals[index, head, place] for place in range(len(row))]
                if policy.selection == "lowest":
                    scores = [-score for score in scores]
                best = reference.keep_best(scores, policy.k if step >= policy.step else len(row))
                seen[-1][-1].append([visual[place] for place in best])
                for i in range(head * size, (head + 1) * size):
                    for place, position in enumerate(visual):
                        if place not in best:
                            new[i, position] = 0.0
                    new[i] /= new[i].sum()
            row = torch.stack([w @ v for w, v in zip(new, values, strict=True)]).flatten()
            result, shown = output[0].clone(), output[1].clone()
            result[0, -1], shown[0, :, -1] = module.o_proj(row), new
            return (result, shown, *output[2:])

        return hook

    with hooked(layers, after=after):
        yield


@contextmanager
def hidden_from_newest(layers, kept, visual):
    """Hide visual tokens from the newest query of every forward, the prompt's last too; kept[layer][head] is what it sees."""

    def before(index):
        def hook(module, args, kwargs):
            mask = kwargs["attention_mask"].expand(-1, module.config.num_attention_heads, -1, -1).clone()
            size = mask.shape[1] // len(kept[index])
            for head, positions in enumerate(kept[index]):
                for position in visual:
                    if position not in positions:
                        mask[0, head * size : (head + 1) * size, -1, position] = -math.inf
            return args, kwargs | {"attention_mask": mask}

        return hook

    with hooked(layers, before=before):
        yield


def observer():
    """Return a twin of a policy that never prunes, as ``reference.generate`` takes it: it notes the masses."""

    def decide(pool, _, weights, step):
        pool.masses.append([float(w[:, pool.kept[i][0]].sum(1).mean()) for i, w in sorted(weights.items())])
        pool.values.append([mass / len(pool.kept[i][0]) for i, mass in enumerate(pool.masses[-1])])

    return decide
