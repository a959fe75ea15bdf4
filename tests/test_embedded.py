"""The embedded model as shipped: it sees, it writes the grammar, it hallucinates, and it holds with background tiles."""

import hashlib
import re

import pytest

import prunehal as ph
from prunehal.benchmarks import score
from prunehal.files.paths import data_path
from prunehal.testbed.world.captions import parses
from prunehal.testbed.world.scenes import scene


@pytest.fixture(scope="module")
def embedded():
    return ph.load()


def test_weights_are_safetensors_of_at_most_16_megabytes():
    files = [path for path in data_path("embedded").iterdir() if path.suffix in {".bin", ".pt", ".pkl", ".safetensors"}]
    assert [path.name for path in files] == ["model.safetensors"]
    assert files[0].stat().st_size <= 16e6


def test_captions_name_what_is_there_more_than_what_another_scene_holds(embedded):
    scenes = [scene("test", i) for i in range(100)]
    done = ph.caption_scenes(*embedded, scenes)
    truth = {s.image_id: set(s.names) for s in scenes}
    metrics = score(done.texts, truth).metrics
    shuffled = dict(zip(truth, [*list(truth.values())[1:], scenes[0].names], strict=True))
    assert metrics["recall"] > 0.5
    assert 0.04 < metrics["chair_i"] < 0.3
    assert score(done.texts, shuffled).metrics["chair_i"] > 0.6  # what the captions would score unseen
    assert done.captions["caption"].map(parses).mean() > 0.95


def test_the_scene_is_still_seen_among_background_tiles(embedded):
    scenes = [scene("test", i) for i in range(20)]
    done = ph.caption_scenes(*embedded, scenes, k=3, trace=True)
    assert done.steps["n_visual"].unique().tolist() == [576]
    metrics = score(done.texts, {s.image_id: set(s.names) for s in scenes}).metrics
    assert metrics["recall"] > 0.3


def test_shipped_files_are_those_of_the_checksums():
    lines = re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", data_path("README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, _ in lines} >= {"embedded/model.safetensors", "sprites/sprites.png", "chair/synonyms.txt"}
    for name, expected in lines:
        assert hashlib.sha256(data_path(*name.split("/")).read_bytes()).hexdigest() == expected, name
