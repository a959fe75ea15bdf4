"""Where the testbed model looks: the numbers of its card, worked out again by loops."""

import numpy as np
import pytest
import torch

import prunehal as ph
from prunehal.benchmarks import ground_truth_testbed, score
from prunehal.experiments.captioning import caption_scenes
from prunehal.measuring.looking import looks, start_token_share, whole_heads
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import scene

SCENES = [scene("test", index) for index in range(6)]


@pytest.fixture(scope="module")
def traced():
    return caption_scenes(*ph.load(), SCENES, trace=True)


def test_looks_are_those_counted_by_loops(traced):
    scored = score(traced.texts, ground_truth_testbed())
    found = looks(traced, scored, heads=4)
    near = [min(abs(mass - part / 4) for part in range(5)) < 0.02 for mass in traced.steps["mass"]]
    assert found["whole"] == pytest.approx(sum(near) / len(near))
    assert 0.7 < found["whole"] < 0.9
    masses, ratios = {True: [], False: []}, []
    starts = traced.captions.set_index("image_id")["starts"]
    for mention in scored.mentions.itertuples():
        step = sum(begin <= mention.start for begin in starts[mention.image_id])
        of_image = traced.steps[traced.steps["image_id"] == mention.image_id]
        here = of_image[of_image["step"] == step]
        masses[mention.hallucinated].append(here["mass"].mean())
        means = [of_image.loc[of_image["layer"] == layer, "mass"].mean() for layer in here["layer"]]
        ratios.append(np.mean(here["mass"].to_numpy() / means))
    assert found["faithful"] == pytest.approx(np.mean(masses[False]))
    assert found["hallucinated"] == pytest.approx(np.mean(masses[True]))
    assert found["over_steps"] == pytest.approx(np.mean(ratios))
    assert found["least_over_steps"] == pytest.approx(min(ratios))
    assert found["steps"] == pytest.approx(traced.steps["mass"].mean())


def test_a_model_whose_heads_look_in_part_is_not_called_whole(traced):
    scored = score(traced.texts, ground_truth_testbed())
    halved = ph.Captioned(traced.captions, traced.events, traced.steps.assign(mass=0.125))
    assert looks(halved, scored, heads=4)["whole"] == 0
    assert looks(halved, scored, heads=8)["whole"] == 1


def test_captions_without_a_trace_are_refused():
    done = caption_scenes(*ph.load(), SCENES[:1], max_new_tokens=4)
    with pytest.raises(ValueError, match="trace"):
        looks(done, score(done.texts, ground_truth_testbed()), 4)


def test_attention_on_the_start_token_is_that_of_single_steps(traced):
    model, processor = ph.load(attn_implementation="eager")
    shares = []
    for each in SCENES[:2]:
        words = processor.tokenizer(traced.texts[each.image_id], add_special_tokens=False)["input_ids"]
        inputs = processor(images=each.image(), text=build_prompt(), return_tensors="pt")
        prompt, of_caption = inputs["input_ids"], []
        for m in range(len(words) + 1):
            inputs["input_ids"] = torch.cat([prompt, torch.tensor([words[:m]], dtype=torch.long)], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            with torch.no_grad():
                layers = model(**inputs, output_attentions=True).attentions
            of_caption += [weights[0, head, -1, 0].item() for weights in layers for head in range(weights.shape[1])]
        shares.append(np.mean(of_caption))
    assert start_token_share(model, processor, SCENES[:2], traced.texts) == pytest.approx(np.mean(shares), abs=1e-5)
    assert np.mean(shares) < 0.03


def test_masses_near_whole_heads_are_counted_by_a_loop():
    rng = np.random.default_rng(0)
    mass = np.concatenate([rng.uniform(0, 1, 2000), np.repeat([0.0, 0.25, 0.5, 0.75, 1.0], 100)])
    near = sum(any(abs(value - head / 4) <= 0.02 for head in range(5)) for value in mass) / len(mass)
    found, chance = whole_heads(mass, 4)
    assert found == pytest.approx(near)
    assert chance == pytest.approx(whole_heads(rng.uniform(0, 1, 200_000), 4)[0], abs=0.005)
