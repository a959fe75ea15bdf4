"""The decoders on the embedded model, greedy, against their slow twins, with and without pruning."""

import copy
import functools
from unittest import mock

import pytest
import reference
import reference_cache
import reference_contrast
import reference_layers
import torch
from decode import forcing, run

import prunehal as ph
from prunehal.core import PruneHal, attach
from prunehal.decoding import PAI, VCD, DeCo, DoLa, FastV, KVSmooth
from prunehal.decoding.deco import upper_layers
from prunehal.decoding.dola import candidates
from prunehal.decoding.parts.early_layers import decoder_of
from prunehal.testbed.world.scenes import scene

CLOSE = 5e-3  # of logits and differences of them up to about 40, in float32 by two ways of attention
POLICIES = [PruneHal(t=0), PruneHal(r=0.4, t=3)]


@functools.cache
def loaded():
    """Return the model as shipped, a copy with eager attention, and inputs."""
    model, processor = ph.load()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    return model, eager, dict(inputs)


def said(method, policy, steps):
    """Return the method's tokens and logits, and the cache."""
    model, _, inputs = loaded()
    cache = attach(model, inputs, policy)
    with method.on(model, inputs, cache) as options:
        out, _ = run(model, inputs, steps=steps, **cache.options, **options)
    return out.sequences[0, -len(out.logits) :].tolist(), [logits[0] for logits in out.logits], cache


def visual():
    model, _, inputs = loaded()
    return (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten().tolist()


def masked(policy, steps, **options):
    """Return the reference's run: stock generate() with dropped tokens masked."""
    model, eager, inputs = loaded()
    return reference.generate(eager, decoder_of(eager).layers, inputs, policy, [model.config.image_token_id], steps, **options)


def same(ours, slow):
    """Check logits against the twin's; what it cuts is far below in the package."""
    cut = ~slow.isfinite() | (slow < -reference_layers.FLOOR / 2)
    assert torch.equal(ours < -reference_layers.FLOOR / 2, cut)
    assert (ours - slow)[~cut].abs().max() <= CLOSE


@pytest.mark.parametrize("policy", POLICIES, ids=["whole", "pruned"])
def test_vcd(policy):
    _, eager, inputs = loaded()
    method = VCD(alpha=1.0, beta=0.1)
    tokens, logits, cache = said(method, policy, 6)
    with mock.patch.object(eager, "generate", functools.partial(eager.generate, prefix_allowed_tokens_fn=forcing(tokens))):
        main = masked(policy, 6)
    assert cache.events["step"].tolist() == [step for pool in main.pools for step, *_ in pool.events]
    blurred = reference_contrast.noised(inputs, method.noise_step, method.seed)
    for step, clean in enumerate(main.logits):
        other = reference_contrast.whole(eager, blurred, tokens[:step])
        slow = reference_contrast.cut(2 * clean - other, clean, 0.1)
        same(logits[step], slow)
        assert int(slow.argmax()) == tokens[step]


@pytest.mark.parametrize("policy", POLICIES, ids=["whole", "pruned"])
def test_pai(policy):
    _, eager, inputs = loaded()
    tokens, logits, cache = said(PAI(alpha=0.2, gamma=1.1), policy, 4)
    kept = functools.cache(lambda layer, step: set(cache.kept(layer, step)[0].tolist()))
    settings = {
        "alpha": 0.2,
        "gamma": 1.1,
        "beta": 0.1,
        "layers": range(2, 6),
        "kept": lambda layer, step, head: kept(layer, step),
    }
    for step in (0, 3):
        slow = reference_contrast.pai(eager, inputs, tokens[:step], visual(), **settings)
        same(logits[step], slow)
        assert int(slow.argmax()) == tokens[step]


@pytest.mark.parametrize("policy", POLICIES, ids=["whole", "pruned"])
def test_kvsmooth(policy):
    _, eager, _ = loaded()
    tokens, logits, _ = said(KVSmooth(ref=0.9), policy, 12)
    with reference_cache.smoothing(decoder_of(eager).layers, range(1, 6), 0.9, 0.2, 15):
        slow = masked(policy, 12)
    assert tokens == slow.tokens
    list(map(same, logits, slow.logits))


@pytest.mark.parametrize("policy", POLICIES, ids=["whole", "pruned"])
def test_fastv(policy):
    tokens, logits, cache = said(FastV(block=2, ratio=0.75), policy, 8)
    slow = masked(policy, 8, prefill=reference_cache.fastv(2, 0.75))
    assert tokens == slow.tokens
    assert [event[:2] for event in slow.pools[0].events] == cache.events[["step", "reason"]].apply(tuple, axis=1).tolist()
    list(map(same, logits, slow.logits))


@pytest.mark.parametrize("policy", POLICIES, ids=["whole", "pruned"])
@pytest.mark.parametrize("method", [DoLa("low"), DoLa("high"), DeCo()], ids=repr)
def test_dola_and_deco(method, policy):
    model, eager, inputs = loaded()
    tokens, logits, cache = said(method, policy, 5)
    decoder = decoder_of(eager)
    if isinstance(method, DeCo):
        rule = reference_layers.deco(upper_layers(6), decoder.norm)
    else:
        rule = reference_layers.dola(candidates(method.layers, 6, tied=True))
    dropped = reference_layers.dropped_by(cache, 6, inputs["input_ids"].shape[1], visual(), 5)
    slow = reference_layers.generate(
        eager, decoder.layers, inputs, rule, 5, dropped=dropped, suppressed=model.config.get_text_config().vocab_size
    )
    assert tokens == slow[0]
    list(map(same, logits, slow[1]))
