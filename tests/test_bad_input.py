"""What cannot work is refused: the message names the thing, its value, what was expected and the fix."""

import models
import pytest
import torch
from transformers import LlavaConfig

from prunehal.core import Informative, Keep, NoPruning, PruneHal, SharedPrefill, TopK, attach, pruning
from prunehal.core.keyword import cache_among


class Shell(torch.nn.Module):
    """A model that is only its configuration: enough to be refused."""

    def __init__(self, config):
        super().__init__()
        self.config = config


def refused(match, *parts, model=None, inputs=None, policy=None, error=ValueError, **options):
    model = models.build("llava") if model is None else model
    inputs = models.inputs_for("llava", (3, 6), (5, 4)) if inputs is None else inputs
    with pytest.raises(error, match=match) as caught:
        attach(model, inputs, PruneHal() if policy is None else policy, **options)
    message = str(caught.value)
    assert all(part in message for part in ("xpected", *parts)), message


def test_model_without_placeholder_id():
    config = LlavaConfig()
    config.image_token_id = None
    refused("image_token_id", "visual_mask", model=Shell(config))


def test_prompt_without_visual_tokens():
    inputs = models.inputs_for("llava", (3, 6), (5, 4))
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][1][inputs["input_ids"][1] == models.IMAGE] = 7
    refused(r"row \[1\] of 2 has no visual token", "id 99", "processor", inputs=inputs)


def test_inputs_that_are_no_mapping():
    refused("inputs: got a Tensor", "processor", inputs=torch.zeros(1, 3))


def test_inputs_without_ids():
    refused("input_ids", "visual_mask", inputs={"inputs_embeds": torch.zeros(1, 3, 8)})


def test_visual_mask_of_another_shape():
    refused("visual_mask", "(2, 26)", visual_mask=torch.ones(2, 5, dtype=torch.bool))


def test_right_padding():
    inputs = models.inputs_for("llava", (3, 6), (5, 4))
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    refused("padding", "padding_side = 'left'", inputs=inputs)


def test_policy_of_another_kind():
    refused("policy=0.4", "PruneHal", "NoPruning()", policy=0.4)


def test_seeds_for_another_batch():
    refused("seeds: got 3 numbers", "2 rows", seeds=[1, 2, 3])


@pytest.mark.parametrize("value", [1, [-1, 2], ["a", "b"], [1.5, 2]], ids=repr)
def test_seeds_that_are_no_list_of_integers(value):
    refused("seeds=", "list of integers of at least 0", "Fix: seeds=None", seeds=value)


@pytest.mark.parametrize("value", [2, ["</s>"], [1.5, None]], ids=repr)
def test_end_ids_that_are_none(value):
    refused("end_ids=", "list of token ids", "eos_token_id", end_ids=value)


@pytest.mark.parametrize("name", ["exact", "maps", "per_image", "entropy"])
def test_flags_of_another_kind(name):
    refused(f"{name}='yes': expected True or False", f"Fix: {name}=False", **{name: "yes"})


def test_readings_and_keep_of_another_kind():
    refused("readings: are a list", "(2, 2, 26)", policy=Informative(), readings=[1])
    refused("keep: is a list", "bool (batch, prompt)", policy=Keep(), keep=[[True]])
    refused(r"keep: is a torch.bool tensor \(26,\)", "(layer, batch, prompt)", policy=Keep(), keep=torch.ones(26).bool())


def test_visual_mask_of_another_kind():
    ids = models.inputs_for("llava", (3, 6), (5, 4))["input_ids"]
    for mask, kind in (((ids > 5).tolist(), "a list"), ((ids > 5).numpy(), "a ndarray"), ((ids > 5).float(), "torch.float32")):
        refused(f"visual_mask: is .*{kind}", "(2, 26)", ".bool()", visual_mask=mask)


@pytest.mark.parametrize("name", ["input_ids", "attention_mask"])
def test_inputs_that_are_no_tensors(name):
    inputs = models.inputs_for("llava", (3, 6), (5, 4))
    for value, kind in (
        (inputs[name].tolist(), "a list"),
        (inputs[name].numpy(), "a ndarray"),
        (inputs[name][0], "int64 tensor"),
    ):
        refused(f"{name} is .*{kind}", "(batch, prompt)", "return_tensors='pt'", inputs=inputs | {name: value})


@pytest.mark.parametrize(
    "value", ["model", ("model", "processor"), object(), torch.nn.Linear(1, 1)], ids=lambda v: type(v).__name__
)
def test_what_is_no_model(value):
    refused(f"model: got a {type(value).__name__}", "expected a multimodal model", "pipe.model", model=value)
    with pytest.raises(ValueError, match=r"model: got a .*expected a multimodal model"), pruning(value):
        pass


def test_static_cache_setting():
    model = models.build("llava", eos=1)
    model.generation_config.cache_implementation = "static"
    try:
        refused("cache_implementation='static'", "= None", model=model)
    finally:
        model.generation_config.cache_implementation = None


def test_flex_attention():
    model = Shell(models.FAMILIES["llava"].make().config)
    model.config.text_config._attn_implementation = "flex_attention"
    refused("flex_attention", "set_attn_implementation('sdpa')", model=model)


def generate(model, inputs, cache, **options):
    return model.generate(**inputs, **cache.options, **({"max_new_tokens": 3, "do_sample": False} | options))


def test_generate_with_another_prompt():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, models.inputs_for("llava", seed=1), PruneHal())
    with pytest.raises(ValueError, match=r"not the one expected from attach.*Fix: pass the same inputs"):
        generate(model, inputs, cache)


def test_generate_with_another_batch():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 3, 3), (5, 5, 5))
    cache = attach(model, {name: value[:2] for name, value in inputs.items()}, PruneHal())
    with pytest.raises(ValueError, match=r"generate\(\) got 3 rows, but the cache was attached to inputs of 2"):
        generate(model, inputs, cache)
    # Without ids there is nothing to compare but the number of rows and tokens.
    embeddings = torch.randn(3, 24, 48)
    cache = attach(model, {}, PruneHal(), visual_mask=inputs["input_ids"][:2] == models.IMAGE)
    with pytest.raises(ValueError, match=r"batch=3.*attached to inputs of 2"):
        model(inputs_embeds=embeddings, **cache.options)
    cache = attach(model, {}, PruneHal(), visual_mask=inputs["input_ids"][:, 1:] == models.IMAGE)
    with pytest.raises(ValueError, match=r"24 tokens arrived.*3 rows with 23 tokens"):
        model(inputs_embeds=embeddings, **cache.options)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("steps", [1, 3, 20, 40])  # generate() cuts the prompt by the answer's length, even to nothing
def test_a_cache_serves_one_prompt(family, steps):
    model, inputs = models.build(family), models.inputs_for(family)
    text = {name: value for name, value in inputs.items() if "pixel" not in name and "grid" not in name}
    shared = SharedPrefill(model, inputs)
    for again, make in ((inputs, attach), (text, attach), (shared.inputs, None)):
        cache = shared.attach(NoPruning()) if make is None else make(model, inputs, NoPruning())
        generate(model, shared.inputs if make is None else inputs, cache, max_new_tokens=steps)
        with pytest.raises(ValueError, match=r"input_ids: .* expected the whole conversation.*attach a new cache for each"):
            generate(model, again, cache)


@pytest.mark.parametrize("words", [5, 15, 25])
def test_a_second_turn_of_the_new_text_alone(words):
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, PruneHal())
    first = generate(model, inputs, cache)
    new = torch.arange(1, words + 1)[None]
    with pytest.raises(ValueError, match=r"expected the whole conversation, those 26 tokens and new text"):
        model.generate(input_ids=new, attention_mask=torch.ones_like(new), **cache.options, max_new_tokens=2)
    whole = torch.cat([first, new], dim=1)  # the cache is as it was
    answer = generate(model, {"input_ids": whole, "attention_mask": torch.ones_like(whole)}, cache)
    assert answer.shape[1] == whole.shape[1] + 3


def test_placeholders_and_images_in_a_second_turn():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, PruneHal())
    whole = torch.cat([generate(model, inputs, cache), inputs["input_ids"]], dim=1)
    with pytest.raises(ValueError, match=r"placeholders of images \(id 99\) arrive as words.*attach a new cache"):
        generate(model, {"input_ids": whole}, cache)
    with torch.no_grad(), pytest.raises(ValueError, match=r"later prompt brings images.*attach a new cache"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], **cache.options)


def test_a_prompt_without_its_images():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    text = {name: value for name, value in inputs.items() if name != "pixel_values"}
    for options in ({}, {"prefill_chunk_size": 7}):
        with pytest.raises(ValueError, match=r"arrives without its images.*with all that the processor returned"):
            generate(model, text, attach(model, inputs, PruneHal()), **options)
    # What a mask marks is what it says, whether images come or not.
    words = {"input_ids": torch.arange(1, 25)[None], "attention_mask": torch.ones(1, 24, dtype=torch.long)}
    cache = attach(model, words, TopK(2), visual_mask=words["input_ids"] > 12)
    assert generate(model, words, cache).shape == (1, 27)


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": "self"}], ids=str)
def test_assisted_decoding(options):
    model, inputs = models.build("llava"), models.inputs_for("llava")
    options = {name: model if value == "self" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=r"leave out assistant_model and prompt_lookup_num_tokens"):
        generate(model, inputs, attach(model, inputs, PruneHal()), **options)


def test_reading_before_anything_was_observed():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, PruneHal())
    for read in (lambda: cache.events, lambda: cache.trace, lambda: cache.kept(0)):
        with pytest.raises(RuntimeError, match=r"observed nothing.*Fix: model.generate"):
            read()


def test_reading_after_a_run_without_the_cache():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, PruneHal())
    model.generate(**inputs, max_new_tokens=2)
    with pytest.raises(RuntimeError, match="observed nothing"):
        _ = cache.events


def test_wrong_layer_step_and_maps():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, NoPruning())
    generate(model, inputs, cache)
    with pytest.raises(ValueError, match=r"layer=4: expected one of \[0, 1, 2, 3\]"):
        cache.kept(4)
    with pytest.raises(ValueError, match=r"step=9: expected None or a step from 1 to 3"):
        cache.kept(0, step=9)
    with pytest.raises(ValueError, match=r"maps=False.*maps=True"):
        _ = cache.trace.maps


class OwnAttention(torch.nn.Module):
    """An attention module, like Falcon's or Bloom's, that does not ask transformers for an attention function."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states, **kwargs):
        shape = (*hidden_states.shape[:2], -1, self.inner.head_dim)
        key = self.inner.k_proj(hidden_states).view(shape).transpose(1, 2)
        cache_among(kwargs).update(key, key, self.inner.layer_idx)
        return hidden_states, None


@pytest.mark.parametrize("index", [0, 3])
def test_model_with_attention_code_of_its_own(index):
    model, inputs = models.FAMILIES["llava"].make(), models.inputs_for("llava")
    layer = model.model.language_model.layers[index]
    layer.self_attn = OwnAttention(layer.self_attn)
    cache = attach(model, inputs, PruneHal())
    match = rf"layer {index}: .*not observed \(attn_implementation='sdpa'\).*attention code of its own"
    with pytest.raises(RuntimeError, match=match):
        generate(model, inputs, cache)
    with pytest.raises(RuntimeError, match=match):
        _ = cache.events


def test_a_forward_that_was_interrupted_between_two_layers():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, NoPruning())

    def stop(*args):
        raise KeyboardInterrupt

    handle = model.model.language_model.layers[1].mlp.register_forward_pre_hook(stop)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        model(**inputs, **cache.options)
    handle.remove()
    ids, match = torch.tensor([[5]]), r"layer 2: holds 0 tokens, and the first one 24.*Fix: attach a new cache"
    with torch.no_grad(), pytest.raises(RuntimeError, match=match):
        model(input_ids=ids, position_ids=torch.tensor([[24]]), **cache.options)


def test_an_exception_leaves_nothing_behind():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    stock = {"max_new_tokens": 3, "do_sample": False}
    expected = model.generate(**inputs, **stock)

    def stop(*args):
        raise KeyboardInterrupt

    handle = model.model.language_model.layers[2].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        generate(model, inputs, attach(model, inputs, PruneHal()))
    handle.remove()
    assert torch.equal(model.generate(**inputs, **stock), expected)
    cache = attach(model, inputs, PruneHal())
    generate(model, inputs, cache)
    assert len(cache.events) == 1
    assert sum(hook.__name__ == "_announce" for hook in model._forward_pre_hooks.values()) == 1
