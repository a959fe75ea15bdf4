"""Prompts that are run inside the package: in half precision, after changes in place, and under settings of generation_config."""

import copy
import math

import models
import pytest
import torch
from decode import SEED, TOLERANCE, difference, run

from prunehal.core import Draft, FirstToken, Informative, NoPruning, SharedPrefill, TopK, attach
from prunehal.decoding import VCD

STEPS = 6
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
SETTINGS = [
    {"do_sample": True, "num_return_sequences": 2},
    {"num_beams": 3, "num_return_sequences": 3},
    {"return_dict_in_generate": True, "output_logits": True},
    {"stop_strings": ["zzz"]},
]


def prompt(family="llava"):
    return {name: value.clone() for name, value in models.inputs_for(family, (3, 6), (5, 4), seed=SEED).items()}


def own_model(family="llava", **settings):
    """Return a model that no other test shares, with these settings in its generation_config."""
    model = copy.deepcopy(models.build(family))
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


def going_on(model, shared, cache):
    plain = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "stop_strings": None}
    shown = {"output_logits": True, "return_dict_in_generate": True}
    return model.generate(**shared.inputs, **cache.options, max_new_tokens=STEPS, **plain, **shown)


def halved(family, kind):
    inputs = {name: value.to(kind) if value.is_floating_point() else value for name, value in prompt(family).items()}
    return own_model(family).to(kind), inputs


@pytest.mark.parametrize("kind", ROUNDING, ids=str)
@pytest.mark.parametrize("family", ["llava", "perception_lm", "qwen2_5_vl"])
def test_a_prompt_in_half_precision_is_shared(family, kind):
    model, inputs = halved(family, kind)
    alone, _ = run(model, inputs, NoPruning(), steps=1)
    for shared in (SharedPrefill(model, inputs), Draft(model, inputs, max_new_tokens=2), FirstToken(model, inputs)):
        ours = going_on(model, shared, SharedPrefill.attach(shared, NoPruning()))
        # Two runs of some 12 rounded results in each layer, each with a standard deviation of u / sqrt(3); three of their sum's.
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        allowed = 3 * math.sqrt(2 * 12 * layers / 3) * ROUNDING[kind]
        apart = (ours.logits[0] - alone.logits[0]).abs().max().item()
        assert 0 < apart <= allowed * max(1.0, alone.logits[0].abs().max().item())
    cache = FirstToken(model, inputs).attach(TopK(4))
    going_on(model, FirstToken(model, inputs), cache)
    assert cache.trace.frame()["n_visual"].unique().tolist() == [4]


@pytest.mark.parametrize("kind", ROUNDING, ids=str)
def test_a_prefix_that_sees_itself_is_refused_in_half_precision_too(kind):
    with pytest.raises(ValueError, match="reads the last token of the prompt differently alone"):
        SharedPrefill(*halved("paligemma2", kind))


@pytest.mark.parametrize("kind", ROUNDING, ids=str)
def test_what_is_allowed_follows_the_rounding(kind, monkeypatch):
    # K and V of the prompt are off by a share of their size that no rounding makes: 64 u in bfloat16 is 1/4, in float16 1/32.
    model, inputs = halved("llava", kind)
    going_on_from = SharedPrefill.attach

    def off(self, *args, **options):
        self._kept = [tuple(part * (1 + 64 * ROUNDING[kind]) for part in parts) for parts in self._kept]
        return going_on_from(self, *args, **options)

    monkeypatch.setattr(SharedPrefill, "attach", off)
    with pytest.raises(ValueError, match="differently alone"):
        SharedPrefill(model, inputs)


def test_ids_changed_in_place_leave_the_prompt_as_it_was_run():
    model, inputs = models.build("llava"), prompt()
    before, _ = run(model, inputs, NoPruning(), steps=STEPS)
    for make in (SharedPrefill, FirstToken):
        mine = {name: value.clone() for name, value in inputs.items()}
        shared = make(model, mine)
        mine["input_ids"][:, -1] = 77
        mine["attention_mask"][0] = 1
        assert torch.equal(shared.inputs["input_ids"], inputs["input_ids"])
        ours = going_on(model, shared, SharedPrefill.attach(shared, NoPruning()))
        assert torch.equal(ours.sequences, before.sequences)
        shared.inputs["input_ids"][:, -1] = 77  # what generate() gets, too, is another tensor than the prompt
        with pytest.raises(ValueError, match="is not the one expected from attach"):
            going_on(model, shared, SharedPrefill.attach(shared, NoPruning()))


def test_pixels_changed_in_place_are_refused_and_others_in_their_place_are_not():
    model, inputs = models.build("llava"), prompt()
    policy = Informative(grid=4, p=0.3)
    expected = attach(model, inputs, policy)
    run_on = {**expected.options, "max_new_tokens": STEPS, "do_sample": False}
    model.generate(**inputs, **run_on)
    mine = {name: value.clone() for name, value in inputs.items()}
    shared = SharedPrefill(model, mine)
    pixels = mine["pixel_values"]
    mine["pixel_values"] = pixels.flip(-1) + 1  # another tensor in the user's dictionary
    cache = shared.attach(policy)
    going_on(model, shared, cache)
    assert [row.tolist() for row in cache.kept(0)] == [row.tolist() for row in expected.kept(0)]
    pixels.copy_(mine["pixel_values"])
    for kind in (policy, NoPruning(), TopK(3)):
        with pytest.raises(ValueError, match=r"pixels were changed in place after SharedPrefill.*Fix: SharedPrefill\("):
            shared.attach(kind)


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_settings_of_the_model_do_not_reach_inner_runs(settings):
    inputs, stock = prompt(), models.build("llava")
    model = own_model(**settings)
    drafted, expected = Draft(model, inputs, max_new_tokens=3), Draft(stock, inputs, max_new_tokens=3)
    caches = [shared.attach(TopK(4)) for shared in (drafted, expected)]
    assert torch.equal(drafted.draft_ids, expected.draft_ids)
    assert len(drafted.draft_ids) == len(inputs["input_ids"])
    ours, theirs = (going_on(of, at, cache) for of, at, cache in zip((model, stock), (drafted, expected), caches, strict=True))
    assert torch.equal(ours.sequences, theirs.sequences)
    assert difference(ours, theirs) == 0
    first = FirstToken(model, inputs)
    copied = first.attach(TopK(4), copies=2)
    sampling = {"do_sample": True, "num_beams": 1, "num_return_sequences": 2, "stop_strings": None}
    sampled = model.generate(**first.inputs, **copied.options, **sampling, max_new_tokens=2, return_dict_in_generate=True)
    assert len(sampled.sequences) == 4
    assert copied.trace.frame()["n_visual"].unique().tolist() == [4]


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_settings_of_the_model_do_not_reach_the_branch_of_a_decoder(settings):
    inputs, found = prompt(), []
    for model in (own_model(**settings), models.build("llava")):
        cache = attach(model, inputs, NoPruning())
        with VCD().on(model, inputs, cache) as options:
            plain = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "stop_strings": None}
            found.append(run(model, inputs, None, steps=3, **cache.options, **options, **plain)[0])
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert difference(*found) == 0


@pytest.mark.parametrize("family", ["qwen2_5_vl", "glm4v"])
def test_two_shared_prompts_of_one_model_keep_their_positions(family):
    model, one, other = own_model(family), models.inputs_for(family, seed=SEED, images=2), models.inputs_for(family, seed=3)
    shared = SharedPrefill(model, one)
    first = going_on(model, shared, shared.attach(NoPruning()))
    offset = model.model.rope_deltas.clone()
    second = SharedPrefill(model, other)
    assert not torch.equal(model.model.rope_deltas, offset)
    again = going_on(model, shared, shared.attach(NoPruning()))
    assert torch.equal(again.sequences, first.sequences)
    assert difference(again, first) == 0
    alone, _ = run(model, other, NoPruning(), steps=STEPS)
    run(model, one, NoPruning(), steps=1)
    assert difference(going_on(model, second, second.attach(NoPruning())), alone) <= TOLERANCE
