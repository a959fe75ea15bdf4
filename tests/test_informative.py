"""What visual tokens say: the logit lens equals a stock model's own logits, and its two policies keep what their twins keep."""

from dataclasses import replace

import models
import pytest
import reference_lens
import torch
from decode import SEED, paddings, run

from prunehal import load
from prunehal.core import FirstToken, Informative, NoPruning, SharedPrefill, Standout, attach, pruning
from prunehal.core.lens import read_tokens
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.oracle import object_tokens
from prunehal.testbed.world.scenes import scene

TWO = {"before": (3, 6), "after": (5, 4), "seed": SEED}
POLICIES = [Informative(p=0.5), Informative(p=0.5, grid=4, window=3), Informative(p=0.8, grid=2, window=5)]
POLICIES += [Standout(part=0.3), Standout(part=0.8, grid=4, window=7)]
HEADLESS = {"nemotron_h_omni"}  # its LM head is its language model's, and get_output_embeddings() returns None


def visual_of(inputs):
    return torch.isin(inputs["input_ids"], torch.tensor([models.IMAGE, models.VIDEO]))


def expected(model, inputs, policy):
    """Return the prompt positions that the twin keeps, row by row, each in its own row without padding."""
    found = []
    for single in models.rows_of(inputs):
        visual = visual_of(single)[0].nonzero().flatten().tolist()
        ranked = reference_lens.scores(*reference_lens.readings(model, single, visual), policy.grid, policy.window)
        found.append(by_twin(policy, ranked, visual))
    return found


def by_twin(policy, ranked, visual):
    """Return what the twin of a policy keeps of tokens that are ranked."""
    if isinstance(policy, Informative):
        return reference_lens.kept(ranked, visual, policy.p)
    return reference_lens.reaching(ranked, visual, policy.part)


def shifted(kept, inputs):
    return [[position - padding for position in row.tolist()] for row, padding in zip(kept, paddings(inputs), strict=True)]


@pytest.mark.parametrize("family", [key for key in models.IN_FULL if key not in HEADLESS])
def test_readings_are_those_of_the_models_own_logits(family):
    model, inputs = models.build(family, models.FAMILIES[family].functions[0]), models.inputs_for(family, seed=SEED)
    visual = visual_of(inputs)
    found = read_tokens(model, inputs, visual)
    slow = reference_lens.readings(model, inputs, visual[0].nonzero().flatten().tolist())
    assert torch.allclose(found[:, visual].double(), torch.tensor(slow, dtype=torch.float64), atol=2e-4)
    assert (found[:, ~visual] == 0).all()


@pytest.mark.parametrize("family", sorted(HEADLESS & models.IN_FULL.keys()))
def test_a_model_that_does_not_show_its_head_is_refused(family):
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    with pytest.raises(ValueError, match=r"its head is given no hidden states of the whole prompt.*Fix: another policy"):
        read_tokens(model, inputs, visual_of(inputs))


@pytest.mark.parametrize("family", ["chameleon", "muse_glimmer"])
def test_words_that_are_never_given_and_scales_are_the_models_own(family):
    test_readings_are_those_of_the_models_own_logits(family)


def test_a_model_that_changes_its_logits_in_a_way_of_its_own_is_refused():
    model, inputs = models.FAMILIES["llava"].make().eval(), models.inputs_for("llava", seed=SEED)

    def thrice(module, args, output):
        output.logits = output.logits * 3
        return output

    model.register_forward_hook(thrice)
    with pytest.raises(ValueError, match=r"its head gives logits that differ by .* expected the same.*Fix: another policy"):
        read_tokens(model, inputs, visual_of(inputs))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_best_are_kept_in_every_layer_at_its_step_and_before_the_first_token(family, policy):
    model, inputs = models.build(family), models.inputs_for(family, **TWO)
    wanted = expected(model, inputs, policy)
    _, cache = run(model, inputs, policy, steps=4)
    first = FirstToken(model, inputs)
    early = first.attach(policy)
    model.generate(**first.inputs, **early.options, max_new_tokens=3, do_sample=False)
    for layer in range(len(models.FAMILIES[family].decoder(model))):
        assert shifted(cache.kept(layer), inputs) == shifted(early.kept(layer, step=1), inputs) == wanted
        assert [len(row) for row in cache.kept(layer, step=2)] == [models.VISUAL] * 2
    assert cache.events["step"].tolist() == [2, 2]
    assert early.events.empty


def test_rows_keep_their_own_beside_others_and_with_beams_and_sequences():
    model, inputs = models.build("llava"), models.inputs_for("llava", **TWO)
    policy = Informative(p=0.5, grid=4, window=3, step=3)
    wanted = expected(model, inputs, policy)
    for options in ({"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True}):
        _, cache = run(model, inputs, policy, steps=5, **options)
        doubled = {name: value.repeat_interleave(3, dim=0) for name, value in inputs.items() if name == "attention_mask"}
        assert shifted(cache.kept(0), doubled) == [row for row in wanted for _ in range(3)]


@pytest.mark.parametrize("policy", [Informative(p=0.5), Standout(part=0.13)], ids=str)
def test_controls_keep_as_many_others_in_all_layers(policy):
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    best = expected(model, inputs, policy)[0]
    kept = {}
    for selection in ("random", "lowest"):
        _, cache = run(model, inputs, replace(policy, selection=selection, kept="shared"), steps=3)
        layers = [cache.kept(layer)[0].tolist() for layer in range(len(models.FAMILIES["llava"].decoder(model)))]
        assert all(each == layers[0] for each in layers)
        kept[selection] = layers[0]
    assert len(kept["random"]) == len(kept["lowest"]) == len(best)
    assert not set(kept["lowest"]) & set(best)
    assert kept["random"] not in (best, kept["lowest"])


def test_it_is_read_once_for_all_policies_and_inside_a_block_that_replaces_generate(monkeypatch):
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    calls = []
    monkeypatch.setattr("prunehal.core.sharing.read_tokens", lambda *given: calls.append(1) or read_tokens(*given))
    shared = SharedPrefill(model, inputs)
    assert not calls
    caches = [shared.attach(Informative(p)) for p in (0.3, 0.7)]
    assert len(calls) == 1
    for cache in caches:
        model.generate(**shared.inputs, **cache.options, max_new_tokens=3, do_sample=False)
    with pruning(model, Informative(0.7)) as ran:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert ran.caches[0].kept(0)[0].tolist() == caches[1].kept(0)[0].tolist()
    assert len(caches[0].kept(0)[0]) < len(caches[1].kept(0)[0])


def test_on_the_embedded_model_objects_say_more_than_what_is_around_them():
    model, processor = load()
    shown = [scene("validation", i) for i in range(4)]
    images = [tile for each in shown for tile in each.tiles(3)[0]]
    inputs = processor(images=images, text=[build_prompt(4)] * 4, return_tensors="pt")
    visual = inputs["input_ids"] == model.config.image_token_id
    objects = object_tokens(shown, visual, 3)
    shares, kept_share = {}, {}
    for name, policy in {
        "own": Informative(0.98),
        "around": Informative(0.8, grid=12),
        "out": Standout(0.2, grid=12, window=23),
    }.items():
        first = FirstToken(model, inputs)
        marks = torch.zeros_like(visual)
        cache = first.attach(policy)
        model.generate(**first.inputs, **cache.options, max_new_tokens=1, do_sample=False)
        for row, kept in zip(marks, cache.kept(0, step=1), strict=True):
            row[kept] = True
        shares[name] = ((marks & objects).sum() / objects.sum()).item()
        kept_share[name] = (marks.sum() / visual.sum()).item()
    assert min(shares.values()) > 0.8
    assert max(kept_share.values()) < 0.2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"p": 0}, r"p=0: expected a number in \(0, 1\]"),
        ({"window": 4}, r"window=4: expected an odd number of patches. Set window=5"),
        ({"window": 0}, r"window=0: expected an integer of at least 1"),
        ({"grid": 0}, r"grid=0: expected an integer of at least 1"),
        ({"step": 0}, r"step=0: expected an integer of at least 1"),
    ],
)
def test_settings_that_cannot_be(options, said):
    for kind in (Informative, Standout) if "p" not in options else (Informative,):
        with pytest.raises(ValueError, match=said):
            kind(**options)


def test_a_part_that_cannot_be():
    with pytest.raises(ValueError, match=r"part=1.5: expected a number in \(0, 1\]. part is what of the largest score"):
        Standout(part=1.5)


def test_what_stands_in_places_without_a_token_sets_no_bar():
    scores = torch.tensor([[[[1.0, 4.0, 9.0, 2.0]]]])
    valid = torch.tensor([[[[True, True, False, True]]]])
    assert Standout(part=0.5).budgets(scores, valid, [[3]]) == [[2]]


def test_no_token_goes_where_none_says_more_than_another():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    silent = torch.zeros(2, *inputs["input_ids"].shape)
    cache = attach(model, inputs, Standout(part=1.0), readings=silent)
    model.generate(**inputs, **cache.options, max_new_tokens=4, do_sample=False)
    assert len(cache.kept(0)[0]) == models.VISUAL


def test_what_cannot_be_read_is_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    with pytest.raises(ValueError, match=r"grid=3: row 0 has 16 visual tokens on end; expected a multiple of 9"):
        attach(model, inputs, Informative(grid=3))
    readings = read_tokens(model, inputs, visual_of(inputs))
    with pytest.raises(
        ValueError, match=r"readings: are given with policy=NoPruning.*expected them with Informative\(\) or Standout\(\) only"
    ):
        attach(model, inputs, NoPruning(), readings=readings)
    with pytest.raises(
        ValueError, match=r"no hidden states of the whole prompt; expected those of \(1, 23\) positions, found those of \(1, 24\)"
    ):
        read_tokens(model, inputs, visual_of(inputs)[:, 1:])


def test_readings_are_scaled_as_the_model_scales_them():
    for family, name in (("aya_vision", "logit_scale"), ("paligemma2", "final_logit_softcapping")):
        model, inputs = models.build(family, "eager"), models.inputs_for(family, seed=SEED)
        text, visual = model.config.get_text_config(decoder=True), visual_of(inputs)
        before = getattr(text, name)
        setattr(text, name, 0.25)
        try:
            slow = reference_lens.readings(model, inputs, visual[0].nonzero().flatten().tolist())
            found = read_tokens(model, inputs, visual)[:, visual]
        finally:
            setattr(text, name, before)
        assert torch.allclose(found.double(), torch.tensor(slow, dtype=torch.float64), atol=2e-4), family


@pytest.mark.parametrize("policy", [Informative(p=0.6, kept="head"), Standout(part=0.1, kept="head")], ids=str)
def test_rows_with_different_numbers_of_visual_tokens_and_heads_and_masks(policy):
    model = models.build("llava")
    inputs = models.inputs_for("llava", seed=SEED)
    mask = visual_of(inputs)
    mask[0, mask[0].nonzero().flatten()[::3]] = False
    both = {name: value.repeat_interleave(2, dim=0) for name, value in inputs.items()}
    masks = torch.cat([visual_of(inputs), mask])
    wanted = []
    for row in masks:
        visual = row.nonzero().flatten().tolist()
        ranked = reference_lens.scores(*reference_lens.readings(model, inputs, visual), None, 1)
        wanted.append(by_twin(policy, ranked, visual))
    assert len(wanted[0]) != len(wanted[1])
    cache, shared = attach(model, both, policy, visual_mask=masks), SharedPrefill(model, both)
    model.generate(**both, **cache.options, max_new_tokens=4, do_sample=False)
    again = shared.attach(policy, visual_mask=masks)
    model.generate(**shared.inputs, **again.options, max_new_tokens=4, do_sample=False)
    for each in (cache, again):
        assert [heads.tolist() for heads in each.kept(0)] == [[row] * len(each.kept(0)[0]) for row in wanted]


def test_a_prompt_without_images_beside_others_says_nothing():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    readings = read_tokens(model, inputs, torch.zeros_like(visual_of(inputs)))
    assert (readings == 0).all()


def test_settings_of_the_search_do_not_reach_the_reading(monkeypatch):
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    monkeypatch.setattr(model.generation_config, "num_beams", 3)
    monkeypatch.setattr(model.generation_config, "num_return_sequences", 3)
    assert read_tokens(model, inputs, visual_of(inputs)).sum() > 0
