"""Slow twins of the decoders that read early layers: no cache, the whole sequence anew at each step, sums word by word."""

import math

import torch
from models import PAD

__all__ = ["beams", "deco", "dola", "dropped_by", "generate"]

SUPPRESSED = 94  # models.build() forbids the words from here on
FLOOR = 1e4  # how far words that are cut stay below the others, in the order of their logits


def read(model, layers, inputs, words, dropped):
    """Return the raw logits and all hidden states at the last position; ``dropped``: {(layer, query): columns}."""
    prompt = inputs["input_ids"].shape[1]
    longer = dict(inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in inputs:
            more = words if name == "input_ids" else [int(name == "attention_mask")] * len(words)
            longer[name] = torch.cat([inputs[name], torch.tensor([more], dtype=inputs[name].dtype)], dim=1)

    def hide(index):
        def hook(module, args, kwargs):
            mask = kwargs["attention_mask"].clone()
            for (layer, query), columns in dropped.items():
                if layer == index and query < mask.shape[2]:
                    mask[:, :, query, columns] = torch.finfo(mask.dtype).min
            return args, kwargs | {"attention_mask": mask}

        return hook

    handles = []
    if dropped:
        handles = [layer.self_attn.register_forward_pre_hook(hide(i), with_kwargs=True) for i, layer in enumerate(layers)]
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None  # positions are counted anew, as for a prompt
    try:
        with torch.no_grad():
            out = model(**longer, use_cache=False, output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    assert out.logits.shape[1] == prompt + len(words)
    return out.logits[0, -1], [state[0, -1] for state in out.hidden_states]


def dropped_by(cache, layers, prompt, visual, steps):
    """Return which columns each (layer, query) must not see, if step m's query saw what ``cache.kept(layer, m)`` says."""
    hidden = {}
    for layer in range(layers):
        for step in range(1, steps + 1):
            kept = cache.kept(layer, step)[0].tolist()
            hidden[layer, prompt + step - 2] = [column for column in visual if column not in kept]
    return hidden


def log_softmax(values):
    top = max(values)
    total = math.log(sum(math.exp(value - top) for value in values))
    return [value - top - total for value in values]


def below(logits):
    """Return what a cut word gets: it is said only where every other one is forbidden."""
    return [value - max(logits) - FLOOR for value in logits]


def processed(scores, before, penalty, suppressed=SUPPRESSED):
    """Return scores as the processors of generate() leave them: a repetition penalty, then the forbidden words."""
    scores = list(scores)
    for word in set(before):
        scores[word] = scores[word] / penalty if scores[word] > 0 else scores[word] * penalty
    return [value if word < suppressed else -math.inf for word, value in enumerate(scores)]


def dola(candidates, relative_top=0.1, kind="released", norm=None):
    """Return the rule of DoLa: (logits, states, head) to scores."""

    def rule(logits, states, head):
        clean = log_softmax(logits.tolist())
        best, picked = -math.inf, None
        for layer in candidates:
            state = states[layer] if norm is None else norm(states[layer])
            early = log_softmax(head(state).tolist())
            total = 0.0
            for a, b in zip(clean, early, strict=True):
                p, q = math.exp(a), math.exp(b)
                m = (p + q) / 2
                mean = max(a, b) + math.log((1 + math.exp(-abs(a - b))) / 2)  # ln m, also where q sinks to 0
                if kind == "released":
                    total += m * (mean - a) + m * (mean - b)
                else:
                    total += p * (a - mean) + q * (b - mean)
            if total > best:
                best, picked = total, early
        top = max(math.exp(value) for value in clean)
        rows = zip(clean, picked, below(logits.tolist()), strict=True)
        return [z - q if math.exp(z) >= relative_top * top else cut for z, q, cut in rows]

    return rule


def deco(candidates, norm, alpha=0.6, p_top=0.9, k=20):
    """Return the rule of DeCo: (logits, states, head) to scores."""

    def rule(logits, states, head):
        z = logits.tolist()
        probabilities = [math.exp(value) for value in log_softmax(z)]
        words, mass = [], 0.0
        for word in sorted(range(len(z)), key=lambda word: -probabilities[word])[:k]:
            if p_top < 1 and mass >= p_top:
                break
            words.append(word)
            mass += probabilities[word]
        best, picked = -1.0, None
        for layer in candidates:
            early = head(norm(states[layer])).tolist()
            sure = log_softmax(early)
            for word in words:
                if math.exp(sure[word]) > best:
                    best, picked = math.exp(sure[word]), early
        return [z[w] + alpha * best * picked[w] if w in words else cut for w, cut in enumerate(below(z))]

    return rule


def generate(model, layers, inputs, rule, steps, seed=None, dropped=(), penalty=1.0, suppressed=SUPPRESSED):
    """Return the tokens and the scores of each step for one row; greedy, or sampled with torch's generator at ``seed``."""
    words, scores = [], []
    if seed is not None:
        torch.manual_seed(seed)
    for _ in range(steps):
        row = rule(*read(model, layers, inputs, words, dict(dropped)), model.lm_head)
        row = torch.tensor(processed(row, inputs["input_ids"][0].tolist() + words, penalty, suppressed))
        scores.append(row)
        words.append(int(row.argmax()) if seed is None else int(torch.multinomial(row.softmax(-1), 1)))
    return words, scores


def beams(model, layers, inputs, rule, steps, width):
    """Return the finite hypotheses of a beam search without end tokens, best first, as (sum of scores, tokens)."""
    running = [(0.0, [])]
    for _ in range(steps):
        grown = []
        for total, words in running:
            row = processed(log_softmax(rule(*read(model, layers, inputs, words, {}), model.lm_head)), (), 1.0)
            grown += [(total + score, [*words, word]) for word, score in enumerate(row) if score > -math.inf and word != PAD]
        running = sorted(grown, key=lambda one: -one[0])[:width]
    return running
