"""The tolerance of the tests of equality follows from the arithmetic; this measures the one number in it that is not plain."""

import copy

import models
import pytest
import torch
from decode import AMPLIFIED, SEED, forcing, run

from prunehal.core import NoPruning

SIZE = 1e-5  # of the relative errors: far above those of float32, so that what they do is not hidden by them


def disturbed(model, layers, seed):
    """Return a copy of a model in which every product of the decoder with a matrix is off by independent relative errors."""
    again, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)

    def off(module, args, output):
        return output * (1 + SIZE * torch.randn(output.shape, generator=generator))

    for layer in layers(again):
        for part in layer.modules():
            if isinstance(part, torch.nn.Linear):
                part.register_forward_hook(off)
    return again


@pytest.mark.parametrize("family", ["llava", "aya_vision", "idefics3", "qwen2_5_vl"])  # the first three move farthest
def test_relative_errors_of_every_product_are_amplified_less_than_the_tolerance_says(family):
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    true, cache = run(model, inputs, NoPruning())
    said = forcing(true.sequences[0, -14:].tolist())
    masses, apart = cache.trace.frame()["mass"].to_numpy(), []
    for seed in range(3):
        other = disturbed(model, models.FAMILIES[family].decoder, seed)
        wrong, its = run(other, inputs, NoPruning(), prefix_allowed_tokens_fn=said)
        logits = max((a - b).abs().max().item() for a, b in zip(true.logits, wrong.logits, strict=True))
        apart += [logits, abs(its.trace.frame()["mass"].to_numpy() - masses).max()]
    assert SIZE < max(apart) <= AMPLIFIED * SIZE
