"""Notebook 03's comparisons: selections with each other, and recall by where an object stands, recounted by plain loops."""

from dataclasses import replace

import pytest

import prunehal as ph
from prunehal.experiments import changes
from prunehal.stats.intervals import paired_bootstrap
from prunehal.studies.nb03_thresholds.compare import ROWS, between_selections, label, recall_by_row, selections
from prunehal.testbed.world.scenes import TILE, scene_of

BASE = ph.Experiment(split="test", n_images=60)
TOP = ph.PruneHal(0.4, 1)
STORE = ph.Store.shipped()


@pytest.mark.parametrize("policy", [ph.NoPruning(), TOP, replace(TOP, selection="lowest")])
def test_recall_by_row_counts_each_object_where_its_centre_lies(policy):
    experiment = replace(BASE, policy=policy)
    result = STORE.score(experiment)
    stand, named = dict.fromkeys(ROWS, 0), dict.fromkeys(ROWS, 0)
    for nodes, image in zip(result.items["nodes"], result.items["image_id"], strict=True):
        for thing in scene_of(image).objects:
            row = ROWS[int((thing.y + thing.size / 2) // (TILE / 3))]
            stand[row] += 1
            named[row] += thing.name in nodes
    (line,) = recall_by_row(STORE, [experiment], n_resamples=200).to_dict("records")
    assert {row: line[row] for row in ROWS} == {row: pytest.approx(100 * named[row] / stand[row]) for row in ROWS}
    assert all(line[f"{row}_low"] < line[row] < line[f"{row}_high"] for row in ROWS)
    whole = 100 * sum(named.values()) / sum(stand.values())
    assert whole == pytest.approx(100 * result.metrics["recall"])


def test_rows_of_the_full_split_are_those_of_the_note_on_reading_order():
    plain = replace(BASE, n_images=400)
    found = recall_by_row(STORE, [plain, *selections(plain, [TOP])], n_resamples=100)
    assert found["selection"].tolist() == ["top", "top", "random", "lowest"]
    assert found[list(ROWS)].round().values.tolist() == [[80, 75, 76], [84, 45, 52], [75, 70, 73], [21, 72, 62]]


def test_recall_by_row_refuses_images_without_places(tmp_path):
    with pytest.raises(ValueError, match="expected scenes of the testbed"):
        recall_by_row(STORE, [replace(BASE, images=str(tmp_path))])


def test_selections_are_compared_in_pairs_with_the_first_minus_the_second():
    found = between_selections(STORE, BASE, [TOP, ph.TopK(9)], n_resamples=200)
    assert found["thresholds"].tolist() == ["r 0.4, t 1"] * 3 + ["9 tokens"] * 3
    items = {kind: STORE.score(replace(BASE, policy=replace(TOP, selection=kind))).items for kind in ("top", "random", "lowest")}
    for line in found.head(3).to_dict("records"):
        one, other = line["difference"].split(" minus ")
        for metric in ("distinct_chair_i", "recall"):
            d = paired_bootstrap(items[other], items[one], metric, 200)
            assert [line[f"d_{metric}{end}"] for end in ("", "_low", "_high")] == pytest.approx(
                [100 * value for value in (d.estimate, d.low, d.high)]
            )
    p = sorted(found["p_recall"])
    assert found["p_holm_recall"].min() == pytest.approx(6 * p[0])


def test_differences_of_selections_agree_with_those_from_no_pruning():
    table = changes(STORE, selections(BASE, [TOP]), BASE, n_resamples=100).set_index("selection")["d_recall"]
    found = between_selections(STORE, BASE, [TOP], n_resamples=100).set_index("difference")["d_recall"]
    assert found["top minus lowest"] == pytest.approx(table["top"] - table["lowest"])


def test_labels_leave_the_selection_out():
    assert label(ph.PruneHal(0.4, 1)) == label(ph.PruneHal(0.4, 1, selection="random")) == "r 0.4, t 1"
    assert label(ph.NoPruning()) == "no pruning"
