"""Policies beyond the paper equal their loop-written twins: accumulated scores, robust votes, a share of the mass."""

import functools
from dataclasses import fields

import models
import pytest
import reference
import reference_beyond
import torch
from decode import SEED, TOLERANCE, compare, forcing, paddings, run

import prunehal as ph
from prunehal.core import Accumulated, MassShare, Policy, PruneHal, RobustVote, attach
from prunehal.testbed.world.scenes import scene

THREE = {"before": (3, 6, 1), "after": (5, 4, 9), "seed": SEED}  # rows that prune at different steps
ROUNDING = 3e-5  # many policies on one prompt: some steps cancel more digits; a wrong token moves the logits by 1e-3
FAMILIES = ["llava", "qwen2_5_vl"]
VOTING = {"r": 0.6, "t": 3, "factor": 1.0}
POLICIES = [
    Accumulated(**VOTING, wait=4),
    Accumulated(**VOTING, wait=4, window=3),
    Accumulated(**VOTING, wait=3, content=True, kept="head"),
    Accumulated(**VOTING, wait=5, window=2, content=True, kept="shared", selection="lowest"),
    Accumulated(**VOTING, wait=4, grid=4),
    Accumulated(**VOTING, wait=4, grid=2, kept="head", window=3, after_prune="restart"),
    RobustVote(r=0.6, t=3, z=0.7, least=3, wait=2),
    RobustVote(r=0.6, t=3, z=0.5, least=2, wait=4, like=4, kept="head", after_prune="restart", forced_first=True),
    RobustVote(r=0.6, t=2, z=0.5, least=2, wait=2, like=3, statistic="sum", content=True),
    MassShare(p=0.7, wait=4),
    MassShare(p=0.5, wait=6, content=True, kept="shared"),
    MassShare(p=0.9, wait=3, window=2, kept="head"),
]


def short(value):
    """Return what differs from the policy's defaults, as a test's name."""
    if not isinstance(value, Policy):
        return str(value)
    differing = [(f.name, getattr(value, f.name)) for f in fields(value)]
    given = "-".join(f"{name}={option}" for name, option in differing if option != getattr(type(value)(), name))
    return f"{type(value).__name__}({given})"


@functools.cache
def twin(family, policy, row, per_image=False, **prompt):
    model, single = models.build(family, "eager"), models.rows_of(models.inputs_for(family, **prompt))[row]
    return slow(model, models.FAMILIES[family].decoder(model), single, policy, per_image=per_image)


def slow(model, layers, single, policy, steps=14, placeholders=(models.IMAGE, models.VIDEO), per_image=False):
    visual = [position for position, token in enumerate(single["input_ids"][0].tolist()) if token in placeholders]
    decide = reference_beyond.decider(policy, visual)
    return reference.generate(model, layers, single, policy, placeholders, steps, per_image, decide=decide)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES, ids=short)
def test_a_batch_equals_the_twin(family, policy):
    model, inputs = models.build(family), models.inputs_for(family, **THREE)
    ours, cache = run(model, inputs, policy)
    runs = [twin(family, policy, row, **THREE) for row in range(3)]
    for row, (alone, padding) in enumerate(zip(runs, paddings(inputs), strict=True)):
        compare(alone, ours, cache, row, padding, ROUNDING)
    assert any(pool.events for alone in runs for pool in alone.pools)


def test_a_vote_succeeds_in_each_policy_that_votes():
    for policy in POLICIES[:9]:
        runs = [twin(family, policy, row, **THREE) for family in FAMILIES for row in range(3)]
        assert "vote" in {reason for alone in runs for _, reason, _ in alone.whole.events}, policy


@pytest.mark.parametrize("policy", [POLICIES[4], POLICIES[7], POLICIES[9]], ids=short)
def test_each_image_by_itself(policy):
    prompt = THREE | {"images": 2}
    model, inputs = models.build("llava"), models.inputs_for("llava", **prompt)
    ours, cache = run(model, inputs, policy, attach_options={"per_image": True})
    for row, padding in enumerate(paddings(inputs)):
        compare(twin("llava", policy, row, per_image=True, **prompt), ours, cache, row, padding, ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [POLICIES[1], POLICIES[7], POLICIES[9]], ids=short)
def test_a_beam_equals_its_sequence_alone(family, policy):
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    beams, cache = run(model, inputs, policy, num_beams=4, num_return_sequences=4, steps=10, output_scores=True)
    assert not cache.events.empty
    paths = beams.beam_indices.tolist()
    assert any(len(set(path)) > 1 for path in paths), "a sequence should change its beam"
    for path, sequence in zip(paths, beams.sequences[:, -10:].tolist(), strict=True):
        alone, _ = run(model, inputs, policy, steps=10, prefix_allowed_tokens_fn=forcing(sequence))
        for step, row in enumerate(path):
            assert (beams.logits[step][row] - alone.logits[step][0]).abs().max() <= TOLERANCE, step


@functools.cache
def embedded(attn):
    model, processor = ph.load()
    model.set_attn_implementation(attn)
    return model, processor


@pytest.mark.parametrize(
    "policy",
    [
        Accumulated(r=0.25, t=2, wait=4, grid=12, content=True),
        RobustVote(r=0.5, t=2, z=0.5, least=3, wait=3, like=4),
        MassShare(p=0.8, wait=6, window=3),
    ],
    ids=short,
)
def test_the_embedded_model_equals_the_twin(policy):
    model, processor = embedded("eager")
    inputs = processor(images=scene("test", 3).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    ours, cache = run(model, inputs, policy, steps=10)
    expected = slow(model, model.model.language_model.layers, inputs, policy, 10, [model.config.image_token_id])
    compare(expected, ours, cache, tolerance=ROUNDING)
    assert not cache.events.empty


def test_pruning_waits_and_is_otherwise_the_method():
    # With a window of one step, the prune at m = 2 and no other change, the scores are those of the method.
    model, inputs = models.build("llava"), models.inputs_for("llava", **THREE)
    plain, cache = run(model, inputs, PruneHal(**VOTING))
    ours, own = run(model, inputs, Accumulated(**VOTING, window=1, wait=2))
    assert torch.equal(plain.sequences, ours.sequences)
    assert cache.events.equals(own.events)
    _, late = run(model, inputs, Accumulated(**VOTING, wait=7))
    assert late.events["step"].min() == 7


def test_a_whole_share_drops_nothing_and_is_no_event():
    model, inputs = models.build("llava"), models.inputs_for("llava", **THREE)
    _, cache = run(model, inputs, MassShare(p=1.0, wait=3), steps=5)
    assert cache.events.empty


def test_patches_that_form_no_square_are_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava", **THREE)
    with pytest.raises(ValueError, match=r"grid=3: row 0 has 16 visual tokens on end; expected a multiple of 9.*Set grid=4"):
        attach(model, inputs, Accumulated(grid=3))
    numbers = (inputs["input_ids"] == models.IMAGE).long()
    numbers[:, : numbers.shape[1] // 2] *= 2
    with pytest.raises(ValueError, match="grid=4: visual_mask gives a tile of row 0 to several images"):
        attach(model, inputs, Accumulated(grid=4), visual_mask=numbers, per_image=True)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Accumulated(window=0), ["window=0", "at least 1", "window=None"]),
        (lambda: Accumulated(content=1), ["content=1", "True or False"]),
        (lambda: Accumulated(wait=0), ["wait=0", "wait=8"]),
        (lambda: Accumulated(grid=0), ["grid=0", "grid=None"]),
        (lambda: Accumulated(r=0), ["r=0", "(0, 1]"]),
        (lambda: RobustVote(z=0), ["z=0", "above 0"]),
        (lambda: RobustVote(z=float("inf")), ["z=inf", "above 0"]),
        (lambda: RobustVote(least=0), ["least=0", "at least 1"]),
        (lambda: RobustVote(like=0), ["like=0", "like=None"]),
        (lambda: RobustVote(factor=0.5), ["factor=0.5", "leave it out"]),
        (lambda: RobustVote(reference="first"), ["reference='first'", "leave it out"]),
        (lambda: MassShare(p=0), ["p=0", "(0, 1]"]),
    ],
)
def test_bad_settings_are_named(make, parts):
    with pytest.raises(ValueError, match="expected") as error:
        make()
    assert all(part in str(error.value) for part in parts), error.value
