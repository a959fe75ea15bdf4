"""FastV in stock generate(), against its twin in tests/reference_cache.py."""

import functools
from unittest import mock

import models
import pytest
import reference
import reference_cache as slow
import torch
from decode import SEED, TOLERANCE, compare, difference, forcing, paddings, run
from families.base import SLICES

from prunehal.core import NoPruning, PruneHal, SharedPrefill, attach
from prunehal.core.discard import discard
from prunehal.core.listening import Listener, listening
from prunehal.decoding import fastv
from prunehal.decoding.fastv import FastV, hidden_mask
from prunehal.decoding.kvsmooth import KVSmooth

BATCH = {"before": (3, 6), "after": (5, 4), "seed": SEED}
FAMILIES = ["llava", "qwen2_5_vl"]


def decode(model, inputs, decoder, policy=None, cache=None, attach_options=None, **options):
    cache = attach(model, inputs, policy or NoPruning(), **(attach_options or {})) if cache is None else cache
    with decoder.on(model, inputs, cache) as given:
        return run(model, inputs, **cache.options, **given, **options)[0], cache


def dropped(family, decoder, policy, single, steps=14, per_image=False):
    """Return the reference's run on one row with FastV's twin."""
    model = models.build(family, "eager")
    layers, prefill = models.FAMILIES[family].decoder(model), slow.fastv(decoder.block, decoder.ratio)
    return reference.generate(model, layers, single, policy, [models.IMAGE], steps, per_image, prefill)


FASTV = [
    (FastV(1, 0.5), PruneHal(t=0)),
    (FastV(2, 0.75), PruneHal(t=0)),
    (FastV(2, 0.3), PruneHal(t=0, kept="head")),
    (FastV(1, 0.5), PruneHal(r=0.5, t=2, factor=1.0)),
    (FastV(2, 0.5), PruneHal(r=0.6, t=3, factor=1.0, kept="head")),
    (FastV(2, 0.8), PruneHal(r=0.7, t=5, factor=1.0, majority=0.25, rounding="ceil")),
    (FastV(1, 0.4), PruneHal(r=0.5, t=2, forced_first=False, factor=1.0, reference="first", selection="lowest")),
]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("decoder", "policy"), FASTV, ids=repr)
def test_fastv_equals_the_twin_in_each_row_of_a_padded_batch(family, decoder, policy, attn):
    inputs = models.inputs_for(family, **BATCH)
    out, cache = decode(models.build(family, attn), inputs, decoder, policy)
    for row, padding in enumerate(paddings(inputs)):
        compare(dropped(family, decoder, policy, models.rows_of(inputs)[row]), out, cache, row, padding)
    if policy.t:
        assert {tuple(kept) for kept in cache.events["kept"]} != set()
        assert all(kept[0] > kept[-1] for kept in cache.events["kept"])


@pytest.mark.parametrize("family", FAMILIES)
def test_fastv_on_a_row_alone_whose_mask_is_implicit(family):
    inputs, policy = models.inputs_for(family, seed=SEED), PruneHal(r=0.5, t=2, factor=1.0)
    out, cache = decode(models.build(family), inputs, FastV(1, 0.5), policy)
    compare(dropped(family, FastV(1, 0.5), policy, inputs), out, cache)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [PruneHal(t=0), PruneHal(r=0.5, t=2, factor=1.0)], ids=repr)
@pytest.mark.parametrize("options", [{"do_sample": True}, {"num_beams": 3, "output_scores": True}], ids=["sampled", "beams"])
def test_fastv_in_other_searches_reads_what_the_twin_reads(family, policy, options):
    inputs, model = models.inputs_for(family, seed=SEED), models.build(family, "eager")
    torch.manual_seed(2)
    out, _ = decode(models.build(family), inputs, FastV(1, 0.5), policy, steps=8, **options)
    said = forcing(out.sequences[0, -8:].tolist())
    with mock.patch.object(model, "generate", functools.partial(model.generate, prefix_allowed_tokens_fn=said)):
        twin = dropped(family, FastV(1, 0.5), policy, inputs, steps=8)
    path = out.beam_indices[0].tolist() if "num_beams" in options else [0] * 8
    assert twin.tokens == out.sequences[0, -8:].tolist()
    for step, row in enumerate(path):
        assert (out.logits[step][row] - twin.logits[step]).abs().max() <= TOLERANCE, step


@pytest.mark.parametrize(("family", "kinds"), [("llava", 1), ("gemma3", 2)])
def test_the_mask_is_made_once_for_each_kind_of_block(family, kinds, monkeypatch):
    made = []
    monkeypatch.setattr(fastv, "hidden_mask", lambda *args: made.append(1) or hidden_mask(*args))
    decode(models.build(family), models.inputs_for(family, **BATCH), FastV(1, 0.5), steps=3)
    assert len(made) == kinds


@pytest.mark.parametrize("per_image", [False, True])
def test_fastv_on_two_images(per_image):
    prompt, policy = {**BATCH, "images": 2}, PruneHal(r=0.5, t=2, factor=1.0)
    inputs = models.inputs_for("llava", **prompt)
    out, cache = decode(models.build("llava"), inputs, FastV(2, 0.7), policy, attach_options={"per_image": per_image})
    for row, padding in enumerate(paddings(inputs)):
        single = models.rows_of(inputs)[row]
        compare(dropped("llava", FastV(2, 0.7), policy, single, per_image=per_image), out, cache, row, padding)


@pytest.mark.parametrize("selection", ["random", "top"])
def test_rows_with_different_numbers_of_images_equal_rows_alone(selection):
    # Row 1 has one image of 16 tokens, row 0 two: in every block their numbers differ, and so do those of the blocks.
    model, many = models.build("llava"), models.inputs_for("llava", (3, 3), (5, 5), seed=SEED, images=2)
    ids, mask, pixels = many["input_ids"].clone(), many["attention_mask"].clone(), many["pixel_values"]
    ids[1, :20], mask[1, :20] = models.PAD, 0
    ids[1, 20:23] = torch.tensor([4, 5, 6])
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels[[0, 1, 3]]}
    alone = [
        {"input_ids": ids[:1], "attention_mask": mask[:1], "pixel_values": pixels[:2]},
        {"input_ids": ids[1:, 20:], "attention_mask": mask[1:, 20:], "pixel_values": pixels[3:]},
    ]
    assert (ids == models.IMAGE).sum(1).tolist() == [32, 16]
    policy = PruneHal(r=0.5, t=3, factor=1.0, selection=selection)
    out, cache = decode(model, inputs, FastV(2, 0.5), policy, attach_options={"seeds": [1, 2], "maps": True})
    for row, single in enumerate(alone):
        one, own = decode(model, single, FastV(2, 0.5), policy, attach_options={"seeds": [row + 1], "maps": True})
        assert torch.equal(out.sequences[row, -14:], one.sequences[0, -14:])
        assert max((a[row] - b[0]).abs().max() for a, b in zip(out.logits, one.logits, strict=True)) <= TOLERANCE
        mine = cache.events[cache.events["row"] == row]
        assert mine[["step", "kept"]].to_numpy().tolist() == own.events[["step", "kept"]].to_numpy().tolist()
        maps = cache.trace.maps[:, :, row, : own.trace.maps.shape[-1]]
        assert torch.allclose(maps, own.trace.maps[:, :, 0], atol=TOLERANCE, equal_nan=True)


def test_k_and_v_of_dropped_tokens_leave_the_cache():
    model, inputs = models.build("llava"), models.inputs_for("llava", **BATCH)
    _, cache = decode(model, inputs, FastV(2, 0.75), steps=3)
    prompt = inputs["input_ids"].shape[1]
    assert [layer.keys.shape[2] for layer in cache.layers] == [prompt + 2, prompt + 2, prompt - 10, prompt - 10]
    assert [layer.slot_positions().shape[-1] for layer in cache.layers] == [layer.length for layer in cache.layers]
    assert cache.layers[3].nbytes() < cache.layers[0].nbytes()
    assert cache.trace.frame().query("step == 1 and row == 0")["n_visual"].tolist() == [16, 16, 4, 4]
    assert cache.events.empty
    for step in (1, None):
        assert [len(cache.kept(layer, step)[1]) for layer in range(4)] == [16, 16, 4, 4]
    for layer, stored in enumerate(cache.layers):  # what an edit of the scores is told
        marked = cache.table.visual_slots(layer, stored.length)
        positions = stored.slot_positions().expand_as(marked)
        assert [positions[row][marked[row]].tolist() for row in range(2)] == [kept.tolist() for kept in cache.kept(layer)]


def test_fastv_and_smoothing_go_together():
    model, inputs, policy = models.build("llava"), models.inputs_for("llava", **BATCH), PruneHal(r=0.5, t=2)
    cache = attach(model, inputs, policy)
    with FastV(2, 0.5).on(model, inputs, cache):
        out, _ = decode(model, inputs, KVSmooth(ref=0.5), cache=cache)
    layers, prefill = models.build("llava", "eager").model.language_model.layers, slow.fastv(2, 0.5)
    for row, padding in enumerate(paddings(inputs)):
        single = models.rows_of(inputs)[row]
        with slow.smoothing(layers, (1, 2, 3), 0.5, 0.2, 15):
            twin = reference.generate(models.build("llava", "eager"), layers, single, policy, [models.IMAGE], 14, prefill=prefill)
        compare(twin, out, cache, row, padding)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [NoPruning(), PruneHal(r=0.5, t=2, beam_state="shared"), PruneHal(r=0.5, t=2)], ids=repr)
def test_fastv_in_beam_search_equals_the_sequence_alone(family, policy):
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    decoder = FastV(1, 0.5)
    beams, cache = decode(model, inputs, decoder, policy, num_beams=4, steps=10, output_scores=True)
    path, tokens = beams.beam_indices[0].tolist(), beams.sequences[0, -10:].tolist()
    assert len(set(path)) > 1, "the sequence should change its beam"
    if policy.beam_state == "own":
        alone, _ = decode(model, inputs, decoder, policy, steps=10, prefix_allowed_tokens_fn=forcing(tokens))
        for step, row in enumerate(path):
            assert (beams.logits[step][row] - alone.logits[step][0]).abs().max() <= TOLERANCE, step
    else:
        assert cache.events["kept"].tolist()[0][:2] == [8, 4]


def test_an_image_at_the_start_leaves_no_query_without_a_column():
    model, inputs = models.build("llava"), models.inputs_for("llava", (0, 2), (5, 4), seed=SEED)
    for attn in ("sdpa", "eager"):
        model = models.build("llava", attn)
        out, cache = decode(model, inputs, FastV(1, 0.9))
        assert all(logits.isfinite().all() for logits in out.logits)
        assert len(cache.kept(3)[0]) == 2
        for row, single in enumerate(models.rows_of(inputs)):
            alone, _ = decode(model, single, FastV(1, 0.9))
            assert max((a[row] - b[0]).abs().max() for a, b in zip(out.logits, alone.logits, strict=True)) <= TOLERANCE


def test_the_mask_of_flash_attention_hides_columns():
    hidden = torch.tensor([[False, True, False], [False, False, True]])
    assert hidden_mask(None, hidden, flash=True).tolist() == [[True, False, True], [True, True, False]]
    padded = torch.tensor([[1, 1, 1], [0, 1, 1]])
    assert hidden_mask(padded, hidden, flash=True).tolist() == [[True, False, True], [False, True, False]]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=str)
def test_fastv_that_drops_nothing_is_stock_decoding(options):
    model, inputs = models.build("qwen2_5_vl"), models.inputs_for("qwen2_5_vl", **BATCH)
    torch.manual_seed(0)
    stock, _ = run(model, inputs, **options)
    for ratio in (0, 0.01):  # 0.01 of 16 tokens is none, too
        torch.manual_seed(0)
        ours, _ = decode(model, inputs, FastV(ratio=ratio), attach_options={"exact": ratio == 0}, **options)
        assert torch.equal(stock.sequences, ours.sequences)
        assert difference(stock, ours) <= (TOLERANCE if ratio else 0)


@pytest.mark.parametrize("family", ["gemma3", "llava_window", "qwen3_vl", "llava_sinks", "paligemma"])
def test_fastv_in_other_families_equals_rows_alone(family):
    # Windows, prompts that see all of themselves, sinks, features that enter at several layers.
    model, inputs = models.build(family), models.inputs_for(family, **BATCH)
    policy = PruneHal(r=0.5, t=2)
    out, cache = decode(model, inputs, FastV(2, 0.5), policy, steps=8)
    eager, _ = decode(models.build(family, "eager"), inputs, FastV(2, 0.5), policy, steps=8)
    assert difference(out, eager) <= TOLERANCE * 10
    assert not cache.events.empty
    for row, single in enumerate(models.rows_of(inputs)):
        alone, _ = decode(model, single, FastV(2, 0.5), policy, steps=8)
        assert torch.equal(out.sequences[row, -8:], alone.sequences[0, -8:])
        assert max((a[row] - b[0]).abs().max() for a, b in zip(out.logits, alone.logits, strict=True)) <= TOLERANCE * 10


def test_fastv_leaves_nothing_behind():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, NoPruning())
    before = hooks(model)

    def interrupted(module, args):
        during.append(len(hooks(model)) - len(before))
        raise KeyError("interrupted")

    during = []
    handle = model.lm_head.register_forward_pre_hook(interrupted)
    with pytest.raises(KeyError, match="interrupted"):
        decode(model, inputs, FastV(), cache=cache)
    handle.remove()
    assert (during, hooks(model), cache.listeners) == ([4], before, [])


def hooks(model):
    return [hook for part in model.modules() for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())]


@pytest.mark.parametrize(
    ("family", "decoder", "policy", "message"),
    [
        ("llava", FastV(4), NoPruning(), "block=4: expected 1 to 3; the decoder of LlavaForConditionalGeneration has 4 blocks"),
        ("qwen3_5", FastV(), NoPruning(), "some of its blocks keep no K and V of their own"),
        ("gemma4", FastV(), NoPruning(), "some of its blocks keep no K and V of their own"),
        ("llava", FastV(), PruneHal(kept="shared"), "kept='shared' keeps the same tokens in all layers"),
    ],
)
def test_what_does_not_suit_fastv_is_refused(family, decoder, policy, message):
    with pytest.raises(ValueError, match=message):
        decode(models.build(family), models.inputs_for(family), decoder, policy)


@pytest.mark.skipif(not SLICES, reason="the installed transformers leaves the images out of a prompt read in chunks")
def test_fastv_refuses_a_prompt_in_parts():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    with pytest.raises(ValueError, match="prefill_chunk_size: a part of the prompt, 7 tokens"):
        decode(model, inputs, FastV(), prefill_chunk_size=7)
    shared = SharedPrefill(model, inputs)
    with pytest.raises(ValueError, match=r"cache: holds 23 tokens, .* expected an empty cache"):
        decode(model, shared.inputs, FastV(), cache=shared.attach())


def test_tokens_are_discarded_at_the_first_step_only():
    class Late(Listener):
        def heard(self, layer, weights):
            discard(cache, cache.table.valid)

    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, NoPruning())
    with pytest.raises(RuntimeError, match="discard: step 1 with the attention of 1 of 4 layers"), listening(cache, Late()):
        run(model, inputs, **cache.options)


BAD_FASTV = [
    ({"block": 0}, r"block=0: expected an integer of at least 1"),
    ({"block": True}, r"block=True"),
    ({"ratio": 1}, r"ratio=1: expected a number in \[0, 1\)"),
    ({"ratio": "half"}, r"ratio='half'"),
]


@pytest.mark.parametrize(("options", "message"), BAD_FASTV, ids=str)
def test_bad_settings_of_fastv_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FastV(**options)


def test_the_preset_is_the_published_setting():
    assert FastV.preset("llava-1.5") == FastV(block=2, ratio=0.5)
