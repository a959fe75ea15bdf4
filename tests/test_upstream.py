"""What the core leans on inside transformers, one line each: when an upgrade moves something, one test fails and names it.

Most of these are no public interface. Read the failing line first: the other tests that fail then are its consequences.
"""

import inspect
import re
from pathlib import Path

import models
import peft
import pytest
import transformers
from transformers import cache_utils, masking_utils
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerationMixin
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from prunehal.core import NoPruning, attach
from prunehal.core.blocks import BlockLayer
from prunehal.core.keyword import KEYWORD

# Kinds of cache layers that are known: those that are pruned, those that keep nothing to prune, those that are refused by name.
PRUNED = {"DynamicLayer", "DynamicSlidingWindowLayer"}
LEFT_ALONE = {"LinearAttentionLayer", "DummyLayer"}
REFUSED = {
    "BaseQuantizedLayer", "DynamicIndexedLayer", "Fp8QuantizedLayer", "HQQQuantizedLayer", "QuantizedLayer",
    "QuantoQuantizedLayer",    "LinearAttentionAndFullAttentionLayer", "LinearAttentionAndSlidingWindowAttentionLayer",
    "LinearAttentionAndStaticFullAttentionLayer", "LinearAttentionAndStaticSlidingWindowAttentionLayer", "StaticIndexedLayer",
    "StaticLayer", "StaticSlidingWindowLayer",
}  # fmt: skip


def parameters(function):
    return list(inspect.signature(function).parameters)


def keyword_in(function):
    return KEYWORD in parameters(function)


def layers_of_caches():
    """Return the names of the kinds of cache layers that transformers has."""
    kinds = (name for name, kind in vars(cache_utils).items() if inspect.isclass(kind) and name.endswith("Layer"))
    return set(kinds)


def modelling_files(pattern):
    """Return how many modelling files of transformers hold a pattern."""
    files = Path(transformers.__file__).parent.glob("models/*/modeling_*.py")
    return sum(re.search(pattern, file.read_text(encoding="utf-8")) is not None for file in files)


def caches_in_forwards():
    """Return under which names the decoder of LLaVA, one of its layers and its attention get the cache in stock generate()."""
    model, inputs, names = models.build("llava"), models.inputs_for("llava"), {}

    def note(place):
        def hook(module, args, kwargs):
            names[place] = {name for name, value in kwargs.items() if isinstance(value, cache_utils.Cache)}

        return hook

    layer = model.model.language_model.layers[0]
    places = {"model": model, "decoder": model.model.language_model, "layer": layer, "attention": layer.self_attn}
    handles = [part.register_forward_pre_hook(note(name), with_kwargs=True) for name, part in places.items()]
    try:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    finally:
        for handle in handles:
            handle.remove()
    return names


def same_key_between_cache_and_attention():
    """Return whether every layer's attention gets the very K that the cache's update() returned."""
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, NoPruning())
    model.generate(**inputs, **cache.options, max_new_tokens=2, do_sample=False)
    return len(cache.trace), cache.trace.frame()["layer"].nunique()


def given_to_custom_generate():
    """Return what a function given as custom_generate gets, by name."""
    model, inputs, given = models.build("llava"), models.inputs_for("llava"), {}

    def loop(model, input_ids, **kwargs):
        given.update(kwargs)
        return input_ids

    cache = attach(model, inputs, NoPruning())
    model.generate(**inputs, **cache.options, custom_generate=loop, max_new_tokens=2)
    return {"logits_processor", "stopping_criteria", "generation_config", KEYWORD} - set(given)


LEANS_ON = {
    "attention functions are looked up by AttentionInterface.get_interface(self, attn_implementation, default)": (
        lambda: parameters(AttentionInterface.get_interface), ["self", "attn_implementation", "default"]),
    "modelling files look their function up there (at least 300 do)": (
        lambda: modelling_files(r"ALL_ATTENTION_FUNCTIONS\.get_interface\(") >= 300, True),
    "no more than ten modelling files index the table directly, past the observation": (
        lambda: modelling_files(r"ALL_ATTENTION_FUNCTIONS\[") <= 10, True),
    "'sdpa' is sdpa_attention_forward": (lambda: ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward, True),
    "'flash_attention_2' and 'flash_attention_3' are flash_attention_forward": (
        lambda: [ALL_ATTENTION_FUNCTIONS[f"flash_attention_{n}"] is flash_attention_forward for n in (2, 3)], [True, True]),
    "attention functions begin with module, query, key, value, attention_mask": (
        lambda: [parameters(function)[:5] for function in (sdpa_attention_forward, flash_attention_forward)],
        [["module", "query", "key", "value", "attention_mask"]] * 2),
    "sliding_window, softcap and s_aux are keywords of flash attention": (
        lambda: {"scaling", "sliding_window", "softcap", "s_aux"} - set(parameters(flash_attention_forward)), set()),
    "CacheLayerMixin asks for these methods and no others": (
        lambda: cache_utils.CacheLayerMixin.__abstractmethods__
        - {"lazy_initialization", "update", "get_mask_sizes", "get_seq_length", "get_max_length", "get_max_cache_shape"}, set()),
    "BlockLayer has every method that a cache layer needs": (lambda: set(BlockLayer.__abstractmethods__), set()),
    "the kinds of cache layers are known, pruned, left alone or refused": (
        lambda: layers_of_caches() - PRUNED - LEFT_ALONE - REFUSED, set()),
    "the kinds that are pruned or hold a state exist": (
        lambda: (PRUNED | {"LinearAttentionLayer"}) - layers_of_caches(), set()),
    "update() hands its K to attention as it is": (same_key_between_cache_and_attention, (2, 4)),
    "model, decoder, layer and attention get the cache under one name": (
        caches_in_forwards, {place: {KEYWORD} for place in ("model", "decoder", "layer", "attention")}),
    "prepare_inputs_for_generation, masks and outputs call the cache the same": (
        lambda: [keyword_in(function) for function in (
            GenerationMixin.prepare_inputs_for_generation, masking_utils.create_causal_mask,
            masking_utils.create_sliding_window_causal_mask, CausalLMOutputWithPast, GenerateBeamDecoderOnlyOutput)],
        [True] * 5),
    "masks are made from the lengths that the cache reports: create_causal_mask(config, inputs_embeds, attention_mask, ...)": (
        lambda: parameters(masking_utils.create_causal_mask)[:3], ["config", "inputs_embeds", "attention_mask"]),
    "custom_generate gets logits_processor, stopping_criteria, generation_config, the cache": (given_to_custom_generate, set()),
    "OPERA's loop calls _prefill(input_ids, generation_config, model_kwargs)": (
        lambda: parameters(GenerationMixin._prefill)[1:4], ["input_ids", "generation_config", "model_kwargs"]),
    "OPERA's loop calls _update_model_kwargs_for_generation(outputs, model_kwargs)": (
        lambda: parameters(GenerationMixin._update_model_kwargs_for_generation)[1:3], ["outputs", "model_kwargs"]),
    "prepare_inputs_for_generation takes input_ids and next_sequence_length": (
        lambda: parameters(GenerationMixin.prepare_inputs_for_generation)[1:3], ["input_ids", "next_sequence_length"]),
    "generate() begins with self, inputs, generation_config": (
        lambda: parameters(GenerationMixin.generate)[:3], ["self", "inputs", "generation_config"]),
    "wrappers of PEFT have get_base_model and active_peft_config": (
        lambda: [hasattr(peft.PeftModel, name) for name in ("get_base_model", "active_peft_config")], [True, True]),
    "logits_to_keep is asked for by _supports_logits_to_keep()": (
        lambda: models.build("llava")._supports_logits_to_keep(), True),
}  # fmt: skip


@pytest.mark.parametrize("what", LEANS_ON)
def test_what_the_core_leans_on(what):
    read, expected = LEANS_ON[what]
    found = read()
    assert found == expected, f"moved in transformers {transformers.__version__}: {what}; found {found}, expected {expected}"
