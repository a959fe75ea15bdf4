"""Tokens that return from the bank: the cache equals a full one in which they were only masked for the steps in between."""

import copy
import functools
import itertools
from dataclasses import fields, replace

import models
import pytest
import reference
import reference_beyond
import reference_cache
import torch
from decode import END_WORD, SEED, TOLERANCE, compare, difference, forcing, paddings, run

import prunehal as ph
from prunehal.core import Accumulated, Bank, PruneHal, attach
from prunehal.decoding import FastV
from prunehal.testbed.world.scenes import scene

THREE = {"before": (3, 6, 1), "after": (5, 4, 9), "seed": SEED}  # rows that prune and return at different steps
ROUNDING = 3e-5
FAMILIES = ["llava", "qwen2_5_vl"]
VOTING = {"r": 0.6, "t": 2, "factor": 1.0}
FALLS = [
    Bank(**VOTING),
    Bank(**VOTING, kept="head", forced_first=False),
    Bank(**VOTING, kept="shared", after_prune="restart"),
    Bank(**VOTING, window=None, wait=4, content=True),
    Bank(**VOTING, window=3, wait=3, grid=4, kept="head"),
    Bank(**VOTING, selection="lowest"),
]
KEYS = [
    Bank(**VOTING, back="key"),
    Bank(**VOTING, back="key", kept="head", every=3),
    Bank(**VOTING, back="key", kept="shared", forced_first=False),
    Bank(r=0.3, t=1, back="key", every=2, window=None, wait=3),
]


def short(value):
    """Return what differs from the policy's defaults, as a test's name."""
    if not isinstance(value, Bank):
        return str(value)
    return "-".join(f"{f.name}={getattr(value, f.name)}" for f in fields(value) if getattr(value, f.name) != f.default)


def slow(model, layers, single, policy, steps=14, placeholders=(models.IMAGE, models.VIDEO), per_image=False, fastv=None):
    """Return the twin's run; its ``history`` is what each step's query saw, by pool, layer and head."""
    visual = [position for position, token in enumerate(single["input_ids"][0].tolist()) if token in placeholders]
    joint, gone, history = {}, {}, {}
    decide = reference_beyond.decider(policy, visual, joint=joint)

    def noting(pool, *args):
        history.setdefault(id(pool), []).append(copy.deepcopy(pool.kept))
        decide(pool, *args)

    def prefill(run, index, row):
        fastv(run, index, row)
        gone.update({i: [p for p in visual if p not in kept[0]] for i, kept in enumerate(run.whole.kept)})

    with reference_beyond.unhidden(layers, joint, gone):
        done = reference.generate(model, layers, single, policy, placeholders, steps, per_image, fastv and prefill, decide=noting)
    done.history = [history[id(pool)] for pool in done.pools]
    return done


@functools.cache
def twin(family, policy, row, per_image=False, fastv=None, **prompt):
    model, single = models.build(family, "eager"), models.rows_of(models.inputs_for(family, **prompt))[row]
    dropping = fastv and reference_cache.fastv(*fastv)
    return slow(model, models.FAMILIES[family].decoder(model), single, policy, per_image=per_image, fastv=dropping)


def check(alone, ours, cache, row=0, padding=0):
    """Check a row against its twin, and what the cache says of each step."""
    compare(alone, ours, cache, row, padding, ROUNDING)
    frame = cache.trace.frame().query("row == @row")
    for (place, layer), step in itertools.product(enumerate(sorted(set(frame["layer"]))), range(1, 15)):
        by_head = list(zip(*(pool[step - 1][place] for pool in alone.history), strict=True))
        seen = [sorted(itertools.chain(*images)) for images in by_head]
        assert (cache.kept(layer, step)[row] - padding).reshape(len(seen), -1).tolist() == seen, (layer, step)
        assert frame.query("layer == @layer and step == @step")["n_visual"].sum() == len(seen[0])


def reasons(runs):
    return {reason for alone in runs for pool in alone.pools for _, reason, _ in pool.events}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", FALLS + KEYS, ids=short)
def test_a_batch_equals_the_masked_full_cache(family, policy):
    model, inputs = models.build(family), models.inputs_for(family, **THREE)
    runs = [twin(family, policy, row, **THREE) for row in range(3)]
    for store in ("device", "cpu"):
        ours, cache = run(model, inputs, replace(policy, store=store), attach_options={"maps": True})
        for row, (alone, padding) in enumerate(zip(runs, paddings(inputs), strict=True)):
            check(alone, ours, cache, row, padding)
        known = cache.trace.frame().pivot(index="step", columns=["layer", "row"], values="n_visual").sort_index(axis=1).to_numpy()
        if policy.kept != "head":  # with heads the map is a mean over those that hold the token
            assert ((~cache.trace.maps.isnan()).sum(-1).flatten(1).numpy() == known).all()
    back = "returned" if policy.back == "fall" else "swapped"
    assert {back, "vote" if policy.t > 1 else "forced"} <= reasons(runs)
    steps = [[step for step, reason, _ in alone.whole.events if reason == back] for alone in runs]
    assert len(set(map(tuple, steps))) > 1 or back == "swapped", "rows should return at different steps"


@pytest.mark.parametrize("policy", [FALLS[0], FALLS[1], KEYS[0], KEYS[1]], ids=short)
def test_each_image_by_itself(policy):
    prompt = THREE | {"images": 2}
    model, inputs = models.build("llava"), models.inputs_for("llava", **prompt)
    ours, cache = run(model, inputs, policy, attach_options={"per_image": True})
    for row, padding in enumerate(paddings(inputs)):
        check(twin("llava", policy, row, per_image=True, **prompt), ours, cache, row, padding)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("policy", [FALLS[0], KEYS[0]], ids=short)
def test_rows_with_different_numbers_of_images_equal_rows_alone(policy, per_image):
    model, many = models.build("llava"), models.inputs_for("llava", (3, 3), (5, 5), seed=SEED, images=2)
    ids, mask, pixels = many["input_ids"].clone(), many["attention_mask"].clone(), many["pixel_values"]
    ids[1, :20], mask[1, :20] = models.PAD, 0
    ids[1, 20:23] = torch.tensor([4, 5, 6])
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels[[0, 1, 3]]}
    ours, cache = run(model, inputs, policy, attach_options={"per_image": per_image})
    singles = [
        {"input_ids": ids[:1], "attention_mask": mask[:1], "pixel_values": pixels[:2]},
        {"input_ids": ids[1:, 20:], "attention_mask": mask[1:, 20:], "pixel_values": pixels[3:]},
    ]
    for row, single in enumerate(singles):
        alone, own = run(model, single, policy, attach_options={"per_image": per_image})
        assert max((a[row] - b[0]).abs().max() for a, b in zip(ours.logits, alone.logits, strict=True)) <= TOLERANCE
        mine = cache.events[cache.events["row"] == row].drop(columns="row")
        assert mine.to_numpy().tolist() == own.events.drop(columns="row").to_numpy().tolist()
        assert {"returned", "swapped"} & set(mine["reason"])


@pytest.mark.parametrize(
    "family",
    [
        name
        for name in ("gemma3", "llava_window", "gemma4", "llava_sinks", "paligemma2", "llama4", "instructblip")
        if name in models.FAMILIES  # Llama 4 cannot run in every transformers
    ],
)
@pytest.mark.parametrize("policy", [FALLS[1], KEYS[0], KEYS[1]], ids=short)
def test_other_kinds_of_attention(family, policy):
    # A window hides banked tokens too; sinks take their part of both softmaxes.
    model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4), seed=SEED)
    ours, cache = run(model, inputs, policy)
    for row, padding in enumerate(paddings(inputs)):
        check(twin(family, policy, row, before=(3, 6), after=(5, 4), seed=SEED), ours, cache, row, padding)


@pytest.mark.parametrize("policy", [FALLS[0], FALLS[3], KEYS[0], KEYS[3]], ids=short)
def test_layers_that_hold_different_numbers(policy):
    # FastV has dropped half of the tokens from block 2 on for good: they are not in the bank, and its layers store less.
    model, inputs = models.build("llava"), models.inputs_for("llava", **THREE)
    cache = attach(model, inputs, policy)
    with FastV(2, 0.5).on(model, inputs, cache) as options:
        ours, _ = run(model, inputs, **cache.options, **options)
    runs = [twin("llava", policy, row, fastv=(2, 0.5), **THREE) for row in range(3)]
    for row, (alone, padding) in enumerate(zip(runs, paddings(inputs), strict=True)):
        check(alone, ours, cache, row, padding)
    assert reasons(runs) & {"returned", "swapped"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [FALLS[0], FALLS[4], KEYS[0], replace(KEYS[1], store="int8")], ids=short)
def test_a_beam_equals_its_sequence_alone(family, policy):
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    beams, cache = run(model, inputs, policy, num_beams=4, num_return_sequences=4, steps=10, output_scores=True)
    assert {"returned", "swapped"} & set(cache.events["reason"])
    paths = beams.beam_indices.tolist()
    assert any(len(set(path)) > 1 for path in paths), "a sequence should change its beam"
    for path, sequence in zip(paths, beams.sequences[:, -10:].tolist(), strict=True):
        alone, _ = run(model, inputs, policy, steps=10, prefix_allowed_tokens_fn=forcing(sequence))
        for step, row in enumerate(path):
            assert (beams.logits[step][row] - alone.logits[step][0]).abs().max() <= TOLERANCE, step


@pytest.mark.parametrize("policy", [FALLS[0], KEYS[0]], ids=short)
def test_the_past_follows_the_beams(policy):
    model, inputs = models.build("llava"), models.inputs_for("llava", **THREE)
    _, cache = run(model, inputs, policy)
    before = [[cache.kept(0, step)[row].tolist() for row in range(3)] for step in range(1, 15)]
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    after = [[cache.kept(0, step)[row].tolist() for row in range(3)] for step in range(1, 15)]
    assert after == [[rows[2], rows[0], rows[1]] for rows in before]


@pytest.mark.parametrize("policy", [FALLS[0], KEYS[0]], ids=short)
def test_beams_that_decide_together(policy):
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    _, cache = run(model, inputs, replace(policy, beam_state="shared"), num_beams=3, steps=10)
    kept = cache.kept(0)
    for start in (0, 3):
        assert len({tuple(each.tolist()) for each in kept[start : start + 3]}) == 1
    assert {"returned", "swapped"} & set(cache.events["reason"])


@functools.cache
def embedded():
    model, processor = ph.load()
    model.set_attn_implementation("eager")
    inputs = processor(images=scene("test", 3).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    return model, inputs


@pytest.mark.parametrize(
    "policy",
    [Bank(r=0.4, t=2, factor=0.9), Bank(r=0.25, t=1, back="key"), Bank(r=0.4, t=2, back="key", every=4, window=None, grid=12)],
    ids=short,
)
def test_the_embedded_model_equals_the_twin(policy):
    model, inputs = embedded()
    ours, cache = run(model, inputs, policy)
    expected = slow(model, model.model.language_model.layers, inputs, policy, placeholders=[model.config.image_token_id])
    check(expected, ours, cache)
    assert {"returned", "swapped"} & set(cache.events["reason"])


def test_pruning_without_a_return_is_the_method():
    # Before a token returns, a bank is PruneHal, and Accumulated with the same options.
    model, inputs = models.build("llava"), models.inputs_for("llava", **THREE)
    options = VOTING | {"forced_first": False, "t": 3}
    plain, own = run(model, inputs, PruneHal(**options))
    ours, cache = run(model, inputs, Bank(**options, back="key", every=99))
    assert own.events.equals(cache.events.drop(columns="returned"))
    assert difference(plain, ours) <= TOLERANCE
    late, wanted = run(model, inputs, Bank(**VOTING, back="key", every=99, window=None, wait=5)), Accumulated(**VOTING, wait=5)
    assert late[1].events.drop(columns="returned").equals(run(model, inputs, wanted)[1].events)


def test_rows_that_have_ended_swap_nothing():
    model, inputs = models.build("llava", eos=END_WORD), models.inputs_for("llava", **THREE)
    for policy in (FALLS[0], KEYS[0]):
        _, cache = run(model, inputs, policy, prefix_allowed_tokens_fn=forcing([5] * 13, [6, 7, 8, END_WORD], [9] * 13))
        last = cache.events.groupby("row")["step"].max()
        assert last[1] <= 4
        assert min(last[0], last[2]) > 4


def test_a_window_of_flash_attention_hides_banked_tokens(monkeypatch):
    # Its masks do not contain the window, so that positions decide.
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    _, cache = run(model, inputs, KEYS[0], steps=4)
    monkeypatch.setattr(cache, "wants_row", lambda layer: True)
    layer, positions = cache.layers[1], cache.table.bank_positions(1)
    seen = cache.aside(layer, None, 17).mask[:, :, 0]
    assert torch.equal(seen, (positions > layer.seen - 1 - 17) & (positions >= 0))
    assert 0 < seen.sum() < (positions >= 0).sum()
