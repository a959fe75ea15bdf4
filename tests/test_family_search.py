"""Beams, sampling and a loop of one's own, in every family of the table: the cache follows whatever is chosen."""

import models
import pytest
import torch
from decode import SEED, TOLERANCE, difference, forcing, run
from models import FAMILIES, IN_FULL

from prunehal.core import PruneHal, attach

COPIES = [key for key, family in FAMILIES.items() if "copies" not in family.lacks]
SAMPLED = {"do_sample": True, "num_return_sequences": 2}


@pytest.mark.parametrize("family", [key for key in COPIES if key in IN_FULL])
@pytest.mark.parametrize("options", [{"num_beams": 3}, SAMPLED, SAMPLED | {"num_beams": 2}], ids=["beams", "sampled", "both"])
def test_without_pruning_equals_stock(family, options):
    model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4))
    torch.manual_seed(7)
    stock, _ = run(model, inputs, steps=8, **options)
    torch.manual_seed(7)
    ours, cache = run(model, inputs, PruneHal(r=1.0), steps=8, **options)
    assert torch.equal(stock.sequences, ours.sequences)
    assert difference(stock, ours) <= TOLERANCE
    rows = 2 * options.get("num_beams", options.get("num_return_sequences"))
    assert len(cache.kept(cache.trace.frame()["layer"][0])) == rows
    assert cache.events.empty


@pytest.mark.parametrize("family", COPIES)
def test_a_pruned_beam_equals_its_sequence_alone(family):
    # The logits of a beam depend on its tokens only: forcing them on one row must give the beam's scores again.
    model, inputs, policy = models.build(family), models.inputs_for(family, seed=SEED), PruneHal(r=0.4, t=3, factor=1.0)
    beams, cache = run(model, inputs, policy, num_beams=4, num_return_sequences=4, steps=10, output_scores=True)
    assert set(cache.events["reason"]) == {"forced", "vote"}
    paths = beams.beam_indices.tolist()
    assert any(len(set(path)) > 1 for path in paths), "a sequence should change its beam"
    for path, sequence in zip(paths, beams.sequences[:, -10:].tolist(), strict=True):
        alone, _ = run(model, inputs, policy, steps=10, prefix_allowed_tokens_fn=forcing(sequence))
        for step, row in enumerate(path):
            assert (beams.logits[step][row] - alone.logits[step][0]).abs().max() <= TOLERANCE, step


def own_loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **state):
    """Decode greedily, as someone's own loop passed to ``generate(custom_generate=...)`` does."""
    first = True
    while first or not stopping_criteria(input_ids, None).all():
        new = None if first else 1
        inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=new, is_first_iteration=first, **state)
        with torch.no_grad():
            outputs = model(**inputs)
        state = model._update_model_kwargs_for_generation(outputs, state)
        best = logits_processor(input_ids, outputs.logits[:, -1]).argmax(-1, keepdim=True)
        input_ids, first = torch.cat([input_ids, best], dim=1), False
    return input_ids


@pytest.mark.parametrize("family", IN_FULL)
def test_a_loop_of_ones_own_equals_the_native_one(family):
    model, inputs = models.build(family), models.inputs_for(family, (3, 6, 1), (5, 4, 9), seed=SEED)
    policy = PruneHal(r=0.4, t=3, factor=1.0)
    native, cache = run(model, inputs, policy, steps=12)
    own = attach(model, inputs, policy)
    ids = model.generate(**inputs, **own.options, max_new_tokens=12, custom_generate=own_loop)
    assert torch.equal(ids[:, -12:], native.sequences[:, -12:])
    assert own.events.equals(cache.events)
    assert "vote" in set(own.events["reason"])
