"""Several images in a prompt, each a pool of its own: per_image=True against the masked full cache."""

import decode
import models
import pytest
import torch

from prunehal.core import NoPruning, PruneHal, TopK, attach
from prunehal.core.visual import find_visual_tokens

STEPS = 14


@pytest.mark.parametrize("options", [{}, {"kept": "head"}, {"kept": "shared", "after_prune": "restart"}], ids=str)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_each_image_is_pruned_by_itself(family, options):
    policy = PruneHal(r=0.4, t=3, factor=1.0, **options)
    prompt = dict(before=(3, 6), after=(5, 4), seed=decode.SEED, images=2)
    inputs = models.inputs_for(family, **prompt)
    ours, cache = decode.run(models.build(family), inputs, policy, STEPS, {"per_image": True, "maps": True})
    apart = set()
    for row, padding in enumerate(decode.paddings(inputs)):
        slow = decode.masked(family, policy, row, STEPS, per_image=True, **prompt)
        decode.compare(slow, ours, cache, row, padding)
        apart |= {tuple(step for step, _, _ in pool.events) for pool in slow.pools}
    assert len(apart) > 1, "images should prune at different steps"
    # The map of a step shows what is in the cache, image by image.
    for step in (1, 3, STEPS):
        present = (~cache.trace.maps[step - 1, 0, 0].isnan()).nonzero().flatten()
        places = (inputs["input_ids"][0] == models.IMAGE).nonzero().flatten()
        kept = cache.kept(0, step)[0]
        assert places[present].tolist() == (torch.unique(kept) if kept.ndim > 1 else kept).tolist()


def test_one_image_in_each_row_changes_nothing():
    model, inputs = models.build("llava"), models.inputs_for("llava", (3, 6), (5, 4), seed=decode.SEED)
    policy = PruneHal(factor=1.0)
    (one, together), (other, apart) = (decode.run(model, inputs, policy, STEPS, {"per_image": each}) for each in (False, True))
    assert torch.equal(one.sequences, other.sequences)
    assert apart.events["image"].tolist() == [0] * len(apart.events)
    assert apart.events.drop(columns="image").equals(together.events)
    assert apart.trace.frame().drop(columns="image").equals(together.trace.frame())


def uneven():
    """Return two rows, the first with one image, the second with two of another size, as ids and numbers."""
    inputs = models.inputs_for("llava", (3, 6), (25, 4), seed=decode.SEED)
    inputs = {name: value.clone() for name, value in inputs.items()}
    numbers = (inputs["input_ids"] == models.IMAGE).long()
    numbers[1] *= (numbers[1].cumsum(0) > 6).long() + 1  # 6 and 10 tokens, side by side
    return inputs, numbers


def test_rows_may_have_images_of_different_number_and_size():
    inputs, numbers = uneven()
    model, policy = models.build("llava"), PruneHal(factor=1.0)
    _, cache = decode.run(model, inputs, policy, STEPS, {"per_image": True, "visual_mask": numbers})
    first = cache.events.groupby(["row", "image"])["kept"].first()
    assert {pool: kept[0] for pool, kept in first.items()} == {(0, 0): 6, (1, 0): 2, (1, 1): 4}
    frame = cache.trace.frame()
    assert set(zip(frame["row"], frame["image"], strict=True)) == {(0, 0), (1, 0), (1, 1)}
    assert not frame.isna().any().any()
    for row, single in enumerate(models.rows_of(inputs)):
        padding = inputs["input_ids"].shape[1] - single["input_ids"].shape[1]
        options = {"per_image": True, "visual_mask": numbers[row : row + 1, padding:]}
        _, alone = decode.run(model, single, policy, STEPS, options)
        for layer in range(4):
            assert torch.equal(cache.kept(layer)[row] - padding, alone.kept(layer)[0])
        assert alone.events["step"].tolist() == cache.events.loc[cache.events["row"] == row, "step"].tolist()


@pytest.mark.parametrize("beam_state", ["own", "shared"])
def test_images_follow_their_beams(beam_state):
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=decode.SEED, images=2)
    policy = PruneHal(factor=1.0, beam_state=beam_state)
    beams, cache = decode.run(model, inputs, policy, 10, {"per_image": True}, num_beams=4, output_scores=True)
    path = beams.beam_indices[0].tolist()
    tokens = beams.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    if beam_state == "shared":
        for layer in range(4):
            kept = [positions.tolist() for positions in cache.kept(layer)]
            assert kept[0] == kept[1] == kept[2] == kept[3]
        return
    assert len(set(path)) > 1

    def forced(batch, ids):
        return [tokens[len(ids) - inputs["input_ids"].shape[1]]]

    alone, _ = decode.run(model, inputs, policy, 10, {"per_image": True}, prefix_allowed_tokens_fn=forced)
    for step, row in enumerate(path):
        assert (beams.logits[step][row] - alone.logits[step][0]).abs().max() <= decode.TOLERANCE, step


def test_fixed_k_and_observation_count_by_image():
    model, inputs = models.build("llava"), models.inputs_for("llava", seed=decode.SEED, images=2)
    _, cache = decode.run(model, inputs, TopK(3), 4, {"per_image": True})
    assert [e.kept[0] for e in cache.events.itertuples()] == [3, 3]
    assert len(cache.kept(0)[0]) == 6
    _, cache = decode.run(model, inputs, NoPruning(), 4, {"per_image": True})
    whole = decode.run(model, inputs, NoPruning(), 4)[1].trace.frame()
    parts = cache.trace.frame().groupby(["row", "step", "layer"], as_index=False)["mass"].sum()
    assert abs(parts["mass"] - whole.sort_values(["row", "step", "layer"])["mass"].to_numpy()).max() <= decode.TOLERANCE


def test_numbers_of_pools():
    ids = torch.tensor([[97, 99, 99, 5, 99, 7], [1, 99, 5, 99, 6, 99]])
    found = find_visual_tokens(models.build("llava"), {"input_ids": ids}, None, True)
    assert found.tolist() == [[0, 1, 1, 0, 2, 0], [0, 1, 0, 2, 0, 3]]
    found = find_visual_tokens(models.build("llava"), {"input_ids": ids})
    assert found.tolist() == [[0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]]
    tiled = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]])
    one_image = find_visual_tokens(models.build("llava"), {"input_ids": ids}, tiled, True)
    assert torch.equal(one_image, tiled), "numbers hold, also where one image has several runs"
    assert find_visual_tokens(models.build("llava"), {"input_ids": ids}, tiled.bool(), True).tolist() == [
        [0, 1, 1, 0, 2, 0],
        [0, 1, 0, 2, 0, 3],
    ]
    for wrong in (tiled - 1, ids):
        with pytest.raises(ValueError, match=r"visual_mask: holds numbers from .*numbered from 1.*Fix: pass bool"):
            find_visual_tokens(models.build("llava"), {"input_ids": ids}, wrong, True)
    given = torch.tensor([[0, 1, 2, 0, 2, 0], [0, 1, 0, 2, 0, 2]])
    assert torch.equal(find_visual_tokens(models.build("llava"), {"input_ids": ids}, given, True), given)
    assert attach(models.build("llava"), {"input_ids": ids}, visual_mask=given) is not None
