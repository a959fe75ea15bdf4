"""Queries that see k visual tokens each equal the twin, which changes what eager attention returned, number by number."""

import functools
import itertools
from contextlib import nullcontext

import models
import pytest
import reference
import reference_beyond
import torch
from decode import SEED, TOLERANCE, compare, difference, forcing, paddings, run

import prunehal as ph
from prunehal.core import Keep, NoPruning, StepTopK, TopK, attach
from prunehal.decoding import OPERA, FastV
from prunehal.testbed.world.scenes import scene

THREE = {"before": (3, 6, 1), "after": (5, 4, 9), "seed": SEED}
FAMILIES = ["llava", "qwen2_5_vl"]
POLICIES = [
    StepTopK(4),
    StepTopK(3, by="accumulated"),
    StepTopK(4, kept="head"),
    StepTopK(5, by="accumulated", kept="head", step=1),
    StepTopK(6, selection="lowest", step=4),
]


def twin(model, layers, single, policy, placeholders, steps=8):
    """Return the reference's run, and which tokens each query saw, by step, layer and head."""
    visual = [position for position, token in enumerate(single["input_ids"][0].tolist()) if token in placeholders]
    seen = []
    with reference_beyond.restricted(layers, policy, visual, seen):
        done = reference.generate(model, layers, single, NoPruning(), placeholders, steps, decide=reference_beyond.observer())
    return done, seen


@functools.cache
def row_of(family, policy, row):
    model, single = models.build(family, "eager"), models.rows_of(models.inputs_for(family, **THREE))[row]
    return twin(model, models.FAMILIES[family].decoder(model), single, policy, [models.IMAGE, models.VIDEO])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_batch_equals_the_twin(family, attn, policy):
    model, inputs = models.build(family, attn), models.inputs_for(family, **THREE)
    ours, cache = run(model, inputs, policy, steps=8, attach_options={"maps": True})
    for row, padding in enumerate(paddings(inputs)):
        slow, seen = row_of(family, policy, row)
        if policy.kept == "head":  # the cache says of each head what it holds: all of it
            slow.whole.kept = [[heads[0]] * (model.config.get_text_config().num_key_value_heads) for heads in slow.whole.kept]
        compare(slow, ours, cache, row, padding, tolerance=3 * TOLERANCE)
        for step, (layer, heads) in itertools.product(range(8), enumerate(seen[0])):
            attended = (cache.trace.maps[step, layer, row] > 0).nonzero().flatten() + slow.whole.kept[0][0][0]
            assert attended.tolist() == sorted(set().union(*seen[step][layer])), (step, layer, len(heads))
    sets = [tuple(seen[step][0][0]) for step in range(8)]
    assert len(set(sets)) > 1, "the sets should change from step to step"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES[:2], ids=repr)
def test_a_beam_equals_its_sequence_alone(family, policy):
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    beams, _ = run(model, inputs, policy, num_beams=4, num_return_sequences=4, steps=8, output_scores=True)
    paths = beams.beam_indices.tolist()
    assert any(len(set(path)) > 1 for path in paths), "a sequence should change its beam"
    for path, sequence in zip(paths, beams.sequences[:, -8:].tolist(), strict=True):
        alone, _ = run(model, inputs, policy, steps=8, prefix_allowed_tokens_fn=forcing(sequence))
        for step, row in enumerate(path):
            assert (beams.logits[step][row] - alone.logits[step][0]).abs().max() <= TOLERANCE, step


def test_the_embedded_model_equals_the_twin():
    model, processor = ph.load()
    model.set_attn_implementation("eager")
    inputs = processor(images=scene("test", 3).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    for policy in (StepTopK(8), StepTopK(12, by="accumulated")):
        ours, cache = run(model, inputs, policy, steps=8)
        slow, _ = twin(model, model.model.language_model.layers, inputs, policy, [model.config.image_token_id])
        compare(slow, ours, cache)
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("options", [{"images": 2}, {"images": 1}], ids=str)
def test_each_image_has_k_tokens_of_its_own(options):
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED, **options)
    attach_options = {"per_image": True, "maps": True}
    _, cache = run(model, inputs, StepTopK(3), steps=3, attach_options=attach_options)
    assert (cache.trace.maps[1:] > 0).sum(-1).unique().tolist() == [3 * options["images"]]


def test_as_many_as_there_are_restrict_nothing():
    model, inputs = models.build("llava"), models.inputs_for("llava", **THREE)
    stock, _ = run(model, inputs, steps=6)
    for exact in (False, True):
        ours, cache = run(model, inputs, StepTopK(16), steps=6, attach_options={"exact": exact})
        assert difference(stock, ours) <= TOLERANCE
        assert cache.events.empty


def test_the_first_restricted_step_sees_what_a_prune_would_have_left():
    # Restricting from m = 1 on is to see, at m = 1, the tokens that a prune by the attention of m = 1 keeps.
    model, inputs = models.build("llava"), models.inputs_for("llava", **THREE)
    _, pruned = run(model, inputs, TopK(4, step=1), steps=1)
    _, cache = run(model, inputs, StepTopK(4, step=1), steps=1, attach_options={"maps": True})
    for row in range(3):
        start = int((inputs["input_ids"][row] == models.IMAGE).nonzero()[0])
        assert ((cache.trace.maps[0, 0, row] > 0).nonzero().flatten() + start).tolist() == pruned.kept(0)[row].tolist()


@pytest.mark.parametrize("family", ["gemma4", "llava_sinks", "gemma3", "paligemma2"])
def test_other_kinds_of_attention(family):
    model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4), seed=SEED)
    _, cache = run(model, inputs, StepTopK(3), steps=4, attach_options={"maps": True})
    assert (cache.trace.maps[1:] > 0).sum(-1).max() == 3


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: StepTopK(0), ["k=0", "at least 1"]),
        (lambda: StepTopK(4, by="value"), ["by='value'", "'accumulated'"]),
        (lambda: StepTopK(4, step=0), ["step=0", "step=2"]),
        (lambda: StepTopK(4, kept="shared"), ["kept='shared'", "'head'"]),
    ],
)
def test_bad_settings_are_named(make, parts):
    with pytest.raises(ValueError, match="expected") as error:
        make()
    assert all(part in str(error.value) for part in parts), error.value


def test_tokens_that_a_decoder_drops_in_the_prompt_leave_the_ranking_too():
    # FastV drops tokens between the restricted queries of m = 1 and the end of that step.
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    cache = attach(model, inputs, StepTopK(16, by="accumulated", step=1), maps=True)  # sees all: both rows are the same
    with FastV(2, 0.5).on(model, inputs, cache) as options:
        run(model, inputs, steps=1, **cache.options, **options)
    ranked, seen = cache.table.scattered(cache._memory._scores), cache.trace.maps[0]
    assert torch.equal(ranked.isnan(), seen.isnan())
    assert ranked.isnan().any()
    assert (ranked - seen).nan_to_num().abs().max() <= TOLERANCE


def test_given_tokens_and_a_decoder_that_drops_some_are_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    cache = attach(model, inputs, Keep(), keep=inputs["input_ids"] == models.IMAGE)
    with FastV(2, 0.5).on(model, inputs, cache) as options, pytest.raises(ValueError, match=r"Keep\(\) was given the tokens"):
        run(model, inputs, steps=1, **cache.options, **options)


def test_a_decoder_that_reads_tokens_beside_the_cache_is_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    opera = OPERA(num_beams=2, candidates=2)
    for policy, refused in ((StepTopK(4), True), (TopK(4), False)):
        cache = attach(model, inputs, policy)
        expected = pytest.raises(ValueError, match="was computed beside the cache") if refused else nullcontext()
        with opera.on(model, inputs, cache) as options, expected:
            model.generate(**inputs, **cache.options, max_new_tokens=5, do_sample=False, **options)
