"""Models in the states that users pass: wrapped by PEFT or torch.compile, in training mode, with the settings of a checkpoint."""

import copy

import models
import pytest
import torch
from accelerate import dispatch_model
from decode import SEED, TOLERANCE, difference, run
from peft import LoraConfig, PromptTuningConfig, get_peft_model

import prunehal as ph
from prunehal.core.wrapped import unwrapped
from prunehal.decoding import OPERA, PAI, VCD, DeCo, DoLa, FastV, KVSmooth
from prunehal.decoding.parts.early_layers import LayerReadout

BATCH = {"before": (3, 6), "after": (5, 4), "seed": SEED}
METHODS = [
    VCD(1.5, 0.05),
    PAI(0.6, 1.6, start_layer=1),
    PAI(0.6, 1, start_layer=1),
    DoLa((0, 1, 2)),
    DeCo(2.0, layers=(0, 1, 2)),
    KVSmooth(0.5, 0.5, window=3),
    FastV(1, 0.5),
    OPERA(candidates=3, num_beams=3, scale=1e-3, warmup=2),
]
STEPS = 8


@pytest.fixture
def model():
    """A model of the test's own, since adapters stay in its layers."""
    return copy.deepcopy(models.build("llava"))


def adapted(model, **options):
    """Return the model with a LoRA adapter whose weights are not zero."""
    torch.manual_seed(5)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)
    return get_peft_model(model, config).eval()


WRAPPERS = {
    "peft": adapted,
    "peft, with a task": lambda model: adapted(model, task_type="CAUSAL_LM"),
    "torch.compile": torch.compile,
    "compiled peft": lambda model: torch.compile(adapted(model)),
}
wrapped_models = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def inputs_of(method=None):
    return models.inputs_for("llava", seed=SEED) if isinstance(method, OPERA) else models.inputs_for("llava", **BATCH)


@wrapped_models
def test_attach_and_pruning_take_a_wrapped_model(model, wrap):
    inputs, wrapped = inputs_of(), wrap(model)
    stock, _ = run(wrapped, inputs)
    ours, _ = run(wrapped, inputs, ph.NoPruning())
    assert difference(ours, stock) <= TOLERANCE
    pruned, cache = run(wrapped, inputs, ph.PruneHal(factor=1.0))
    assert not cache.events.empty
    assert difference(pruned, stock) > 1e-3
    with ph.pruning(wrapped, ph.PruneHal(factor=1.0)) as block:
        ids = wrapped.generate(**inputs, max_new_tokens=14, do_sample=False)
    assert torch.equal(ids, pruned.sequences)
    assert block.caches[0].events.equals(cache.events)
    assert "generate" not in unwrapped(wrapped).__dict__


def test_a_call_of_the_model_inside_is_pruned_too(model):
    inputs, wrapped = inputs_of(), adapted(model)
    with ph.pruning(wrapped, ph.TopK(4)) as block:
        wrapped.get_base_model().generate(**inputs, max_new_tokens=4, do_sample=False)
    assert block.caches[0].events["kept"][0] == [4] * 4


def decoded(model, method, base=None):
    """Return what a method gives on a wrapped model, its cache attached to ``base``."""
    inputs = inputs_of(method)
    cache = ph.attach(model if base is None else base, inputs, ph.NoPruning())
    with method.on(model, inputs, cache) as options:
        return run(model, inputs, steps=STEPS, output_scores=True, **cache.options, **options)[0]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{type(method).__name__}-{getattr(method, 'gamma', '')}")
def test_every_decoder_acts_on_a_wrapped_model(model, method):
    inputs = inputs_of(method)
    run(model, inputs, ph.NoPruning(), steps=2)  # so that the model inside was used before
    bare = decoded(model, method)
    compiled = decoded(torch.compile(model), method)
    assert torch.equal(compiled.sequences, bare.sequences)
    assert difference(compiled, bare) == 0
    wrapped = adapted(model)  # changes the layers of the model inside
    greedy, _ = run(wrapped, inputs, steps=STEPS, output_scores=True, num_beams=3 if isinstance(method, OPERA) else 1)
    ours, inside = decoded(wrapped, method), decoded(unwrapped(wrapped), method)
    assert torch.equal(ours.sequences, inside.sequences)
    assert difference(ours, inside) == 0
    assert difference(ours, bare) > 1e-3, "the adapter is at work"
    if isinstance(method, OPERA):  # what it returns as logits are not penalised
        assert (ours.sequences_scores - greedy.sequences_scores).abs().max() > 1e-3
    else:
        assert difference(ours, greedy) > 1e-3, "the method is at work"


def test_a_cache_may_be_attached_to_either(model):
    wrapped = torch.compile(model)
    assert difference(decoded(wrapped, DoLa((0, 1)), base=model), decoded(model, DoLa((0, 1)), base=wrapped)) == 0


def test_prefills_and_readings_take_a_wrapped_model(model):
    inputs, wrapped = inputs_of(), adapted(model)
    ours, _ = run(wrapped, inputs, ph.Informative(grid=4, p=0.5))
    shared = ph.SharedPrefill(wrapped, inputs)
    cache = shared.attach(ph.Informative(grid=4, p=0.5))
    again = run(wrapped, shared.inputs, **cache.options)[0]
    assert torch.equal(again.sequences[:, -14:], ours.sequences[:, -14:])
    assert difference(again, ours) <= TOLERANCE


def test_what_is_inside():
    inner = torch.nn.Linear(2, 2)
    assert unwrapped(torch.nn.DataParallel(torch.compile(inner))) is inner
    assert unwrapped(inner) is inner


def test_trained_tokens_in_front_of_the_prompt_are_refused(model):
    wrapped = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    for use in (lambda: ph.attach(wrapped, inputs_of()), lambda: ph.pruning(wrapped).__enter__()):
        with pytest.raises(ValueError, match=r"PROMPT_TUNING\) puts trained tokens in front of the prompt.*such as LoRA"):
            use()


def test_training_mode_with_checkpointing_is_named(model):
    inputs = inputs_of()
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(ValueError, match=r"training mode with gradient checkpointing.*Fix: model\.eval\(\).*_disable"):
        run(model, inputs, ph.NoPruning())
    with ph.pruning(model), pytest.raises(ValueError, match=r"Fix: model\.eval\(\)"):
        model.generate(**inputs, max_new_tokens=2)
    model.eval()
    evaluated, _ = run(model, inputs, ph.NoPruning())
    model.gradient_checkpointing_disable()
    model.train()  # no dropout in this model
    trained, _ = run(model, inputs, ph.NoPruning())
    assert difference(evaluated, trained) == 0


def test_use_cache_of_the_generation_config_is_named(model):
    model.generation_config.use_cache = False
    inputs = inputs_of()
    with pytest.raises(ValueError, match=r"^generation_config\.use_cache=False.*Fix: model\.generation_config\.use_cache = True"):
        run(model, inputs, ph.NoPruning())
    run(model, inputs, ph.NoPruning(), use_cache=True)


def test_the_cache_that_older_gemma_checkpoints_ask_for_is_left_out():
    model, inputs = copy.deepcopy(models.build("gemma3")), models.inputs_for("gemma3", **BATCH)
    expected, _ = run(model, inputs, ph.PruneHal(factor=1.0))
    model.generation_config.cache_implementation = "hybrid"
    ours, cache = run(model, inputs, ph.PruneHal(factor=1.0))
    assert difference(ours, expected) == 0
    with ph.pruning(model, ph.PruneHal(factor=1.0)) as block:
        model.generate(**inputs, max_new_tokens=14, do_sample=False, cache_implementation="hybrid")
    assert block.caches[0].events.equals(cache.events)
    model.generation_config.cache_implementation = "static"
    with pytest.raises(ValueError, match=r"generation_config\.cache_implementation='static'.*cannot shrink"):
        ph.attach(model, inputs)


def test_weights_in_eight_bits():
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model, inputs = copy.deepcopy(models.build("llava")), inputs_of()
    for layer in model.model.language_model.layers:
        old = layer.mlp.up_proj
        new = bitsandbytes.nn.Linear8bitLt(old.in_features, old.out_features, bias=False, has_fp16_weights=False)
        new.weight = bitsandbytes.nn.Int8Params(old.weight.data, requires_grad=False, has_fp16_weights=False)
        layer.mlp.up_proj = new.to("cpu")
    stock, _ = run(model, inputs)
    ours, _ = run(model, inputs, ph.NoPruning(), attach_options={"exact": True})
    assert difference(ours, stock) == 0
    _, cache = run(model, inputs, ph.TopK(4))
    assert cache.events["kept"][0] == [4] * 4


PARTS = [
    "model.vision_tower",
    "model.multi_modal_projector",
    "model.language_model.embed_tokens",
    "model.language_model.rotary_emb",
]
PARTS += [*(f"model.language_model.layers.{i}" for i in range(4)), "model.language_model.norm", "lm_head"]
ON_DISK = [["model.language_model.norm"], ["lm_head"], ["model.language_model.norm", "lm_head", "model.language_model.layers.2"]]


@pytest.mark.parametrize("on_disk", ON_DISK, ids=lambda parts: parts[-1])
def test_decoders_read_weights_that_lie_on_disk(model, on_disk, tmp_path):
    places = dict.fromkeys(PARTS, "cpu") | dict.fromkeys(on_disk, "disk")
    spread = dispatch_model(copy.deepcopy(model), places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert any(parameter.is_meta for parameter in spread.parameters())
    for method in (DoLa((0, 1, 2)), DoLa((0, 1, 2), norm=True), DeCo(2.0, layers=(0, 1, 2)), VCD(1.5, 0.05)):
        ours, whole = decoded(spread, method), decoded(model, method)
        assert torch.equal(ours.sequences, whole.sequences)
        assert difference(ours, whole) == 0
    ours, whole = (run(each, inputs_of(), ph.Informative(grid=4), steps=STEPS)[0] for each in (spread, model))
    assert difference(ours, whole) == 0


def test_words_that_are_the_head_are_known_on_disk_too(model, tmp_path):
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    assert LayerReadout(model).tied
    places = dict.fromkeys(PARTS, "cpu") | dict.fromkeys(["model.language_model.embed_tokens", "lm_head"], "disk")
    spread = dispatch_model(copy.deepcopy(model), places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert LayerReadout(spread).tied
    assert not LayerReadout(models.build("llava")).tied
