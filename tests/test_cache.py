"""The cache itself: what is stored, what is reported, and what the user reads."""

import copy
import gc
import math
import weakref

import models
import pytest
import reference
import torch
from decode import TOLERANCE, Accumulated
from transformers import DynamicCache

from prunehal.core import Listener, NoPruning, PruneHal, TopK, attach, listening
from prunehal.core.blocks import BLOCK
from prunehal.core.keyword import as_option
from prunehal.core.selection import random_scores
from prunehal.core.table import VisualTable
from prunehal.core.trace import statistics

FAMILIES = ["llava", "qwen2_5_vl"]


def prefill(family, policy, before=(3, 6), after=(5, 4), **options):
    model, inputs = models.build(family), models.inputs_for(family, before, after)
    cache = attach(model, inputs, policy, **options)
    with torch.no_grad():
        model(**inputs, **cache.options)
    return model, inputs, cache


def test_lengths_are_logical_and_blocks_grow():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache, prompt = attach(model, inputs, TopK(2)), inputs["input_ids"].shape[1]
    model.generate(**inputs, **cache.options, max_new_tokens=BLOCK + 9)
    for layer in cache.layers:
        assert layer.length == prompt + BLOCK + 8 - models.VISUAL + 2
        assert layer.get_seq_length() == prompt + BLOCK + 8
        assert layer.get_mask_sizes(1) == (prompt + BLOCK + 9, 0)
        assert layer.get_max_length() == -1
    assert cache.get_seq_length() == prompt + BLOCK + 8


def test_rows_of_different_length_share_a_width():
    # Only the row that votes is pruned: the other row's tokens set the width, and the free slots are dead.
    model = models.build("llava")
    inputs = models.inputs_for("llava", (3, 6, 1), (5, 4, 9), seed=9)
    cache = attach(model, inputs, PruneHal(r=0.4, t=3))
    model.generate(**inputs, **cache.options, max_new_tokens=14, do_sample=False)
    left = [len(positions) for positions in cache.kept(0)]
    assert len(set(left)) > 1
    for index, layer in enumerate(cache.layers):
        positions = layer.slot_positions()[:, 0]
        alive = (positions >= 0).sum(1)
        assert layer.length == positions.shape[1] == alive.max()
        assert (alive - alive.min()).tolist() == [n - min(left) for n in left]
        for row, kept in enumerate(cache.kept(index)):
            assert set(kept.tolist()) <= set(positions[row].tolist())
            assert positions[row].diff().ge(0).all()


def test_slot_masks():
    _, inputs, cache = prefill("llava", TopK(5, step=1))
    assert cache.layers[0].slot_mask(None, 1) is None
    flat, full = inputs["attention_mask"], inputs["attention_mask"].bool()[:, None, None]
    assert cache.layers[0].slot_mask(flat, 1) is flat
    assert len(cache.events) == 2
    layer = cache.layers[0]
    positions = layer.slot_positions()[:, 0]
    assert layer.slot_mask(None, 1) is None, "every slot is alive"
    assert torch.equal(layer.slot_mask(flat, 1), flat.gather(1, positions))
    assert torch.equal(layer.slot_mask(full, 1)[:, 0, 0], full[:, 0, 0].gather(1, positions))
    additive = torch.where(full, 0.0, -1e30)
    assert torch.equal(layer.slot_mask(additive, 1)[:, 0, 0], additive[:, 0, 0].gather(1, positions))


def test_kept_looks_back_in_time():
    model, inputs = models.build("qwen2_5_vl"), models.inputs_for("qwen2_5_vl", seed=9)
    cache = attach(model, inputs, PruneHal(), maps=True)
    model.generate(**inputs, **cache.options, max_new_tokens=14, do_sample=False)
    steps = cache.events["step"].tolist()
    assert len(steps) > 1
    start = int((inputs["input_ids"][0] == models.IMAGE).nonzero()[0])
    for step in range(1, cache.step + 1):
        for layer in range(3):
            seen = (~cache.trace.maps[step - 1, layer, 0].isnan()).nonzero().flatten() + start
            assert torch.equal(cache.kept(layer, step)[0], seen)
    counts = [len(cache.kept(0, step)[0]) for step in (1, 2, 3)]
    assert counts == [16, 16, 6]


def test_trace_equals_the_loop():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4))
    cache = attach(model, inputs, PruneHal(), maps=True, entropy=True)
    model.generate(**inputs, **cache.options, max_new_tokens=6, do_sample=False)
    frame = cache.trace.frame()
    assert list(frame.columns) == ["row", "step", "layer", "mass", "mean", "max", "n_visual", "entropy"]
    assert len(frame) == 2 * 6 * 4
    for line in frame.itertuples():
        row = [w for w in cache.trace.maps[line.step - 1, line.layer, line.row].tolist() if w == w]
        assert line.n_visual == len(row)
        assert line.mass == pytest.approx(sum(row), abs=1e-6)
        assert line.mean == pytest.approx(sum(row) / len(row), abs=1e-6)
        assert line.max == pytest.approx(max(row), abs=1e-6)
        assert line.entropy == pytest.approx(reference.entropy(row), abs=1e-5)


def test_votes_are_recorded():
    model, inputs = models.build("qwen2_5_vl"), models.inputs_for("qwen2_5_vl", seed=9)
    cache = attach(model, inputs, PruneHal(r=0.4, t=9))
    model.generate(**inputs, **cache.options, max_new_tokens=14, do_sample=False)
    votes = cache.trace.votes()
    assert list(votes.columns) == ["row", "step", "layer", "value", "reference", "threshold", "vote"]
    assert votes.loc[votes["step"] == 1, "reference"].isna().all()
    later = votes[votes["step"] > 1]
    assert (later["threshold"] - later["reference"] * 0.4**0.5).abs().max() < 1e-7
    assert (later["vote"] == (later["value"] < later["threshold"])).all()
    majority = later.groupby("step")["vote"].sum() > 1.5
    events = cache.events
    assert events.loc[events["reason"] == "vote", "step"].isin(majority[majority].index).all()


def test_statistics_of_uneven_rows():
    rows = torch.tensor([[[[0.0, 0.0, 0.2, 0.2]], [[0.1, 0.1, 0.1, 0.1]]]])
    summary = statistics(rows, torch.tensor([2, 4]), entropy=True)[:, 0]
    expected = [[0.4, 0.4], [0.2, 0.1], [0.2, 0.1], [2, 4], [math.log(2), math.log(4)]]
    assert torch.allclose(summary, torch.tensor(expected))
    assert torch.equal(statistics(rows, torch.tensor([2, 4]))[:, 0], summary[:4])


def test_statistics_of_several_heads_are_means_of_the_heads_own():
    rows = torch.tensor([[[[0.1, 0.3, 0.0], [0.3, 0.1, 0.2]]]])
    summary = statistics(rows, torch.tensor([3]), entropy=True)[:, 0, 0].tolist()
    shares = [[0.25, 0.75], [0.5, 1 / 6, 1 / 3]]
    entropies = [-sum(share * math.log(share) for share in of_head) for of_head in shares]
    expected = [(0.4 + 0.6) / 2, (0.4 + 0.6) / 2 / 3, (0.3 + 0.3) / 2, 3, sum(entropies) / 2]
    assert summary == pytest.approx(expected, abs=1e-6)
    uneven = statistics(torch.tensor([[[[0.1, 0.3], [0.6, 0.2]]]]), torch.tensor([2]))[2].item()
    assert uneven == pytest.approx((0.3 + 0.6) / 2)  # neither the largest of all nor the largest of the mean


@pytest.mark.parametrize("kept", ["layer", "head"])
def test_the_largest_weight_is_that_of_each_head_where_each_keeps_its_own(kept):
    model, inputs = models.build("qwen2_5_vl"), models.inputs_for("qwen2_5_vl", (3, 6), (5, 4))
    cache, expected = attach(model, inputs, NoPruning(kept=kept)), []
    visual = inputs["input_ids"] == models.IMAGE

    class Largest(Listener):
        def heard(self, layer, weights):  # (batch, kv_head, group, slot)
            heads = weights.mean(2) if kept == "head" else weights.mean((1, 2))[:, None]
            seen = heads[..., : visual.shape[1]].masked_fill(~visual[:, None], 0)
            expected.extend((layer, row, of_row.mean().item()) for row, of_row in enumerate(seen.amax(-1)))

    with listening(cache, Largest()):
        model.generate(**inputs, **cache.options, max_new_tokens=3, do_sample=False)
    frame = cache.trace.frame().sort_values(["step", "layer", "row"])
    assert list(zip(frame["layer"], frame["row"], strict=True)) == [(layer, row) for layer, row, _ in expected]
    assert abs(frame["max"].to_numpy() - [value for *_, value in expected]).max() <= 1e-6  # sums of at most 4 weights below 1


def test_entropy_is_recorded_when_asked_for():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4))
    frames = []
    for entropy in (False, True):
        cache = attach(model, inputs, PruneHal(), entropy=entropy)
        model.generate(**inputs, **cache.options, max_new_tokens=6, do_sample=False)
        frames.append(cache.trace.frame())
        assert cache.trace.votes()["value"].notna().all()
    assert list(frames[0]) == ["row", "step", "layer", "mass", "mean", "max", "n_visual"]
    assert frames[0].equals(frames[1].drop(columns="entropy"))


def test_images_of_different_size_in_one_batch():
    # Rows with 16 and 9 visual tokens: the shorter one is filled up, and must not notice.
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (12, 9))
    mask = inputs["input_ids"] == models.IMAGE
    mask[1] &= mask[1].cumsum(0) > 7
    cache = attach(model, inputs, TopK(4), visual_mask=mask, maps=True)
    model.generate(**inputs, **cache.options, max_new_tokens=4, do_sample=False)
    assert cache.trace.frame().groupby(["row", "step"])["n_visual"].first().tolist() == [16, 16, 4, 4, 9, 9, 4, 4]
    single = models.rows_of(inputs)[1]
    alone = attach(model, single, TopK(4), visual_mask=mask[1:, -single["input_ids"].shape[1] :])
    model.generate(**single, **as_option(alone), max_new_tokens=4, do_sample=False)
    padding = inputs["input_ids"].shape[1] - single["input_ids"].shape[1]
    for layer in range(4):
        assert torch.equal(cache.kept(layer)[1] - padding, alone.kept(layer)[0])
    columns = ["mass", "mean", "max", "n_visual"]
    frame = cache.trace.frame()
    assert abs(frame.loc[frame["row"] == 1, columns].to_numpy() - alone.trace.frame()[columns].to_numpy()).max() <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "t"), [(PruneHal, 4), (Accumulated, 4)])
def test_reorder_moves_rows_with_all_their_state(family, kind, t):
    model = models.build(family)
    inputs = models.inputs_for(family, (3, 6), (5, 4), seed=9)
    policy, tokens = kind(r=0.4, t=t, factor=1.0), torch.tensor([[7, 8, 9, 10, 11, 12], [17, 18, 19, 20, 21, 22]])
    straight, swapped = (attach(model, inputs, policy) for _ in range(2))
    mask = inputs["attention_mask"]

    def feed(cache, ids, mask):
        position = mask.sum(1, keepdim=True) - 1
        if family == "qwen2_5_vl":
            position = position[None].expand(4, -1, -1)
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask, position_ids=position, **cache.options).logits[:, -1]

    with torch.no_grad():
        for cache in (straight, swapped):
            model(**inputs, **cache.options)
    for step in range(6):
        mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        expected = feed(straight, tokens[:, step : step + 1], mask)
        order = [1, 0] if step % 2 else [0, 1]
        actual = feed(swapped, tokens[order, step : step + 1], mask[order])
        assert (actual - expected[order]).abs().max() <= TOLERANCE, step
        swapped.reorder_cache(torch.tensor([1, 0]))  # the vote of this step is still pending
    for layer in range(len(model.model.language_model.layers)):
        assert [positions.tolist() for positions in swapped.kept(layer)] == [p.tolist() for p in straight.kept(layer)]
    assert "vote" in set(straight.events["reason"])
    assert sorted(swapped.events["step"]) == sorted(straight.events["step"])


def test_a_cache_can_be_copied_and_reset():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, PruneHal())
    settings = dict(max_new_tokens=8, do_sample=False)
    ids = model.generate(**inputs, **cache.options, **settings)
    kept, events = cache.kept(2)[0], cache.events
    other = copy.deepcopy(cache)
    other.reset()
    with pytest.raises(RuntimeError, match="observed nothing"):
        _ = other.events
    assert torch.equal(model.generate(**inputs, **other.options, **settings), ids)
    assert other.events.equals(events)
    assert torch.equal(other.kept(2)[0], kept)


def test_reading_works_outside_inference_mode():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, TopK(4))
    with torch.inference_mode():
        model.generate(**inputs, **cache.options, max_new_tokens=2)
    assert cache.events["step"].tolist() == [2]
    assert len(cache.kept(1)[0]) == 4


def test_gradients_do_not_accumulate():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, NoPruning())
    model(**inputs, **cache.options)
    assert not cache.layers[0].keys.requires_grad
    assert not cache.trace.frame()["mass"].isna().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(dtype):
    model = copy.deepcopy(models.build("llava")).to(dtype)
    inputs = models.inputs_for("llava", (3, 6), (5, 4))
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    cache = attach(model, inputs, PruneHal())
    model.generate(**inputs, **cache.options, max_new_tokens=6, do_sample=False)
    assert cache.layers[0].keys.dtype == dtype
    assert cache.events["reason"].tolist()[:2] == ["forced"] * 2
    assert cache.trace.frame()["mass"].between(0, 1.01).all()


def test_k_and_v_go_with_the_last_reference():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    cache = attach(model, inputs, TopK(4))
    model.generate(**inputs, **cache.options, max_new_tokens=4)
    gone = weakref.ref(cache)
    gc.disable()  # a cycle would wait for the collector, with all of K and V
    try:
        del cache
        assert gone() is None
    finally:
        gc.enable()


def test_a_second_turn_may_leave_inference_mode():
    model, inputs = models.build("llava"), models.inputs_for("llava")
    settings = dict(max_new_tokens=4, do_sample=False)
    results = []
    for inside in (True, False):
        cache = attach(model, inputs, TopK(4))
        with torch.inference_mode(inside):
            first = model.generate(**inputs, **cache.options, **settings)
        ids = torch.cat([first.clone(), torch.tensor([[5, 6]])], dim=1)
        second = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **cache.options, **settings)
        results.append(second)
        assert len(cache.trace) == 8
    assert torch.equal(*results)


def test_a_second_turn_goes_on_behind_a_row_that_ended_early():
    """Its padding is masked, so that its new text starts at an earlier position than the padding had."""
    model, inputs = models.build("llava"), models.inputs_for("llava", before=(3, 5), after=(4, 4), seed=0)
    answers = []
    for cache in (attach(model, inputs, NoPruning()), DynamicCache(config=model.config)):
        first = model.generate(**inputs, **as_option(cache), max_new_tokens=4, do_sample=False)
        ids = torch.cat([first, torch.tensor([[5, 6], [5, 6]])], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 6, dtype=torch.long)], dim=1)
        mask[1, -5:-2] = 0
        settings = dict(max_new_tokens=3, do_sample=False)
        answers.append(model.generate(input_ids=ids, attention_mask=mask, **as_option(cache), **settings))
    assert torch.equal(*answers)


def test_embeddings_of_another_prompt_are_refused():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4))
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    mask, settings = inputs["attention_mask"], {"max_new_tokens": 3, "do_sample": False}
    cache = attach(model, inputs, TopK(4))
    stock = model.generate(inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=1, do_sample=False)
    ours = model.generate(inputs_embeds=embeddings, attention_mask=mask, **cache.options, **settings)
    assert torch.equal(ours[:, :1], stock)  # images may be anything, the words are the same
    assert len(cache.events) == 2
    other = embeddings.clone()
    other[1, -1] = embeddings[1, -2]
    with pytest.raises(ValueError, match=r"the prompt in generate\(\).*is not the one expected from attach\(\)"):
        model.generate(inputs_embeds=other, attention_mask=mask, **attach(model, inputs, TopK(4)).options, **settings)


def test_the_table_does_not_depend_on_the_default_device():
    numbers = torch.tensor([[0, 1, 1, 2, 0], [1, 0, 2, 2, 2]])
    torch.set_default_device("meta")
    try:
        table = VisualTable(numbers, layers=2, heads=1)
        scores = random_scores(table.valid, [(0, pool) for pool in range(4)])
    finally:
        torch.set_default_device("cpu")
    assert table.totals == [2, 1, 1, 3]
    assert scores.device.type == "cpu"
    assert (scores[table.valid] > 0).all()
