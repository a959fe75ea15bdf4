"""VCD and PAI against their slow twins, alone and with pruning, in every mode of generate()."""

import functools
import math

import models
import pytest
import reference_contrast as reference
import torch
from decode import SEED, TOLERANCE, difference, forcing, paddings, run
from families.base import SLICES

from prunehal.core import NoPruning, PruneHal, SharedPrefill, attach
from prunehal.core.editing import editing
from prunehal.core.keyword import as_option
from prunehal.core.layer import PrunableLayer
from prunehal.decoding.pai import PAI, text_of
from prunehal.decoding.parts.forwards import FAR_BELOW
from prunehal.decoding.vcd import VCD, _sizes, diffusion, noised

TWO = ["llava", "qwen2_5_vl"]
STEPS = 6
STRONG = VCD(alpha=1.5, beta=0.05, noise_step=700, seed=3)
BOTH = PAI(alpha=0.6, gamma=1.6, beta=0.02, start_layer=1)
METHODS = [STRONG, BOTH, PAI(alpha=0.6, gamma=1, start_layer=1), PAI(alpha=0, gamma=1.6)]


@functools.cache
def prompt(family, rows=2, images=1):
    return models.inputs_for(family, (3, 6)[:rows], (5, 4)[:rows], seed=SEED, images=images)


def decoded(method, family, policy=None, steps=STEPS, inputs=None, attach_options=None, eos=None, **options):
    """Return what generate() gives under a method, and its cache."""
    model, inputs = models.build(family, options.pop("attn", "sdpa"), eos), prompt(family) if inputs is None else inputs
    cache = attach(model, inputs, policy or NoPruning(), **(attach_options or {}))
    with method.on(model, inputs, cache) as given:
        return run(model, inputs, steps=steps, **cache.options, **options, **given)[0], cache


def twin(method, family, row, tokens, kept=None, inputs=None):
    """Return the logits of the slow twin behind some tokens of a row."""
    model = models.build(family, "eager")
    single = models.rows_of(prompt(family) if inputs is None else inputs)[row]
    if isinstance(method, VCD):
        return reference.vcd(model, single, tokens, method.alpha, method.beta, method.noise_step, method.seed)
    visual = [place for place, token in enumerate(single["input_ids"][0].tolist()) if token == models.IMAGE]
    layers = range(method.start_layer, model.config.get_text_config().num_hidden_layers)
    return reference.pai(model, single, tokens, visual, method.alpha, method.gamma, method.beta, layers, kept)


def same(ours, slow, scale=10):
    """Check logits against others; the same ones must be cut: -inf in the twin, far below all in the package."""
    cut = slow < -FAR_BELOW / 2
    assert torch.equal(ours < -FAR_BELOW / 2, cut)
    assert (ours - slow)[~cut].abs().max() <= scale * TOLERANCE


def allowed(logits):
    """Return the logits without placeholders and padding, which the models never write."""
    return logits.masked_fill(torch.arange(len(logits)) >= 94, -math.inf)


def written(out, row):
    return out.sequences[row, -len(out.logits) :].tolist()


# What a method is made of.


def test_the_schedule_is_the_published_one():
    for step, signal, share in ((0, 0.99999, 0.00473), (500, 0.86302, 0.50517), (999, 0.28504, 0.95851)):
        assert diffusion(step) == pytest.approx((signal, share), abs=1e-5)
        assert diffusion(step) == pytest.approx(reference.diffusion(step), abs=1e-9)


@pytest.mark.parametrize("family", TWO)
def test_noise_is_drawn_for_each_image_alone(family):
    inputs = prompt(family, images=2)
    pixels, grid = inputs["pixel_values"], inputs.get("image_grid_thw")
    ours = noised(pixels, 500, 7, grid=grid)
    assert torch.allclose(ours, reference.noised(inputs, 500, 7)["pixel_values"], atol=1e-6)
    noise = (ours - diffusion(500)[0] * pixels) / diffusion(500)[1]
    assert noise.mean().abs() < 0.1
    assert noise.std() == pytest.approx(1, abs=0.05)
    images = noise.chunk(4)
    assert all((one - other).abs().max() > 1 for i, one in enumerate(images) for other in images[:i])
    back = torch.cat(pixels.chunk(4)[::-1])
    assert torch.equal(noised(back, 500, 7, grid=grid), torch.cat(ours.chunk(4)[::-1]))
    assert (noised(pixels, 500, 8, grid=grid) - ours).abs().max() > 1
    half = noised(pixels.bfloat16(), 0, 7, grid=grid)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, noised(pixels.bfloat16().float(), 0, 7, grid=grid).bfloat16())


def blank(family):
    """Return a row with two images, a row with one and a blank one that fills it up, and the latter row alone."""
    two, one = (models.inputs_for(family, (3,) * rows, (5,) * rows, seed=SEED, images=n) for rows, n in ((2, 2), (1, 1)))
    batch, images, words = {name: value.clone() for name, value in two.items()}, one["pixel_values"].shape[1], one["input_ids"]
    first = two["input_ids"].shape[1] - words.shape[1]
    batch["input_ids"][1, :first], batch["input_ids"][1, first:], batch["attention_mask"][1, :first] = models.PAD, words[0], 0
    for name in ("pixel_values", "pixel_attention_mask"):
        batch[name][1, images:], batch[name][1, :images] = 0, one[name][0]
    return batch, one


@pytest.mark.parametrize("family", ["idefics2", "idefics3", "smolvlm"])
def test_blank_images_that_fill_up_a_batch_get_no_noise(family):
    batch, one = blank(family)
    ours, _ = decoded(STRONG, family, inputs=batch)
    alone, _ = decoded(STRONG, family, inputs=one)
    assert written(ours, 1) == written(alone, 0)
    for step in range(STEPS):
        same(ours.logits[step][1], alone.logits[step][0])


@pytest.mark.parametrize("family", ["idefics2", "mistral3", "lfm2_vl", "llava_next", "gemma4", "llava"])
def test_noise_is_that_of_the_image_without_its_padding(family):
    inputs = models.inputs_for(family, seed=SEED)
    pixels = inputs["pixel_values"]
    bare, sizes = VCD(1.0, 0.0), {}
    wide = torch.nn.functional.pad(pixels, [0, 0, 0, 3] if pixels.ndim == 3 else [0, 8, 0, 4])
    if family in ("llava_next", "idefics2"):  # tiles, or images of a row
        wide = torch.nn.functional.pad(wide if family == "idefics2" else pixels, [0] * 6 + [0, 2])
    if family == "idefics2":
        sizes = {"pixel_attention_mask": torch.nn.functional.pad(inputs["pixel_attention_mask"], [0, 8, 0, 4, 0, 2])}
    if family == "mistral3":
        sizes = {"image_sizes": torch.tensor([pixels.shape[2:]])}
    if family == "llava":
        wide = torch.cat([pixels, torch.zeros_like(pixels)])  # no padding: a picture may be grey all over
    own = noised(pixels, bare.noise_step, sizes=_sizes(inputs, "pixel_values"))
    padded = noised(wide, bare.noise_step, sizes=_sizes({"pixel_values": wide} | sizes, "pixel_values"))
    part = tuple(slice(0, size) for size in pixels.shape)
    assert torch.equal(padded[part], own)
    assert torch.equal(own != pixels, pixels != 0)
    assert (padded.count_nonzero() > own.count_nonzero()) == (family == "llava")


@pytest.mark.parametrize(("family", "views"), [("deepseek_vl_hybrid", 2), ("phi4_multimodal", 1)])
def test_noise_is_put_on_every_view_under_whatever_name_it_arrives(family, views):
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    blurred = {name: noised(value, 500) for name, value in inputs.items() if "pixel_values" in name}
    assert len(blurred) == views
    ours, _ = decoded(VCD(alpha=1.0, beta=0.0), family, inputs=inputs)
    clear, noisy = (model(**inputs | pixels).logits[0, -1] for pixels in ({}, blurred))
    same(allowed(ours.logits[0][0]), allowed(2 * clear - noisy))
    for name, pixels in blurred.items():  # each view counts
        assert (model(**inputs | {name: pixels}).logits[0, -1] - clear).abs().max() > 1e-2


def test_equal_tiles_of_a_row_draw_their_own_noise():
    tiles = torch.ones(2, 3, 3, 4, 4)
    noisy = noised(tiles, 500)
    assert torch.equal(noisy[0], noisy[1])
    assert all((noisy[0, i] - noisy[0, j]).abs().max() > 0.1 for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "qwen3_vl"])
def test_videos_in_a_batch_equal_each_alone(family):
    inputs = models.inputs_for(family, (3, 6), (5, 4), seed=SEED, video=True)
    ours, _ = decoded(STRONG, family, inputs=inputs, steps=3)
    for row, single in enumerate(models.rows_of(inputs)):
        alone, _ = decoded(STRONG, family, inputs=single, steps=3)
        assert written(ours, row) == written(alone, 0)
        for step in range(3):
            same(ours.logits[step][row], alone.logits[step][0])


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2_vl"])
def test_attention_layers_of_hybrid_models_are_boosted(family):
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    ours, _ = decoded(PAI(alpha=0.6, gamma=1, start_layer=0), family, inputs=inputs, steps=4)
    own = attach(model, inputs, NoPruning())
    layers = [i for i, layer in enumerate(own.layers) if isinstance(layer, PrunableLayer)]
    assert 0 < len(layers) < len(own.layers)
    with editing(own, layers, lambda scores, *, visual: torch.where(visual, scores + 0.6 * scores.abs(), scores)):
        slow, _ = run(model, inputs, steps=4, **own.options)
    assert difference(ours, slow) == 0
    assert difference(ours, run(model, inputs, steps=4)[0]) > 1e-3


def test_the_text_alone_is_the_prompt_without_its_images():
    inputs = prompt("llava", images=2)
    text = text_of(inputs, inputs["input_ids"] == models.IMAGE)
    for row, single in enumerate(models.rows_of(inputs)):
        visual = (single["input_ids"][0] == models.IMAGE).nonzero().flatten().tolist()
        expected, mask = reference.text_of(single, visual)["input_ids"], text["attention_mask"][row].bool()
        assert torch.equal(text["input_ids"][row, mask], expected[0])
        assert mask.tolist() == sorted(mask.tolist())


# Every mode against the twin.


@pytest.mark.parametrize("family", TWO)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_greedy_batch_equals_the_twin(method, family):
    ours, _ = decoded(method, family)
    stock, _ = run(models.build(family), prompt(family), steps=STEPS)
    assert not torch.equal(ours.sequences, stock.sequences)
    for row in range(2):
        tokens = []
        for step in range(STEPS):
            slow = twin(method, family, row, tokens)
            same(ours.logits[step][row], slow)
            tokens.append(int(allowed(slow).argmax()))
        assert written(ours, row) == tokens


@pytest.mark.parametrize("method", [STRONG, BOTH], ids=repr)
@pytest.mark.parametrize("family", TWO)
def test_beams_equal_the_twin(method, family):
    ours, cache = decoded(method, family, num_beams=3, steps=8, output_scores=True)
    changed = 0
    for row in range(2):
        path, tokens, total = ours.beam_indices[row].tolist(), ours.sequences[row, -8:].tolist(), 0.0
        for step, beam in enumerate(path):
            slow = twin(method, family, row, tokens[:step])
            same(ours.logits[step][beam], slow)
            total += slow.log_softmax(-1)[tokens[step]].item()
        changed += len(set(path)) > 1
        assert ours.sequences_scores[row].item() * 8 == pytest.approx(total, abs=1e-3)
    assert changed, "a sequence should change its beam"
    assert not cache.listeners


@pytest.mark.parametrize("method", [STRONG, BOTH], ids=repr)
def test_sampled_sequences_equal_the_twin(method):
    torch.manual_seed(5)
    ours, _ = decoded(method, "llava", do_sample=True, num_return_sequences=2, temperature=1.5)
    lines = [written(ours, row) for row in range(4)]
    assert len({tuple(line) for line in lines}) == 4
    for row, tokens in enumerate(lines):
        for step in range(STEPS):
            slow = twin(method, "llava", row // 2, tokens[:step])
            same(ours.logits[step][row], slow)
            assert slow[tokens[step]].isfinite()


@pytest.mark.parametrize("method", [STRONG, BOTH], ids=repr)
def test_ended_rows_leave_the_others_alone(method):
    free, _ = decoded(method, "llava")
    first, second = written(free, 0), written(free, 1)
    end = next(token for token in first[1:4] if token not in second)
    ours, _ = decoded(method, "llava", eos=end)
    assert written(ours, 1) == second
    assert difference_of_row(ours, free, 1) == 0
    assert models.PAD in written(ours, 0)


def difference_of_row(one, other, row):
    return max((a[row] - b[row]).abs().max().item() for a, b in zip(one.logits, other.logits, strict=True))


@pytest.mark.parametrize("method", [STRONG, BOTH], ids=repr)
def test_contrast_comes_ahead_of_processors(method):
    ours, _ = decoded(method, "llava", repetition_penalty=3.0)
    plain, _ = decoded(method, "llava")
    assert not torch.equal(ours.sequences, plain.sequences)
    ids = models.rows_of(prompt("llava"))[0]["input_ids"][0].tolist()
    tokens = []
    for _ in range(STEPS):
        scores = twin(method, "llava", 0, tokens)
        for token in {*ids, *tokens}:
            scores[token] = scores[token] / 3 if scores[token] > 0 else scores[token] * 3
        tokens.append(int(allowed(scores).argmax()))
    assert written(ours, 0) == tokens


def test_a_cut_below_the_number_of_beams_lets_nothing_implausible_win():
    method = VCD(alpha=1.0, beta=1.0)
    settings = {"suppress_tokens": [models.IMAGE], "steps": 4}
    ours, _ = decoded(method, "llava", num_beams=4, output_scores=True, **settings)
    for row in range(2):
        tokens = ours.sequences[row, -4:].tolist()
        for step in range(4):
            assert int(twin(method, "llava", row, tokens[:step]).argmax()) == tokens[step]
    assert ours.sequences_scores.tolist() == pytest.approx([0, 0])  # the only candidate has probability 1


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}], ids=repr)
def test_where_every_plausible_token_is_forbidden_the_next_best_follows(options):
    inputs = prompt("llava", rows=1)
    stock, _ = run(models.build("llava"), inputs, steps=1)
    best, second = (allowed(stock.logits[0][0]).topk(2).indices).tolist()
    chosen = {"inputs": inputs, "steps": 1, "suppress_tokens": [best, *range(94, models.VOCAB)]}
    ours, _ = decoded(VCD(alpha=1.0, beta=1.0), "llava", **chosen, **options)
    assert ours.sequences[0, -1] == second


# With pruning.


@pytest.mark.parametrize("family", TWO)
def test_vcd_on_a_pruned_cache_contrasts_with_the_unpruned_branch(family):
    method, policy, steps = VCD(alpha=1.5, beta=0, noise_step=700), PruneHal(r=0.5, t=2, factor=1.0), 10
    ours, cache = decoded(method, family, policy, steps=steps)
    assert set(cache.events["reason"]) == {"forced", "vote"}
    lines = [written(ours, row) for row in range(2)]
    pruned, own = run(models.build(family), prompt(family), policy, steps, prefix_allowed_tokens_fn=forcing(*lines))
    assert cache.events.equals(own.events)
    for row in range(2):
        single = models.rows_of(prompt(family))[row]
        blurred = reference.noised(single, method.noise_step, method.seed)
        for step in range(steps):
            branch = reference.whole(models.build(family, "eager"), blurred, lines[row][:step])
            same(ours.logits[step][row], 2.5 * pruned.logits[step][row] - 1.5 * branch)


@pytest.mark.parametrize("family", TWO)
@pytest.mark.parametrize("kept", ["layer", "head"])
def test_pai_boosts_the_visual_tokens_that_are_left(family, kept):
    policy, steps, inputs = PruneHal(r=0.5, t=2, factor=1.0, kept=kept), 8, models.inputs_for(family, (3, 6), (5, 4), seed=5)
    ours, cache = decoded(BOTH, family, policy, steps=steps, inputs=inputs)
    assert len(cache.events) > 2
    moments = cache.events.groupby("row")["step"].apply(list).tolist()
    assert moments[0] != moments[1], "rows should differ, so that there are dead slots"
    for row, padding in enumerate(paddings(inputs)):
        sets = {}

        def columns(layer, step, head, row=row, padding=padding, sets=sets):
            if (layer, step, head) not in sets:
                places = cache.kept(layer, step)[row] - padding
                sets[layer, step, head] = set((places[head] if kept == "head" else places).tolist())
            return sets[layer, step, head]

        tokens = written(ours, row)
        for step in range(steps):
            same(ours.logits[step][row], twin(BOTH, family, row, tokens[:step], columns, inputs))


@pytest.mark.parametrize("method", [STRONG, BOTH], ids=repr)
def test_pruned_beams_equal_their_sequence_alone(method):
    policy, inputs = PruneHal(r=0.5, t=2, factor=1.0), prompt("llava", rows=1)
    beams, cache = decoded(method, "llava", policy, inputs=inputs, num_beams=4, steps=8)
    path, tokens = beams.beam_indices[0].tolist(), beams.sequences[0, -8:].tolist()
    assert len(set(path)) > 1
    assert len(cache.events)
    alone, _ = decoded(method, "llava", policy, inputs=inputs, steps=8, prefix_allowed_tokens_fn=forcing(tokens))
    for step, row in enumerate(path):
        same(beams.logits[step][row], alone.logits[step][0])


@pytest.mark.parametrize("family", TWO)
@pytest.mark.parametrize("method", [STRONG, BOTH], ids=repr)
@pytest.mark.parametrize("copies", [1, 3])
def test_a_shared_prefill_gives_the_same(method, family, copies):
    model, inputs, policy = models.build(family), prompt(family), PruneHal(r=0.5, t=2)
    alone, cache = decoded(method, family, policy, num_beams=copies)
    shared = SharedPrefill(model, inputs)
    own = shared.attach(policy, copies=copies)
    with method.on(model, inputs, own) as given:
        ours, _ = run(model, shared.inputs, steps=STEPS, **own.options, num_beams=copies, **given)
    assert torch.equal(alone.sequences, ours.sequences)
    assert cache.events.equals(own.events)
    again, _ = run(model, shared.inputs, steps=STEPS, **as_option(shared.attach(policy)))  # positions are as they were
    assert difference(again, run(model, inputs, policy, steps=STEPS)[0]) <= TOLERANCE


# Ways to compute the same.


def test_the_boost_does_not_depend_on_the_attention_function():
    ours, cache = decoded(BOTH, "llava", PruneHal(r=0.5, t=2))
    for options in ({"attn": "eager"}, {"attach_options": {"exact": True}}):
        other, own = decoded(BOTH, "llava", PruneHal(r=0.5, t=2), **options)
        assert torch.equal(ours.sequences, other.sequences)
        assert difference_of_row(ours, other, 0) <= 10 * TOLERANCE
        assert cache.events.equals(own.events)
    eager, cache = decoded(BOTH, "llava", attn="eager", output_attentions=True)
    frame = cache.trace.frame()
    for step, layers in enumerate(eager.attentions, start=1):
        for layer, weights in enumerate(layers):
            visual = prompt("llava")["input_ids"] == models.IMAGE
            masses = (weights[:, :, -1, : visual.shape[1]].mean(1) * visual).sum(1)
            seen = frame[(frame["step"] == step) & (frame["layer"] == layer)].sort_values("row")["mass"]
            assert masses.tolist() == pytest.approx(seen.tolist(), abs=1e-5)


@pytest.mark.skipif(not SLICES, reason="the installed transformers leaves the images out of a prompt read in chunks")
def test_a_prompt_in_chunks_is_boosted_and_contrasted_once():
    inputs = prompt("llava", rows=1)
    whole, _ = decoded(BOTH, "llava", inputs=inputs)
    for size in (1, 8, 23):
        chunked, _ = decoded(BOTH, "llava", inputs=inputs, prefill_chunk_size=size)
        assert torch.equal(whole.sequences, chunked.sequences)
        assert difference_of_row(whole, chunked, 0) <= 10 * TOLERANCE


@pytest.mark.parametrize("family", ["blip-2", "gemma3", "llava_sinks", "paligemma", "qwen3_vl"])
@pytest.mark.parametrize("method", [STRONG, BOTH], ids=repr)
def test_rows_of_other_families_equal_each_row_alone(method, family):
    inputs = models.inputs_for(family, (3, 6), (5, 4), seed=SEED)
    ours, _ = decoded(method, family, PruneHal(r=0.5, t=2), inputs=inputs)
    for row, single in enumerate(models.rows_of(inputs)):
        alone, _ = decoded(method, family, PruneHal(r=0.5, t=2), inputs=single)
        assert written(ours, row) == written(alone, 0)
        for step in range(STEPS):
            same(ours.logits[step][row], alone.logits[step][0])


# Neutral settings, refusals, and what is left behind.


@pytest.mark.parametrize("family", TWO)
@pytest.mark.parametrize("neutral", [VCD(alpha=0, beta=0), PAI(alpha=0, gamma=1)], ids=repr)
def test_neutral_settings_are_stock(neutral, family):
    for options in ({}, {"num_beams": 3}):
        ours, _ = decoded(neutral, family, attach_options={"exact": True}, **options)
        stock, _ = run(models.build(family), prompt(family), steps=STEPS, **options)
        assert torch.equal(ours.sequences, stock.sequences)
        assert difference(ours, stock) == 0


@pytest.mark.parametrize("method", [VCD(alpha=0, beta=0.3), PAI(alpha=0, gamma=1.6, beta=0), PAI(alpha=0.5, gamma=1)], ids=repr)
def test_half_neutral_settings_are_not(method):
    ours, _ = decoded(method, "llava", steps=1)
    stock, _ = run(models.build("llava"), prompt("llava"), steps=1)
    if isinstance(method, VCD):
        assert torch.equal(ours.sequences, stock.sequences)
        assert (ours.logits[0] < -FAR_BELOW / 2).any()
    else:
        assert not torch.allclose(ours.logits[0].log_softmax(-1), stock.logits[0].log_softmax(-1), atol=1e-2)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_nothing_is_left_behind(method):
    model, inputs = models.build("llava"), prompt("llava")
    attach(model, inputs)  # leaves the hook by which caches see their prompt
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]
    cache = attach(model, inputs, NoPruning())
    for error in (None, KeyError):
        try:
            with method.on(model, inputs, cache):
                if error:
                    raise error
        except KeyError:
            pass
        assert hooks == [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]
        assert not cache.listeners
        assert not cache.edits


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VCD(alpha=-1), "alpha=-1: expected a number of at least 0"),
        (lambda: VCD(alpha=math.nan), "alpha=nan"),
        (lambda: VCD(beta=1.5), r"beta=1.5: expected a number in \[0, 1\]"),
        (lambda: VCD(noise_step=1000), "noise_step=1000: expected an integer from 0 to 999"),
        (lambda: VCD(seed=-1), "seed=-1"),
        (lambda: PAI(alpha=-0.1), "alpha=-0.1"),
        (lambda: PAI(gamma=0.9), "gamma=0.9: expected a number of at least 1"),
        (lambda: PAI(beta=True), "beta=True"),
        (lambda: PAI(start_layer=-1), "start_layer=-1"),
        (lambda: PAI(start_layer=3, end_layer=3), "end_layer=3: expected an integer above start_layer=3"),
        (lambda: VCD.preset("llama"), "preset='llama': expected one of 'llava-1.5'"),
        (lambda: PAI.preset("qwen-vl"), "preset='qwen-vl': expected one of 'llava-1.5'"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_presets():
    assert VCD.preset("instructblip") == VCD(alpha=1.0, beta=0.1, noise_step=500)
    assert PAI.preset("llava-1.5", gamma=2.0) == PAI(alpha=0.2, gamma=2.0, beta=0.1, start_layer=2, end_layer=32)


def test_bad_inputs_and_models():
    model, inputs = models.build("llava"), prompt("llava")
    cache = attach(model, inputs, NoPruning())
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for method, given, message in (
        (VCD(), text, "expected 'pixel_values', which VCD puts noise on"),
        (VCD(), prompt("llava", images=2), "that are not the .* of the cache"),
        (PAI(), prompt("llava", rows=1), "that are not the .* of the cache"),
        (PAI.preset("llava-1.5"), inputs, "LlavaForConditionalGeneration has 4 layers"),
    ):
        with pytest.raises(ValueError, match=message), method.on(model, given, cache):
            pass
    shared = models.build("gemma4")
    inputs = models.inputs_for("gemma4")
    with pytest.raises(ValueError, match="keeps no K and V"), PAI().on(shared, inputs, attach(shared, inputs)):
        pass
    only = torch.full((1, 16), models.IMAGE)
    with pytest.raises(ValueError, match="a row holds nothing but visual tokens"):
        text_of({"input_ids": only}, only == models.IMAGE)


def test_one_prompt_to_a_block():
    model, inputs = models.build("llava"), prompt("llava")
    cache = attach(model, inputs, NoPruning())
    with STRONG.on(model, inputs, cache) as given:
        first, _ = run(model, inputs, steps=2, **cache.options, **given)
        longer = {"input_ids": torch.cat([first.sequences, torch.full((2, 3), 5)], dim=1)}
        longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(2, 5, dtype=torch.long)], dim=1)
        with pytest.raises(ValueError, match="a second prompt arrived while the method is attached"):
            run(model, longer, **cache.options, **given)


def test_scores_of_another_kind_cannot_be_edited(monkeypatch):
    from transformers.models.llama import modeling_llama

    stock = modeling_llama.eager_attention_forward

    def steeper(module, query, *args, **kwargs):
        return stock(module, query * 3, *args, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", steeper)
    with pytest.raises(ValueError, match="is no plain softmax of the scores"):
        decoded(BOTH, "llava", attn="eager")
    decoded(STRONG, "llava", attn="eager", steps=2)  # which edits nothing
