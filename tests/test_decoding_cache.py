"""KVSmooth in stock generate(), against its twin in tests/reference_cache.py."""

import models
import pytest
import reference
import reference_cache as slow
import torch
from decode import SEED, TOLERANCE, compare, difference, forcing, paddings, run, second_turn
from families.base import SLICES

from prunehal.core import NoPruning, PruneHal, SharedPrefill, TopK, attach
from prunehal.core.keyword import as_option
from prunehal.decoding.kvsmooth import KVSmooth, smoothing_weight

BATCH = {"before": (3, 6), "after": (5, 4), "seed": SEED}
FAMILIES = ["llava", "qwen2_5_vl"]
FIRST = {"llava": 1, "qwen2_5_vl": 1}  # 3 of 32, scaled to 4 and 3 blocks


def decode(model, inputs, decoder, policy=None, cache=None, attach_options=None, **options):
    cache = attach(model, inputs, policy or NoPruning(), **(attach_options or {})) if cache is None else cache
    with decoder.on(model, inputs, cache) as given:
        return run(model, inputs, **cache.options, **given, **options)[0], cache


def smoothed(family, decoder, policy, single, steps=14):
    """Return the reference's run on one row, dropped tokens masked, with the smoothing twin."""
    model = models.build(family, "eager")
    layers = models.FAMILIES[family].decoder(model)
    chosen = decoder.layers or tuple(range(FIRST[family], len(layers)))
    with slow.smoothing(layers, chosen, decoder.ref, decoder.radius, decoder.window):
        return reference.generate(model, layers, single, policy, [models.IMAGE], steps)


SETTINGS = [
    (KVSmooth(), PruneHal(t=0)),
    (KVSmooth(ref=0.5, radius=0.5, window=3), PruneHal(t=0)),
    (KVSmooth(ref=0.5, layers=(0, 2)), PruneHal(t=0)),
    (KVSmooth(ref=0.5, radius=0.5, window=4), PruneHal(r=0.5, t=2)),
    (KVSmooth(ref=0.7), PruneHal(r=0.5, t=2, factor=1.0, kept="head")),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("decoder", "policy"), SETTINGS, ids=repr)
def test_smoothing_equals_the_twin_in_each_row_of_a_padded_batch(family, decoder, policy):
    inputs = models.inputs_for(family, **BATCH)
    out, cache = decode(models.build(family), inputs, decoder, policy)
    for row, padding in enumerate(paddings(inputs)):
        compare(smoothed(family, decoder, policy, models.rows_of(inputs)[row]), out, cache, row, padding)


@pytest.mark.parametrize("kept", ["layer", "head"])
def test_a_dropped_token_is_nothing_to_smooth_towards(kept):
    # The prompt ends in an image, whose last token is the one before the first word.
    decoder, policy = KVSmooth(ref=0.8, layers=(0, 1, 2, 3)), TopK(5, step=1, kept=kept)
    model, inputs = models.build("llava", "eager"), models.inputs_for("llava", (3, 6), (0, 0), seed=SEED)
    out, cache = decode(model, inputs, decoder, policy)
    dropped, there = {}, set()
    for row, (single, padding) in enumerate(zip(models.rows_of(inputs), paddings(inputs), strict=True)):
        prompt = single["input_ids"].shape[1]
        for layer in range(4):
            kept_now = (cache.kept(layer)[row] - padding).reshape(-1, 5).tolist()
            for head, columns in enumerate(kept_now * (1 if kept == "head" else 2)):
                dropped[layer, head] = [column for column in range(prompt - 16, prompt) if column not in columns]
                there.add(prompt - 1 in columns)
        layers = model.model.language_model.layers
        with slow.hiding(layers, dropped), slow.smoothing(layers, range(4), 0.8, 0.2, 15):
            twin, _ = run(model, single)
        for step, logits in enumerate(twin.logits):
            assert (out.logits[step][row] - logits[0]).abs().max() <= TOLERANCE, step
    assert there == {True, False}


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_draws_what_the_twin_draws(family):
    decoder, inputs = KVSmooth(ref=0.5, radius=0.5, window=3), models.inputs_for(family, seed=SEED)
    model = models.build(family, "eager")
    layers = models.FAMILIES[family].decoder(model)
    torch.manual_seed(3)
    with slow.smoothing(layers, range(FIRST[family], len(layers)), 0.5, 0.5, 3):
        twin, _ = run(model, inputs, do_sample=True)
    torch.manual_seed(3)
    out, _ = decode(models.build(family), inputs, decoder, do_sample=True)
    assert torch.equal(out.sequences, twin.sequences)
    assert difference(out, twin) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [NoPruning(), PruneHal(r=0.5, t=2)], ids=repr)
def test_a_beam_equals_its_sequence_alone(family, policy):
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    decoder = KVSmooth(ref=0.5, radius=0.5, window=3)
    beams, _ = decode(model, inputs, decoder, policy, num_beams=4, steps=12, output_scores=True)
    path, tokens = beams.beam_indices[0].tolist(), beams.sequences[0, -12:].tolist()
    assert len(set(path)) > 1, "the sequence should change its beam"
    alone, _ = decode(model, inputs, decoder, policy, steps=12, prefix_allowed_tokens_fn=forcing(tokens))
    for step, row in enumerate(path):
        assert (beams.logits[step][row] - alone.logits[step][0]).abs().max() <= TOLERANCE, step


@pytest.mark.skipif(not SLICES, reason="the installed transformers leaves the images out of a prompt read in chunks")
def test_after_a_shared_prefill_and_a_prompt_in_chunks():
    model, inputs = models.build("llava"), models.inputs_for("llava", **BATCH)
    decoder = KVSmooth(ref=0.5, radius=0.5)
    out, _ = decode(model, inputs, decoder, PruneHal())
    chunked, _ = decode(model, inputs, decoder, PruneHal(), prefill_chunk_size=inputs["input_ids"].shape[1] - 1)
    shared = SharedPrefill(model, inputs)
    again, _ = decode(model, shared.inputs, decoder, cache=shared.attach(PruneHal()))
    for other in (chunked, again):
        assert torch.equal(out.sequences, other.sequences)
        assert difference(out, other) <= TOLERANCE


def test_a_second_turns_prompt_is_not_smoothed():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    _, cache = decode(model, inputs, KVSmooth(), steps=4)
    plain, stock = decode(model, inputs, KVSmooth(), steps=4)
    longer = {"input_ids": torch.cat([plain.sequences, torch.tensor([[5, 6, 7]])], dim=1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    decode(model, longer, KVSmooth(), cache=cache, steps=1)
    run(model, longer, **as_option(stock), steps=1)
    assert torch.equal(cache.layers[3].keys, stock.layers[3].keys)


@pytest.mark.skipif(not SLICES, reason="the installed transformers leaves the images out of a prompt read in chunks")
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_second_turns_prompt_in_chunks_is_not_smoothed(size):
    model, inputs, decoder = models.build("llava"), models.inputs_for("llava", seed=SEED), KVSmooth(ref=0.9, radius=0.1)
    longer, keys = None, []
    for chunk in ({}, {"prefill_chunk_size": size}):
        cache = attach(model, inputs, NoPruning())
        first, _ = run(model, inputs, steps=4, **cache.options)
        longer = {"input_ids": torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], dim=1)}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        decode(model, longer, decoder, cache=cache, steps=2, **chunk)
        keys.append(cache.layers[2].keys)
    assert torch.allclose(*keys, atol=TOLERANCE)


def test_one_prompt_to_a_block():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    cache = attach(model, inputs, NoPruning())
    with KVSmooth().on(model, inputs, cache):
        first, _ = run(model, inputs, steps=3, **cache.options)
        with pytest.raises(ValueError, match="a second prompt, 4 tokens, arrived while KVSmooth is attached"):
            second_turn(model, inputs, cache, first)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=str)
def test_no_weight_is_stock_decoding(options):
    model, inputs = models.build("qwen2_5_vl"), models.inputs_for("qwen2_5_vl", **BATCH)
    torch.manual_seed(0)
    stock, _ = run(model, inputs, **options)
    torch.manual_seed(0)
    ours, _ = decode(model, inputs, KVSmooth(ref=0, radius=0), attach_options={"exact": True}, **options)
    assert torch.equal(stock.sequences, ours.sequences)
    assert difference(stock, ours) == 0


def test_a_weight_of_one_loses_the_token():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    _, cache = decode(model, inputs, KVSmooth(ref=1, radius=0, layers=(2,)), steps=4)
    for part in (cache.layers[2].keys, cache.layers[2].values):
        assert (part[:, :, -3:] == part[:, :, -4:-3]).all()
    assert not (cache.layers[1].keys[:, :, -3:] == cache.layers[1].keys[:, :, -4:-3]).any()


def test_the_rank_needs_a_full_window_to_reach_one():
    earlier = torch.tensor([[torch.inf, 1.0, 2.0], [0.5, 1.0, 2.0]])
    assert smoothing_weight(torch.tensor([3.0, 3.0]), earlier, 0.5, 0.5).tolist() == pytest.approx([2 / 3, 1.0])
    assert smoothing_weight(torch.tensor([3.0, 0.1]), earlier, 0.9, 0.2).tolist() == pytest.approx([0.7, 0.7])


def test_nothing_is_left_behind():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, NoPruning())

    def interrupted(module, args):
        during.append(len(cache.listeners))
        raise KeyError("interrupted")

    during = []
    handle = model.lm_head.register_forward_pre_hook(interrupted)
    with pytest.raises(KeyError, match="interrupted"):
        decode(model, inputs, KVSmooth(), cache=cache)
    handle.remove()
    assert (during, cache.listeners) == ([1], [])


BAD = [
    ({"ref": 1.5}, r"ref=1.5: expected a number in \[0, 1\]"),
    ({"radius": -0.1}, r"radius=-0.1: expected a number in \[0, 1\]"),
    ({"window": 0}, r"window=0: expected an integer of at least 1"),
    ({"layers": ()}, r"layers=\(\): expected at least one block"),
    ({"layers": (1, 1)}, r"layers=\(1, 1\): expected a tuple of different integers"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        KVSmooth(**options)


@pytest.mark.parametrize(
    ("family", "layers", "message"),
    [
        ("llava", (4,), "expected integers from 0 to 3; the decoder has 4 layers"),
        ("qwen3_5", (0,), r"expected some of \[1, 3, 5\], the layers that cache K and V"),
        ("gemma4", None, "its last layers use K and V of earlier ones"),
    ],
)
def test_models_that_do_not_suit_are_refused(family, layers, message):
    model, inputs = models.build(family), models.inputs_for(family)
    with pytest.raises(ValueError, match=message):
        decode(model, inputs, KVSmooth(layers=layers))


def test_presets():
    assert [KVSmooth.preset(name).ref for name in KVSmooth.PRESETS] == [0.9, 0.5, 0.7]
