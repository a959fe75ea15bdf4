"""Stock generate() with a pruning cache, against stock output and the masked full cache of tests/reference.py."""

from concurrent.futures import ThreadPoolExecutor

import models
import pytest
import reference
import torch
from transformers import DynamicCache

from prunehal.core import NoPruning, PruneHal, TopK, attach

FAMILIES = ["llava", "qwen2_5_vl"]
SEED = 8  # of inputs whose votes succeed at several steps, in every family
TOLERANCE = 1e-5  # logits are of unit size; each planted mistake moves them by more than 1e-3


def run(model, inputs, policy=None, steps=14, attach_options=None, **options):
    cache = None if policy is None else attach(model, inputs, policy, **(attach_options or {}))
    settings = dict(max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True) | options
    return model.generate(**inputs, past_key_values=cache, **settings), cache


def masked(family, inputs, policy, steps=14):
    model = models.build(family, "eager")
    layers = models.FAMILIES[family].decoder(model)
    return reference.generate(model, layers, inputs, policy, [models.IMAGE, models.VIDEO], steps)


def difference(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one.logits, other.logits, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [PruneHal(r=1.0), NoPruning(), TopK(models.VISUAL), PruneHal(t=0)], ids=repr)
def test_without_pruning_equals_stock_generate(family, policy):
    model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4))
    stock, _ = run(model, inputs)
    ours, cache = run(model, inputs, policy)
    assert torch.equal(stock.sequences, ours.sequences)
    assert difference(stock, ours) <= TOLERANCE
    assert cache.events.empty


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_is_bit_identical(family):
    model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4))
    stock, _ = run(model, inputs)
    ours, cache = run(model, inputs, NoPruning(), attach_options={"exact": True})
    assert all(torch.equal(a, b) for a, b in zip(stock.logits, ours.logits, strict=True))
    _, other = run(model, inputs, NoPruning())
    columns = ["mass", "mean", "max", "entropy"]
    difference_of_rows = cache.trace.frame()[columns] - other.trace.frame()[columns]
    assert difference_of_rows.abs().to_numpy().max() <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_without_pruning_equals_stock(family):
    model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4))
    torch.manual_seed(7)
    stock, _ = run(model, inputs, do_sample=True, num_return_sequences=2)
    torch.manual_seed(7)
    ours, cache = run(model, inputs, PruneHal(r=1.0), do_sample=True, num_return_sequences=2)
    assert torch.equal(stock.sequences, ours.sequences)
    assert [len(positions) for positions in cache.kept(0)] == [models.VISUAL] * 4


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
CASES += [("llava_window", options) for options in OPTIONS if options in ({}, {"kept": "head"})]


@pytest.mark.parametrize(("family", "options"), CASES, ids=repr)
def test_pruned_decode_equals_masked_full_cache(family, options):
    policy = PruneHal(**({"r": 0.4, "t": 3} | options))
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    slow = masked(family, inputs, policy)
    ours, cache = run(model, inputs, policy)
    compare(slow, ours, cache, 0)
    if not options:
        assert [reason for _, reason, _ in slow.whole.events[:2]] == ["forced", "vote"]


def compare(slow, ours, cache, row):
    tokens = ours.sequences[row, -len(ours.logits) :].tolist()[: len(slow.tokens)]
    assert tokens == slow.tokens
    for step, logits in enumerate(slow.logits):
        assert (ours.logits[step][row] - logits).abs().max() <= TOLERANCE, f"step {step + 1}"
    events = cache.events[cache.events["row"] == row]
    assert [(e.step, e.reason, e.kept[0]) for e in events.itertuples()] == slow.whole.events
    padding = cache.kept(0)[row].numel() and int((ours.sequences[row] == models.PAD).long().cumprod(0).sum())
    for layer, heads in enumerate(slow.whole.kept):
        assert (cache.kept(layer)[row] - padding).reshape(len(heads), -1).tolist() == heads
    frame, votes = cache.trace.frame(), cache.trace.votes()
    masses = frame[frame["row"] == row].pivot(index="step", columns="layer", values="mass").to_numpy()
    values = votes[votes["row"] == row].pivot(index="step", columns="layer", values="value").to_numpy()
    assert abs(masses - slow.whole.masses).max() <= TOLERANCE
    assert abs(values - slow.whole.values).max() <= TOLERANCE


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*FAMILIES, "llava_window"])
def test_batch_equals_one_by_one(family, attn):
    # Early votes, so that rows without padding have dead slots for a while.
    model, policy = models.build(family, attn), PruneHal(r=0.4, t=3, factor=1.0)
    inputs = models.inputs_for(family, (3, 6, 1), (5, 4, 9), seed=SEED)
    ours, cache = run(model, inputs, policy, attach_options={"maps": True})
    steps = set()
    for row, single in enumerate(models.rows_of(inputs)):
        slow = masked(family, single, policy)
        compare(slow, ours, cache, row)
        steps.add(tuple(step for step, _, _ in slow.whole.events))
        alone, alone_cache = run(model, single, policy, attach_options={"maps": True})
        count = len(alone.logits)
        assert torch.equal(alone.sequences[0, -count:], ours.sequences[row, -len(ours.logits) :][:count])
        both = cache.trace.maps[:count, :, row], alone_cache.trace.maps[:, :, 0]
        assert torch.equal(both[0].isnan(), both[1].isnan())
        assert (both[0] - both[1]).nan_to_num().abs().max() <= TOLERANCE
    assert len(steps) > 1, "the rows should trigger at different steps"


@pytest.mark.parametrize("kept", ["layer", "head"])
def test_two_images_with_text_between(kept):
    # Kept tokens of one layer or head lie before the words, those of another behind: slots differ, not positions only.
    model, policy = models.build("llava"), PruneHal(r=0.4, t=3, factor=1.0, kept=kept)
    inputs = models.inputs_for("llava", (3, 6), (5, 4), seed=SEED, images=2)
    ours, cache = run(model, inputs, policy)
    for row, single in enumerate(models.rows_of(inputs)):
        slow = masked("llava", single, policy)
        compare(slow, ours, cache, row)
    assert len(slow.whole.events) > 1


class Accumulated(PruneHal):
    """Rank by the attention of all steps together: a policy that overrides ``score`` only."""

    def score(self, rows, previous):
        return rows if previous is None else rows + previous


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


def second_turn(model, inputs, cache, first):
    ids = torch.cat([first.sequences, torch.tensor([[5, 6, 7]]).expand(len(first.sequences), -1)], dim=1)
    longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    longer["attention_mask"][:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
    if "image_grid_thw" in inputs:
        longer |= {"image_grid_thw": inputs["image_grid_thw"], "mm_token_type_ids": (ids == models.IMAGE).long()}
    settings = dict(max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return model.generate(**longer, past_key_values=cache, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_second_generate_without_pruning_equals_stock(family):
    model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4))
    stock_cache = DynamicCache(config=model.config)
    settings = dict(max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True)
    stock = second_turn(model, inputs, stock_cache, model.generate(**inputs, past_key_values=stock_cache, **settings))
    first, cache = run(model, inputs, NoPruning(), steps=5)
    ours = second_turn(model, inputs, cache, first)
    assert torch.equal(stock.sequences, ours.sequences)
    assert difference(stock, ours) <= TOLERANCE
    assert len(cache.trace) == 11  # the new prompt is one step more, as its last query gives the next token


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_second_generate_after_a_prune(family, attn):
    # Reading the longer prompt in one forward must equal reading it token by token, which the reference has verified.
    model, inputs = models.build(family, attn), models.inputs_for(family, (3, 6), (5, 4))
    policy = TopK(5)
    first, cache = run(model, inputs, policy, steps=5)
    ours = second_turn(model, inputs, cache, first)
    other, tokenwise = run(model, inputs, policy, steps=5)
    assert torch.equal(first.sequences, other.sequences)
    length, mask = first.sequences.shape[1], inputs["attention_mask"]
    fed = torch.cat([first.sequences[:, -1:], ours.sequences[:, length:]], dim=1)
    logits = []
    offset = model.model.rope_deltas if family == "qwen2_5_vl" else 0
    for column in range(fed.shape[1] - 1):
        seen = tokenwise.get_seq_length()
        full = torch.cat([mask, mask.new_ones(len(mask), seen + 1 - mask.shape[1])], dim=1)
        position = full.sum(1, keepdim=True) - 1 + offset
        if family == "qwen2_5_vl":
            position = position[None].expand(4, -1, -1)
        with torch.no_grad():
            ids = fed[:, column : column + 1]
            out = model(input_ids=ids, attention_mask=full, position_ids=position, past_key_values=tokenwise)
        logits.append(out.logits[:, -1])
    for step, expected in enumerate(logits[3:]):
        assert (ours.logits[step] - expected).abs().max() <= TOLERANCE, step


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_without_pruning_equal_stock(family):
    model, inputs = models.build(family), models.inputs_for(family, (3, 6), (5, 4))
    stock, _ = run(model, inputs, num_beams=3)
    ours, _ = run(model, inputs, PruneHal(r=1.0), num_beams=3)
    assert torch.equal(stock.sequences, ours.sequences)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"kept": "head"}, {"reference": "previous", "after_prune": "restart"}], ids=str)
def test_pruned_beam_equals_its_sequence_alone(family, options):
    # The logits of a beam depend on its tokens only: forcing them on one row must give the beam's scores again.
    model, inputs = models.build(family), models.inputs_for(family, seed=SEED)
    policy = PruneHal(r=0.4, t=3, factor=1.0, **options)
    beams, cache = run(model, inputs, policy, num_beams=4, steps=10, output_scores=True)
    assert set(cache.events["reason"]) == {"forced", "vote"}
    path = beams.beam_indices[0].tolist()
    tokens = beams.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(set(path)) > 1, "the sequence should change its beam"

    def forced(batch, ids):
        return [tokens[len(ids) - inputs["input_ids"].shape[1]]]

    alone, _ = run(model, inputs, policy, steps=10, prefix_allowed_tokens_fn=forced)
    for step, row in enumerate(path):
        assert (beams.logits[step][row] - alone.logits[step][0]).abs().max() <= TOLERANCE, step


def test_shared_beam_state_prunes_the_beams_of_an_input_alike():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4))
    _, cache = run(model, inputs, PruneHal(beam_state="shared"), num_beams=3)
    for layer in range(4):
        kept = [positions.tolist() for positions in cache.kept(layer)]
        assert kept[0] == kept[1] == kept[2] != kept[3] == kept[4] == kept[5]


def test_threads_do_not_mix_their_caches():
    model, jobs = models.build("llava"), [models.inputs_for("llava", seed=seed) for seed in range(4)]
    settings = dict(max_new_tokens=10, do_sample=False)

    def work(inputs):
        cache = attach(model, inputs, PruneHal(factor=1.0))
        return model.generate(**inputs, past_key_values=cache, **settings), cache.events

    alone = [work(inputs) for inputs in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, jobs))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1].equals(other[1])


def test_finished_rows_neither_vote_nor_appear():
    inputs, policy = models.inputs_for("llava", (3, 6), (5, 4), seed=SEED), PruneHal(factor=1.0, t=9)
    endless, _ = run(models.build("llava"), inputs, policy)
    tokens, others = endless.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    end = next(step for step in range(5, 14) if tokens[step - 1] not in tokens[: step - 1] + others)
    model = models.build("llava", eos=tokens[end - 1])  # row 0 ends with this step
    ours, cache = run(model, inputs, policy)
    alone, alone_cache = run(model, models.rows_of(inputs)[0], policy)
    assert len(alone.logits) == end < len(ours.logits)
    frame = cache.trace.frame()
    assert frame.groupby("row")["step"].max().tolist() == [end, len(ours.logits)]
    steps = cache.events.loc[cache.events["row"] == 0, "step"].tolist()
    assert steps == alone_cache.events["step"].tolist() != []
    for layer in range(4):
        padding = inputs["input_ids"].shape[1] - models.rows_of(inputs)[0]["input_ids"].shape[1]
        assert torch.equal(cache.kept(layer)[0] - padding, alone_cache.kept(layer)[0])
