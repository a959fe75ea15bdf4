"""What holds for every decoder: its cache, its prompt, its neighbours, second turns, exceptions, sampling beside pruning."""

import copy
import itertools
from contextlib import ExitStack

import models
import pytest
import reference_contrast as contrast
import torch
from decode import SEED, TOLERANCE, difference, forcing, run, second_turn
from transformers import DynamicCache

from prunehal.core import NoPruning, PruneHal, attach
from prunehal.core.keyword import as_option
from prunehal.decoding import OPERA, PAI, VCD, DeCo, DoLa, FastV, KVSmooth
from prunehal.decoding.parts.forwards import FAR_BELOW

BATCH = {"before": (3, 6), "after": (5, 4), "seed": SEED}
FAMILIES = ["llava", "qwen2_5_vl"]
BOOST, FASTV = PAI(0.6, 1, start_layer=1), FastV(1, 0.5)
CONTRASTS = [VCD(1.5, 0.05), PAI(0.6, 1.6, start_layer=1)]
OTHERS = [*CONTRASTS, BOOST, DoLa((0, 1, 2)), DeCo(2.0, layers=(0, 1, 2)), KVSmooth(0.5, 0.5, window=3)]
METHODS = [*OTHERS, FASTV]
ALL = [*METHODS, OPERA(candidates=3, num_beams=3, scale=1e-3, warmup=2)]


def name(method):
    return f"{type(method).__name__}{'-boost' if method is BOOST else ''}"


def each(methods):
    return pytest.mark.parametrize("method", methods, ids=name)


def decode(model, inputs, *methods, policy=None, cache=None, **options):
    """Return what generate() gives under methods, the first one outside, and its cache."""
    cache = attach(model, inputs, policy or NoPruning()) if cache is None else cache
    with ExitStack() as stack:
        given = {}
        for method in methods:
            given |= stack.enter_context(method.on(model, inputs, cache))
        return run(model, inputs, **cache.options, **given, **options)[0], cache


def apart(ours, row, other):
    """Return the largest difference of a row's logits to those of a run of one row; the same words must be cut."""
    worst = 0.0
    for one, two in zip(ours.logits, other.logits, strict=True):
        said = two[0] > -FAR_BELOW / 2
        assert torch.equal(one[row] > -FAR_BELOW / 2, said)
        worst = max(worst, (one[row] - two[0])[said].abs().max().item())
    return worst


def hooks(model):
    return [hook for part in model.modules() for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())]


@each(ALL)
def test_a_run_on_another_cache_is_refused(method):
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    stock, _ = run(model, inputs, steps=2)
    cache = attach(model, inputs, NoPruning())
    before = hooks(model)
    for other in (None, DynamicCache(), attach(model, inputs, NoPruning())):
        with method.on(model, inputs, cache) as given:
            with pytest.raises(ValueError, match=r"cache: .* expected the (cache that on\(\) was given|same one)"):
                run(model, inputs, steps=2, **as_option(other), **given)
            if not method.alone:
                decode(model, inputs, cache=cache, steps=2)
                cache.reset()
    assert hooks(model) == before
    assert difference(run(model, inputs, steps=2)[0], stock) == 0


def test_forwards_that_a_processor_makes_are_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    with pytest.raises(ValueError, match=r"runs with no cache inside DeCo\.on"):
        decode(model, inputs, DeCo(), guidance_scale=1.5, steps=2)


@each(ALL)
def test_what_does_not_belong_together_is_refused(method):
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    cache = attach(model, inputs, NoPruning())
    for given, message in (
        ((model, models.inputs_for("llava", **BATCH), cache), r"input_ids \(2, 26\) that are not the \(1, 24\) of the cache"),
        ((model, models.inputs_for("llava", seed=SEED + 1), cache), "that are not the .* of the cache"),
        ((models.build("qwen2_5_vl"), inputs, cache), "is not the one that the cache was attached to"),
        ((copy.deepcopy(model), inputs, cache), "is not the one that the cache was attached to"),
        ((model, inputs, DynamicCache()), r"cache: got a DynamicCache; expected what attach\(\) returns"),
    ):
        with pytest.raises(ValueError, match=message), method.on(*given):
            pass
    with method.on(model, inputs, copy.deepcopy(cache)):
        pass


@each(ALL)
def test_other_pixels_or_padding_than_those_of_attach_and_generate_are_refused(method):
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    cache, pixels = attach(model, inputs, NoPruning()), inputs["pixel_values"]
    for other in (pixels.flip(-1), pixels + 1):
        with (
            pytest.raises(ValueError, match=r"pixel_values: the images in on\(\) are others than those given to attach"),
            method.on(model, inputs | {"pixel_values": other}, cache),
        ):
            pass
    mask = inputs["attention_mask"].clone()
    mask[0, :2] = 0
    length = mask.shape[1]
    given = models.inputs_for("llava", seed=SEED)
    with (
        pytest.raises(ValueError, match=rf"row 0, .*on\(\) got one with {length - 2} tokens .*generate\(\) one with {length}"),
        method.on(model, inputs | {"attention_mask": mask}, cache) as options,
    ):
        run(model, given, steps=3, **cache.options, **options)
    del given["attention_mask"]  # every token counts
    with method.on(model, inputs | {"pixel_values": pixels.clone()}, cache) as options:
        one, _ = run(model, given, steps=3, **cache.options, **options)
    assert difference(one, decode(model, inputs, method, steps=3)[0]) == 0


@pytest.mark.parametrize("pair", list(itertools.product(ALL, ALL)), ids=lambda pair: "-".join(map(name, pair)))
def test_one_method_at_a_time(pair):
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    cache = attach(model, inputs, NoPruning())
    goes = (FASTV in pair) and pair[0] is not pair[1] and not any(method.alone for method in pair)
    with ExitStack() as stack:
        stack.enter_context(pair[0].on(model, inputs, cache))
        if goes:
            stack.enter_context(pair[1].on(model, inputs, cache))
        else:
            with pytest.raises(ValueError, match=f"{type(pair[1]).__name__} would not stand beside it"):
                stack.enter_context(pair[1].on(model, inputs, cache))
    assert (cache.methods, cache.listeners, cache.edits) == ([], [], {})


@each(OTHERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_fastv_beside_another_method_does_not_depend_on_the_order(family, method):
    model, inputs, policy = models.build(family), models.inputs_for(family, **BATCH), PruneHal(r=0.5, t=2)
    one, cache = decode(model, inputs, FASTV, method, policy=policy, steps=6)
    other, _ = decode(model, inputs, method, FASTV, policy=policy, steps=6)
    assert torch.equal(one.sequences, other.sequences)
    assert difference(one, other) <= TOLERANCE
    assert all(kept[0] > kept[-1] for kept in cache.events["kept"])
    assert difference(one, decode(model, inputs, method, policy=policy, steps=6)[0]) > 1e-3
    assert difference(one, decode(model, inputs, FASTV, policy=policy, steps=6)[0]) > 1e-3


@pytest.mark.parametrize("family", [*FAMILIES, "idefics3", "gemma3"])
def test_fastv_cuts_the_main_run_of_vcd_and_not_its_branch(family):
    model, inputs, vcd = models.build(family), models.inputs_for(family, seed=SEED), VCD(1.5, 0, noise_step=700)
    both, _ = decode(model, inputs, FASTV, vcd, steps=5)
    said = forcing(both.sequences[0, -5:].tolist())
    cut, _ = decode(model, inputs, FASTV, steps=5, prefix_allowed_tokens_fn=said)
    said = forcing(both.sequences[0, -5:].tolist())
    alone, _ = decode(model, inputs, vcd, steps=5, prefix_allowed_tokens_fn=said)
    plain, _ = run(model, inputs, NoPruning(), steps=5, prefix_allowed_tokens_fn=forcing(both.sequences[0, -5:].tolist()))
    for mixed, main, lone, stock in zip(both.logits, cut.logits, alone.logits, plain.logits, strict=True):
        branch = (2.5 * stock - lone) / 1.5
        assert (mixed - (2.5 * main - 1.5 * branch)).abs().max() <= 10 * TOLERANCE
    if family in FAMILIES:
        blurred, tokens = contrast.noised(inputs, 700, 0), both.sequences[0, -5:-1].tolist()
        assert (contrast.whole(models.build(family, "eager"), blurred, tokens) - branch[0]).abs().max() <= 10 * TOLERANCE


@each([*CONTRASTS, DoLa((0, 1, 2)), DeCo(2.0, layers=(0, 1, 2)), BOOST, KVSmooth(0.5, 0.5, window=3)])
def test_a_second_turn(method):
    model, inputs = models.build("llava"), models.inputs_for("llava", **BATCH)
    first, cache = decode(model, inputs, method, steps=3)
    more = torch.cat([first.sequences, torch.full((2, 3), 5)], dim=1)
    longer = {"input_ids": more, "attention_mask": torch.cat([inputs["attention_mask"], torch.ones(2, 6, dtype=int)], dim=1)}
    with pytest.raises(ValueError, match=r"cache: has read 28 tokens already, .* expected the longer conversation"):
        decode(model, inputs, method, cache=cache)
    fresh, _ = decode(model, {**inputs, **longer}, method, steps=3)  # as the errors advise
    if method in CONTRASTS:
        with pytest.raises(ValueError, match=r"which the branch has not; .* attach\(\) a new cache to the whole conversation"):
            decode(model, longer, method, cache=cache)
        return
    again, _ = decode(model, longer, method, cache=cache, steps=3)
    if isinstance(method, DoLa | DeCo):  # the others have changed K and V of the first answer
        assert difference(again, fresh) <= TOLERANCE
    stock, _ = run(model, inputs, NoPruning(), steps=3)
    assert difference(again, second_turn(model, inputs, attach_and_read(model, inputs), stock, said=(5, 5, 5), steps=3)) > 1e-3


def attach_and_read(model, inputs):
    cache = attach(model, inputs, NoPruning())
    run(model, inputs, **cache.options, steps=3)
    return cache


@each([*METHODS])
def test_a_run_after_reset_is_the_first_one_again_or_refused(method):
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    cache = attach(model, inputs, PruneHal(r=0.5, t=2))
    with method.on(model, inputs, cache):
        first, _ = run(model, inputs, **cache.options, steps=6)
        cache.reset()
        if method in CONTRASTS:
            with pytest.raises(ValueError, match=r"or the first one again, after reset\(\)"):
                run(model, inputs, **cache.options, steps=6)
        else:
            assert difference(first, run(model, inputs, **cache.options, steps=6)[0]) == 0


@each(ALL)
def test_an_exception_inside_generate_leaves_nothing_behind(method):
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    cache, steps = attach(model, inputs, NoPruning()), []
    before = hooks(model)

    def fail(ids, scores):
        steps.append(len(hooks(model)))
        if len(steps) == 3:
            raise KeyError("interrupted")
        return scores

    with pytest.raises(KeyError, match="interrupted"):
        decode(model, inputs, method, cache=cache, logits_processor=[fail])
    assert steps[-1] > len(before)
    assert hooks(model) == before
    assert (cache.listeners, cache.edits, cache.methods) == ([], {}, [])


@each(METHODS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [NoPruning(), PruneHal(r=0.5, t=2, factor=1.0)], ids=["whole", "pruned"])
def test_sampled_sequences_equal_each_one_alone(family, policy, method):
    model, inputs = models.build(family), models.inputs_for(family, **BATCH)
    torch.manual_seed(1)
    out, cache = decode(model, inputs, method, policy=policy, steps=6, do_sample=True, num_return_sequences=2, temperature=1.5)
    lines = out.sequences[:, -6:].tolist()
    assert len(set(map(tuple, lines))) > 2
    assert cache.events.empty == (policy == NoPruning())
    for row, line in enumerate(lines):
        single = models.rows_of(inputs)[row // 2]
        alone, own = decode(model, single, method, policy=policy, steps=6, prefix_allowed_tokens_fn=forcing(line))
        assert apart(out, row, alone) <= 10 * TOLERANCE
        assert cache.events[cache.events["row"] == row]["step"].tolist() == own.events["step"].tolist()


@each(METHODS)
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 3}], ids=str)
def test_half_precision(method, options):
    if isinstance(method, DoLa) and "num_beams" in options:
        return
    model, inputs = copy.deepcopy(models.build("llava")).bfloat16(), models.inputs_for("llava", **BATCH)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    torch.manual_seed(0)
    out, cache = decode(model, inputs, method, policy=PruneHal(r=0.5, t=2), steps=5, **options)
    assert not cache.events.empty
    assert all(logits.isfinite().all() for logits in out.logits)


@each([*CONTRASTS[:1], PAI(0, 1.6), DeCo(2.0, layers=(0, 1)), KVSmooth(0.5, 0.5)])
@pytest.mark.parametrize("family", ["qwen3_5", "lfm2_vl"])
@pytest.mark.parametrize("beams", [True, False])
def test_rows_of_hybrid_models_follow_beams_and_samples(family, method, beams):
    options = {"num_beams": 3, "output_scores": True} if beams else {"do_sample": True, "num_return_sequences": 2}
    model, inputs = models.build(family), models.inputs_for(family, **BATCH)
    torch.manual_seed(0)
    out, _ = decode(model, inputs, method, steps=5, **options)
    copies = len(out.sequences) // 2
    for row, line in enumerate(out.sequences[:, -5:].tolist()):
        alone, _ = decode(model, models.rows_of(inputs)[row // copies], method, steps=5, prefix_allowed_tokens_fn=forcing(line))
        path = out.beam_indices[row].tolist() if beams else [row] * 5
        for step, place in enumerate(path):
            said = alone.logits[step][0] > -FAR_BELOW / 2
            assert (out.logits[step][place] - alone.logits[step][0])[said].abs().max() <= 10 * TOLERANCE
