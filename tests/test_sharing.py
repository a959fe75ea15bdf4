"""One prefill for many policies: each goes on from it as if it had run the prompt itself."""

import copy

import models
import pytest
import torch
from decode import SEED, TOLERANCE, difference, run
from models import IN_FULL

from prunehal.core import FirstToken, NoPruning, PruneHal, SharedPrefill, TopK
from prunehal.core.keyword import as_option

POLICIES = [NoPruning(), PruneHal(r=0.4, t=3), PruneHal(r=0.7, t=2, kept="head"), TopK(3)]


def shared_run(model, shared, policy, copies=1, attach_options=None, **options):
    cache = shared.attach(policy, copies=copies, **(attach_options or {}))
    settings = {**as_option(cache), "max_new_tokens": 10, "do_sample": False, "output_logits": True}
    return model.generate(**shared.inputs, **settings | {"return_dict_in_generate": True} | options), cache


def same(alone, cache, ours, own):
    assert torch.equal(alone.sequences, ours.sequences)
    assert difference(alone, ours) <= TOLERANCE
    assert cache.events.equals(own.events)
    columns = ["mass", "mean", "max", "n_visual"]
    assert (cache.trace.frame()[columns] - own.trace.frame()[columns]).abs().to_numpy().max() <= TOLERANCE


@pytest.mark.parametrize("family", [key for key, of in IN_FULL.items() if not of.unshared and "parts" not in of.lacks])
def test_every_policy_goes_on_as_if_alone(family):
    model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4), seed=SEED)
    shared = SharedPrefill(model, inputs)
    for policy in POLICIES:
        try:
            alone = run(model, inputs, policy, steps=10)
        except ValueError as error:  # kept="head" where the layers have different numbers of heads
            with pytest.raises(ValueError, match=str(error)[:30]):
                shared_run(model, shared, policy)
            continue
        same(*alone, *shared_run(model, shared, policy))


@pytest.mark.parametrize("family", [key for key, of in IN_FULL.items() if of.unshared])
def test_models_whose_prompt_cannot_be_shared_are_refused(family):
    inputs = models.inputs_for(family, (3, 6), (5, 4), seed=SEED)
    with pytest.raises(ValueError, match=IN_FULL[family].unshared):
        SharedPrefill(models.build(family), inputs)


def test_a_prompt_that_ends_in_an_image_is_refused():
    with pytest.raises(ValueError, match="the prompt ends in a visual token"):
        SharedPrefill(models.build("llava"), models.inputs_for("llava", (3, 6), (0, 4)))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True}], ids=repr)
def test_beams_and_several_sequences(options):
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    shared = SharedPrefill(model, inputs)
    torch.manual_seed(0)
    alone, cache = run(model, inputs, PruneHal(), steps=8, **options)
    torch.manual_seed(0)
    ours, own = shared_run(model, shared, PruneHal(), copies=3, max_new_tokens=8, **options)
    assert torch.equal(alone.sequences, ours.sequences)
    assert cache.events.equals(own.events)


def test_options_of_attach_go_through_and_caches_are_apart():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED, images=2)
    shared = SharedPrefill(model, inputs)
    options = {"attach_options": {"per_image": True, "maps": True, "exact": True}}
    alone, cache = run(model, inputs, PruneHal(), steps=10, **options)
    first, _ = shared_run(model, shared, PruneHal(r=0.2), **options)  # must leave nothing behind
    ours, own = shared_run(model, shared, PruneHal(), **options)
    same(alone, cache, ours, own)
    assert torch.allclose(cache.trace.maps, own.trace.maps, atol=TOLERANCE, equal_nan=True)
    assert not torch.equal(first.logits[-1], ours.logits[-1])
    other = models.inputs_for("llava", (3, 6), (5, 4), seed=SEED + 1, images=2)
    del other["pixel_values"]
    with pytest.raises(ValueError, match="is not the one expected from attach"):
        model.generate(**other, **as_option(shared.attach()))


def test_what_was_run_before_cannot_be_reset():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    for shared, policy in ((SharedPrefill(model, inputs), PruneHal()), (FirstToken(model, inputs), TopK(3))):
        _, cache = shared_run(model, shared, policy)
        for each in (cache, copy.deepcopy(cache)):
            with pytest.raises(ValueError, match=r"expected a cache of attach\(\). Fix: attach\(\) again from the SharedPrefill"):
                each.reset()
        assert len(cache.trace) == 10, "nothing is lost"


@pytest.mark.parametrize(("copies", "options"), [(1, {"num_beams": 3}), (3, {}), (2, {"num_beams": 3})], ids=repr)
@pytest.mark.parametrize("keeps", [False, True])
def test_copies_are_the_rows_that_generate_makes(copies, options, keeps):
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    attach_options = {"keep": inputs["input_ids"] == models.IMAGE} if keeps else {}
    rows = f"made for {2 * copies} rows, and generate\\(\\) runs {2 * options.get('num_beams', 1)}"
    with pytest.raises(ValueError, match=rf"copies={copies}: .*{rows}; expected as many. Fix: .*copies=num_beams"):
        shared_run(model, SharedPrefill(model, inputs), PruneHal(), copies, attach_options, **options)


@pytest.mark.parametrize("copies", [0, -1, "3", 1.5, True])
def test_copies_are_counted(copies):
    shared = SharedPrefill(models.build("llava"), models.inputs_for("llava"))
    with pytest.raises(ValueError, match=r"copies=.*: expected an integer of at least 1.*Fix: copies=num_beams"):
        shared.attach(PruneHal(), copies=copies)
