"""Run generate() with a pruning cache, and compare what it did with the masked full cache of tests/reference.py."""

import functools
import inspect

import models
import reference
import torch

from prunehal.core import PruneHal, attach
from prunehal.core.keyword import as_option

__all__ = [
    "AMPLIFIED",
    "END_WORD",
    "SEED",
    "TOLERANCE",
    "Accumulated",
    "compare",
    "difference",
    "forcing",
    "masked",
    "paddings",
    "run",
    "second_turn",
]

SEED = 8  # of inputs whose votes succeed at several steps, in every family
# How far two correct runs in float32 may lie apart. They add the same terms in another order, and each does so with errors of
# its own (2). A sum of n terms in any order is off by about sqrt(n) u of its size, u = 2**-24 (Higham and Mary 2019: rounding
# errors of mean 0); the longest sums of these models have 64 terms. Errors of that relative size in every product of a matrix
# move no logit, and no attention mass, by more than AMPLIFIED times their size: tests/test_tolerance.py measures it. Logits are
# of unit size; each planted mistake moves them by more than 1e-3, twenty times as far.
AMPLIFIED = 50
TOLERANCE = 2 * AMPLIFIED * 64**0.5 * 2**-24  # 4.8e-5
END_WORD = 93  # ends a row in tests that need rows of different length
WORDS = [token for token in range(models.VOCAB) if token != END_WORD]


class Accumulated(PruneHal):
    """Rank by the attention of all steps together: a policy that overrides ``score`` only, whose scores are state."""

    def score(self, rows, previous):
        """Add this step's attention to that of the steps before."""
        return rows if previous is None else rows + previous


def run(model, inputs, policy=None, steps=14, attach_options=None, **options):
    """Return what generate() gives and the cache it ran on; without a policy it is stock generate()."""
    cache = None if policy is None else attach(model, inputs, policy, **(attach_options or {}))
    settings = {**as_option(cache), "max_new_tokens": steps, "do_sample": False, "output_logits": True}
    return model.generate(**inputs, **settings | {"return_dict_in_generate": True} | options), cache


@functools.cache
def masked(family, policy, row=0, steps=14, per_image=False, **prompt):
    """Return the reference's run of one row of ``models.inputs_for(family, **prompt)``; tests share it."""
    model = models.build(family, "eager")
    single = models.rows_of(models.inputs_for(family, **prompt))[row]
    layers = models.FAMILIES[family].decoder(model)
    return reference.generate(model, layers, single, policy, [models.IMAGE, models.VIDEO], steps, per_image)


def difference(one, other):
    """Return the largest difference between the logits of two runs, over all steps."""
    return max((a - b).abs().max().item() for a, b in zip(one.logits, other.logits, strict=True))


def paddings(inputs):
    """Return how many columns of padding each row has on its left."""
    return (inputs["attention_mask"] == 0).sum(1).tolist()


def compare(slow, ours, cache, row=0, padding=0, tolerance=TOLERANCE):
    """Check one row of a run against the reference: tokens, logits, events, kept positions, masses and values."""
    tokens = ours.sequences[row, -len(ours.logits) :].tolist()[: len(slow.tokens)]
    assert tokens == slow.tokens
    for step, logits in enumerate(slow.logits):
        assert (ours.logits[step][row] - logits).abs().max() <= tolerance, f"step {step + 1}"
    frame, votes = cache.trace.frame(), cache.trace.votes()
    layers = sorted(set(frame["layer"]))
    for image, pool in enumerate(slow.pools):
        events, seen, voted = (_of(rows, row, image) for rows in (cache.events, frame, votes))
        assert [(e.step, e.reason, e.kept[0]) for e in events.itertuples()] == pool.events
        masses = seen.pivot(index="step", columns="layer", values="mass").to_numpy()
        values = voted.pivot(index="step", columns="layer", values="value").to_numpy()
        assert abs(masses - pool.masses).max() <= tolerance
        assert abs(values - pool.values).max() <= tolerance
    for place, layer in enumerate(layers):
        images = zip(*(pool.kept[place] for pool in slow.pools), strict=True)  # for each head its kept positions by image
        heads = [[position for kept in by_image for position in kept] for by_image in images]
        assert (cache.kept(layer)[row] - padding).reshape(len(heads), -1).tolist() == heads
    assert {len(pool.kept) for pool in slow.pools} == {len(layers)}


def _of(rows, row, image):
    mine = rows[rows["row"] == row]
    return mine[mine["image"] == image] if "image" in mine else mine


def forcing(*rows):
    """Return a ``prefix_allowed_tokens_fn`` under which each row says its own tokens, then whatever it likes but END_WORD."""
    start = []

    def allowed(row, ids):
        start.append(len(ids))  # at the first call: the length of the prompt
        said = len(ids) - start[0]
        return [rows[row][said]] if said < len(rows[row]) else WORDS

    return allowed


def second_turn(model, inputs, cache, first, said=(5, 6, 7), steps=6):
    """Call generate() again on the cache with the prompt, what the model answered, and a few words more."""
    again = "pixel_values" in inspect.signature(model.generate).parameters  # a model with a Q-Former asks for them
    ids = torch.cat([first.sequences, torch.tensor([said]).expand(len(first.sequences), -1)], dim=1)
    longer = {}
    for name, value in inputs.items():
        if value.shape == inputs["input_ids"].shape:  # attention mask and token types; the words are text
            more = value.new_full((len(ids), ids.shape[1] - value.shape[1]), int(name == "attention_mask"))
            longer[name] = torch.cat([value, more], dim=1)
        elif again or "pixel_" not in name:
            longer[name] = value
    return run(model, longer | {"input_ids": ids}, steps=steps, **as_option(cache))[0]
