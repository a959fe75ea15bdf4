"""What a prune does to A_l: the formula against a softmax, against the engine at one query, and captions word by word."""

import math

import models
import numpy as np
import pandas as pd
import pytest
import torch
from decode import SEED

import prunehal as ph
from prunehal.core import Listener, MassShare, NoPruning, PruneHal, SharedPrefill, listening
from prunehal.experiments.captioning import caption_scenes
from prunehal.studies.nb12_why_sqrt_r.factor import LAGS, balanced, follow, reached, rise
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import scene

SCENES = [scene("validation", i) for i in range(5)]
POLICY = PruneHal(r=0.4, t=2)


@pytest.fixture(scope="module")
def embedded():
    return ph.load()


@pytest.fixture(scope="module")
def followed(embedded):
    return follow(*embedded, SCENES, POLICY, batch_size=3)


def test_the_formula_is_what_a_softmax_gives():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, visual = rng.normal(0, 3, 30), list(range(5, 25))
        kept = sorted(rng.choice(visual, int(rng.integers(1, 20)), replace=False).tolist())
        before = [math.exp(score) / sum(math.exp(other) for other in scores) for score in scores]
        left = [place for place in range(30) if place not in visual or place in kept]
        after = {place: math.exp(scores[place]) / sum(math.exp(scores[other]) for other in left) for place in left}
        mass = sum(before[place] for place in visual)
        share = sum(before[place] for place in kept) / mass
        met = (sum(after[place] for place in kept) / len(kept)) / (mass / len(visual))
        assert rise(mass, share, len(kept) / len(visual)) == pytest.approx(met)


class Heads(Listener):
    def __init__(self):
        self.weights = {}

    def heard(self, layer, weights):
        self.weights[layer] = weights.flatten(1, 2)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_layer_that_alone_is_pruned_meets_the_formula_head_by_head(family):
    """Its query is then the same one."""
    model, inputs = models.build(family), models.inputs_for(family, before=(3, 6), after=(5, 4), seed=SEED)
    shared = SharedPrefill(model, inputs)
    visual = torch.isin(inputs["input_ids"], torch.tensor([models.IMAGE, models.VIDEO]))
    n = visual[0].sum().item()
    options = {"max_new_tokens": 1, "do_sample": False}
    full, plain = Heads(), shared.attach(NoPruning())
    with listening(plain, full):
        model.generate(**shared.inputs, **plain.options, **options)
    keep = visual & (torch.rand(visual.shape, generator=torch.Generator().manual_seed(1)) < 0.5)
    for place, layer in enumerate(sorted(full.weights)):
        mask = visual.expand(len(full.weights), -1, -1).clone()
        mask[place] = keep
        pruned = shared.attach(NoPruning(), keep=mask)
        model.generate(**shared.inputs, **pruned.options, **options)
        frame = pruned.trace.frame()
        for row in range(2):
            expected = []
            for head in full.weights[layer][row]:
                mass = sum(head[place].item() for place in visual[row].nonzero())
                held = sum(head[place].item() for place in keep[row].nonzero())
                ratio = keep[row].sum().item() / n
                expected.append(rise(mass, held / mass, ratio) * mass / n)
            found = frame[(frame["row"] == row) & (frame["layer"] == layer)]["mean"].item()
            assert found == pytest.approx(np.mean(expected), rel=1e-4)


def test_in_the_first_layer_every_step_of_a_caption_meets_the_formula(followed):
    """Words, and so its queries, are the same with and without pruning; later layers read what earlier ones lost."""
    after = followed[(followed["lag"] > 0) & (followed["layer"] == 0)]
    assert set(after["number"]) == {1, 2}
    assert after["met"].to_numpy() == pytest.approx(after["predicted"].to_numpy(), rel=1e-4)
    others = followed[(followed["lag"] > 0) & (followed["layer"] > 0)]
    assert (others["met"] / others["predicted"] - 1).abs().max() > 0.01


def test_masses_and_shares_are_those_of_a_stock_model(embedded, followed):
    model, processor = embedded
    caption = caption_scenes(*embedded, SCENES[:1]).captions["caption"].item()
    inputs = processor(images=SCENES[0].image(), text=build_prompt(), return_tensors="pt")
    said = processor.tokenizer(caption, add_special_tokens=False, return_tensors="pt").input_ids
    ids = torch.cat([inputs["input_ids"], said], dim=1)
    visual = (ids[0] == model.config.image_token_id).nonzero().flatten().tolist()
    model.set_attn_implementation("eager")
    attention = model(**inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")

    # The same words once more, under the policy: what is cached when step m attends.
    cache = ph.attach(model, inputs, POLICY, maps=True)
    start = inputs["input_ids"].shape[1]
    words = [*said[0].tolist(), 2]
    model.generate(
        **inputs, **cache.options, max_new_tokens=len(words), prefix_allowed_tokens_fn=lambda _, x: [words[len(x) - start]]
    )
    maps = cache.trace.maps.tolist()
    mine = followed[followed["image_id"] == SCENES[0].image_id]
    assert set(mine["step"][mine["lag"] == 0]) == set(cache.events["step"])
    assert len(mine) > 40
    for line in mine.itertuples():
        prune = line.step - line.lag
        kept = [place for place, seen in zip(visual, maps[prune][line.layer][0], strict=True) if not math.isnan(seen)]
        heads = attention[line.layer][0, :, start - 2 + line.step].tolist()
        masses = [sum(head[place] for place in visual) for head in heads]
        held = [sum(head[place] for place in kept) for head in heads]
        assert line.mass == pytest.approx(sum(masses) / len(masses), rel=1e-3, abs=1e-6)
        assert line.share == pytest.approx(sum(held) / sum(masses), rel=2e-3, abs=1e-4)
        assert line.plain == pytest.approx(line.mass / len(visual))
        assert line.ratio == len(kept) / len(visual)
        alone = [line.ratio * mass / (1 - mass + line.ratio * mass) for mass in masses]
        assert line.at_random == pytest.approx(sum(alone) / sum(masses) / line.ratio, rel=2e-3)
        assert line.met == pytest.approx(line.value / line.plain)


def test_steps_are_followed_to_the_next_prune_or_the_end(followed):
    of_layer = followed[followed["layer"] == 3]
    for _, part in of_layer.groupby("image_id"):
        prunes = part[part["lag"] == 0]["step"].tolist()
        assert prunes[0] == 2
        for number, (_, lines) in enumerate(part.groupby("number")):
            lags = lines["lag"].tolist()
            assert lags == list(range(len(lags)))
            room = prunes[number + 1] - prunes[number] if number + 1 < len(prunes) else LAGS
            assert len(lags) == 1 + min(LAGS, room)
        lines = part.itertuples()
        line = next(lines)
        for after in lines:  # the reference is the mean of all earlier values
            if after.step == line.step + 1:
                assert after.reference == pytest.approx((line.reference * (line.step - 1) + line.value) / line.step, rel=1e-4)
            line = after


def test_batches_do_not_matter(embedded, followed):
    again = follow(*embedded, SCENES[3:4], POLICY)
    mine = followed[followed["image_id"] == SCENES[3].image_id].reset_index(drop=True)
    big = mine["mass"] > 1e-3
    pd.testing.assert_frame_equal(again[big], mine[big], rtol=1e-3)


def test_the_way_reached_is_pooled_over_steps_and_images():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"image_id": rng.integers(0, 9, 80), "layer": rng.integers(0, 2, 80), "ratio": 0.4})
    frame = frame.assign(met=rng.uniform(1, 2.5, 80), plain=rng.uniform(0, 0.01, 80))
    table = reached(frame, n_resamples=500).set_index("layer")
    for layer in (0, 1):
        lines = [line for line in frame.itertuples() if line.layer == layer]
        pooled = sum(line.met * line.plain for line in lines) / sum(line.plain for line in lines)
        assert table.loc[layer, "rise"] == pytest.approx(pooled)
        assert table.loc[layer, "reached"] == pytest.approx(math.log(pooled) / math.log(1 / 0.4))
        assert table.loc[layer, "low"] < table.loc[layer, "reached"] < table.loc[layer, "high"]
        assert table.loc[layer, "images"] == len({line.image_id for line in lines})


def test_the_balanced_factor_is_as_far_below_the_average_as_the_prune_lifts_above_it():
    for r, part in ((0.4, 1.0), (0.7, 0.6), (0.9, 0.0)):
        factor, lifted = balanced(r, part), (1 / r) ** part
        assert factor * lifted == pytest.approx(1 / factor)
    assert balanced(0.4) == pytest.approx(math.sqrt(0.4))


def test_what_cannot_be_followed_is_refused(embedded):
    with pytest.raises(ValueError, match="scenes: got none"):
        follow(*embedded, [])
    with pytest.raises(ValueError, match="keeps a set for each KV head"):
        follow(*embedded, SCENES[:1], PruneHal(kept="head"))
    assert follow(*embedded, SCENES[:1], MassShare(p=0.9, wait=90)).empty
