"""A slow twin of the sweep: one image at a time, one policy at a time, stock attach() and generate(), rows by hand.

It shares neither captioning nor worker nor sampling with prunehal.experiments; words are found by reading the caption, and
statistics by adding up the trace line by line.
"""

import hashlib
import json
import math
from contextlib import nullcontext

import numpy as np
import torch
from transformers import LogitsProcessor

import prunehal as ph
from prunehal.benchmarks import ground_truth_testbed, score
from prunehal.testbed.world.scenes import scene_of

__all__ = ["rows", "same_rows"]

PROMPT = "Describe this scene in detail."
TOLERANCE = 2e-4  # rows hold four decimals


class Drawn(LogitsProcessor):
    """Leave one token of the nucleus: the largest of log-probability plus Gumbel noise."""

    def __init__(self, key, seed, prompt):
        self.key, self.seed, self.prompt = key, seed, prompt

    def __call__(self, input_ids, scores):
        (logits,) = scores.double().tolist()
        largest = max(logits)
        weights = [math.exp(value - largest) for value in logits]
        chances = [weight / sum(weights) for weight in weights]
        nucleus, held = [], 0.0
        for token in sorted(range(len(chances)), key=lambda token: -chances[token]):
            if held >= 0.9:
                break
            nucleus.append(token)
            held += chances[token]
        step = input_ids.shape[1] - self.prompt
        digest = hashlib.sha256(json.dumps([self.seed, self.key, step]).encode()).digest()
        noise = np.random.default_rng(int.from_bytes(digest[:8], "big")).gumbel(size=len(chances)).tolist()
        drawn = max(nucleus, key=lambda token: math.log(chances[token]) + noise[token])
        only = torch.full_like(scores, -math.inf)
        only[0, drawn] = 0.0
        return only


def rows(model, processor, experiment, keys):
    """Return the row of each image of an experiment on the testbed, ``{key: row}``."""
    return {key: _row(model, processor, experiment, key) for key in keys}


def _row(model, processor, experiment, key):
    pictures = scene_of(key).tiles(experiment.tiles, experiment.clutter)[0]
    text = "<image>" * len(pictures) + (experiment.prompt or PROMPT)
    inputs = processor(images=pictures, text=text, return_tensors="pt")
    width = inputs["input_ids"].shape[1]
    cache = ph.attach(model, inputs, experiment.policy, seeds=[key], entropy=True)
    options = {"max_new_tokens": experiment.max_new_tokens, "do_sample": False}
    if experiment.decoding == "beam":
        options["num_beams"] = 5
    if experiment.decoding == "nucleus":
        options["logits_processor"] = [Drawn(key, experiment.seed, width)]
    with nullcontext({}) if isinstance(experiment.decoding, str) else experiment.decoding.on(model, inputs, cache) as own:
        made = model.generate(**inputs, **cache.options, return_dict_in_generate=True, **options, **own)
    tokens = made.sequences[0, width:].tolist()
    end = processor.tokenizer.eos_token_id
    finished = end in tokens
    if finished:
        tokens = tokens[: tokens.index(end)]
    steps = len(tokens) + finished
    beams = made.beam_indices[0].tolist() if "beam_indices" in made else [0] * steps

    trace, votes = cache.trace.frame(), cache.trace.votes()
    seen = {}  # (step, layer) -> line of the trace, of the beam that the text was in
    voters = {}  # step -> how many layers voted
    for line, vote in zip(trace.to_dict("records"), votes["vote"].tolist(), strict=True):
        step = line["step"]
        if step <= steps and line["row"] == beams[step - 1]:
            seen[step, line["layer"]] = line
            voters[step] = voters.get(step, 0) + vote
    layers = sorted({layer for _, layer in seen})
    needed = math.floor(getattr(experiment.policy, "majority", 0.5) * len(layers)) + 1
    needed = min(needed, len(layers))
    events = []
    for line in cache.events.to_dict("records"):
        if line["step"] < steps and line["row"] == beams[line["step"] - 1]:
            events.append([line["step"], line["reason"], line["kept"][0]])
    caption = processor.decode(tokens, skip_special_tokens=True)
    return {
        "key": key,
        "caption": caption,
        "tokens": len(tokens),
        "finished": finished,
        "visual": sum(line["n_visual"] for line in seen.values()) / len(seen),
        "events": events,
        "voted": [step for step in range(1, steps + 1) if voters[step] >= needed],
        "layers": layers,
        "mass": [sum(seen[step, layer]["mass"] for step in range(1, steps + 1)) / steps for layer in layers],
        "mentions": _mentions(processor, key, caption, tokens, seen, layers),
    }


def _mentions(processor, key, caption, tokens, seen, layers):
    found = []
    mentions = score({key: caption}, {key: set(ground_truth_testbed()[key])}).mentions
    for mention in mentions.to_dict("records"):
        # The token that wrote the first letter of the mention: the first with which the text is longer than that.
        step = 1
        while len(processor.decode(tokens[:step], skip_special_tokens=True)) <= mention["start"]:
            step += 1
        lines = [seen[step, layer] for layer in layers]
        entropy = sum(line["entropy"] for line in lines) / len(lines)
        found.append([mention["node"], mention["hallucinated"], step, [line["mass"] for line in lines], entropy])
    return found


def same_rows(ours, twin):
    """Assert that two ``{key: row}`` agree: texts and counts exactly, attention up to its rounding."""
    assert list(ours) == list(twin)
    for key, row in ours.items():
        other = twin[key]
        assert row.keys() == other.keys()
        exact = ("key", "caption", "tokens", "finished", "events", "voted", "layers")
        assert {name: row[name] for name in exact} == {name: other[name] for name in exact}
        assert abs(row["visual"] - other["visual"]) <= 0.011
        assert _apart(row["mass"], other["mass"]) <= TOLERANCE
        assert [mention[:3] for mention in row["mentions"]] == [mention[:3] for mention in other["mentions"]]
        for (*_, masses, entropy), (*_, others, entropy_there) in zip(row["mentions"], other["mentions"], strict=True):
            assert _apart(masses, others) <= TOLERANCE
            assert abs(entropy - entropy_there) <= 2 * TOLERANCE


def _apart(a, b):
    return max(abs(x - y) for x, y in zip(a, b, strict=True))
