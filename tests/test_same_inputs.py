"""What reaches generate() is compared with what was attached: rows, tokens, the history of a second turn, pixels, padding."""

import copy

import models
import pytest
import torch
from decode import SEED, difference, run, second_turn

import prunehal as ph
from prunehal.core.pictures import Pictures, marks

POLICIES = [ph.NoPruning(), ph.PruneHal(), ph.Informative(grid=4), ph.Keep()]
SETTINGS = {"max_new_tokens": 3, "do_sample": False}


@pytest.fixture
def model():
    return models.build("llava")


@pytest.fixture
def inputs():
    return {name: value.clone() for name, value in models.inputs_for("llava", (3, 6), (5, 4), seed=SEED).items()}


def cache_of(model, inputs, policy):
    keep = {"keep": inputs["input_ids"] == models.IMAGE} if isinstance(policy, ph.Keep) else {}
    return ph.attach(model, inputs, policy, **keep)


OTHER = r"the images in generate\(\) are others than those given to attach\(\).*Fix: pass the same inputs"


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_another_image_is_refused(model, inputs, policy, options):
    given, pixels = SETTINGS | options, inputs["pixel_values"]
    one_bit = pixels.clone()
    one_bit.view(torch.int32)[1, 0, 0, 0] ^= 1
    for other in (pixels.flip(-1), pixels.flip(0), pixels[[0, 0]], one_bit):
        with pytest.raises(ValueError, match=OTHER):
            model.generate(**inputs | {"pixel_values": other}, **cache_of(model, inputs, policy).options, **given)
    model.generate(**inputs | {"pixel_values": pixels.clone()}, **cache_of(model, inputs, policy).options, **given)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next", "idefics3", "gemma3", "internvl"])
def test_pixels_of_every_layout_are_compared(family):
    model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4))
    name = "pixel_values"
    for options in ({}, {"num_beams": 2}):
        model.generate(**inputs, **ph.attach(model, inputs).options, **SETTINGS | options)
        other = inputs[name].clone()
        other[-1] += 0.5
        with pytest.raises(ValueError, match=OTHER):
            model.generate(**inputs | {name: other}, **ph.attach(model, inputs).options, **SETTINGS | options)


def test_what_changes_in_place_after_attach_is_another_input(model, inputs):
    cache = ph.attach(model, inputs)
    inputs["pixel_values"][0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match=OTHER):
        model.generate(**inputs, **cache.options, **SETTINGS)
    cache = ph.attach(model, inputs)
    inputs["input_ids"][1, -1] += 1
    with pytest.raises(ValueError, match="is not the one expected from attach"):
        model.generate(**inputs, **cache.options, **SETTINGS)


def test_pixels_are_compared_in_a_loop_of_forwards_too(model, inputs):
    with torch.no_grad():
        model(**inputs, **ph.attach(model, inputs).options)
        with pytest.raises(ValueError, match=OTHER):
            model(**inputs | {"pixel_values": inputs["pixel_values"] + 1}, **ph.attach(model, inputs).options)


def test_inputs_attached_without_pixels_are_not_compared(model, inputs):
    words = {name: value for name, value in inputs.items() if name != "pixel_values"}
    model.generate(**inputs, **ph.attach(model, words).options, **SETTINGS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_marks_change_with_every_bit_and_every_exchange(dtype):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(4, 3, 8, 8, generator=generator).to(dtype)
    known = marks(pixels)
    assert known.dtype == torch.int64
    assert len(set(known.tolist())) == 4
    assert torch.equal(marks(pixels[[2, 0]]), known[[2, 0]]), "an image's mark does not depend on its batch"
    assert torch.equal(marks(pixels.transpose(2, 3).contiguous().transpose(2, 3)), known), "nor on its layout in memory"
    swapped = pixels.clone()
    swapped[:, 0, 0, :2] = pixels[:, 0, 0, :2].flip(-1)
    assert not (marks(swapped) == known).any()
    shifted = pixels.roll(1, -1)
    assert not (marks(shifted) == known).any()


def test_marks_of_parts_are_those_of_the_whole(monkeypatch):
    pixels = torch.randn(2, 3, 8, 8)
    known = marks(pixels)
    monkeypatch.setattr("prunehal.core.pictures._AT_ONCE", 10)
    assert torch.equal(marks(pixels), known)


@pytest.mark.parametrize("rows", [1, 2])
def test_more_rows_than_were_attached_are_refused(model, inputs, rows):
    one = models.rows_of(inputs)[0] if rows == 1 else inputs
    twice = {name: torch.cat([value, value]) for name, value in one.items()}
    with pytest.raises(ValueError, match=rf"got {2 * rows} rows, but the cache was attached to inputs of {rows}.*num_return_seq"):
        model.generate(**twice, **ph.attach(model, one).options, **SETTINGS)
    fewer = {name: value[:1] for name, value in twice.items()}
    with pytest.raises(ValueError, match=rf"got 1 rows, but the cache was attached to inputs of {2 * rows}"):
        model.generate(**fewer, **ph.attach(model, twice).options, **SETTINGS)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_a_changed_history_is_refused_wherever_it_changed(model, inputs, options):
    torch.manual_seed(0)
    first, cache = run(model, inputs, ph.NoPruning(), steps=5, **options)
    rows, prompt, read = len(first.sequences), inputs["input_ids"].shape[1], first.sequences.shape[1] - 1
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 6, dtype=torch.long)], dim=1).repeat_interleave(rows // 2, dim=0)
    conversation = torch.cat([first.sequences, torch.tensor([[5]]).expand(rows, 1)], dim=1)
    for place in (3, prompt - 1, prompt, read - 1):
        changed = conversation.clone()
        changed[-1, place] = (changed[-1, place] + 1) % 90
        with pytest.raises(ValueError, match=rf"another token stands at position {place} of the conversation.*a new cache"):
            model.generate(input_ids=changed, attention_mask=mask, **copy.deepcopy(cache).options, **SETTINGS)
    padded = conversation.clone()
    padded[0, 0] = 7  # padding, which a tokenizer may write otherwise
    assert mask[0, 0] == 0
    changed = conversation.clone()
    changed[-1, read:] = 8  # not read yet
    for longer in (conversation, padded, changed):
        model.generate(input_ids=longer, attention_mask=mask, **copy.deepcopy(cache).options, **SETTINGS)


def test_a_second_turn_with_its_history_is_that_of_a_whole_conversation(model, inputs):
    first, cache = run(model, inputs, ph.NoPruning(), steps=5)
    ours = second_turn(model, inputs, cache, first)
    first, cache = run(model, inputs, ph.NoPruning(), steps=5)
    first.sequences[1, 8] += 1
    with pytest.raises(ValueError, match="position 8 of the conversation"):
        second_turn(model, inputs, cache, first)
    first.sequences[1, 8] -= 1
    again = second_turn(model, inputs, cache, first)
    assert difference(ours, again) == 0, "what was refused left the cache as it was"


def test_a_shared_prefill_compares_the_whole_prompt(model, inputs):
    shared = ph.SharedPrefill(model, inputs)
    other = shared.inputs | {"input_ids": shared.inputs["input_ids"].clone()}
    other["input_ids"][0, 5] = (other["input_ids"][0, 5] + 1) % 90
    with pytest.raises(ValueError, match="is not the one expected from attach"):
        model.generate(**other, **shared.attach(ph.NoPruning()).options, **SETTINGS)


@pytest.mark.parametrize("kind", [ph.SharedPrefill, ph.FirstToken])
def test_a_cache_that_goes_on_from_a_prompt_takes_the_inputs_without_pixels(model, inputs, kind):
    shared = kind(model, inputs)
    match = r"pixel_values: this cache goes on from a prompt.*model\.generate\(\*\*shared\.inputs, \*\*cache\.options\)"
    cache = shared.attach(ph.TopK(4))
    with pytest.raises(ValueError, match=match):
        model.generate(**inputs, **cache.options, **SETTINGS)
    ours = model.generate(**shared.inputs, **cache.options, **SETTINGS)  # what was refused left the cache as it was
    assert torch.equal(ours, model.generate(**shared.inputs, **shared.attach(ph.TopK(4)).options, **SETTINGS))


@pytest.mark.parametrize("listed", [list, lambda pixels: [[image] for image in pixels], tuple], ids=["list", "rows", "tuple"])
def test_pixels_in_a_list_are_compared(model, inputs, listed):
    pixels = inputs["pixel_values"]
    for given in (inputs, inputs | {"pixel_values": listed(pixels)}):
        cache = ph.attach(model, given)
        assert torch.equal(cache.prompt.pictures.marks["pixel_values"], marks(pixels))
        for other in (pixels + 1, listed(pixels.flip(0))):
            assert not cache.prompt.pictures.same({"pixel_values": other})
        for same in (pixels, listed(pixels)):
            assert cache.prompt.pictures.same({"pixel_values": same})
    with pytest.raises(ValueError, match=OTHER):
        model.generate(**inputs | {"pixel_values": pixels + 1}, **cache.options, **SETTINGS)


def test_listed_images_of_different_sizes_are_compared():
    generator = torch.Generator().manual_seed(0)
    wide, high = torch.rand(3, 4, 6, generator=generator), torch.rand(3, 5, 2, generator=generator)
    known = Pictures.of({"pixel_values": [wide, high]})
    changed = high.clone()
    changed[2, 4, 1] += 1
    assert known.same({"pixel_values": [[wide.clone()], [high.clone()]]})
    for other in ([high, wide], [wide, changed], [wide.reshape(3, 6, 4), high], [wide, high, high], [wide]):
        assert not known.same({"pixel_values": other})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_zero_has_one_mark_whatever_its_sign(dtype):
    pixels = torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 3.0]], dtype=dtype)
    signed = torch.tensor([[-0.0, 1.0, -2.0], [-0.0, 0.0, 3.0]], dtype=dtype)
    assert signed.signbit()[:, 0].all()
    assert torch.equal(marks(pixels), marks(signed))
    assert not (marks(pixels) == marks(-pixels)).any(), "the sign of other values counts"


def test_a_later_prompt_must_begin_behind_the_last_position(model):
    inputs = models.inputs_for("llava", seed=SEED)
    for start, allowed in ((0, False), (-1, False), (1, True)):  # after the last position
        cache = ph.attach(model, inputs, ph.NoPruning())
        ids = model.generate(**inputs, **cache.options, **SETTINGS)
        last = ids.shape[1] - 2  # the newest word was not read
        assert cache.get_seq_length() == last + 1
        positions = torch.arange(last + start, last + start + 2)[None]
        if allowed:
            model(input_ids=ids[:, -2:], position_ids=positions, **cache.options)
            continue
        with pytest.raises(ValueError, match=rf"a prompt starts at position {last + start}, after the {last + 1} tokens"):
            model(input_ids=ids[:, -2:], position_ids=positions, **cache.options)


def padded(inputs, row=0, token=models.PAD):
    ids = inputs["input_ids"].clone()
    ids[row, -2:] = token
    return {"input_ids": ids, "pixel_values": inputs["pixel_values"]}


def test_padding_on_the_right_without_a_mask_is_refused(model):
    inputs = models.inputs_for("llava", (3, 3), (5, 5), seed=SEED)
    with pytest.raises(ValueError, match=r"row \[1\] ends with the padding token, and no attention_mask.*padding_side = 'left'"):
        ph.attach(model, padded(inputs, 1))
    with ph.pruning(model), pytest.raises(ValueError, match=r"row \[0\] ends with the padding token"):
        model.generate(**padded(inputs, 0), **SETTINGS)
    without = {name: value for name, value in inputs.items() if name != "attention_mask"}
    stock, ours = run(model, without)[0], run(model, without, ph.NoPruning(), attach_options={"exact": True})[0]
    assert difference(ours, stock) == 0


def test_the_end_of_a_turn_is_padding_only_beside_rows_that_go_on(model):
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 93, None
    model.config.text_config.pad_token_id = model.config.pad_token_id = None
    inputs = models.inputs_for("llava", (3, 3), (5, 5), seed=SEED)
    with pytest.raises(ValueError, match=r"row \[0\] ends with the padding token"):
        ph.attach(model, padded(inputs, 0, 93))
    both = padded(inputs, 0, 93)
    both["input_ids"][1, -1] = 93
    ph.attach(model, both)  # every row ends a turn
    ph.attach(model, padded(inputs, 0, 93) | {"attention_mask": inputs["attention_mask"]})


@pytest.mark.parametrize("family", ["qwen2_5_vl", "glm4v"])
def test_two_conversations_on_one_model_keep_their_own_positions(family):
    """A model with M-RoPE keeps the offset of the newest prompt's positions on itself, whoever read it."""
    model = models.build(family)
    long, short = models.inputs_for(family, seed=SEED, images=2), models.inputs_for(family, seed=3)

    def second(inputs, between):
        cache = ph.attach(model, inputs, ph.NoPruning())
        first, _ = run(model, inputs, steps=5, **cache.options)
        for other in between:
            run(model, other, ph.NoPruning(), steps=2)
        return second_turn(model, inputs, cache, first)

    for inputs, other in ((long, short), (short, long)):
        alone, beside = second(inputs, []), second(inputs, [other])
        assert torch.equal(alone.sequences, beside.sequences)
        assert difference(alone, beside) == 0
    shared, given = ph.SharedPrefill(model, long), {"steps": 5}
    alone, _ = run(model, shared.inputs, **shared.attach(ph.NoPruning()).options, **given)
    cache, other = shared.attach(ph.NoPruning()), ph.SharedPrefill(model, short)
    run(model, other.inputs, **other.attach(ph.NoPruning()).options, **given)
    assert difference(alone, run(model, shared.inputs, **cache.options, **given)[0]) == 0
