"""Where attention lies and what stays: equal to loops over one scene at a time, for policies of every kind."""

import gzip
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from prunehal import load
from prunehal.benchmarks.chair.score import score
from prunehal.core import Accumulated, Keep, NoPruning, PruneHal, StepTopK, attach
from prunehal.experiments import Experiment, Store
from prunehal.experiments.captioning import caption_scenes, mention_attention
from prunehal.experiments.images import image_keys
from prunehal.files.paths import data_path
from prunehal.studies.nb08_redundancy.evidence import FILE, evidence, kept_patches, measure, stored
from prunehal.studies.nb08_redundancy.rules import CELLS, ORACLE, all_rules, chosen_rules
from prunehal.studies.settings import Setting
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import scene
from prunehal.testbed.world.world import NAMES

SCENES = [scene("test", i) for i in range(4)]
PLAIN = Experiment(split="test", tiles=1, max_new_tokens=24)


def by_loops(each, policy):
    """Caption one scene, and sum the attention of each step patch by patch."""
    model, processor = load()
    images, at = each.tiles(1)
    inputs = processor(images=images, text=build_prompt(2), return_tensors="pt")
    cache = attach(model, inputs, policy, maps=True, seeds=[each.image_id])
    model.generate(**inputs, **cache.options, max_new_tokens=24, do_sample=False)
    done = caption_scenes(model, processor, [each], policy, k=1, max_new_tokens=24, trace=True)
    begins = set(mention_attention(done, score(done.texts, {each.image_id: each.names}))["step"])
    shown = [at * 144 + patch for patch, label in enumerate(each.patch_labels()) if label < len(NAMES)]
    maps = cache.trace.maps[:, :, 0].numpy()
    sums = {True: [], False: []}
    for step in range(len(maps)):
        for layer in range(maps.shape[1]):
            on = sum(maps[step, layer, patch] for patch in shown if not np.isnan(maps[step, layer, patch]))
            mass = sum(value for value in maps[step, layer] if not np.isnan(value))
            sums[step + 1 in begins].append((mass, on / mass))
    held = [[value > 0 for value in layer] for layer in maps[-1]]
    return {
        "at_mentions_mass": np.mean([mass for mass, _ in sums[True]]),
        "at_mentions_share": np.mean([share for _, share in sums[True]]),
        "at_others_mass": np.mean([mass for mass, _ in sums[False]]),
        "at_others_share": np.mean([share for _, share in sums[False]]),
        "kept": np.mean(held),
        "kept_objects": np.mean([[layer[patch] for patch in shown] for layer in held]),
        "objects": len(shown) / 288,
    }


@pytest.mark.parametrize("policy", [NoPruning(), PruneHal(r=0.25, t=2), Accumulated(r=0.5, t=1), StepTopK(8)], ids=str)
def test_evidence_equals_loops_over_steps_layers_and_patches(policy):
    found = evidence(*load(), replace(PLAIN, policy=policy), [each.image_id for each in SCENES]).set_index("image_id")
    for each in SCENES:
        expected = by_loops(each, policy)
        assert found.loc[each.image_id].to_dict() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mode", ["decoding", "first-token"])
def test_the_oracle_keeps_all_of_the_objects_and_nothing_else(mode):
    found = evidence(*load(), replace(PLAIN, policy=Keep(), mode=mode), [each.image_id for each in SCENES])
    assert (found["kept_objects"] == 1).all()
    assert found["kept"].tolist() == pytest.approx(found["objects"].tolist())
    assert (found["at_others_share"] == 1).all() == (mode == "first-token")  # while decoding, two steps see everything


@pytest.mark.parametrize(
    ("experiment", "keys"),
    [(Experiment(images="photos"), ["a.jpg"]), (replace(PLAIN, decoding="beam"), [300000000]), (PLAIN, [])],
    ids=["folder", "beam", "nothing"],
)
def test_what_has_no_greedy_captions_of_scenes_is_refused(experiment, keys):
    with pytest.raises(ValueError, match=rf"images='{experiment.images}', decoding='{experiment.decoding}', {len(keys)} keys:"):
        evidence(*load(), experiment, keys)


def test_kept_patches_are_those_of_the_cache_at_the_end():
    each, policy = SCENES[1], PruneHal(r=0.25, t=2)
    text, counts = kept_patches(*load(), replace(PLAIN, policy=policy), each)
    model, processor = load()
    inputs = processor(images=each.tiles(1)[0], text=build_prompt(2), return_tensors="pt")
    cache = attach(model, inputs, policy, seeds=[each.image_id])
    ids = model.generate(**inputs, **cache.options, max_new_tokens=24, do_sample=False)
    assert text == processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    expected = np.zeros(288, dtype=int)
    for layer in range(model.config.text_config.num_hidden_layers):
        for position in cache.kept(layer)[0].tolist():
            expected[position - 1] += 1  # behind the start token
    assert counts.ravel().tolist() == expected.tolist()


# The stored rows.


def test_the_stored_rows_are_those_of_the_shipped_model_and_rules():
    frame = stored()
    rules = {"no pruning", *all_rules(chosen_rules(Store.shipped()))}
    cells = frame.groupby(["rule", "tiles", "clutter"]).size()
    assert (cells == cells.iloc[0]).all()
    expected = {("no pruning", *cell) for cell in CELLS} | {(rule, 3, clutter) for rule in rules for clutter in (False, True)}
    assert set(cells.index) == expected
    plain = Experiment(split="test", n_images=2)
    for name, rule in (("no pruning", Setting(NoPruning())), (ORACLE, Setting(Keep(), "first-token"))):
        again = evidence(*load(), rule.on(replace(plain, tiles=3, clutter=True)), image_keys(plain)).set_index("image_id")
        rows = frame[(frame["rule"] == name) & (frame["tiles"] == 3) & frame["clutter"]].set_index("image_id")
        assert rows.loc[again.index, again.columns].to_numpy() == pytest.approx(again.to_numpy(), abs=1e-3, nan_ok=True)


def test_rows_are_measured_read_again_and_refused_under_other_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("prunehal.studies.nb08_redundancy.evidence.CELLS", ((0, False), (3, True)))
    path = tmp_path / FILE
    made = measure(path, n_images=1, progress=False)
    pd.testing.assert_frame_equal(stored(path), made, check_dtype=False)
    text = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(gzip.compress(text.replace('"weights": "', '"weights": "x', 1).encode()))
    with pytest.raises(ValueError, match="holds rows of other weights: it was x"):
        stored(path)
    assert data_path("results", FILE).stat().st_size < 100_000
