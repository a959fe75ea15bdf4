"""Stock generate() with a pruning cache: every option, against stock output and the masked full cache of tests/reference.py.

What needs no option is checked over all families, in test_families.py and test_family_search.py.
"""

from concurrent.futures import ThreadPoolExecutor

import models
import pytest
import reference
import torch
from decode import SEED, TOLERANCE, Accumulated, compare, difference, forcing, masked, paddings, run
from families.base import SLICES

from prunehal.core import NoPruning, PruneHal, TopK, attach

FAMILIES = ["llava", "qwen2_5_vl"]


@pytest.mark.parametrize("policy", [NoPruning(), TopK(models.VISUAL), PruneHal(t=0)], ids=repr)
def test_policies_that_drop_nothing_equal_stock(policy):
    model, inputs = models.build("qwen2_5_vl"), models.inputs_for("qwen2_5_vl", (3, 6), (5, 4))
    stock, _ = run(model, inputs)
    ours, cache = run(model, inputs, policy)
    assert torch.equal(stock.sequences, ours.sequences)
    assert difference(stock, ours) <= TOLERANCE
    assert cache.events.empty


OPTIONS = [
    {},
    {"r": 0.7, "t": 5},
    {"t": 1},
    {"forced_first": False, "factor": 1.0},
    {"statistic": "sum"},
    {"first": "decode"},
    {"reference": "first", "factor": 0.9},
    {"reference": "exponential", "decay": 0.5, "factor": 0.9},
    {"reference": "previous"},
    {"after_prune": "restart"},
    {"majority": 0.25},
    {"majority": 1.0, "factor": 1.0},
    {"rounding": "ceil"},
    {"selection": "lowest"},
    {"kept": "shared"},
    {"kept": "head"},
]


CASES = [("qwen2_5_vl", options) for options in OPTIONS]
CASES += [("llava", options) for options in OPTIONS if options in ({}, {"kept": "head"}, {"after_prune": "restart"})]
CASES += [("llava_window", options) for options in OPTIONS if options == {"kept": "head"}]


@pytest.mark.parametrize(("family", "options"), CASES, ids=repr)
def test_pruned_decode_equals_masked_full_cache(family, options):
    policy = PruneHal(**({"r": 0.4, "t": 3} | options))
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    slow = masked(family, policy, seed=SEED)
    ours, cache = run(model, inputs, policy)
    compare(slow, ours, cache)
    if not options:
        assert [reason for _, reason, _ in slow.whole.events[:2]] == ["forced", "vote"]


def test_two_images_whose_kept_sets_differ_by_head():
    # Kept tokens of one head lie before the words, those of another behind: slots differ, not positions only.
    prompt, policy = {"before": (3, 6), "after": (5, 4), "seed": SEED, "images": 2}, PruneHal(factor=1.0, kept="head")
    inputs = models.inputs_for("llava", **prompt)
    ours, cache = run(models.build("llava"), inputs, policy)
    for row, padding in enumerate(paddings(inputs)):
        slow = masked("llava", policy, row, **prompt)
        compare(slow, ours, cache, row, padding)
    assert len(slow.whole.events) > 1


def test_scores_may_accumulate():
    model, inputs = models.build("qwen2_5_vl"), models.inputs_for("qwen2_5_vl", (3, 6), (5, 4), seed=SEED)
    _, cache = run(model, inputs, Accumulated(factor=1.0), attach_options={"maps": True})
    assert cache.events.groupby("row").size().min() > 1
    for event in cache.events.itertuples():
        for layer in range(3):
            maps = cache.trace.maps[: event.step, layer, event.row]
            present = (~maps[-1].isnan()).nonzero().flatten().tolist()
            totals = maps.nan_to_num().sum(0)[present].tolist()
            best = [present[i] for i in reference.keep_best(totals, event.kept[layer])]
            assert (~cache.trace.maps[event.step, layer, event.row].isnan()).nonzero().flatten().tolist() == best


@pytest.mark.parametrize("selection", ["random", "lowest"])
def test_controls_do_not_depend_on_the_batch(selection):
    model, policy = models.build("llava"), PruneHal(r=0.4, t=2, selection=selection, seed=4)
    inputs = models.inputs_for("llava", (3, 6), (5, 4))
    ours, cache = run(model, inputs, policy, attach_options={"seeds": [11, 12]})
    for row, single in enumerate(models.rows_of(inputs)):
        alone, alone_cache = run(model, single, policy, attach_options={"seeds": [11 + row]})
        count, padding = len(alone.logits), inputs["input_ids"].shape[1] - single["input_ids"].shape[1]
        assert torch.equal(alone.sequences[0, -count:], ours.sequences[row, -len(ours.logits) :][:count])
        for layer in range(4):
            assert torch.equal(cache.kept(layer)[row] - padding, alone_cache.kept(layer)[0])
    if selection == "random":
        assert not torch.equal(cache.kept(0)[0] - 3, cache.kept(0)[1] - 6)


@pytest.mark.skipif(not SLICES, reason="the installed transformers leaves the images out of a prompt read in chunks")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 7, 8, 23])
def test_chunked_prefill(family, chunk):
    model, inputs = models.build(family), models.inputs_for(family)
    whole, cache = run(model, inputs, PruneHal())
    chunked, chunked_cache = run(model, inputs, PruneHal(), prefill_chunk_size=chunk)
    assert torch.equal(whole.sequences, chunked.sequences)
    assert difference(whole, chunked) <= TOLERANCE
    assert cache.events.equals(chunked_cache.events)
    assert len(chunked_cache.trace) == len(chunked.logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"kept": "head"}, {"reference": "previous", "after_prune": "restart"}], ids=str)
def test_pruned_beam_equals_its_sequence_alone(family, options):
    # The logits of a beam depend on its tokens only: forcing them on one row must give the beam's scores again.
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    policy = PruneHal(r=0.4, t=3, factor=1.0, **options)
    beams, cache = run(model, inputs, policy, num_beams=4, steps=10, output_scores=True)
    assert set(cache.events["reason"]) == {"forced", "vote"}
    path = beams.beam_indices[0].tolist()
    tokens = beams.sequences[0, -10:].tolist()
    assert len(set(path)) > 1, "the sequence should change its beam"
    alone, _ = run(model, inputs, policy, steps=10, prefix_allowed_tokens_fn=forcing(tokens))
    for step, row in enumerate(path):
        assert (beams.logits[step][row] - alone.logits[step][0]).abs().max() <= TOLERANCE, step


def test_a_second_turn_after_beams_is_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=SEED)
    for second in ({}, {"num_beams": 3}):
        first, cache = run(model, inputs, PruneHal(), steps=4, num_beams=3)
        ids = torch.cat([first.sequences, torch.tensor([[5, 6]] * 2)], dim=1)
        with pytest.raises(ValueError, match=r"beam search has moved the rows.*attach a new cache to the whole conversation"):
            run(model, {"input_ids": ids}, steps=4, **cache.options, **second)
    first, cache = run(model, inputs, PruneHal(), steps=4, num_return_sequences=3, do_sample=True)
    ids = torch.cat([first.sequences, torch.tensor([[5, 6]] * 6)], dim=1)
    with pytest.raises(ValueError, match=r"a later prompt of 2 rows arrives, and this cache holds 6; expected as many"):
        run(model, {"input_ids": ids[::3]}, steps=4, **cache.options)
    assert len(run(model, {"input_ids": ids}, steps=4, **cache.options)[0].sequences) == 6


def test_shared_beam_state_prunes_the_beams_of_an_input_alike():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4))
    _, cache = run(model, inputs, PruneHal(beam_state="shared"), num_beams=3)
    for layer in range(4):
        kept = [positions.tolist() for positions in cache.kept(layer)]
        assert kept[0] == kept[1] == kept[2] != kept[3] == kept[4] == kept[5]


def test_shared_beam_state_leaves_ended_sequences_out_of_the_trace():
    inputs, policy = models.inputs_for("llava"), PruneHal(beam_state="shared")

    def sampled(model):
        torch.manual_seed(3)  # after the model is built, which draws its weights
        return run(model, inputs, policy, do_sample=True, num_return_sequences=3)

    free, _ = sampled(models.build("llava"))
    tokens = free.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    written = [token for line in tokens for token in line]
    end = next(token for line in tokens for token in line[2:8] if written.count(token) == 1)
    ours, cache = sampled(models.build("llava", eos=end))
    written = ours.sequences[:, inputs["input_ids"].shape[1] :]
    lengths = [line.index(end) + 1 if end in line else len(line) for line in written.tolist()]
    assert min(lengths) < max(lengths)
    assert cache.trace.frame().groupby("row")["step"].max().tolist() == lengths


def test_threads_do_not_mix_their_caches():
    model, jobs = models.build("llava"), [models.inputs_for("llava", seed=seed) for seed in range(4)]
    settings = dict(max_new_tokens=10, do_sample=False)

    def work(inputs):
        cache = attach(model, inputs, PruneHal(factor=1.0))
        return model.generate(**inputs, **cache.options, **settings), cache.events

    alone = [work(inputs) for inputs in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, jobs))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1].equals(other[1])
