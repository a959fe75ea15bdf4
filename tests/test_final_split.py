"""The final split is given out once, by ranges: each is read for its own purpose, nothing is chosen on it, files keep to it."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prunehal.benchmarks import ground_truth_testbed, score
from prunehal.core import PruneHal
from prunehal.experiments import Experiment, Store, read_grid
from prunehal.experiments.captioning import caption_scenes
from prunehal.experiments.choosing import Graded, choose, choose_by_rule, report
from prunehal.experiments.compare import graded
from prunehal.experiments.images import image_keys, pictures, truth
from prunehal.experiments.tables import write_marked
from prunehal.experiments.versions import made_by
from prunehal.testbed.training.samples import Samples
from prunehal.testbed.world.final import FINAL_SPLITS, RANGES, final_indices, purpose_of, refuse_other_ranges
from prunehal.testbed.world.scenes import GRID, PATCH, image_ids, scene, scene_of
from prunehal.testbed.world.sprites import LOOKS, SIZES, dressed, load_sprites

ROOT = Path(__file__).parents[1]
FIRST = 400_000_000  # image id of the final split's scene 0
WORLDS = Experiment(split="final-worlds", n_images=2, policy=PruneHal())
SELECTIONS = replace(WORLDS, split="final-selections")


def row(key, caption="A dog."):
    empty = {"events": [], "voted": [], "layers": [], "mass": [], "mentions": []}
    return {"key": key, "caption": caption, "tokens": 3, "finished": True, "visual": 9.0, **empty}


# The table, and what it hands out.


def test_each_range_has_one_purpose_and_stands_in_the_log():
    assert {purpose: (given.first, given.end) for purpose, given in RANGES.items()} == {
        "worlds": (0, 4_000),
        "selections": (4_000, 8_000),
    }
    log = (ROOT / "LOG.md").read_text(encoding="utf-8")
    for purpose, given in RANGES.items():
        assert f"`final-{purpose}`, index {given.first:,} to {given.end - 1:,}: {given.serves}" in log


def test_an_experiment_reads_the_range_of_its_purpose():
    assert FINAL_SPLITS == ("final-worlds", "final-selections")
    for split, first in zip(FINAL_SPLITS, (FIRST, FIRST + 4_000), strict=True):
        most = Experiment(split=split, n_images=4_000)
        assert image_keys(most) == image_ids(split, 4_000) == list(range(first, first + 4_000))
        assert [scene_of(key) for key in image_keys(replace(most, n_images=2))] == [
            scene("final", first - FIRST + i) for i in (0, 1)
        ]
        assert truth(most, [first + 9]) == {first + 9: set(scene("final", first - FIRST + 9).names)}
        drawn = pictures(replace(most, tiles=1), [first])
        assert [np.array_equal(*map(np.asarray, pair)) for pair in zip(drawn[0], scene_of(first).tiles(1)[0], strict=True)] == [
            True
        ] * 2
    assert WORLDS.name == "final-worlds_prunehal_r0.4_t3"
    assert WORLDS.key != SELECTIONS.key
    assert made_by(WORLDS)["pictures"] != made_by(SELECTIONS)["pictures"]


@pytest.mark.parametrize("split", ["final", "final-", "final-test", "final-worlds-2"])
def test_the_final_split_without_a_purpose_is_refused_with_the_fix(split):
    match = f"split='{split}': .* given out once.*; expected split='final-worlds' .the comparison.* or split='final-selections'"
    for ask in (lambda: Experiment(split=split), lambda: image_ids(split, 1), lambda: purpose_of(split)):
        with pytest.raises(ValueError, match=match):
            ask()
    with pytest.raises(ValueError, match=match):
        Experiment().with_options({"split": split})
    assert Experiment(images="photos", split="final").split == "final"  # of a folder: the user's own word


def test_more_scenes_than_a_range_holds_are_refused():
    match = r"n_images=4001: expected 1 to 4,000, the scenes that the final split has for 'selections'"
    for ask in (
        lambda: Experiment(split="final-selections", n_images=4_001),
        lambda: image_ids("final-selections", 4_001),
        lambda: final_indices("selections", 4_001),
    ):
        with pytest.raises(ValueError, match=match):
            ask()
    with pytest.raises(ValueError, match="purpose='rest': scenes of the final split are given out once"):
        final_indices("rest", 1)
    with pytest.raises(ValueError, match="n_images=0: expected 1 to 4,000"):
        final_indices("worlds", 0)


OTHERS = [
    (
        "final-worlds",
        FIRST + 4_000,
        "scene 4000 of the final split, which is given to 'selections'.*expected ids 400000000 to 400003999",
    ),
    ("final-selections", FIRST + 3_999, "scene 3999 of the final split, which is given to 'worlds'.*ids 400004000 to 400007999"),
    ("final-selections", FIRST + 8_000, "scene 8000 of the final split, which is kept back"),
    ("final-worlds", 300_000_000, "no scene of the final split"),
    (
        "test",
        FIRST,
        "scene 0 of the final split, which is given to 'worlds'.*name the purpose .*'final-worlds', 'final-selections'",
    ),
    ("validation", FIRST + 8_000, "scene 8000 of the final split, which is kept back"),
]


@pytest.mark.parametrize(("split", "key", "match"), OTHERS)
def test_a_scene_that_is_read_for_another_purpose_is_refused(split, key, match, tmp_path):
    experiment, store = Experiment(split=split, n_images=1), Store(tmp_path)
    match = f"split='{split}': image id {key} is {match}"
    for ask in (
        lambda: refuse_other_ranges(split, [key]),
        lambda: pictures(experiment, [key]),
        lambda: truth(experiment, [key]),
        lambda: store.append(experiment, [row(key)]),
    ):
        with pytest.raises(ValueError, match=match):
            ask()
    assert not list(tmp_path.glob("*.jsonl*"))
    header = {"key": "", "experiment": experiment.description, "made_by": made_by(experiment)}
    own = image_keys(experiment)[0]
    store.path(experiment).write_bytes(
        gzip.compress("".join(f"{json.dumps(r)}\n" for r in (header, row(own), row(key))).encode())
    )
    for ask in (store.rows, store.captions, store.score, store.missing):
        with pytest.raises(ValueError, match=f"{re.escape(store.path(experiment).name)}: {match}"):
            ask(experiment)


def test_rows_of_a_range_are_stored_and_scored_like_any_others(tmp_path):
    store = Store(tmp_path)
    store.append(SELECTIONS, [row(key, f"A {min(scene_of(key).names)}.") for key in image_keys(SELECTIONS)])
    assert store.missing(replace(SELECTIONS, n_images=3)) == [FIRST + 4_002]
    assert store.score(SELECTIONS).metrics["distinct_chair_i"] == 0
    store.pack(SELECTIONS)
    assert store.captions(SELECTIONS)["image_id"].tolist() == [FIRST + 4_000, FIRST + 4_001]
    assert misread(store.path(SELECTIONS)) == []


def test_scenes_that_are_kept_back_have_no_truth():
    known = ground_truth_testbed()
    assert known[FIRST + 7_999] == set(scene("final", 7_999).names)
    assert FIRST + 8_000 not in known
    with pytest.raises(ValueError, match="no ground truth for 1 image_id"):
        score({FIRST + 8_000: "A dog."}, known)


def test_scenes_that_are_kept_back_are_not_captioned():
    with pytest.raises(ValueError, match=r"1 scene\(s\) of the final split are kept back, such as 400008000"):
        caption_scenes(None, None, [scene("final", 0), scene("final", 8_000)])


@pytest.mark.parametrize("split", ["final", *FINAL_SPLITS])
def test_nothing_is_trained_on_it(split):
    with pytest.raises(ValueError, match=f"split='{split}': nothing is trained on the final split; expected 'train'"):
        Samples(None, count=2, first=0, split=split)


def test_a_grid_takes_the_purpose_as_its_split(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text('[[grid]]\nsplit = ["final-worlds", "test"]\nn_images = 4000\n')
    assert [each.split for each in read_grid(path)] == ["final-worlds", "test"]
    for text, match in (
        ('split = "final"', "split='final': .* name the purpose"),
        ('split = "final-worlds"\nn_images = 4001', "n_images=4001: expected 1 to 4,000"),
    ):
        path.write_text(f"[[grid]]\n{text}\n")
        with pytest.raises(ValueError, match=rf"grid\.toml, \[\[grid\]\] number 1: {match}"):
            read_grid(path)


# Nothing is chosen on it.


def of_images(first, **captions):
    shown = {first: {"dog"}, first + 1: {"cat"}}
    return {name: score(dict(zip(shown, texts, strict=True)), shown) for name, texts in captions.items()}


TEXTS = {"none": ("A dog, a bus.", "A cat."), "cut": ("A dog.", "A cat.")}


@pytest.mark.parametrize("split", ["final-worlds", "final-selections", "final", "Final_2", "coco-final"])
def test_choosing_on_a_final_split_is_refused_by_name(split):
    found = Graded(split, of_images(0, **TEXTS))
    assert found.is_test
    for choice in (lambda: choose(found, baseline="none"), lambda: choose_by_rule(found, "none")):
        with pytest.raises(ValueError, match=f"results of the '{split}' split, expected .* allow_test_selection=True"):
            choice()
    assert choose(found, baseline="none", allow_test_selection=True).selected_on_test


def test_choosing_on_final_scenes_is_refused_under_any_name():
    found = Graded("validation", of_images(FIRST + 4_000, **TEXTS))
    with pytest.raises(ValueError, match=r"results of the 'validation' split \(2 scenes of the final split\), expected"):
        choose_by_rule(found, "none")
    assert not Graded("validation", of_images(200_000_000, **TEXTS)).is_test


def test_a_final_split_is_for_reporting(tmp_path):
    store, policies = Store(tmp_path), {"none": PruneHal(r=0.9, t=1), "cut": PruneHal(r=0.4, t=3)}
    experiments = [replace(WORLDS, policy=policy) for policy in policies.values()]
    for experiment, texts in zip(experiments, TEXTS.values(), strict=True):
        store.append(experiment, [row(key, text) for key, text in zip(image_keys(experiment), texts, strict=True)])
    final = graded(store, experiments)
    assert (final.split, final.is_test) == ("final-worlds", True)
    named = {name: final.results[policy] for name, policy in policies.items()}
    chosen = choose(Graded("validation", of_images(200_000_000, **TEXTS)), baseline="none")
    found = report(chosen, Graded(final.split, named), n_resamples=100)
    assert not found.selected_on_test
    assert found.note.endswith("reported on the final-worlds split")


# What is stored, and what is to be made.

_IDS = re.compile(rb"(?<![\w.\-])4\d{8}(?![\w.])")  # a number of its own from 400,000,000 to 499,999,999


def misread(path):
    """Return what is wrong with the final scenes in a file of rows, read by no code of the package."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    found = {int(each) - FIRST for each in set(_IDS.findall(raw))}
    if not found:
        return []
    try:
        split = json.loads(raw.split(b"\n", 1)[0].removeprefix(b"# "))["experiment"]["split"]
    except (ValueError, KeyError, TypeError):
        return [f"{path.name}: scenes {sorted(found)[:3]} of the final split, and no experiment that names their purpose"]
    purpose = split.removeprefix("final-")
    given = RANGES[purpose] if split.startswith("final-") and purpose in RANGES else range(0)
    allowed = set(range(given.first, given.end)) if given else set()
    return [f"{path.name}: scene {index} of the final split under split {split!r}" for index in sorted(found - allowed)]


def test_every_stored_file_keeps_to_its_range():
    files = [path for folder in ("results", "bench") for path in sorted((ROOT / "data" / folder).rglob("*")) if path.is_file()]
    files = [path for path in files if path.name != "cpu.json"]  # numbers of bytes, no images
    assert len(files) > 500
    assert [problem for path in files for problem in misread(path)] == []


@pytest.mark.parametrize("planted", [4_000, 8_000])
@pytest.mark.parametrize("packed", [False, True])
def test_a_scene_planted_in_a_file_of_another_purpose_is_found(tmp_path, planted, packed):
    header = {"key": "", "experiment": WORLDS.description, "made_by": {}}
    rows = [header, *(row(FIRST + index) for index in (0, 3_999, planted))]
    raw = "".join(json.dumps(r, separators=(",", ":")) + "\n" for r in rows).encode()
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    path.write_bytes(gzip.compress(raw) if packed else raw)
    assert misread(path) == [f"{path.name}: scene {planted} of the final split under split 'final-worlds'"]


def test_a_scene_planted_in_a_table_is_found(tmp_path):
    table = pd.DataFrame({"image_id": [FIRST + 4_000, FIRST + 4_001], "auc": [0.412345678, 0.5]}).to_csv(index=False)
    write_marked(tmp_path / "a.csv.gz", table, SELECTIONS)
    write_marked(tmp_path / "b.csv.gz", table, Experiment(split="test"))
    (tmp_path / "c.csv").write_text(table)
    assert misread(tmp_path / "a.csv.gz") == []
    assert misread(tmp_path / "b.csv.gz") == [
        f"b.csv.gz: scene {i} of the final split under split 'test'" for i in (4_000, 4_001)
    ]
    assert misread(tmp_path / "c.csv") == [
        "c.csv: scenes [4000, 4001] of the final split, and no experiment that names their purpose"
    ]


def grid_problems(folder):
    """Return what is wrong with the splits of the grids in a folder: scenes past a range, choices not on validation."""
    problems = []
    for path in sorted(folder.glob("*.toml")):
        for each in read_grid(path):
            last = image_keys(each)[-1] - FIRST
            if last >= 0 and not (each.split.startswith("final-") and last < RANGES[each.split.removeprefix("final-")].end):
                problems.append(f"{path.name}: scene {last} of the final split under split {each.split!r}")
            if "validation" in path.name and each.split != "validation":
                problems.append(f"{path.name}: {each.split!r}, where settings are chosen")
    return problems


def test_grids_keep_to_their_range_and_choose_on_validation_only(tmp_path):
    assert len(list((ROOT / "data" / "grids").glob("*.toml"))) >= 10
    assert grid_problems(ROOT / "data" / "grids") == []
    (tmp_path / "beyond_validation.toml").write_text('[[grid]]\nsplit = ["validation", "final-selections"]\n')
    assert grid_problems(tmp_path) == ["beyond_validation.toml: 'final-selections', where settings are chosen"]


_DRAWN = re.compile(r"""\b(?:scene|image_ids|Samples)\([^()]*?\\?["']final\\?["']""")


def test_code_and_notebooks_draw_no_scene_of_it_past_its_purpose():
    # scene("final", index) is a function of its arguments and knows no purpose; rows go through an experiment, which does.
    files = [*(ROOT / "prunehal").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "notebooks").glob("*.py")]
    assert [path.name for path in files if _DRAWN.search(path.read_text(encoding="utf-8"))] == []
    assert _DRAWN.search('shown = [scene("final", i) for i in range(3)]')
    assert _DRAWN.search(r'"    scene(\"final\", 7)\n"')


# Its scenes are as hard as those of test.


def strangeness(split):
    """Return how far the looks of a split are from the nearest look of training, and what a tilt leaves of a sprite, per size."""

    def premultiplied(name, size, look):
        sprite = dressed(name, size, look).astype(float)
        return sprite[..., :3] * sprite[..., 3:] / 255

    far = np.zeros(len(SIZES))
    left = np.zeros(len(SIZES))
    names = sorted({name for name, _ in load_sprites()})[::4]
    for place, size in enumerate(SIZES):
        for name in names:
            area = (load_sprites()[name, size][..., 3] > 127).sum()
            for look in LOOKS[split]:
                trained = [each for each in LOOKS["train"] if each.mirrored == look.mirrored]
                ours = premultiplied(name, size, look)
                nearest = min(np.abs(ours - premultiplied(name, size, each)).sum() / area for each in trained)
                far[place] += nearest / len(LOOKS[split]) / len(names)
                left[place] += (dressed(name, size, look)[..., 3] > 127).sum() / area / len(LOOKS[split]) / len(names)
    return far, left


def test_looks_of_the_final_split_are_as_mild_as_those_of_test():
    (far, left), (far_test, left_test) = strangeness("final"), strangeness("test")
    assert far == pytest.approx(far_test, rel=0.15)
    assert far.mean() == pytest.approx(far_test.mean(), rel=0.05)
    assert left == pytest.approx(left_test, abs=0.01)


def test_patches_of_the_final_split_are_like_those_of_test():
    def numbers(split):
        found = []
        for index in range(150):
            shown = scene(split, index)
            pixels = shown.pixels().astype(float).reshape(GRID, PATCH, GRID, PATCH, 3)
            means = pixels.mean(axis=(1, 3))
            found.append(
                [
                    means.mean(),
                    means.std(),
                    pixels.std(axis=(1, 3)).mean(),
                    (shown.patch_objects() >= 0).mean(),
                    len(shown.objects),
                ]
            )
        return np.array(found)

    ours, theirs = numbers("final"), numbers("test")
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / len(ours))
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 3 * error).all()
