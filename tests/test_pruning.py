"""The context manager: code that calls generate() itself is pruned, and nothing is left behind."""

import copy

import models
import numpy as np
import pytest
import torch
from transformers import DynamicCache, pipeline

import prunehal as ph
from prunehal.core.keyword import as_option, cache_among
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import scene

SETTINGS = dict(max_new_tokens=8, do_sample=False)


@pytest.fixture
def model():
    return models.build("llava")


@pytest.fixture
def inputs():
    return models.inputs_for("llava", (3, 6), (5, 4))


def untouched(model):
    return "generate" not in model.__dict__ and not model._forward_pre_hooks


@pytest.fixture(autouse=True)
def _without_hook_of_other_tests(model):
    model._forward_pre_hooks.clear()


def test_a_block_equals_attach(model, inputs):
    cache = ph.attach(model, inputs, ph.PruneHal(factor=1.0), maps=True)
    expected = model.generate(**inputs, **cache.options, **SETTINGS)
    model._forward_pre_hooks.clear()
    with ph.pruning(model, ph.PruneHal(factor=1.0), maps=True) as run:
        assert torch.equal(model.generate(**inputs, **SETTINGS), expected)
        assert torch.equal(model.generate(**inputs, **SETTINGS), expected)
    assert untouched(model)
    assert len(run.caches) == 2
    for each in run.caches:
        assert each.events.equals(cache.events)
        assert each.trace.frame().equals(cache.trace.frame())
        assert torch.equal(each.trace.maps.nan_to_num(), cache.trace.maps.nan_to_num())
        for layer in range(4):
            assert [kept.tolist() for kept in each.kept(layer)] == [kept.tolist() for kept in cache.kept(layer)]


def test_ids_may_come_by_position(model, inputs):
    expected = model.generate(**inputs, **SETTINGS)
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with ph.pruning(model, ph.NoPruning()) as run:
        assert torch.equal(model.generate(inputs["input_ids"], **rest, **SETTINGS), expected)
    assert len(run.caches[0].trace) == 8


def test_the_pipeline_of_transformers_is_pruned():
    model, processor = ph.load()
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    images, text = [scene("test", i).image() for i in range(2)], build_prompt()
    inputs = processor(images=images, text=[text] * 2, return_tensors="pt")
    cache = ph.attach(model, inputs, ph.PruneHal())
    ids = model.generate(**inputs, **cache.options, max_new_tokens=20)
    written = processor.batch_decode(ids, skip_special_tokens=True)
    with ph.pruning(model, ph.PruneHal()) as run:
        found = pipe(images=images, text=[text] * 2, max_new_tokens=20)
    assert [answer["generated_text"].removeprefix("<image>") for answer in found] == written
    assert run.caches[0].events.equals(cache.events)


def test_k_and_v_are_freed_unless_they_are_to_be_kept(model, inputs):
    with ph.pruning(model) as run:
        ids = model.generate(**inputs, **SETTINGS)
        longer = {"input_ids": torch.cat([ids, torch.tensor([[5, 6], [7, 8]])], dim=1)}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        longer["attention_mask"][:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
        with pytest.raises(ValueError, match=r"were freed.*keep_kv=True"):
            model.generate(**longer, **as_option(run.caches[0]), **SETTINGS)
    assert all(layer.keys is None for layer in run.caches[0].layers)

    kept = ph.attach(model, inputs)
    model.generate(**inputs, **as_option(kept), **SETTINGS)
    expected = model.generate(**longer, **as_option(kept), **SETTINGS)
    with ph.pruning(model, keep_kv=True) as run:
        model.generate(**inputs, **SETTINGS)
        assert torch.equal(model.generate(**longer, **as_option(run.caches[0]), **SETTINGS), expected)
    assert len(run.caches) == 1
    assert run.caches[0].events.equals(kept.events)


def test_blocks_do_not_nest(model, inputs):
    with ph.pruning(model) as run:
        with pytest.raises(RuntimeError, match=r"pruned already.*Fix: leave the outer block"), ph.pruning(model):
            pass
        model.generate(**inputs, **SETTINGS)
    assert len(run.caches) == 1
    assert untouched(model)


def test_nothing_is_left_behind_after_an_exception(model, inputs):
    expected = model.generate(**inputs, **SETTINGS)

    def stop(*args):
        raise KeyboardInterrupt

    handle = model.model.language_model.layers[2].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt), ph.pruning(model) as run:
        model.generate(**inputs, **SETTINGS)
    handle.remove()
    assert untouched(model)
    assert all(layer.keys is None for layer in run.caches[0].layers), "K and V of a call that failed are freed too"
    assert torch.equal(model.generate(**inputs, **SETTINGS), expected)


def two_turns(model, inputs):
    """Give what an attached cache's first generate() returns, and its second."""
    cache = ph.attach(model, inputs, ph.TopK(4))
    ids = model.generate(**inputs, **cache.options, **SETTINGS)
    yield ids
    longer = torch.cat([ids, torch.tensor([[5, 6], [7, 8]])], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 10, dtype=torch.long)], dim=1)
    yield model.generate(input_ids=longer, attention_mask=mask, **cache.options, **SETTINGS)


def test_a_cache_attached_in_a_block_goes_on_after_it(model, inputs):
    expected = list(two_turns(model, inputs))
    model._forward_pre_hooks.clear()
    with ph.pruning(model):
        model.generate(**inputs, **SETTINGS)
        turns = two_turns(model, inputs)
        first = next(turns)
    assert torch.equal(first, expected[0])
    assert torch.equal(next(turns), expected[1])
    with ph.pruning(model):
        model.generate(**inputs, **SETTINGS)
    assert not untouched(model), "a hook that is there before the block stays"


def test_a_hook_goes_with_its_block_where_no_cache_of_attach_is_left(model, inputs):
    with ph.pruning(model, ph.TopK(4)) as run:
        model.generate(**inputs, **SETTINGS)
        cache = ph.attach(model, inputs)
        model.generate(**inputs, **cache.options, **SETTINGS)
        del cache
    assert len(run.caches) == 1
    assert untouched(model)


def test_a_cache_is_of_no_use_without_the_hook(model, inputs):
    cache = ph.attach(model, inputs)
    model._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError, match=r"without the hook that attach.*Fix: attach"):
        model.generate(**inputs, **cache.options, **SETTINGS)


@pytest.mark.parametrize("name", ["exact", "maps", "entropy", "per_image", "keep_kv"])
def test_an_option_that_is_neither_true_nor_false_is_refused_on_entry(model, inputs, name):
    with pytest.raises(ValueError, match=f"{name}='no': expected True or False"), ph.pruning(model, **{name: "no"}):
        pytest.fail("the block must not begin")
    with ph.pruning(model, **{name: np.bool_(True)}) as run:
        model.generate(**inputs, **SETTINGS)
    assert (run.caches[0].layers[0].keys is None) == (name != "keep_kv")


@pytest.mark.parametrize("how", ["keyword", "config"])
def test_ends_given_to_generate_are_known(model, inputs, how):
    with ph.pruning(model, ph.NoPruning()) as run:
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
        end = next(token for i, token in enumerate(tokens[2:9]) if token not in tokens[: i + 2])
        ends = {"eos_token_id": end}
        if how == "config":
            config = copy.deepcopy(model.generation_config)
            config.eos_token_id = [end]
            ends = {"generation_config": config}
        model.generate(**inputs, **ends, max_new_tokens=12, do_sample=False)
    frame = run.caches[1].trace.frame()
    assert frame.loc[frame["row"] == 0, "step"].max() == tokens.index(end) + 1
    cache = ph.attach(model, inputs, ph.NoPruning(), end_ids=[end])
    model.generate(**inputs, **cache.options, eos_token_id=end, max_new_tokens=12, do_sample=False)
    assert cache.trace.frame().equals(frame)


def test_a_generate_of_the_users_own_is_put_back(inputs):
    model, calls = models.FAMILIES["llava"].make(), []

    def generate(**kwargs):
        calls.append(kwargs)
        return type(model).generate(model, **kwargs)

    model.generate = generate
    with ph.pruning(model):
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert model.generate is generate
    assert isinstance(cache_among(calls[0]), ph.PrunableCache)


def test_use_cache_false_is_refused(model, inputs):
    match = r"use_cache=False.*Fix: leave use_cache out"
    with ph.pruning(model), pytest.raises(ValueError, match=match):
        model.generate(**inputs, use_cache=False, **SETTINGS)
    cache = ph.attach(model, inputs)
    with pytest.raises(ValueError, match=match):
        model.generate(**inputs, **cache.options, use_cache=False, **SETTINGS)


def test_other_caches_are_refused(model, inputs):
    with ph.pruning(model):
        with pytest.raises(ValueError, match=r"got a DynamicCache inside pruning\(\).*leave (cache|past_key_values) out"):
            model.generate(**inputs, **as_option(DynamicCache(config=model.config)), **SETTINGS)
        with pytest.raises(ValueError, match=r"cache_implementation='quantized'.*scale.*Fix: leave cache_implementation out"):
            model.generate(**inputs, cache_implementation="quantized", **SETTINGS)
    assert untouched(model)


def test_a_call_that_does_not_use_its_cache_is_an_error(inputs):
    model = models.FAMILIES["llava"].make()
    model.generate = lambda **kwargs: kwargs["input_ids"]
    with pytest.raises(RuntimeError, match="observed nothing"), ph.pruning(model):
        model.generate(**inputs)


@pytest.mark.parametrize("policy", [ph.PruneHal, 0.4, "prunehal"])
def test_a_policy_that_is_none_is_refused_on_entry(model, policy):
    with (
        pytest.raises(ValueError, match=r"policy=.*: expected PruneHal\(\.\.\.\).*Fix: pruning\(model, PruneHal"),
        ph.pruning(model, policy),
    ):
        pytest.fail("the block must not begin")
    assert untouched(model)


def test_a_block_in_which_another_object_generates_is_an_error(model, inputs):
    other = copy.deepcopy(model)
    match = r"0 calls of generate\(\) of this model.*Fix: give pruning\(\) the very object"
    with pytest.raises(RuntimeError, match=match), ph.pruning(model) as run:
        other.generate(**inputs, **SETTINGS)
    assert (run.calls, run.caches) == (0, [])
    assert untouched(model)


def test_an_exception_inside_a_block_without_calls_is_not_masked(model):
    with pytest.raises(KeyError, match="the user's own"), ph.pruning(model):
        raise KeyError("the user's own")
    assert untouched(model)


def test_calls_that_are_refused_or_bring_their_cache_are_calls(model, inputs):
    with ph.pruning(model) as run:
        model.generate(**inputs, **as_option(ph.attach(model, inputs)), **SETTINGS)
    assert (run.calls, run.caches) == (1, [])
    with ph.pruning(model) as run, pytest.raises(ValueError, match="use_cache=False"):
        model.generate(**inputs, use_cache=False, **SETTINGS)
    assert run.calls == 1
