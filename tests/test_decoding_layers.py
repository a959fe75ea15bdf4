"""DoLa and DeCo in stock generate(), against their twins in tests/reference_layers.py."""

import copy
import math

import models
import pytest
import reference_layers as slow
import torch
from decode import SEED, difference, run
from families.base import SLICES

import prunehal as ph
from prunehal.core import NoPruning, PruneHal, SharedPrefill, attach
from prunehal.decoding.deco import DeCo, upper_layers
from prunehal.decoding.dola import DoLa, candidates
from prunehal.decoding.parts.early_layers import LayerReadout, decoder_of
from prunehal.testbed.world.scenes import scene

CLOSE = 1e-4
STEPS = 8
BATCH = {"before": (3, 6), "after": (5, 4), "seed": SEED}
FAMILIES = ["llava", "qwen2_5_vl"]


def norm_of(model):
    return model.model.language_model.norm


def decode(model, inputs, decoder, policy=None, steps=STEPS, cache=None, **options):
    cache = attach(model, inputs, policy or NoPruning()) if cache is None else cache
    with decoder.on(model, inputs, cache) as given:
        out = run(model, inputs, steps=steps, **cache.options, output_scores=True, **given, **options)[0]
    return out, cache


def tokens(out, row=0):
    return out.sequences[row, -len(out.scores) :].tolist()


def close(ours, twin):
    """Say whether two rows of scores agree, with the same words out: forbidden at -inf, or cut far below."""
    finite = twin.isfinite()
    return torch.equal(ours.isfinite(), finite) and torch.allclose(ours[finite], twin[finite], rtol=1e-6, atol=CLOSE)


def same(out, row, words, scores):
    assert tokens(out, row) == words
    for step, twin in enumerate(scores):
        assert close(out.scores[step][row], twin), f"step {step + 1}"


def rule_of(decoder, model):
    """Return the twin's rule for a decoder."""
    total = len(decoder_of(model).layers)
    if isinstance(decoder, DeCo):
        k = models.VOCAB if decoder.k is None else decoder.k
        return slow.deco(decoder.layers or upper_layers(total), norm_of(model), decoder.alpha, decoder.p_top, k)
    layers = candidates(decoder.layers, total, tied=False) if isinstance(decoder.layers, str) else decoder.layers
    return slow.dola(layers, decoder.relative_top, decoder.divergence, norm_of(model) if decoder.norm else None)


DECODERS = [
    DoLa("low"),
    DoLa("high"),
    DoLa((0, 1, 2)),
    DoLa((0, 1, 2), divergence="js"),
    DoLa((0, 1, 2), norm=True),
    DoLa((2, 0, 1), relative_top=0.0),
    DoLa((1,), relative_top=0.4),
    DeCo(),
    DeCo(alpha=4.0, layers=(0, 1, 2)),
    DeCo(alpha=2.0, p_top=1, k=5, layers=(0, 1, 2)),
    DeCo(alpha=2.0, p_top=0.6, k=None, layers=(1,)),
    DeCo(alpha=1.0, p_top=1, k=None, layers=(0, 1, 2)),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_each_row_of_a_padded_batch_equals_the_twin(family, decoder):
    model, inputs = models.build(family, "eager"), models.inputs_for(family, **BATCH)
    out, _ = decode(model, inputs, decoder)
    layers = models.FAMILIES[family].decoder(model)
    for row, single in enumerate(models.rows_of(inputs)):
        same(out, row, *slow.generate(model, layers, single, rule_of(decoder, model), STEPS))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoder", [DoLa((0, 1, 2)), DeCo(alpha=2.0)], ids=repr)
def test_sampling_draws_what_the_twin_draws(family, decoder):
    model, inputs = models.build(family, "eager"), models.inputs_for(family, seed=SEED)
    words, scores = slow.generate(model, models.FAMILIES[family].decoder(model), inputs, rule_of(decoder, model), STEPS, seed=3)
    torch.manual_seed(3)
    out, _ = decode(model, inputs, decoder, do_sample=True, top_k=0)
    same(out, 0, words, scores)
    assert words != slow.generate(model, models.FAMILIES[family].decoder(model), inputs, rule_of(decoder, model), STEPS)[0]


@pytest.mark.parametrize("decoder", [DoLa((0, 1, 2)), DoLa((1,), relative_top=0.4), DeCo(alpha=2.0)], ids=repr)
def test_processors_come_after_the_contrast_and_the_cut(decoder):
    model, inputs = models.build("llava", "eager"), models.inputs_for("llava", seed=SEED)
    ours = []

    def record(ids, scores):
        ours.append(scores.clone())
        return scores

    out, _ = decode(model, inputs, decoder, repetition_penalty=1.2, logits_processor=[record])
    layers = models.FAMILIES["llava"].decoder(model)
    same(out, 0, *slow.generate(model, layers, inputs, rule_of(decoder, model), STEPS, penalty=1.2))
    assert len(ours) == STEPS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoder", [DoLa((0, 1, 2)), DeCo(alpha=2.0)], ids=repr)
def test_beside_pruning_it_reads_the_states_of_the_pruned_cache(family, decoder):
    model, inputs = models.build(family, "eager"), models.inputs_for(family, seed=SEED)
    layers = models.FAMILIES[family].decoder(model)
    out, cache = decode(model, inputs, decoder, PruneHal(r=0.5, t=2, factor=1.0), steps=10)
    assert cache.events["reason"].tolist() == ["forced", "vote"]
    visual = (inputs["input_ids"][0] == models.IMAGE).nonzero().flatten().tolist()
    hidden = slow.dropped_by(cache, len(layers), inputs["input_ids"].shape[1], visual, 10)
    same(out, 0, *slow.generate(model, layers, inputs, rule_of(decoder, model), 10, dropped=hidden))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoder", [DoLa("high"), DeCo(alpha=2.0)], ids=repr)
def test_beside_pruning_rows_equal_rows_alone(family, decoder):
    model, inputs = models.build(family), models.inputs_for(family, **BATCH)
    policy = PruneHal(r=0.5, t=2)
    out, cache = decode(model, inputs, decoder, policy)
    assert set(cache.events["row"]) == {0, 1}
    for row, single in enumerate(models.rows_of(inputs)):
        alone, _ = decode(model, single, decoder, policy)
        same(out, row, tokens(alone), [step[0] for step in alone.scores])


@pytest.mark.skipif(not SLICES, reason="the installed transformers leaves the images out of a prompt read in chunks")
@pytest.mark.parametrize("decoder", [DoLa("low"), DeCo()], ids=repr)
def test_after_a_shared_prefill_and_a_prompt_in_chunks(decoder):
    model, inputs = models.build("llava"), models.inputs_for("llava", **BATCH)
    out, _ = decode(model, inputs, decoder, PruneHal())
    chunked, _ = decode(model, inputs, decoder, PruneHal(), prefill_chunk_size=7)
    shared = SharedPrefill(model, inputs)
    again = decode(model, shared.inputs, decoder, cache=shared.attach(PruneHal()))[0]
    for row in range(2):
        for other in (chunked, again):
            same(other, row, tokens(out, row), [step[row] for step in out.scores])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=str)
@pytest.mark.parametrize("decoder", [DoLa(()), DeCo(alpha=0, p_top=1, k=None)], ids=repr)
def test_neutral_settings_are_stock_decoding(decoder, options):
    model, inputs = models.build("qwen2_5_vl"), models.inputs_for("qwen2_5_vl", **BATCH)
    torch.manual_seed(0)
    stock, _ = run(model, inputs, steps=STEPS, **options)
    torch.manual_seed(0)
    ours, _ = decode(model, inputs, decoder, cache=attach(model, inputs, NoPruning(), exact=True), **options)
    assert torch.equal(stock.sequences, ours.sequences)
    assert difference(stock, ours) == 0


def test_the_weight_of_the_correction_is_what_turns_it_off():
    model, inputs = models.build("llava"), models.inputs_for("llava", **BATCH)
    stock, _ = run(model, inputs, steps=STEPS, output_scores=True)
    ours, _ = decode(
        model, inputs, DeCo(alpha=0.0, p_top=1, k=models.VOCAB), cache=attach(model, inputs, NoPruning(), exact=True)
    )
    assert torch.equal(stock.sequences, ours.sequences)
    for one, other in zip(stock.scores, ours.scores, strict=True):
        assert all(map(close, other, one))


@pytest.mark.parametrize("decoder", [DeCo(alpha=2.0), DeCo(alpha=2.0, p_top=0.2, k=3), DeCo(p_top=1, k=1)], ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_deco_in_beam_search_equals_the_twins_beams(family, decoder):
    # With so few words a beam search has fewer than 2 x num_beams finite candidates.
    model, inputs = models.build(family, "eager"), models.inputs_for(family, seed=SEED)
    best = slow.beams(model, models.FAMILIES[family].decoder(model), inputs, rule_of(decoder, model), 5, 3)
    out, _ = decode(model, inputs, decoder, steps=5, num_beams=3, num_return_sequences=3, length_penalty=0.0)
    for row, (total, words) in enumerate(best):
        assert tokens(out, row) == words
        assert float(out.sequences_scores[row]) == pytest.approx(total, rel=1e-6, abs=CLOSE * 5)
    assert (out.logits[0] - run(model, inputs, steps=1, num_beams=3)[0].logits[0]).abs().max() > 0.1


def test_deco_beams_of_a_padded_batch_equal_rows_alone_beside_pruning():
    model, inputs = models.build("llava"), models.inputs_for("llava", **BATCH)
    decoder, policy = DeCo(alpha=2.0), PruneHal(r=0.5, t=2)
    out, _ = decode(model, inputs, decoder, policy, num_beams=3)
    for row, single in enumerate(models.rows_of(inputs)):
        alone, _ = decode(model, single, decoder, policy, num_beams=3)
        assert tokens(out, row) == tokens(alone)
        assert abs(float(out.sequences_scores[row] - alone.sequences_scores[0])) <= CLOSE


def test_dola_refuses_beams():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, NoPruning())
    for options in ({}, {"do_sample": True}):
        with pytest.raises(ValueError, match=r"num_beams: .* expected 1. Fix: leave num_beams out\.$"):
            decode(model, inputs, DoLa(), cache=cache, num_beams=2, **options)
        cache.reset()
    assert cache.listeners == []


@pytest.mark.parametrize("family", [key for key, of in models.IN_FULL.items() if of.unread])
def test_families_that_cannot_be_read_out_are_refused(family):
    with pytest.raises(ValueError, match=models.IN_FULL[family].unread):
        decode(models.build(family), models.inputs_for(family), DoLa("high"), PruneHal(), steps=3)


@pytest.mark.parametrize("family", [key for key, of in models.IN_FULL.items() if not of.unread])
def test_every_other_family_can_be_read_out(family):
    model, inputs = models.build(family), models.inputs_for(family)
    readout = LayerReadout(model)
    with readout.watching(range(readout.layers)):
        out, _ = run(model, inputs, steps=3)
        early = readout.early_logits(normed=True)
    assert early.shape == (readout.layers, 1, out.logits[-1].shape[-1])
    assert (readout.logits - out.logits[-1]).abs().max() <= CLOSE
    for decoder in (DoLa("high"), DeCo()):
        decode(model, inputs, decoder, PruneHal(), steps=3)


def test_forwards_on_other_caches_are_passed_over():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    cache, readout = attach(model, inputs, NoPruning()), LayerReadout(model)
    with readout.watching((0, 2), cache):
        with pytest.raises(KeyError):
            readout._hidden[0]
        run(model, inputs, steps=2)
        assert readout.logits is None
        run(model, inputs, steps=2, **cache.options)
        early, logits = readout.early_logits(normed=True), readout.logits
        run(model, models.inputs_for("llava", seed=1), steps=3)
        assert torch.equal(readout.early_logits(normed=True), early)
        assert torch.equal(readout.logits, logits)


@pytest.mark.parametrize(("layers", "expected"), [*enumerate([(0,), (1,), None, (2,), (2,), (2,), (2,), (2,)], start=1)])
def test_low_layers_of_shallow_decoders_with_tied_embeddings(layers, expected):
    if expected is None:
        with pytest.raises(ValueError, match="a decoder of 3 layers with tied embeddings has no such layer"):
            candidates("low", layers, tied=True)
    else:
        assert candidates("low", layers, tied=True) == expected
    assert candidates("low", layers, tied=False) == tuple(range(0, max(1, layers // 2), 2))


@pytest.mark.parametrize("layers", [32, 40, 41, 48, 80])
def test_candidates_of_deep_decoders(layers):
    low, high = (candidates(kind, layers, tied=False) for kind in ("low", "high"))
    assert low == (tuple(range(0, layers // 2, 2)) if layers <= 40 else tuple(range(0, 20, 2)))
    assert high == (tuple(range(layers // 2, layers, 2)) if layers <= 40 else tuple(range(layers - 20, layers, 2)))
    assert candidates("low", layers, tied=True) == low[1:]


def test_low_on_four_tied_layers_is_not_stock_decoding():
    model, inputs = copy.deepcopy(models.build("llava")), models.inputs_for("llava", seed=SEED)
    model.lm_head.weight = model.get_input_embeddings().weight
    assert LayerReadout(model).tied
    out, _ = decode(model, inputs, DoLa("low"))
    assert difference(run(model, inputs, steps=STEPS)[0], out) > 1e-3


def hooks(model):
    return [hook for part in model.modules() for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())]


@pytest.mark.parametrize("decoder", [DoLa(), DeCo()], ids=repr)
def test_nothing_is_left_behind(decoder):
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, NoPruning())
    before = hooks(model)

    def interrupted(module, args):
        during.append(len(hooks(model)))
        raise KeyError("interrupted")

    during = []
    handle = decoder_of(model).layers[-1].register_forward_pre_hook(interrupted)
    with pytest.raises(KeyError, match="interrupted"):
        decode(model, inputs, decoder, cache=cache)
    handle.remove()
    assert during[0] > len(before) + 1
    assert hooks(model) == before
    assert cache.listeners == []
    cache = attach(model, inputs, NoPruning())
    decode(model, inputs, decoder, cache=cache)
    assert hooks(model) == before
    assert cache.listeners == []


def test_models_that_scale_their_logits_are_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    scaled = model.register_forward_hook(lambda module, args, output: output.__setitem__("logits", output.logits * 2))
    try:
        with pytest.raises(ValueError, match=r"LM head and final norm give logits that differ by"):
            decode(model, inputs, DeCo())
    finally:
        scaled.remove()


def test_the_embedded_model():
    model, processor = ph.load()
    inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    stock, _ = run(model, inputs, steps=6)
    for decoder in (DoLa("low"), DeCo()):
        out, cache = decode(model, inputs, decoder, PruneHal(r=0.5, t=2), steps=6)
        assert not cache.events.empty
        assert difference(stock, out) > 0
    assert candidates("low", 6, LayerReadout(model).tied) == (2,)


BAD = [
    (lambda: DoLa("middle"), r"layers='middle': expected 'low', 'high'"),
    (lambda: DoLa((1, 1)), r"layers=\(1, 1\): expected a tuple of different integers"),
    (lambda: DoLa((True,)), r"layers=\(True,\)"),
    (lambda: DoLa([1]), r"layers=\[1\]"),
    (lambda: DoLa(relative_top=2), r"relative_top=2: expected a number in \[0, 1\]"),
    (lambda: DoLa(divergence="kl"), r"divergence='kl': expected 'released' or 'js'"),
    (lambda: DoLa.preset("llava"), r"preset='llava'"),
    (lambda: DeCo(alpha=-1), r"alpha=-1: expected a number of at least 0"),
    (lambda: DeCo(alpha=math.nan), r"alpha=nan"),
    (lambda: DeCo(p_top=0), r"p_top=0: expected a number in \(0, 1\]"),
    (lambda: DeCo(k=0), r"k=0: expected an integer of at least 1"),
    (lambda: DeCo(layers=()), r"layers=\(\): expected at least one"),
    (lambda: DeCo(layers=(-1,)), r"layers=\(-1,\)"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("decoder", [DoLa((0, 4)), DeCo(layers=(4,))], ids=repr)
def test_layers_that_the_model_does_not_have_are_refused(decoder):
    model, inputs = models.build("llava"), models.inputs_for("llava")
    with pytest.raises(ValueError, match="expected integers from 0 to 3; the decoder has 4 layers"):
        decode(model, inputs, decoder)


def test_presets():
    assert DeCo.preset("llava-1.5") == DeCo(alpha=0.6, p_top=0.9, k=20)
    assert DoLa.preset("llama, short answers", relative_top=0.2) == DoLa("high", relative_top=0.2)
