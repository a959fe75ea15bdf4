"""A method that is on and does nothing is an error: blocks left too early, forwards that leave out hooks, threads, NaN."""

import copy
import gc
import threading
import weakref
from contextlib import contextmanager

import models
import pytest
import torch
from decode import SEED, difference, run
from test_decoding_all import ALL, BATCH, OTHERS, name
from transformers import TextIteratorStreamer

import prunehal as ph
from prunehal.core import StepTopK
from prunehal.decoding import OPERA, PAI, VCD, DoLa, FastV
from prunehal.decoding.base import BlockOptions, Decoder

SETTINGS = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture
def model():
    return models.build("llava")


def inputs_of(method):
    return models.inputs_for("llava", seed=SEED) if isinstance(method, OPERA) else models.inputs_for("llava", **BATCH)


@pytest.mark.parametrize("method", ALL, ids=name)
def test_options_are_refused_after_their_block(model, method):
    inputs = inputs_of(method)
    cache = ph.attach(model, inputs)
    with method.on(model, inputs, cache) as options:
        pass
    kind = type(method).__name__
    with pytest.raises(ValueError, match=rf"block of {kind}\.on\(\) that gave them has ended.*expected generate\(\)"):
        model.generate(**inputs, **cache.options, **options, **SETTINGS)
    with pytest.raises(ValueError, match=r"has ended"):
        options | {"max_new_tokens": 3}
    with pytest.raises(ValueError, match=r"has ended"):
        {"max_new_tokens": 3} | options
    # Options copied before the block ended, or none at all: the cache refuses its use.
    with pytest.raises(RuntimeError, match=rf"block of {kind}\.on\(\) ended before anything ran on its cache"):
        model.generate(**inputs, **cache.options, **SETTINGS)
    with method.on(model, inputs, cache) as options:  # the way out
        model.generate(**inputs, **cache.options, **options, max_new_tokens=4)
    cache.reset()
    model.generate(**inputs, **cache.options, **SETTINGS)


def test_options_are_those_that_the_method_gave():
    options = BlockOptions("OPERA", {"num_beams": 5})
    assert dict(**options) == options == {"num_beams": 5}
    assert options | {"top_k": 3} == {"num_beams": 5, "top_k": 3}


def test_a_setting_that_is_stock_decoding_need_not_act(model):
    inputs = models.inputs_for("llava", **BATCH)
    for method in (VCD(0, 0), FastV(1, 0), DoLa(()), PAI(0, 1)):
        cache = ph.attach(model, inputs, ph.NoPruning(), exact=True)
        with method.on(model, inputs, cache) as options:
            ours = run(model, inputs, **cache.options, **options)[0]
        assert difference(ours, run(model, inputs)[0]) == 0
        with method.on(model, inputs, ph.attach(model, inputs)):
            pass


@pytest.mark.parametrize("method", OTHERS, ids=name)
def test_a_method_whose_hooks_are_left_out_is_an_error(model, method, monkeypatch):
    inputs = models.inputs_for("llava", **BATCH)

    @contextmanager
    def nothing(*args, **kwargs):
        yield

    places = {"prunehal.decoding.parts.second_run.changing_logits", "prunehal.decoding.dola.changing_logits"}
    places |= {"prunehal.decoding.deco.changing_logits", "prunehal.decoding.pai.editing"}
    for place in places | {"prunehal.decoding.kvsmooth.listening"}:
        monkeypatch.setattr(place, nothing)
    cache = ph.attach(model, inputs)
    kind = type(method).__name__
    part = {"VCD": "contrast", "PAI": "boost", "DoLa": "contrast", "DeCo": "correction", "KVSmooth": "blocks"}[kind]
    with (
        pytest.raises(RuntimeError, match=rf"{kind}: generate\(\) has run without its {part}"),
        method.on(model, inputs, cache) as options,
    ):
        model.generate(**inputs, **cache.options, **options, **SETTINGS)
    assert cache.methods == []


def test_fastv_without_its_masks_is_an_error(model, monkeypatch):
    monkeypatch.setattr("prunehal.decoding.fastv._Dropping.hide", lambda self, module, args, kwargs: None)
    inputs = models.inputs_for("llava", **BATCH)
    cache = ph.attach(model, inputs)
    with (
        pytest.raises(RuntimeError, match=r"FastV: generate\(\) has run without its masks"),
        FastV(1, 0.5).on(model, inputs, cache) as options,
    ):
        model.generate(**inputs, **cache.options, **options, **SETTINGS)


def test_the_user_s_own_error_is_not_masked(model):
    inputs = models.inputs_for("llava", **BATCH)
    cache = ph.attach(model, inputs)
    with pytest.raises(KeyError, match="own"), VCD().on(model, inputs, cache):
        raise KeyError("own")
    model.generate(**inputs, **cache.options, **SETTINGS)
    assert issubclass(VCD, Decoder)


class Held:
    """Let a model's forward of one step wait until the test lets it go on."""

    def __init__(self, model, step):
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._left = step
        self._handle = model.model.language_model.register_forward_pre_hook(self._wait)

    def _wait(self, *args):
        self._left -= 1
        if not self._left:
            self._handle.remove()
            self.reached.set()
            assert self.go_on.wait(60)


@pytest.fixture(scope="module")
def captioner():
    from prunehal.testbed.world.scenes import scene

    model, processor = ph.load()
    inputs = processor(images=scene("test", 0).image(), text="<image>Describe this scene in detail.", return_tensors="pt")
    return model, processor, inputs


@pytest.fixture
def in_a_thread(captioner):
    """Return a function that starts generate() in a thread; gives the streamer, the thread and its errors."""
    errors = []

    def start(**options):
        model, processor, inputs = captioner
        streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60)

        def generate():
            try:
                model.generate(**inputs, streamer=streamer, max_new_tokens=12, **options)
            except BaseException as error:  # which a thread would only print
                errors.append(error)

        thread = threading.Thread(target=generate)
        thread.start()
        return streamer, thread, errors

    return start


def test_a_streamer_is_read_inside_the_block(captioner, in_a_thread):
    model, processor, inputs = captioner
    with ph.pruning(model, ph.PruneHal()) as block:
        ids = model.generate(**inputs, max_new_tokens=12)
        streamer, thread, errors = in_a_thread()
        said = "".join(streamer)
        thread.join()
    assert said == processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
    assert len(block.caches[1].events) == len(block.caches[0].events) > 0
    assert errors == []


@pytest.mark.parametrize("step", [1, 4])
def test_a_block_that_ends_while_a_thread_generates_is_an_error(captioner, in_a_thread, step):
    model = captioner[0]
    held = Held(model, step)
    match = r"a generate\(\) of it runs in another thread.*read the streamer to its end inside"
    with pytest.raises(RuntimeError, match=match), ph.pruning(model, ph.PruneHal()):  # noqa: PT012
        streamer, thread, errors = in_a_thread()
        assert held.reached.wait(60)
    held.go_on.set()
    list(streamer)  # ends: no reader waits for ever
    thread.join(60)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [RuntimeError]
    assert "runs in another thread" in str(errors[0])
    assert "generate" not in model.__dict__


def test_a_thread_that_begins_after_the_block_is_an_error(captioner, in_a_thread):
    model = captioner[0]
    with ph.pruning(model) as block:
        model.generate(**captioner[2], max_new_tokens=2)
        late = model.generate
    streamer = TextIteratorStreamer(captioner[1].tokenizer, timeout=60)
    with pytest.raises(RuntimeError, match=r"the block has ended"):
        late(**captioner[2], streamer=streamer, max_new_tokens=2)
    assert list(streamer) == [""]
    assert block.calls == 2


def test_a_call_that_fails_in_a_thread_reaches_the_reader(captioner, in_a_thread):
    model = captioner[0]
    with pytest.raises(RuntimeError, match=r"failed in another thread.*use_cache=False"), ph.pruning(model):  # noqa: PT012
        streamer, thread, errors = in_a_thread(use_cache=False)
        assert "".join(streamer) == ""
        thread.join()
    assert [type(error) for error in errors] == [ValueError]


def refused(captioner, case):
    """Return options of a call that is refused before a forward runs."""
    model, _, inputs = captioner
    cache = ph.attach(model, inputs, ph.NoPruning())
    if case == "block left":
        with VCD().on(model, inputs, cache) as options:
            given = dict(**options)
        return given | cache.options, RuntimeError, "ended before anything ran on its cache"
    if case == "other image":
        other = inputs["pixel_values"].flip(-1)
        return cache.options | {"pixel_values": other}, ValueError, "the images in generate"
    if case == "other rows":
        return cache.options | {"input_ids": inputs["input_ids"].repeat(2, 1)}, ValueError, "got 2 rows"
    return cache.options | {"prompt_lookup_num_tokens": 2}, ValueError, "prompt_lookup_num_tokens"


@pytest.mark.parametrize("case", ["block left", "other image", "other rows", "assisted"])
def test_a_reader_does_not_wait_for_a_call_that_is_refused(captioner, case):
    model, processor, inputs = captioner
    options, kind, message = refused(captioner, case)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60)
    with pytest.raises(kind, match=message):
        model.generate(**inputs | {"streamer": streamer, "max_new_tokens": 4} | options)
    assert streamer.text_queue.qsize() <= 2, "ended once: the last text, and the sign of the end"
    assert "".join(streamer) == ""


def test_a_reader_does_not_wait_for_a_call_in_a_pruning_block_that_is_refused(captioner):
    model, processor, inputs = captioner
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60)
    options, _, message = refused(captioner, "other image")
    with pytest.raises(ValueError, match=message), ph.pruning(model):
        model.generate(**inputs | {"streamer": streamer} | options)
    assert streamer.text_queue.qsize() == 2
    assert "".join(streamer) == ""


def test_a_decoder_s_block_that_ends_while_a_thread_generates_is_an_error(captioner, in_a_thread):
    model, _, inputs = captioner
    cache, held = ph.attach(model, inputs, ph.NoPruning()), Held(model, 4)
    match = r"block of DoLa\.on\(\) has ended while generate\(\) ran on its cache in another thread"
    with pytest.raises(RuntimeError, match=match), DoLa((0, 2)).on(model, inputs, cache) as options:  # noqa: PT012
        _, thread, errors = in_a_thread(**cache.options, **options)
        assert held.reached.wait(60)
    held.go_on.set()
    thread.join(60)
    assert not thread.is_alive()
    assert "has ended while generate() ran" in str(errors[0]), "and not one greedy word"


def with_nan(model, layer, step, value):
    """Hook a value into the queries of a layer at one step; returns the handle."""
    steps = 0

    def hook(module, args, output):
        nonlocal steps
        steps += 1
        if steps == step:
            output = output.clone()
            output[1] = value
        return output

    return model.model.language_model.layers[layer].self_attn.q_proj.register_forward_hook(hook)


@pytest.mark.parametrize(
    "policy", [ph.PruneHal(factor=1.0), ph.TopK(4), ph.NoPruning(), ph.Bank(factor=1.0)], ids=lambda policy: type(policy).__name__
)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("step", [1, 3])
def test_attention_that_is_no_number_is_named_by_layer_and_step(model, policy, options, step):
    inputs = models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    cache, handle = ph.attach(model, inputs, policy), with_nan(model, 2, step, torch.nan)

    def generate_and_read():
        model.generate(**inputs, **cache.options, max_new_tokens=6, do_sample=False, **options)
        return cache.events

    try:
        with pytest.raises(RuntimeError, match=rf"attention of layer 2 at step {step}, row 1: holds NaN or infinity"):
            generate_and_read()
    finally:
        handle.remove()
    for read in (lambda: cache.events, lambda: cache.trace, lambda: cache.kept(0)):
        with pytest.raises(RuntimeError, match="holds NaN"):
            read()


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("step", [1, 3])
def test_generate_stops_before_it_prunes_by_what_is_no_number(model, options, step):
    inputs = models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    cache, handle = ph.attach(model, inputs, ph.PruneHal(factor=1.0, t=9)), with_nan(model, 2, step, torch.nan)
    try:
        with pytest.raises(RuntimeError, match=rf"layer 2 at step {step}, row 1: holds NaN"):
            model.generate(**inputs, **cache.options, max_new_tokens=9, do_sample=False, **options)
    finally:
        handle.remove()
    assert cache.step == step


def queries_of_nan(model):
    """Return a copy of a model whose second layer has queries that are no numbers."""
    broken = copy.deepcopy(model)
    broken.model.language_model.layers[1].self_attn.q_proj.weight.data[0, 0] = torch.nan
    return broken


@pytest.mark.parametrize("policy", [ph.NoPruning(), StepTopK(4, step=9), ph.TopK(4)], ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"max_new_tokens": 1}], ids=str)
def test_generate_does_not_end_with_attention_that_is_no_number(model, policy, options):
    model, inputs = queries_of_nan(model), models.inputs_for("llava", **BATCH)
    cache = ph.attach(model, inputs, policy)
    with pytest.raises(RuntimeError, match=r"attention of layer 1 at step 1, row 0: holds NaN or infinity"):
        model.generate(**inputs, **cache.options, **SETTINGS | options)


@pytest.mark.parametrize("method", ALL, ids=name)
def test_no_method_goes_on_with_what_is_no_number(model, method):
    model, inputs = queries_of_nan(model), inputs_of(method)
    cache = ph.attach(model, inputs, ph.NoPruning())
    match = r"(attention of layer 1 at step 1, row|logits of row) 0: holds? NaN or infinity"
    with pytest.raises(RuntimeError, match=match), method.on(model, inputs, cache) as options:
        model.generate(**inputs, **cache.options, **options, max_new_tokens=4)


def test_numbers_are_no_error_in_rows_that_have_ended(model):
    inputs = models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    words = run(model, inputs, steps=4)[0].sequences[:, -4:]
    end = int(words[1, 1])
    assert end not in words[0].tolist()
    cache, handle = ph.attach(model, inputs, ph.NoPruning(), end_ids=[end]), with_nan(model, 0, 4, torch.nan)
    try:
        run(model, inputs, eos_token_id=end, steps=5, **cache.options)
    finally:
        handle.remove()
    assert cache.trace.frame().groupby("row")["step"].max().tolist() == [5, 2]


@pytest.mark.parametrize("method", [None, *ALL], ids=name)
def test_k_and_v_go_with_the_last_reference_to_the_cache(model, method):
    inputs = inputs_of(method)
    gc.collect()
    gc.disable()
    try:
        cache = ph.attach(model, inputs)
        if method is None:
            model.generate(**inputs, **cache.options, **SETTINGS)
        else:
            with method.on(model, inputs, cache) as options:
                model.generate(**inputs, **cache.options, **options, max_new_tokens=4)
            del options
        seen, keys = weakref.ref(cache), weakref.ref(cache.layers[0].keys)
        del cache
        assert seen() is None
        assert keys() is None
    finally:
        gc.enable()


def test_opera_s_options_that_were_copied_in_time_are_refused_after_the_block(model):
    opera = next(method for method in ALL if isinstance(method, OPERA))
    inputs = inputs_of(opera)
    cache = ph.attach(model, inputs, ph.NoPruning())
    with opera.on(model, inputs, cache) as options:
        copied = dict(**options)
        first = model.generate(**inputs, **cache.options, **copied, max_new_tokens=4)
    cache.reset()
    with pytest.raises(ValueError, match=r"options: the block of OPERA\.on\(\) that gave them has ended"):
        model.generate(**inputs, **cache.options, **copied, max_new_tokens=4)
    cache.reset()
    with opera.on(model, inputs, cache) as options:
        assert torch.equal(model.generate(**inputs, **cache.options, **options, max_new_tokens=4), first)
