"""The explicit attention of one query, and the wrapper around transformers' attention functions."""

import importlib

import models
import pytest
import reference
import torch
from decode import TOLERANCE
from families.base import SLICES
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

import prunehal.core.attention as attention
from prunehal.core import NoPruning, PruneHal, TopK, attach
from prunehal.core.keyword import as_option

SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, 3.0])


def qkv(batch=2, heads=6, kv_heads=2, slots=7, dim=8, queries=1):
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator) * 2  # noqa: E731
    return make(batch, heads, queries, dim), make(batch, kv_heads, slots, dim), make(batch, kv_heads, slots, dim)


@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"s_aux": SINKS}], ids=["plain", "softcap", "sinks"])
def test_attend_equals_the_loop(kind, options):
    query, key, value = qkv()
    visible = torch.ones(2, 7, dtype=torch.bool)
    if kind != "none":
        visible[0, :3] = False
    masks = {"none": None, "bool": visible[:, None, None], "additive": torch.where(visible, 0.0, -1e30)[:, None, None]}
    output, weights = attention.attend(query, key, value, masks[kind], scaling=0.3, **options)
    for row in range(2):
        expected, rows = reference.attend(
            query[row, :, 0], key[row], value[row], visible[row], 0.3, options.get("softcap"), options.get("s_aux")
        )
        assert torch.allclose(output[row, 0], torch.tensor(expected), atol=1e-5)
        assert torch.allclose(weights[row].flatten(0, 1), torch.tensor(rows), atol=1e-6)


@pytest.mark.parametrize("heads", [2, 6])
def test_attend_takes_masks_by_head(heads):
    query, key, value = qkv()
    mask = torch.rand(2, heads, 1, 7, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[..., -1] = True
    every = mask.repeat_interleave(6 // heads, dim=1)
    output, weights = attention.attend(query, key, value, mask)
    for row in range(2):
        for head in range(6):
            single = slice(head // 3, head // 3 + 1)
            expected, rows = reference.attend(
                query[row, head : head + 1, 0], key[row, single], value[row, single], every[row, head, 0], 8**-0.5
            )
            assert torch.allclose(output[row, 0, head], torch.tensor(expected[0]), atol=1e-5)
            assert torch.allclose(weights[row].flatten(0, 1)[head], torch.tensor(rows[0]), atol=1e-6)


def test_attend_agrees_with_sdpa_and_keeps_the_dtype():
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        query, key, value = (x.to(dtype) for x in qkv())
        output, weights = attention.attend(query, key, value, None)
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2)
        assert output.dtype == dtype
        assert weights.dtype == torch.float32
        assert torch.allclose(output.float(), expected.float(), atol=tolerance, rtol=tolerance)


def test_the_wrapper_is_installed_once():
    before = AttentionInterface.get_interface
    importlib.reload(attention)
    assert AttentionInterface.get_interface is before
    sdpa = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)
    assert sdpa is ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)
    assert sdpa.__wrapped__ is sdpa_attention_forward


class Layer:
    """Stand in for a cache layer: record what the wrapper asks and reports."""

    seen, index = 7, 0

    def __init__(self, exact=False, edit=None):
        self.exact, self.edit, self.weights = exact, edit, None

    def slot_mask(self, mask, queries):
        return mask

    def slot_positions(self):
        return torch.arange(7)[None, None]

    def keeps_stock_output(self):
        return self.exact

    def focus(self):
        return None

    def aside(self, mask, window):
        return None

    def score_edit(self):
        return self.edit

    def wants_row(self):
        return True

    def report(self, weights):
        self.weights = weights


class Module:
    num_key_value_groups, is_causal, training = 3, True, False

    def __init__(self, implementation="sdpa"):
        self.config = type("Config", (), {"_attn_implementation": implementation})


def call(base, *, claimed=True, layer=None, queries=1, mask=None, implementation="sdpa", **kwargs):
    query, key, value = qkv(queries=queries)
    layer = layer or Layer()
    if claimed:
        attention.claim(key, layer)
    function = attention._observed(base)
    return function(Module(implementation), query, key, value, mask, **kwargs), layer.weights, (query, key, value)


def test_foreign_keys_pass_straight_through():
    calls = []

    def base(*args, **kwargs):
        calls.append((args, kwargs))
        return "result", None

    result, weights, (query, key, value) = call(base, claimed=False, mask="mask", scaling=0.3, strange=4)
    assert result == ("result", None)
    assert weights is None
    assert calls[0][0][1:] == (query, key, value, "mask")
    assert calls[0][1] == {"scaling": 0.3, "strange": 4}


def test_one_query_is_computed_explicitly_and_agrees_with_sdpa():
    (output, _), weights, (query, key, value) = call(sdpa_attention_forward, scaling=0.3)
    expected, _ = sdpa_attention_forward(Module(), query, key, value, None, scaling=0.3)
    assert torch.allclose(output, expected, atol=1e-6)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 3))


def test_a_query_that_sees_nothing_gives_numbers():
    """So it is with padding on the left that is read alone: a prompt in chunks of one token."""
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[0] = False
    (output, _), weights, _ = call(sdpa_attention_forward, mask=mask)
    assert output.isfinite().all()
    assert weights.isfinite().all()


@pytest.mark.skipif(not SLICES, reason="the installed transformers leaves the images out of a prompt read in chunks")
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_prompts_in_chunks_of_one_token_equal_stock_behind_padding(family):
    model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4))
    settings = {"max_new_tokens": 4, "do_sample": False, "prefill_chunk_size": 1}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    stock = model.generate(**inputs, **settings)
    ours = model.generate(**inputs, **attach(model, inputs, NoPruning()).options, **settings)
    assert torch.equal(ours.sequences, stock.sequences)
    assert max((a - b).abs().max() for a, b in zip(ours.logits, stock.logits, strict=True)) <= TOLERANCE


def test_unknown_keywords_reach_the_stock_function():
    seen = {}

    def strange(module, query, key, value, mask, position_bias=None, **kwargs):
        seen["bias"] = position_bias
        return sdpa_attention_forward(module, query, key, value, mask, position_bias=position_bias, **kwargs)

    bias = torch.randn(1, 6, 1, 7)
    call(strange, position_bias=bias)
    assert seen["bias"] is bias
    (output, _), weights, (query, key, value) = call(sdpa_attention_forward, position_bias=bias)
    expected, _ = sdpa_attention_forward(Module(), query, key, value, None, position_bias=bias)
    assert torch.equal(output, expected)
    assert weights is not None


def test_a_function_that_adds_to_the_scores_is_refused_in_the_prefill():
    """Rows computed beside it would be others than its own: a keyword that is not known here, or a function that is not."""
    bias = torch.randn(1, 6, 4, 7)
    with pytest.raises(ValueError, match=r"no plain softmax of the scores.*observed.*set_attn_implementation\('eager'\)"):
        call(sdpa_attention_forward, queries=4, position_bias=bias)

    def biased(module, query, key, value, mask, **kwargs):
        return sdpa_attention_forward(module, query, key, value, bias, **kwargs)

    with pytest.raises(ValueError, match="no plain softmax of the scores"):
        call(biased, queries=4)
    mask = torch.ones(2, 1, 4, 7, dtype=torch.bool)
    _, weights, (query, key, _) = call(sdpa_attention_forward, queries=4, mask=mask, strange=4)
    assert torch.equal(weights, attention.attend(query[:, :, -1:], key, None, None)[1])  # a keyword without effect


def test_weights_of_an_eager_function_are_taken_as_they_are():
    own = torch.rand(2, 6, 4, 7)
    _, weights, _ = call(lambda *args, **kwargs: ("output", own), queries=4)
    assert torch.equal(weights.flatten(1, 2), own[:, :, -1])


def test_prefill_row_is_the_last_query_under_the_mask():
    mask = torch.ones(2, 1, 4, 7, dtype=torch.bool).tril(3)
    mask[0, ..., :2] = False
    _, weights, (query, key, value) = call(sdpa_attention_forward, queries=4, mask=mask)
    expected = attention.attend(query[:, :, -1:], key, value, mask[:, :, -1:])[1]
    assert torch.equal(weights, expected)
    assert weights[0, ..., :2].abs().max() == 0


@pytest.mark.parametrize("options", [{}, {"softcap": 1.0, "s_aux": torch.linspace(-1, 1, 6)}], ids=["plain", "capped"])
def test_keys_aside_are_weighed_with_the_stored_ones_as_they_are_before_an_edit(options):
    torch.manual_seed(1)
    query, keys, value = torch.randn(2, 6, 1, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 7, 8)
    mask = torch.rand(2, 1, 1, 9) > 0.3
    seen = []
    aside = attention.Aside(keys[:, :, 7:], mask[..., 7:], seen.append)
    own = (query, keys[:, :, :7], value, mask[..., :7])
    edit = {"edit": lambda scores: 3 * scores}
    beside = attention.attend(*own, **edit, **options, aside=aside)
    assert all(torch.equal(a, b) for a, b in zip(beside, attention.attend(*own, **edit, **options), strict=True))
    together = attention.attend(query, keys, None, mask, **options)[1]
    assert (seen[0] - together).abs().max() <= 1e-6


def test_flash_attention_with_a_window_refuses_several_queries_after_a_prune():
    layer = Layer()
    layer.has_dropped = lambda: True
    with pytest.raises(ValueError, match=r"sliding window of 3 in slots.*Fix: model.set_attn_implementation\('sdpa'\)"):
        call(attention.flash_attention_forward, layer=layer, queries=2, sliding_window=3, implementation="flash_attention_2")


def test_flash_attention_brings_flat_masks_and_a_window():
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    (_, _), weights, _ = call(attention.flash_attention_forward, mask=mask, sliding_window=3, implementation="flash_attention_2")
    visible = (weights > 0).flatten(1, 2).any(1).tolist()
    assert visible == [[False] * 4 + [True] * 3] * 2  # positions 4, 5, 6 of a query at position 6
    (_, _), weights, _ = call(attention.flash_attention_forward, mask=mask, implementation="flash_attention_2")
    assert (weights[0] > 0).any(0).any(0).tolist() == [False] * 3 + [True] * 4


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_only_the_decoder_is_observed(family, monkeypatch):
    rows = []
    original = attention.attend

    def spy(query, *args, **kwargs):
        rows.append(query.shape[2])
        return original(query, *args, **kwargs)

    monkeypatch.setattr(attention, "attend", spy)
    model, inputs = models.build(family), models.inputs_for(family)
    cache = attach(model, inputs, NoPruning())
    model.generate(**inputs, **cache.options, max_new_tokens=4, do_sample=False)
    assert rows == [1] * 4 * model.config.get_text_config().num_hidden_layers
    assert len(cache.trace) == 4


@pytest.mark.parametrize("policy", [TopK(5), PruneHal()], ids=repr)
def test_eager_equals_sdpa(policy):
    inputs = models.inputs_for("llava", (3, 6), (5, 4))
    settings = dict(max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True)
    outputs = []
    for attn in ("eager", "sdpa"):
        model = models.build("llava", attn)
        outputs.append(model.generate(**inputs, **as_option(attach(model, inputs, policy)), **settings))
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    for one, other in zip(outputs[0].logits, outputs[1].logits, strict=True):
        assert (one - other).abs().max() <= TOLERANCE
