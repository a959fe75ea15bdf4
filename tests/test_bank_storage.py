"""What the bank stores and where, and how it goes with what stands beside it: later turns, drafts, decoders, experiments."""

import copy
import itertools
from dataclasses import replace

import models
import pytest
import torch
from decode import SEED, TOLERANCE, difference, run, second_turn
from test_bank import FALLS, KEYS, short

from prunehal.core import Bank, Draft, NoPruning, SharedPrefill, attach
from prunehal.core.keyword import as_option
from prunehal.core.vault import decoded, encoded
from prunehal.decoding import OPERA, PAI, VCD, KVSmooth
from prunehal.experiments import Experiment, sweep
from prunehal.experiments.experiment import policy_from


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_integers_are_near(dtype):
    torch.manual_seed(0)
    whole = (torch.randn(2, 3, 50, 16) * torch.logspace(-3, 2, 50)[:, None]).to(dtype)
    whole[0, 0, 0] = 0
    parts = encoded(whole, "int8")
    assert (parts[0].dtype, parts[1].shape) == (torch.int8, (2, 3, 50, 1))
    apart = (decoded(parts, whole).double() - whole.double()).abs()
    step = whole.double().abs().amax(-1, keepdim=True) / 127
    rounding = torch.finfo(dtype).eps * whole.double().abs().amax(-1, keepdim=True)
    assert (apart <= step / 2 * (1 + 1e-5) + rounding).all()
    assert apart.max() > 0


@pytest.mark.parametrize("policy", [FALLS[0], KEYS[0]], ids=short)
def test_a_token_is_rounded_once(policy):
    # Swapped in and out again and again, a token's K and V are those that its first stay in the bank made of them.
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    exact, full = run(model, inputs, NoPruning())
    ours, cache = run(model, inputs, replace(policy, store="int8"))
    stayed = set.intersection(*(set(cache.kept(0, step)[0].tolist()) for step in range(1, 15)))
    assert len(stayed) < len(cache.kept(0)[0])
    positions = cache.layers[0].slot_positions()[0, 0].tolist()
    for position in cache.kept(0)[0].tolist():
        for ours_part, part in ((cache.layers[0].keys, full.layers[0].keys), (cache.layers[0].values, full.layers[0].values)):
            original = part[:, :, position : position + 1]
            wanted = original if position in stayed else decoded(encoded(original, "int8"), original)
            slot = positions.index(position)
            assert torch.allclose(ours_part[:, :, slot : slot + 1], wanted, atol=1e-6), position
    assert exact.logits[0].equal(ours.logits[0])


@pytest.mark.parametrize("back", ["fall", "key"])
def test_memory_leaves_the_layers_and_is_counted(back):
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    heads, dim = 2, model.config.get_text_config().head_dim
    _, whole = run(model, inputs, NoPruning(), steps=3)
    sizes = {"device": 2 * 4 * dim, "cpu": 2 * 4 * dim, "int8": 2 * (dim + 4)}
    for store, size in sizes.items():
        options = {"r": 0.25, "t": 1, "back": back, "store": store}
        _, cache = run(model, inputs, Bank(**options, **({"every": 99} if back == "key" else {"factor": 1e-6})), steps=3)
        assert [len(kept) for kept in map(lambda i: cache.kept(i)[0], range(4))] == [4] * 4
        for layer, full in zip(cache.layers, whole.layers, strict=True):
            assert layer.length == full.length - 12
            assert full.nbytes() - layer.nbytes() == (12 - 1) * heads * 2 * 4 * dim  # all K and V but those of step 2 are copied
        assert cache.bank_bytes == 4 * 12 * heads * size
        cache.release()
        assert cache.bank_bytes == 0


def test_the_bank_empties():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    _, cache = run(model, inputs, Bank(r=0.6, t=1, factor=1.0))
    assert cache.events["reason"].tolist() == ["forced", "returned"]
    assert cache.events["returned"].tolist() == [[0] * 4, [7] * 4]
    assert cache.bank_bytes == 0
    _, whole = run(model, inputs, NoPruning())
    assert [layer.length for layer in cache.layers] == [layer.length for layer in whole.layers]


@pytest.mark.parametrize("kept", ["layer", "shared"])
def test_swaps_equal_one_exchange_after_the_other(kept):
    generator = torch.Generator().manual_seed(3)
    policy = Bank(back="key", kept=kept)
    for _ in range(50):
        weights = torch.randint(0, 4, (2, 3, 1, 9), generator=generator).float()
        present = torch.rand(1, 3, 1, 9, generator=generator).gt(0.2).expand_as(weights)
        valid = torch.rand(1, 3, 1, 9, generator=generator).gt(0.5).expand_as(weights) & present
        keep = policy.swapped(weights, valid, present)
        for layer, row in itertools.product(range(2), range(3)):
            w = weights.mean(0) if kept == "shared" else weights[layer]
            w = w[row, 0].tolist()
            held = valid[layer, row, 0].nonzero().flatten().tolist()
            bank = [p for p in present[layer, row, 0].nonzero().flatten().tolist() if p not in held]
            while bank and held:
                best, worst = min(bank, key=lambda p: (-w[p], p)), max(held, key=lambda p: (-w[p], p))
                if w[best] <= w[worst]:
                    break
                bank.remove(best)
                held[held.index(worst)] = best
            assert keep[layer, row, 0].nonzero().flatten().tolist() == sorted(held)


@pytest.mark.parametrize("policy", [FALLS[0], KEYS[0]], ids=short)
def test_a_second_turn_and_a_copy_go_on(policy):
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    first, cache = run(model, inputs, policy, steps=8)
    other = copy.deepcopy(cache)
    ours, again = (second_turn(model, inputs, each, first) for each in (cache, other))
    assert difference(ours, again) == 0
    assert cache.step == 8 + 6
    assert cache.events["step"].max() > 8
    assert cache.events.equals(other.events)
    cache.reset()
    anew, _ = run(model, inputs, steps=8, **cache.options)
    assert difference(first, anew) == 0


@pytest.mark.parametrize("policy", [FALLS[0], KEYS[0]], ids=short)
def test_a_shared_prefill_and_a_draft(policy):
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    plain, cache = run(model, inputs, policy)
    shared = SharedPrefill(model, inputs)
    own = shared.attach(policy)
    ours, _ = run(model, shared.inputs, steps=14, **own.options)
    assert difference(plain, ours) <= TOLERANCE
    assert cache.events.equals(own.events)
    # What keep= drops is no token of the bank.
    marks = (inputs["input_ids"] == models.IMAGE) & (torch.arange(inputs["input_ids"].shape[1]) % 2 == 0)
    few = shared.attach(policy, keep=marks)
    run(model, shared.inputs, **as_option(few))
    assert {"returned", "swapped"} & set(few.events["reason"])
    assert all(
        set(kept.tolist()) <= set(mark.nonzero().flatten().tolist()) for kept, mark in zip(few.kept(0), marks, strict=True)
    )
    # A draft only asks what the policy would keep.
    drafted = Draft(model, inputs, max_new_tokens=6)
    second = drafted.attach(policy, then=policy)
    run(model, drafted.inputs, **second.options, steps=6)
    assert drafted.draft.events.empty
    assert second.trace.frame()["n_visual"].iloc[0] == 9


@pytest.mark.parametrize("method", [VCD(), PAI(), KVSmooth(0.5, 0.1)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("policy", [FALLS[0], KEYS[0]], ids=short)
def test_decoders_stand_beside_it(method, policy):
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    cache = attach(model, inputs, policy)
    with method.on(model, inputs, cache) as options:
        run(model, inputs, **cache.options, steps=10, **options)
    assert {"returned", "swapped"} & set(cache.events["reason"])


def test_a_search_that_takes_steps_back_is_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=SEED)
    cache = attach(model, inputs, Bank())
    with pytest.raises(ValueError, match=r"OPERA takes steps back.*Fix: PruneHal"), OPERA().on(model, inputs, cache):
        pass


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Bank(back="vote"), ["back='vote'", "'fall'", "'key'"]),
        (lambda: Bank(store="disk"), ["store='disk'", "'int8'"]),
        (lambda: Bank(back="key", every=0), ["every=0", "at least 1"]),
        (lambda: Bank(every=2), ["every=2", "leave it out"]),
        (lambda: Bank(back="key", selection="random"), ["selection='random'", "leave it out"]),
        (lambda: Bank(r=2), ["r=2", "(0, 1]"]),
    ],
)
def test_bad_settings_are_named(make, parts):
    with pytest.raises(ValueError, match="expected") as error:
        make()
    assert all(part in str(error.value) for part in parts), error.value


def test_experiments_count_prunes_without_the_returns(tmp_path):
    wanted = Experiment(n_images=2, max_new_tokens=60, policy=policy_from({"name": "Bank", "r": 0.4, "t": 1}))
    store = sweep([wanted], tmp_path, progress=False)
    assert [[event[1] for event in row["events"]] for row in store.rows(wanted).values()] == [["forced", "returned"]] * 2
    assert store.captions(wanted)["prunes"].tolist() == [1, 1]
    assert store.events(wanted)["reason"].tolist() == ["forced"] * 2
