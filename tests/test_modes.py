"""Experiments that change when the policy acts, positions or length: rows are those of the classes used by hand."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from prunehal import load
from prunehal.core import (
    Accumulated,
    Bank,
    Draft,
    FirstToken,
    Informative,
    Keep,
    MassShare,
    NoPruning,
    PruneHal,
    SharedPrefill,
    StepTopK,
    TopK,
    attach,
)
from prunehal.experiments import Experiment, sweep
from prunehal.experiments.captioning import caption_batch
from prunehal.experiments.modes import MODES
from prunehal.experiments.prefill import _positions, batch_inputs
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.oracle import object_tokens
from prunehal.testbed.world.scenes import scene

PLAIN = Experiment(n_images=3, max_new_tokens=60)
SCENES = [scene("validation", i) for i in range(3)]
IDS = [each.image_id for each in SCENES]
TOP, CONTENT, SAYS = TopK(20), Accumulated(r=0.1, content=True), Informative(p=0.8, grid=12)


def by_hand(tiles, cache_of):
    """Caption the scenes with the cache that a function makes from model and inputs."""
    model, processor = load()
    images = [image for each in SCENES for image in each.tiles(tiles)[0]]
    inputs = processor(images=images, text=[build_prompt(tiles + 1)] * len(SCENES), return_tensors="pt")
    keep = object_tokens(SCENES, inputs["input_ids"] == model.config.image_token_id, tiles)
    cache, given = cache_of(model, inputs, keep)
    done = caption_batch(model, processor, given, cache, IDS, trace=True, max_new_tokens=60, do_sample=False)
    return done.texts, done.steps.groupby("image_id")["n_visual"].mean().round(2).to_dict()


def prefilled(kind, policy, **options):
    def cache_of(model, inputs, keep):
        prefill = kind(model, inputs, **options)
        given = {"keep": keep} if kind is SharedPrefill else {}
        return prefill.attach(policy, seeds=IDS, **given), prefill.inputs

    return cache_of


CASES = {
    "first token": (replace(PLAIN, mode="first-token", policy=TOP), prefilled(FirstToken, TOP)),
    "what they say": (replace(PLAIN, mode="first-token", policy=SAYS, tiles=1), prefilled(FirstToken, SAYS)),
    "draft": (replace(PLAIN, mode="draft", policy=CONTENT), prefilled(Draft, CONTENT, max_new_tokens=60)),
    "objects, first token": (replace(PLAIN, mode="first-token", policy=Keep(), tiles=1), prefilled(SharedPrefill, NoPruning())),
    "objects": (
        replace(PLAIN, policy=Keep(), tiles=1),
        lambda model, inputs, keep: (attach(model, inputs, Keep(), seeds=IDS, keep=keep), inputs),
    ),
    "as many random ones": (
        replace(PLAIN, policy=Keep(selection="random")),
        lambda model, inputs, keep: (attach(model, inputs, Keep(selection="random"), seeds=IDS, keep=keep), inputs),
    ),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return the rows of all cases, and of no pruning, from one sweep."""
    wanted = [PLAIN, replace(PLAIN, tiles=1), *(experiment for experiment, _ in CASES.values())]
    return sweep(wanted, tmp_path_factory.mktemp("rows"), progress=False)


@pytest.mark.parametrize("name", CASES)
def test_a_sweep_writes_what_the_classes_write_by_hand(store, name):
    experiment, cache_of = CASES[name]
    texts, held = by_hand(experiment.tiles, cache_of)
    captions = store.captions(experiment).set_index("image_id")
    assert captions["caption"].to_dict() == texts
    assert captions["visual"].to_dict() == held
    assert texts != store.captions(replace(PLAIN, tiles=experiment.tiles)).set_index("image_id")["caption"].to_dict()


def test_no_case_writes_what_another_writes(store):
    rows = [tuple(store.captions(experiment)[["caption", "visual"]].to_numpy().flat) for experiment, _ in CASES.values()]
    assert len(set(rows)) == len(rows)


def test_mode_positions_and_least_length_are_part_of_the_key():
    kinds = [replace(PLAIN, tiles=1), replace(PLAIN, tiles=1, positions_only=True), replace(PLAIN, tiles=1, min_new_tokens=1)]
    kinds += [replace(PLAIN, policy=TOP, mode=mode) for mode in MODES]
    assert len({each.key for each in kinds}) == len({each.name for each in kinds}) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "prefill"}, r"mode='prefill': expected one of 'decoding', 'first-token', 'draft'"),
        ({"mode": "draft"}, r"mode='draft', policy=NoPruning\(.*never prunes; expected one that chooses tokens"),
        ({"mode": "first-token", "policy": StepTopK(8)}, r"policy=StepTopK\(.*never prunes"),
        ({"mode": "draft", "policy": Keep()}, r"mode='draft', policy=Keep.*expected mode='first-token' and Keep\(\)"),
        ({"mode": "first-token", "policy": Keep(selection="random")}, r"what it keeps is given"),
        ({"mode": "draft", "policy": MassShare(0.9), "decoding": "vcd"}, r"a mitigation decoder runs with mode='decoding' only"),
        ({"positions_only": True}, r"positions_only=True, tiles=0: expected positions_only=True only with background tiles"),
        ({"min_new_tokens": 161}, r"min_new_tokens=161: expected at most max_new_tokens=160; raise that too"),
        ({"mode": "draft", "policy": Bank()}, r"mode='draft', policy=Bank.*nothing returns there"),
        ({"mode": "draft", "policy": Accumulated(wait=16)}, r"wait says when to prune, which the mode does"),
        ({"mode": "first-token", "policy": TopK(9, step=3)}, r"step says when to prune"),
        ({"mode": "first-token", "policy": PruneHal(factor=0.5, majority=0.25)}, r"factor, majority says when to prune"),
        (
            {"mode": "draft", "policy": TOP, "min_new_tokens": 9},
            r"min_new_tokens=9, mode='draft': the draft ends where the model",
        ),
        ({"policy": Bank(), "decoding": "opera"}, r"OPERA looks ahead beside the cache"),
        ({"policy": StepTopK(8), "decoding": "opera"}, r"OPERA looks ahead beside the cache"),
        ({"policy": Keep(), "decoding": "fastv"}, r"FastV drops tokens of its own"),
        ({"policy": Informative(), "decoding": "fastv"}, r"FastV drops tokens of its own"),
        ({"mode": "draft", "policy": Informative()}, r"it reads the prompt and nothing of a draft"),
        ({"mode": "first-token", "policy": Informative(step=3)}, r"step says when to prune"),
        ({"policy": Keep(), "images": "photos"}, r"known of the testbed's scenes only where their objects are"),
    ],
)
def test_what_cannot_be_is_refused_before_a_sweep(options, said):
    with pytest.raises(ValueError, match=said):
        Experiment(**options)


def test_the_object_tokens_are_those_of_the_tile_that_holds_the_scene():
    model, processor = load()
    tiles, at = SCENES[0].tiles(2, True)
    assert isinstance(tiles[at], Image.Image)
    inputs = processor(images=tiles, text=build_prompt(3), return_tensors="pt")
    visual = inputs["input_ids"] == model.config.image_token_id
    marked = object_tokens(SCENES[:1], visual, 2, True)[visual].view(3, 144).any(1)
    assert marked.tolist() == [tile == at for tile in range(3)]


# Positions without their tiles, and captions that must go on.


@pytest.mark.parametrize("clutter", [False, True])
def test_positions_only_is_the_prompt_whose_background_tiles_nobody_sees(clutter):
    experiment = Experiment(tiles=2, clutter=clutter, positions_only=True)
    model, processor = load()
    alone = batch_inputs(model, processor, experiment, IDS)
    whole = batch_inputs(model, processor, replace(experiment, positions_only=False), IDS)
    visual = whole["input_ids"] == model.config.image_token_id
    hidden = torch.zeros_like(visual)
    for row, each in enumerate(SCENES):
        at = each.tiles(2, clutter)[1]
        for number, place in enumerate(visual[row].nonzero().flatten().tolist()):
            hidden[row, place] = number // 144 != at
    length = visual.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & ~hidden[:, None, None]
    seen = seen | torch.eye(length, dtype=torch.bool)  # a query that sees nothing is no number
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        expected = model(**whole | {"attention_mask": mask}).logits[:, -1]
        found = model(**alone).logits[:, -1]
    assert torch.allclose(found, expected, atol=1e-4)
    del alone["position_ids"]
    with torch.inference_mode():
        assert not torch.allclose(model(**alone).logits[:, -1], expected, atol=1e-2)


def test_positions_only_goes_on_counting_and_a_caption_that_must_go_on_does(tmp_path):
    far = replace(PLAIN, tiles=2, positions_only=True, policy=TOP)
    usual = replace(PLAIN, max_new_tokens=100, policy=TOP)
    long = replace(usual, min_new_tokens=100)
    store = sweep([far, replace(far, policy=NoPruning()), long, usual], tmp_path, progress=False)
    model, processor = load()
    inputs = batch_inputs(model, processor, far, IDS)
    cache = attach(model, inputs, TOP, seeds=IDS)
    by_hand_ = caption_batch(model, processor, inputs, cache, IDS, max_new_tokens=60, do_sample=False).texts
    assert store.captions(far).set_index("image_id")["caption"].to_dict() == by_hand_
    assert store.captions(long)["tokens"].tolist() == [100, 100, 100]
    assert store.captions(usual)["tokens"].min() < 100


def test_positions_of_another_number_of_visual_tokens_are_refused():
    visual = torch.ones(1, 576, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"positions_only=True: the scenes have \[576\] visual tokens in this model; expected 144"
    ):
        _positions(visual, Experiment(tiles=3, positions_only=True), IDS[:1])
