"""Pruning before the first token - by the prompt's last query, by a draft, or to given tokens - equals masks on a full cache."""

import functools

import models
import pytest
import reference
import reference_beyond
import torch
from decode import SEED, TOLERANCE, compare, forcing, paddings, run

import prunehal as ph
from prunehal.benchmarks import score
from prunehal.core import (
    Accumulated,
    Draft,
    FirstToken,
    Keep,
    MassShare,
    NoPruning,
    PruneHal,
    SharedPrefill,
    StepTopK,
    TopK,
    attach,
)
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.oracle import object_tokens
from prunehal.testbed.world.scenes import GRID, scene

THREE = {"before": (3, 6, 1), "after": (5, 4, 9), "seed": SEED}
FAMILIES = ["llava", "qwen2_5_vl"]
STEPS = 6
FIRST = [TopK(4), PruneHal(r=0.4, kept="head"), PruneHal(r=0.4, selection="lowest", kept="shared"), MassShare(p=0.6)]
DRAFTED = [Accumulated(r=0.2), Accumulated(r=0.3, content=True, grid=4), MassShare(p=0.7, kept="head"), TopK(5)]


def first_then(model, layers, single, kept, visual, new_tokens):
    """Return tokens and logits of a stock model in eager attention whose newest queries see the kept tokens only."""
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with reference_beyond.hidden_from_newest(layers, kept, visual):
        out = model.generate(**single, max_new_tokens=new_tokens, **options)
    return out.sequences[0, single["input_ids"].shape[1] :].tolist(), [logits[0] for logits in out.logits]


def chosen(model, layers, single, policy, length, placeholders):
    """Return what a policy would keep, by layer and head, after a draft of so many steps; and the visual positions."""
    visual = [position for position, token in enumerate(single["input_ids"][0].tolist()) if token in placeholders]
    told = []
    decide = reference_beyond.decider(policy, visual, draft=told)
    reference.generate(model, layers, single, policy, placeholders, length, decide=decide)
    return told[-1], visual


@functools.cache
def row_of(family, policy, length, row):
    model, single = models.build(family, "eager"), models.rows_of(models.inputs_for(family, **THREE))[row]
    layers = models.FAMILIES[family].decoder(model)
    kept, visual = chosen(model, layers, single, policy, length, [models.IMAGE, models.VIDEO])
    return kept, *first_then(model, layers, single, kept, visual, STEPS)


def decode(model, shared, cache, steps=STEPS, **options):
    settings = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True, "max_new_tokens": steps}
    return model.generate(**shared.inputs, **cache.options, **settings | options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("policy", "length"), [(p, 1) for p in FIRST] + [(p, 7) for p in DRAFTED], ids=repr)
def test_every_word_equals_that_of_a_masked_full_cache(family, policy, length):
    model, inputs = models.build(family), models.inputs_for(family, **THREE)
    shared = FirstToken(model, inputs) if length == 1 else Draft(model, inputs, max_new_tokens=length)
    cache = shared.attach(policy)
    ours = decode(model, shared, cache)
    assert len(shared.draft.trace) == length
    assert shared.draft.events.empty
    for row, padding in enumerate(paddings(inputs)):
        kept, tokens, logits = row_of(family, policy, length, row)
        assert ours.sequences[row, -STEPS:].tolist() == tokens
        for step, expected in enumerate(logits):
            assert (ours.logits[step][row] - expected).abs().max() <= 3 * TOLERANCE, step
        for layer, heads in enumerate(kept):
            assert (cache.kept(layer, step=1)[row] - padding).reshape(len(heads), -1).tolist() == heads
    plain = decode(model, shared, SharedPrefill.attach(shared, NoPruning()), steps=1)
    assert (plain.logits[0] - ours.logits[0]).abs().max() > 100 * TOLERANCE, "the first token's logits should change"


@pytest.mark.parametrize("policy", [TopK(36), Accumulated(r=0.1, content=True)], ids=repr)
def test_the_embedded_model_equals_the_twin(policy):
    model, processor = ph.load()
    model.set_attn_implementation("eager")
    inputs = processor(images=scene("test", 3).image(), text=build_prompt(), return_tensors="pt")
    length = 1 if isinstance(policy, TopK) else 8
    shared, layers = Draft(model, inputs, max_new_tokens=length), model.model.language_model.layers
    ours = decode(model, shared, shared.attach(policy))
    kept, visual = chosen(model, layers, inputs, policy, length, [model.config.image_token_id])
    tokens, logits = first_then(model, layers, inputs, kept, visual, STEPS)
    assert ours.sequences[0, -STEPS:].tolist() == tokens
    assert max((a[0] - b).abs().max() for a, b in zip(ours.logits, logits, strict=True)) <= 3 * TOLERANCE


def test_a_row_whose_draft_has_ended_learns_nothing_more():
    model, processor = ph.load()
    scenes = [scene("test", i) for i in range(4)]
    inputs = processor(images=[s.image() for s in scenes], text=[build_prompt()] * 4, return_tensors="pt")
    shared = Draft(model, inputs)
    for policy in (Accumulated(r=0.1, window=3), PruneHal(r=0.1)):
        cache = shared.attach(policy)
        steps = shared.draft.trace.frame().groupby("row")["step"].max().tolist()
        assert len(set(steps)) > 1
        row = steps.index(min(steps))
        single = processor(images=scenes[row].image(), text=build_prompt(), return_tensors="pt")
        alone = Draft(model, single).attach(policy)
        decode(model, shared, cache, steps=1)
        decode(model, Draft(model, single), alone, steps=1)
        for layer in range(6):
            assert torch.equal(cache.kept(layer)[row], alone.kept(layer)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_given_tokens_by_layer_and_beams(family):
    model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4), seed=SEED)
    layers = len(models.FAMILIES[family].decoder(model))
    visual = torch.isin(inputs["input_ids"], torch.tensor([models.IMAGE, models.VIDEO]))
    keep = visual & (torch.rand(layers, *visual.shape, generator=torch.Generator().manual_seed(0)) < 0.4)
    shared = SharedPrefill(model, inputs)
    ours = decode(model, shared, shared.attach(NoPruning(), keep=keep))
    eager, singles = models.build(family, "eager"), models.rows_of(inputs)
    for row, (single, padding) in enumerate(zip(singles, paddings(inputs), strict=True)):
        kept = [[(of_layer[row].nonzero().flatten() - padding).tolist()] for of_layer in keep]
        positions = (visual[row].nonzero().flatten() - padding).tolist()
        tokens, logits = first_then(eager, models.FAMILIES[family].decoder(eager), single, kept, positions, STEPS)
        assert ours.sequences[row, -STEPS:].tolist() == tokens
        assert max((a[row] - b).abs().max() for a, b in zip(ours.logits, logits, strict=True)) <= 3 * TOLERANCE
    cache = shared.attach(PruneHal(r=0.5, factor=1.0), copies=3, keep=keep)  # goes on pruning what is left
    beams = decode(model, shared, cache, num_beams=3, num_return_sequences=3, output_scores=True)
    assert not cache.events.empty
    for place, (path, sequence) in enumerate(zip(beams.beam_indices.tolist(), beams.sequences[:, -STEPS:].tolist(), strict=True)):
        single = SharedPrefill(model, inputs)
        forced = {"prefix_allowed_tokens_fn": forcing(sequence, sequence)}
        alone = decode(model, single, single.attach(PruneHal(r=0.5, factor=1.0), keep=keep), **forced)
        for step, row in enumerate(path):
            assert (beams.logits[step][row] - alone.logits[step][place // 3]).abs().max() <= TOLERANCE, step


def test_each_image_by_itself_and_a_policy_that_follows():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED, images=2)
    shared = FirstToken(model, inputs)
    cache = shared.attach(TopK(4), then=PruneHal(r=0.5, t=1), per_image=True)
    decode(model, shared, cache, steps=4)
    assert cache.trace.frame().groupby("step")["n_visual"].unique().map(list).tolist() == [[4], [4], [2], [2]]


def test_the_oracle_keeps_object_patches_only():
    model, processor = ph.load()
    scenes = [scene("validation", i) for i in range(16)]
    images = [image for s in scenes for image in s.tiles(1)[0]]
    inputs = processor(images=images, text=[build_prompt(2)] * len(scenes), return_tensors="pt")
    visual = inputs["input_ids"] == model.config.image_token_id
    keep = object_tokens(scenes, visual, 1)
    start = int(visual[0].nonzero()[0])
    for s, row in zip(scenes, keep, strict=True):
        at, covered = s.tiles(1)[1], torch.zeros(GRID, GRID, dtype=torch.bool)
        for o in s.objects:
            covered[o.y // 8 : (o.y + o.size) // 8, o.x // 8 : (o.x + o.size) // 8] = True
        places = (row.nonzero().flatten() - start - at * GRID**2).tolist()
        assert places
        assert all(0 <= place < GRID**2 and covered.flatten()[place] for place in places)
    # Background patches near an object carry some of its evidence, so that the others do not read as an empty scene.
    shared, recalls, truth = SharedPrefill(model, inputs), [], {i: set(s.names) for i, s in enumerate(scenes)}
    for mask in (keep, visual & ~keep):
        texts = processor.batch_decode(decode(model, shared, shared.attach(NoPruning(), keep=mask), 40).sequences, True)
        recalls.append(score(dict(enumerate(texts)), truth).metrics["recall"])
    assert recalls[0] > recalls[1] + 0.1, recalls


MASK = (torch.arange(26) % 2 == 0).expand(2, -1)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (
            lambda s: s.attach(keep=torch.ones(2, 3, dtype=torch.bool)),
            ["shape (2, 3)", "expected bool (batch, prompt)"],
        ),
        (lambda s: s.attach(keep=torch.ones(2, 27)), ["torch.float32", "expected bool"]),
        (lambda s: s.attach(keep=torch.zeros(2, 26, dtype=torch.bool)), ["row 0 keeps no visual token", "at least one"]),
        (lambda s: s.attach(PruneHal(kept="head"), keep=uneven()), ["different numbers", "expected as many"]),
        (lambda s: Draft(s._model, s._inputs, max_new_tokens=0), ["max_new_tokens=0", "expected an integer of at least 1"]),
        (lambda s: FirstToken(s._model, s._inputs).attach(NoPruning()), ["never prunes", "expected one that chooses"]),
        (lambda s: FirstToken(s._model, s._inputs).attach(StepTopK(4)), ["never prunes"]),
        (
            lambda s: FirstToken(s._model, s._inputs).attach(TopK(4, kept="head"), then=PruneHal()),
            ["then=PruneHal", "expected kept='head'"],
        ),
        (
            lambda s: FirstToken(s._model, s._inputs).attach(TopK(4, kept="head"), then="none"),
            ["then='none'", "then=NoPruning()"],
        ),
        (lambda s: FirstToken(s._model, s._inputs).attach(TopK(4), then=Keep()), ["then=Keep", "by attention"]),
        (lambda s: FirstToken(s._model, s._inputs).attach(Keep(), keep=MASK), ["Fix: SharedPrefill", "keep=mask"]),
        (lambda s: FirstToken(s._model, s._inputs).attach(TopK(4), keep=MASK), ["Fix: SharedPrefill", "keep=mask"]),
        (lambda s: Draft(s._model, s._inputs).attach(Keep()), ["policy=Keep", "chooses them from the draft"]),
        (
            lambda s: FirstToken(s._model, s._inputs).attach(TopK(4), then=PruneHal(kept="shared")),
            ["kept='shared' keeps the same tokens in all layers", "Fix: policy with kept='layer'"],
        ),
        (
            lambda s: s.attach(PruneHal(kept="shared"), keep=torch.stack([MASK, ~MASK, MASK, MASK])),
            ["kept='shared' keeps the same tokens in all layers", "keep of shape (batch, prompt)"],
        ),
        (lambda s: s.attach(keep=MASK.tolist()), ["keep: is a list", "expected a tensor"]),
        (lambda s: s.attach(keep=MASK[0]), ["keep: is a torch.bool tensor (26,)", "expected a tensor"]),
    ],
)
def test_what_cannot_be_is_named(make, parts):
    shared = SharedPrefill(models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED))
    with pytest.raises(ValueError, match="expected") as error:
        make(shared)
    assert all(part in str(error.value) for part in parts), error.value


def test_one_set_for_all_layers_before_and_after():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    masked = SharedPrefill(model, inputs)
    drafted = FirstToken(model, inputs)
    for shared, cache in (
        (masked, masked.attach(PruneHal(r=0.5, t=1, kept="shared"), keep=MASK)),
        (drafted, drafted.attach(TopK(6, kept="shared"), then=PruneHal(r=0.5, t=1, kept="shared"))),
    ):
        decode(model, shared, cache)
        assert not cache.events.empty
        assert all(torch.equal(cache.kept(layer)[0], cache.kept(0)[0]) for layer in range(4))


def uneven():
    """Return a mask that keeps more in the first KV head than in the others."""
    config = models.build("llava").config.text_config
    mask = torch.ones(config.num_hidden_layers, 2, config.num_key_value_heads, 26, dtype=torch.bool)
    mask[:, :, 0, 12] = False
    return mask


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", ["layer", "head"])
def test_given_tokens_at_a_step(family, kept):
    model, inputs = models.build(family), models.inputs_for(family, **THREE)
    layers = len(models.FAMILIES[family].decoder(model))
    visual = torch.isin(inputs["input_ids"], torch.tensor([models.IMAGE, models.VIDEO]))
    keep = visual & (torch.rand(layers, *visual.shape, generator=torch.Generator().manual_seed(1)) < 0.4)
    policy = Keep(step=3, kept=kept)
    ours, cache = run(model, inputs, policy, steps=STEPS, attach_options={"keep": keep})
    eager = models.build(family, "eager")
    for row, (single, padding) in enumerate(zip(models.rows_of(inputs), paddings(inputs), strict=True)):
        given = [(of_layer[row].nonzero().flatten() - padding).tolist() for of_layer in keep]
        watch = reference_beyond.observer()

        def decide(pool, _, weights, step, given=given, watch=watch):
            watch(pool, _, weights, step)
            if step == 3:
                pool.kept = [[positions for _ in heads] for positions, heads in zip(given, pool.kept, strict=True)]
                pool.events.append((3, "forced", len(given[0])))

        decoder = models.FAMILIES[family].decoder(eager)
        slow = reference.generate(eager, decoder, single, policy, [models.IMAGE, models.VIDEO], STEPS, decide=decide)
        compare(slow, ours, cache, row, padding, 3 * TOLERANCE)
    shared = SharedPrefill(model, inputs)
    again = shared.attach(policy, keep=keep)
    decode(model, shared, again)
    assert again.events.equals(cache.events)


def test_given_tokens_follow_their_rows_and_beams():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    keep = (inputs["input_ids"] == models.IMAGE) & (torch.arange(inputs["input_ids"].shape[1]) % 3 == 0)
    _, cache = run(model, inputs, Keep(step=4), steps=STEPS, num_beams=3, attach_options={"keep": keep})
    assert [cache.kept(0)[row].tolist() for row in range(6)] == [keep[row // 3].nonzero().flatten().tolist() for row in range(6)]
    # Beams all descend from the first copy of their input; sequences that are sampled keep each copy's own tokens.
    sampled, shared = {"num_return_sequences": 3, "do_sample": True}, SharedPrefill(model, inputs)
    expected = [keep[row // 3].nonzero().flatten().tolist() for row in range(6)]
    _, own = run(model, inputs, Keep(step=2), steps=STEPS, attach_options={"keep": keep}, **sampled)
    before = shared.attach(NoPruning(), copies=3, keep=keep)
    decode(model, shared, before, **sampled)
    assert [own.kept(0)[row].tolist() for row in range(6)] == expected
    assert [before.kept(0, step=1)[row].tolist() for row in range(6)] == expected
    _, other = run(model, inputs, Keep(selection="random"), steps=3, attach_options={"keep": keep})
    assert [len(positions) for positions in other.kept(0)] == keep.sum(1).tolist()
    assert other.kept(0)[0].tolist() != keep[0].nonzero().flatten().tolist()


def test_a_mask_belongs_to_keep_alone():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    with pytest.raises(ValueError, match=r"keep: is missing with policy=Keep.*expected it with Keep"):
        attach(model, inputs, Keep())
    with pytest.raises(ValueError, match=r"keep: is given with policy=TopK.*and with no other policy"):
        attach(model, inputs, TopK(4), keep=inputs["input_ids"] > 0)
    with pytest.raises(ValueError, match="kept='shared': expected 'layer' or 'head'"):
        Keep(kept="shared")
    with pytest.raises(ValueError, match="step=0: expected an integer"):
        Keep(step=0)
