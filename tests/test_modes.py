"""Experiments whose policy acts before the decoding, or knows the objects: rows are those of the classes used by hand."""

from dataclasses import replace

import pytest
from PIL import Image

from prunehal import load
from prunehal.captioning import caption_batch
from prunehal.core import Accumulated, Draft, FirstToken, Keep, MassShare, NoPruning, SharedPrefill, StepTopK, TopK, attach
from prunehal.experiments import Experiment, Store, sweep
from prunehal.testbed.model import build_prompt
from prunehal.testbed.oracle import object_tokens
from prunehal.testbed.scenes import scene

PLAIN = Experiment(n_images=3, max_new_tokens=30)
SCENES = [scene("validation", i) for i in range(3)]
IDS = [each.image_id for each in SCENES]
TOP, CONTENT = TopK(20), Accumulated(r=0.1, content=True)


def by_hand(tiles, cache_of):
    """Caption the scenes with the cache that a function makes from model and inputs."""
    model, processor = load()
    images = [image for each in SCENES for image in each.tiles(tiles)[0]]
    inputs = processor(images=images, text=[build_prompt(tiles + 1)] * len(SCENES), return_tensors="pt")
    keep = object_tokens(SCENES, inputs["input_ids"] == model.config.image_token_id, tiles)
    cache, given = cache_of(model, inputs, keep)
    done = caption_batch(model, processor, given, cache, IDS, trace=True, max_new_tokens=30, do_sample=False)
    return done.texts, done.steps.groupby("image_id")["n_visual"].mean().round(2).to_dict()


def prefilled(kind, policy, **options):
    def cache_of(model, inputs, keep):
        prefill = kind(model, inputs, **options)
        given = {"keep": keep} if kind is SharedPrefill else {}
        return prefill.attach(policy, seeds=IDS, **given), prefill.inputs

    return cache_of


CASES = {
    "first token": (replace(PLAIN, mode="first-token", policy=TOP), prefilled(FirstToken, TOP)),
    "draft": (replace(PLAIN, mode="draft", policy=CONTENT), prefilled(Draft, CONTENT, max_new_tokens=30)),
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


def test_the_mode_is_part_of_the_key_and_the_default_leaves_keys_as_they_were():
    modes = [replace(PLAIN, policy=TOP), replace(PLAIN, policy=TOP, mode="first-token"), replace(PLAIN, policy=TOP, mode="draft")]
    assert len({each.key for each in modes}) == 3
    assert ["mode" in each.description for each in modes] == [False, True, True]
    assert [Store.shipped().path(each).name.count("mode") for each in modes] == [0, 1, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "prefill"}, r"mode='prefill': expected one of 'decoding', 'first-token', 'draft'"),
        ({"mode": "draft"}, r"mode='draft', policy=NoPruning\(.*never prunes; expected one that chooses tokens"),
        ({"mode": "first-token", "policy": StepTopK(8)}, r"policy=StepTopK\(.*never prunes"),
        ({"mode": "draft", "policy": Keep()}, r"mode='draft', policy=Keep.*expected mode='first-token' and Keep\(\)"),
        ({"mode": "first-token", "policy": Keep(selection="random")}, r"what it keeps is given"),
        ({"mode": "draft", "policy": MassShare(0.9), "decoding": "vcd"}, r"a mitigation decoder runs with mode='decoding' only"),
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
