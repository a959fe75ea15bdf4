"""OPERA against its slow twin, with returns and with pruning; neutral settings against stock beam search; what it refuses."""

import copy

import models
import numpy as np
import pytest
import reference_opera as twin
import torch
from decode import END_WORD, SEED, TOLERANCE, difference
from models import FAMILIES, IMAGE, VIDEO, VOCAB

import prunehal as ph
from prunehal.core import Listener, NoPruning, PruneHal, SharedPrefill, TopK, attach, listening
from prunehal.core.editing import editing
from prunehal.core.keyword import as_option
from prunehal.decoding.opera import search as retrospection
from prunehal.decoding.opera.lookahead import LookAhead
from prunehal.decoding.opera.opera import OPERA
from prunehal.decoding.opera.overtrust import by_position, columns, overtrust, penalised, place_to_return_to
from prunehal.decoding.opera.rewinding import Rewinder

TWO = ["llava", "qwen2_5_vl"]
NEUTRAL = {"alpha": 0, "candidates": VOCAB, "threshold": 999}
EAGER = {"candidates": 3, "num_beams": 3, "scale": 1e-3, "warmup": 2}  # returns early and often
PRUNING = PruneHal(r=0.5, t=3)


def quiet(family, attn="sdpa", eos=None):
    """Return a model that proposes no placeholder: in the twin's whole sequences one would stand for an image."""
    model = copy.deepcopy(models.build(family, attn, eos))
    model.get_output_embeddings().weight.data[94:] = 0
    return model


def generate(model, inputs, setting=None, policy=None, cache=None, **options):
    """Return what generate() gives, as a dict, and the cache; without a setting it is stock generate()."""
    cache = attach(model, inputs, policy or NoPruning()) if cache is None else cache
    common = {**as_option(cache), "max_new_tokens": 16, "do_sample": False, "return_dict_in_generate": True}
    common |= {"output_scores": True, "output_logits": True} | options
    if setting is None:
        return model.generate(**inputs, **common), cache
    with setting.on(model, inputs, cache) as attached:
        return model.generate(**inputs, **common, **attached), cache


@pytest.fixture
def returns(monkeypatch):
    """Collect the tokens that are chosen anew."""
    places, rewind = [], Rewinder.rewind

    def spy(self, mark, rows):
        places.append(mark.read + 1)
        rewind(self, mark, rows)

    monkeypatch.setattr(Rewinder, "rewind", spy)
    return places


CASES = [  # family, seed, sigma, threshold, alpha, policy, how many returns
    ("llava", 0, 50.0, 4, 0.3, None, 3),
    ("llava", 1, 20.0, 2, 1.0, None, 3),
    ("llava", 2, 20.0, 2, 1.0, None, 0),
    ("llava", 3, 50.0, 2, 1.0, None, 2),
    ("llava", 2, 50.0, 2, 1.0, PRUNING, 3),
    ("llava", 2, 20.0, 2, 1.0, PRUNING, 2),
    ("qwen2_5_vl", 3, 50.0, 2, 1.0, None, 3),
    ("qwen2_5_vl", 1, 20.0, 2, 1.0, PRUNING, 9),
]


@pytest.mark.parametrize(("family", "seed", "sigma", "threshold", "alpha", "policy", "count"), CASES)
def test_tokens_scores_and_returns_are_those_of_the_twin(family, seed, sigma, threshold, alpha, policy, count, returns):
    inputs, values = models.inputs_for(family, seed=seed), {"sigma": sigma, "threshold": threshold, "alpha": alpha}
    ours, cache = generate(quiet(family), inputs, OPERA(**EAGER, **values), policy, num_return_sequences=3)
    slow = _twin(family, inputs, policy, **values)
    assert returns == slow.returns
    assert len(returns) == count
    _same(ours, slow, inputs)
    assert (len(cache.events) > 0) == (policy is not None)
    assert len(ours.logits) == len(ours.scores) == len(cache.trace) == 16


def test_the_published_scale_and_warmup_are_those_of_the_twin():
    inputs, values = models.inputs_for("llava", seed=0), {"sigma": 50.0, "threshold": 15, "scale": 1e-7, "warmup": 10}
    ours, _ = generate(quiet("llava"), inputs, OPERA(num_beams=2, candidates=3), num_return_sequences=2)
    _same(ours, _twin("llava", inputs, None, alpha=1.0, num_beams=2, candidates=3, **values), inputs)
    plain, _ = generate(quiet("llava"), inputs, num_beams=2)
    assert (ours.sequences_scores[0] - plain.sequences_scores[0]).abs() > 1e-3


@pytest.mark.parametrize(
    ("length_penalty", "early_stopping", "early"), [(1.0, False, False), (0.0, True, True), (0.5, "never", True)]
)
def test_beams_that_end_do_so_as_in_the_twin(length_penalty, early_stopping, early, returns):
    values = {"sigma": 20.0, "threshold": 1, "alpha": 0.5}
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    inputs, model = models.inputs_for("llava", seed=1), quiet("llava")
    free, _ = generate(model, inputs, OPERA(**EAGER, **values))
    assert returns
    returns.clear()
    ends = free.sequences[0, inputs["input_ids"].shape[1] :].tolist()[7:8]  # a hypothesis ends there, and is then taken back
    ours, _ = generate(model, inputs, OPERA(**EAGER, **values), num_return_sequences=3, eos_token_id=ends, **options)
    slow = _twin("llava", inputs, None, tuple(ends), **values, **options)
    assert returns == slow.returns
    assert (min(len(answer) for _, answer in slow.sequences) < 16) == early  # else all early ends were taken back
    _same(ours, slow, inputs)


def _twin(family, inputs, policy, ends=(), length_penalty=1.0, early_stopping=False, **values):
    model = quiet(family, "eager")
    reader = twin.Reader(model, FAMILIES[family].decoder(model), inputs, [IMAGE, VIDEO], policy)
    options = EAGER | values | {"length_penalty": length_penalty, "early_stopping": early_stopping, "ends": ends}
    return twin.search(reader, twin.Setting(beams=options.pop("num_beams"), new_tokens=16, **options))


def _same(ours, slow, inputs):
    prompt = inputs["input_ids"].shape[1]
    for row, (score, answer) in enumerate(slow.sequences):
        assert ours.sequences[row, prompt : prompt + len(answer)].tolist() == answer
        assert abs(ours.sequences_scores[row].item() - score) <= of_scores()


@pytest.mark.parametrize("policy", [NoPruning(), PRUNING, PruneHal(r=0.5, t=3, kept="head"), TopK(5, step=1)], ids=repr)
@pytest.mark.parametrize("family", TWO)
def test_neutral_settings_are_stock_beam_search(family, policy):
    inputs, model = models.inputs_for(family, seed=SEED), models.build(family, eos=END_WORD)
    options = {"num_return_sequences": 3, "length_penalty": 0.7, "policy": policy}
    stock, theirs = generate(model, inputs, num_beams=4, **options)
    ours, cache = generate(model, inputs, OPERA(**NEUTRAL, num_beams=4), **options)
    _equal(stock, ours, 0.7)
    assert cache.events.equals(theirs.events)
    votes = [run.trace.votes().to_numpy(float) for run in (cache, theirs)]
    np.testing.assert_allclose(*votes, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 2.0])
def test_beams_end_by_the_rules_of_stock_generate(early_stopping, length_penalty):
    early, model = 0, models.build("llava")
    options = {"num_return_sequences": 3, "early_stopping": early_stopping, "length_penalty": length_penalty}
    for seed in range(3):
        inputs = models.inputs_for("llava", seed=seed)
        prompt = inputs["input_ids"].shape[1]
        free = generate(model, inputs, num_beams=3)[0].sequences[0, prompt:].tolist()
        for ends in ([free[2]], free[4:7]):
            stock, _ = generate(model, inputs, num_beams=3, eos_token_id=ends, **options)
            ours, _ = generate(model, inputs, OPERA(**NEUTRAL, num_beams=3), eos_token_id=ends, **options)
            _equal(stock, ours, length_penalty)
            early += sum(bool(set(ends) & set(answer)) for answer in ours.sequences[:, prompt:].tolist())
    assert early


def of_scores(length_penalty=1.0, tokens=16):
    """Return how far scores may lie apart: sums of log-probabilities, each off by two logits, over a power of the length."""
    return 2 * TOLERANCE * max(1, tokens ** (1 - length_penalty))  # of answers from one token to so many


def _equal(stock, ours, length_penalty):
    assert torch.equal(ours.sequences, stock.sequences)
    assert torch.equal(ours.beam_indices, stock.beam_indices)
    assert (ours.sequences_scores - stock.sequences_scores).abs().max() <= of_scores(length_penalty)
    assert len(ours.logits) == len(stock.logits)
    assert difference(stock, ours) <= TOLERANCE


def test_exact_caches_stay_at_stock_output():
    inputs, model = models.inputs_for("llava", seed=SEED), models.build("llava")
    stock = model.generate(**inputs, num_beams=3, max_new_tokens=10, do_sample=False)
    cache = attach(model, inputs, NoPruning(), exact=True)
    with OPERA(**NEUTRAL, num_beams=3).on(model, inputs, cache) as options:
        ours = model.generate(**inputs, **cache.options, max_new_tokens=10, do_sample=False, **options)
    assert torch.equal(ours, stock)


@pytest.mark.parametrize("family", TWO)
def test_after_a_shared_prefill_a_chunked_one_and_with_padding(family, returns):
    model, inputs, setting = quiet(family), models.inputs_for(family, seed=2), OPERA(**EAGER, threshold=1)
    alone, cache = generate(model, inputs, setting, PRUNING)
    places = list(returns)
    assert places
    shared = SharedPrefill(model, inputs)
    after = shared.attach(PRUNING, copies=3)
    with setting.on(model, inputs, after) as options:
        common = {"max_new_tokens": 16, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
        again = model.generate(**shared.inputs, **as_option(after), **common, **options)
    assert torch.equal(again.sequences, alone.sequences)
    assert (again.sequences_scores - alone.sequences_scores).abs().max() <= of_scores()
    assert after.events.equals(cache.events)
    padded = {name: value for name, value in inputs.items()}
    for name, filler in (("input_ids", models.PAD), ("attention_mask", 0), ("mm_token_type_ids", 0)):
        if name in inputs:
            padded[name] = torch.nn.functional.pad(inputs[name], (4, 0), value=filler)
    moved, _ = generate(model, padded, setting, PRUNING)
    assert torch.equal(moved.sequences[:, 4:], alone.sequences)
    assert (moved.sequences_scores - alone.sequences_scores).abs().max() <= of_scores()
    assert returns == places * 3


@pytest.mark.parametrize("family", ["llava_window", "gemma3", "instructblip", "llava_sinks", "qwen3_vl"])
def test_other_kinds_of_decoders_beside_pruning(family):
    inputs, model = models.inputs_for(family, seed=SEED), models.build(family)
    options = {"policy": PRUNING, "max_new_tokens": 8}
    words = model.config.get_text_config().vocab_size
    stock, theirs = generate(model, inputs, num_beams=3, **options)
    ours, cache = generate(model, inputs, OPERA(**NEUTRAL | {"candidates": words}, num_beams=3), **options)
    _equal(stock, ours, 0.7)
    assert cache.events.equals(theirs.events)


@pytest.mark.parametrize("policy", [NoPruning(), PRUNING, PruneHal(r=0.5, t=3, kept="head")], ids=repr)
def test_a_return_brings_back_the_cache_exactly(policy, monkeypatch):
    model, inputs = quiet("qwen2_5_vl"), models.inputs_for("qwen2_5_vl", seed=0)
    seen, before, mark, rewind = {}, [], Rewinder.mark, Rewinder.rewind

    def marked(self):
        made = mark(self)
        seen[id(made)] = (made, copy.deepcopy(self._cache))
        return made

    def compared(self, made, rows):
        rewind(self, made, rows)
        old, now = seen[id(made)][1], self._cache
        for one, other in zip(old.layers, now.layers, strict=True):
            assert torch.equal(one.slot_positions(), other.slot_positions())
            alive = (one.slot_positions() >= 0).expand(len(one.keys), one.keys.shape[1], -1)[..., None]
            assert torch.equal(one.keys * alive, other.keys * alive)
            assert torch.equal(one.values * alive, other.values * alive)
            assert (one.seen, one.length) == (other.seen, other.length)
        assert old.events.equals(now.events)
        assert old.trace.frame().equals(now.trace.frame())
        assert old._memory.prunes == now._memory.prunes
        assert torch.equal(old._memory._reference, now._memory._reference)
        before.append(made.read)

    monkeypatch.setattr(Rewinder, "mark", marked)
    monkeypatch.setattr(Rewinder, "rewind", compared)
    _, cache = generate(model, inputs, OPERA(**EAGER, threshold=1), policy)
    assert len(before) > 1
    assert (cache.events["step"] <= len(cache.trace)).all()


def test_looking_ahead_leaves_the_cache_alone(monkeypatch):
    made, run = [], LookAhead.__init__

    def compared(self, model, cache, inputs, candidates):
        old = copy.deepcopy(cache)
        run(self, model, cache, inputs, candidates)
        assert (old.step, old._pending) == (cache.step, None)
        assert len(old._trace) == len(cache._trace)
        for one, other in zip(old.layers, cache.layers, strict=True):
            assert torch.equal(one.keys, other.keys)
        made.append(candidates.shape)

    monkeypatch.setattr(retrospection.LookAhead, "__init__", compared)
    generate(quiet("llava"), models.inputs_for("llava", seed=1), OPERA(**EAGER), PRUNING, max_new_tokens=6)
    assert made == [(3, 3)] * 6


def test_the_processors_of_generate_apply():
    model, inputs = quiet("llava"), models.inputs_for("llava", seed=SEED)
    sums = []

    def record(ids, scores):
        sums.append(scores.exp().sum(-1))
        return scores

    free, _ = generate(model, inputs, OPERA(num_beams=3), logits_processor=[record])
    answer = free.sequences[0, inputs["input_ids"].shape[1] :]
    assert torch.stack(sums).sub(1).abs().max() <= TOLERANCE
    banned, _ = generate(model, inputs, OPERA(num_beams=3), bad_words_ids=[[token] for token in answer.tolist()])
    assert not set(answer.tolist()) & set(banned.sequences[0, inputs["input_ids"].shape[1] :].tolist())
    forced, _ = generate(model, inputs, OPERA(num_beams=3, candidates=1), prefix_allowed_tokens_fn=lambda row, ids: [5, 6])
    assert set(forced.sequences[0, inputs["input_ids"].shape[1] :].tolist()) <= {5, 6}


def test_with_one_candidate_the_penalty_has_no_effect_and_the_rest_keeps_its_order():
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
    scores = penalised(logits, torch.tensor([[1]]), torch.tensor([[50.0]]), 1.0)
    assert scores.argsort(descending=True).tolist() == [[1, 2, 3, 0]]
    assert scores[0, 1] == 0
    assert scores[0, 2] < -900


def test_products_stay_numbers_where_they_leave_the_floating_point_range():
    sums = torch.zeros(1, 0)
    for n in range(1, 400):  # column 0 vanishes once and grows ever after: 0 * inf
        row = torch.full((1, n), 1.0)
        row[0, 0] = 0.0 if n == 5 else 1.0
        sums = columns(sums, row, 50.0)
    phi, location = overtrust(sums, 1e-7)
    assert sums[0, 0] == -torch.inf
    assert not sums.isnan().any()
    assert (phi.item(), location.item()) == (65504.0, 1)
    assert overtrust(torch.full((1, 3), -torch.inf), 1.0)[0] == 0


def test_dropped_tokens_count_as_no_attention():
    torch.manual_seed(0)
    weights = torch.rand(2, 2, 3, 5)  # two rows, two KV heads of three heads each, five slots
    positions = torch.tensor([[[0, 3, 4, 6, 7]] * 2, [[-1, 0, 5, 6, 7], [-1, 1, 2, 6, 7]]])
    rows = by_position(weights, positions, 8)
    for row in range(2):
        expected = [0.0] * 8
        for head in range(6):
            for slot in range(5):
                at = positions[row, head // 3, slot].item()
                if at >= 0:
                    expected[at] = max(expected[at], weights[row, head // 3, head % 3, slot].item())
        assert rows[row].tolist() == pytest.approx([each / sum(expected) for each in expected])


def test_where_a_search_returns_to():
    history, rolled = [[4, 4, 4, 4]] * 2, {3: 0, 4: 0, 5: 0}
    assert place_to_return_to(4, history, 3, rolled, 2, chosen=8) == 5
    assert place_to_return_to(4, history, 4, rolled, 2, chosen=8) is None  # more than the threshold, not as many
    assert place_to_return_to(4, [*history, [4, 4, 4, 1]], 3, rolled, 2, chosen=8) is None  # every beam
    assert place_to_return_to(4, history, 3, {4: 0, 5: 2}, 2, chosen=8) == 4
    assert place_to_return_to(4, history, 3, {4: 2, 5: 2}, 2, chosen=8) is None
    assert place_to_return_to(4, history, 3, rolled, 2, chosen=5) is None  # the next token is not chosen yet
    assert place_to_return_to(4, history, 3, rolled, 2, chosen=6) == 5


def test_nothing_is_left_behind():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    cache = attach(model, inputs, PRUNING)

    def hooks():
        return [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]

    def fail(ids, scores):
        raise InterruptedError

    start = hooks()
    with pytest.raises(InterruptedError):
        generate(model, inputs, OPERA(), cache=cache, logits_processor=[fail])
    assert hooks() == start
    assert cache.listeners == []
    stock, _ = generate(model, inputs, num_beams=3)
    generate(model, inputs, OPERA(), PRUNING)
    assert torch.equal(generate(model, inputs, num_beams=3)[0].sequences, stock.sequences)


def test_presets():
    assert OPERA.preset("llava-1.5") == OPERA(alpha=1, sigma=50, candidates=5, threshold=15, num_beams=5)
    assert OPERA.preset("fast", alpha=2.0) == OPERA(alpha=2.0, candidates=1, threshold=25)
    assert all(OPERA.preset(name) for name in OPERA.PRESETS)
    with pytest.raises(ValueError, match="preset='llama'"):
        OPERA.preset("llama")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", -1), ("alpha", "1"), ("alpha", float("nan")), ("sigma", 0), ("sigma", True), ("scale", float("inf")),
        ("candidates", 0), ("threshold", -1), ("threshold", 1.5), ("num_beams", 1), ("warmup", 0),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}: expected"):
        OPERA(**{name: value})


def test_batches_are_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4))
    with pytest.raises(ValueError, match="a batch of 2"), OPERA().on(model, inputs, attach(model, inputs)):
        pass


def test_models_with_a_running_state_are_refused():
    model, inputs = models.build("qwen3_5"), models.inputs_for("qwen3_5")
    with pytest.raises(ValueError, match="LinearAttentionLayer"), OPERA().on(model, inputs, attach(model, inputs)):
        pass


def test_other_decoders_on_the_cache_are_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs)
    with listening(cache, Listener()), pytest.raises(ValueError, match="Listener is attached"), OPERA().on(model, inputs, cache):
        pass
    edit = editing(cache, [0], lambda scores, *, visual: scores)
    with edit, pytest.raises(ValueError, match="function is attached"), OPERA().on(model, inputs, cache):
        pass


def test_a_listener_that_comes_later_is_refused_too():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs)
    late = pytest.raises(ValueError, match="Listener is attached")
    with OPERA().on(model, inputs, cache) as options, listening(cache, Listener()), late:
        model.generate(**inputs, **cache.options, max_new_tokens=2, **options)


def test_the_options_are_needed_after_an_exception_too():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs)

    def fail(ids, scores):
        raise KeyError("interrupted")

    with OPERA().on(model, inputs, cache) as options:
        with pytest.raises(KeyError, match="interrupted"):
            model.generate(**inputs, **cache.options, max_new_tokens=2, logits_processor=[fail], **options)
        cache.reset()
        with pytest.raises(ValueError, match="without the options"):
            model.generate(**inputs, **cache.options, max_new_tokens=2)


def test_the_options_serve_inside_their_block_only():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs)
    with OPERA().on(model, inputs, cache) as options:
        pass
    with pytest.raises(ValueError, match=r"the block of OPERA.on\(\) that gave them has ended.*expected generate\(\) inside it"):
        model.generate(**inputs, **cache.options, max_new_tokens=3, **options)


def test_calls_that_would_be_no_opera_are_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs)
    with OPERA().on(model, inputs, cache), pytest.raises(ValueError, match="without the options"):
        model.generate(**inputs, **cache.options, max_new_tokens=2)
    cache = attach(model, inputs)
    with OPERA().on(model, inputs, cache) as options:
        with pytest.raises(ValueError, match="another cache"):
            model.generate(**inputs, max_new_tokens=2, **options)
        for wrong in ({"do_sample": True}, {"output_attentions": True, "return_dict_in_generate": True}):
            with pytest.raises(ValueError, match="is a beam search of its own"):
                model.generate(**inputs, **cache.options, max_new_tokens=2, **wrong, **options)
        model.generate(**inputs, **cache.options, max_new_tokens=2, **options)
        with pytest.raises(ValueError, match="observed 2 steps already"):
            model.generate(**inputs, **cache.options, max_new_tokens=2, **options)


def test_a_cache_that_was_pruned_before_the_answer_is_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    first = ph.FirstToken(model, inputs)
    cache = first.attach(TopK(3, step=1), copies=5)
    with OPERA().on(model, inputs, cache) as options, pytest.raises(ValueError, match="dropped from it before the answer"):
        model.generate(**first.inputs, **cache.options, max_new_tokens=2, **options)


def test_the_embedded_model_returns_and_prunes(returns):
    from prunehal.testbed.world.scenes import scene

    model, processor = ph.load()
    text = "<image>Describe this scene in detail."
    inputs = processor(images=scene("test", 0).image(), text=text, return_tensors="pt")
    ours, cache = generate(model, inputs, OPERA(threshold=2), max_new_tokens=64)
    assert returns
    assert len(cache.events) == 0
    pruned, cache = generate(model, inputs, OPERA(threshold=2), PruneHal(r=0.4, t=3), max_new_tokens=32)
    assert set(cache.events["reason"]) >= {"forced"}
    assert not torch.equal(pruned.sequences[0, -5:], ours.sequences[0, -5:])
