"""Redundancy: rules are chosen over both kinds of tiles, gains and recalls are those that loops count."""

from dataclasses import replace

import numpy as np
import pytest

from prunehal.core import Accumulated, Informative, Keep, NoPruning, PruneHal, Standout, StepTopK
from prunehal.experiments import Experiment, Store, changes, sweep
from prunehal.experiments.choosing import Chosen
from prunehal.experiments.compare import LEVELS
from prunehal.stats import gain as gain_module
from prunehal.stats.intervals import paired_bootstrap
from prunehal.studies.nb08_redundancy import rules as redundancy
from prunehal.studies.nb08_redundancy.rules import (
    ORACLE,
    all_rules,
    chosen_rules,
    controls,
    levels,
    recall_by_patches,
    responses,
    share_of_gain,
)
from prunehal.studies.settings import Setting
from prunehal.testbed.world.scenes import scene_of

PLAIN = Experiment(split="test", n_images=6, max_new_tokens=40)
RULES = {"published": Setting(PruneHal(r=0.4, t=3)), ORACLE: Setting(Keep(), "first-token")}
CELLS = ((0, False), (1, True))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return rows of two rules in two cells, and of no pruning in those that `levels` asks for."""
    wanted = [rule.on(replace(PLAIN, tiles=k, clutter=clutter)) for k, clutter in CELLS for rule in RULES.values()]
    wanted += [replace(PLAIN, tiles=k, clutter=clutter) for k, clutter in ((0, False), (1, False), (1, True))]
    wanted += [replace(PLAIN, tiles=1, positions_only=True)]
    return sweep(wanted, tmp_path_factory.mktemp("rows"), progress=False)


def f1(items):
    """Return F1 of distinct objects, from the names that captions hold."""
    named = sum(len({*nodes}) for nodes in items["nodes"])
    precision, recall = sum(items["n_recalled"]) / named, sum(items["n_recalled"]) / sum(items["n_truth"])
    return 2 * precision * recall / (precision + recall)


def test_the_share_of_the_gain_is_that_of_the_pooled_f1(store, monkeypatch):
    cell = replace(PLAIN, tiles=1, clutter=True)
    ours, oracle = (rule.on(cell) for rule in RULES.values())
    gain, none = share_of_gain(store, ours, oracle, cell, n_resamples=200)
    assert gain.low <= 0  # of six images
    assert none is None
    monkeypatch.setattr(gain_module, "paired_bootstrap", lambda *args: replace(paired_bootstrap(*args), low=0.01))
    gain, won = share_of_gain(store, ours, oracle, cell, n_resamples=200)
    plain, best, mine = (f1(store.score(each).items) for each in (cell, oracle, ours))
    assert gain.estimate == pytest.approx(best - plain)
    assert won.estimate == pytest.approx((mine - plain) / (best - plain))
    assert share_of_gain(store, oracle, oracle, cell, n_resamples=200)[1].estimate == pytest.approx(1)


@pytest.mark.parametrize("limit", [4, 9])
def test_recall_by_patches_counts_what_loops_count(store, limit):
    found = recall_by_patches(store, PLAIN, limit)
    nodes = store.score(PLAIN).items.set_index("image_id")["nodes"]
    expected = {"local": {}, "spread": {}}
    for image_id, named in nodes.items():
        labels = scene_of(image_id).patch_labels().tolist()
        for thing in scene_of(image_id).objects:
            number = labels.count(redundancy.NAMES.index(thing.name))
            if number:
                of = expected["local" if number <= limit else "spread"].setdefault(image_id, [0, 0])
                of[0] += thing.name in named
                of[1] += 1
    for kind, frame in found.items():
        assert {line.image_id: [line.n_recalled, line.n_truth] for line in frame.itertuples()} == expected[kind]


def test_responses_are_the_changes_within_each_cell(store):
    table = responses(store, PLAIN, RULES, CELLS, n_resamples=200)
    assert list(table[["tiles", "clutter", "rule"]].itertuples(index=False, name=None)) == [
        (k, clutter, name) for k, clutter in CELLS for name in RULES
    ]
    for line in table.itertuples():
        cell = replace(PLAIN, tiles=line.tiles, clutter=line.clutter)
        alone = changes(store, [RULES[line.rule].on(cell)], cell, n_resamples=200)
        assert line.d_chair_i == alone["d_chair_i"].item()
        assert line.experiment == alone["experiment"].item()
        assert line.d_distinct_chair_i == alone["d_distinct_chair_i"].item()
    assert table[["equal_distinct_chair_i", "equal_recall"]].notna().all(axis=None)
    assert table["p_distinct_chair_i"].between(0, 1).all()


def test_levels_compare_every_cell_with_the_scene_alone(store, monkeypatch):
    monkeypatch.setattr(redundancy, "CELLS", ((0, False), (1, False), (1, True)))
    found = levels(store, PLAIN, n_resamples=200).set_index(["kind", "tiles"])
    assert sorted(found.index) == [("clean", 0), ("clean", 1), ("cluttered", 1), ("positions only", 1)]
    assert found.loc[("clean", 0), "d_chair_i"] == 0
    for (kind, tiles), line in found.iterrows():
        cell = replace(PLAIN, tiles=tiles, clutter=kind == "cluttered", positions_only=kind == "positions only")
        metrics = store.score(cell).metrics
        for metric in LEVELS:
            unit = 1 if metric in ("absent", "words") else 100
            assert line[metric] == pytest.approx(unit * metrics[metric])
        assert line["d_words"] == pytest.approx(metrics["words"] - store.score(PLAIN).metrics["words"])


# The choice on the validation split.

WORSE, BETTER, SILENT, UNEVEN, LOOPING = (PruneHal(r=r, t=1) for r in (0.25, 0.5, 0.9, 0.7, 0.3))


def test_a_rule_is_chosen_over_clean_and_cluttered_scenes_together(monkeypatch, tmp_path):
    """Of the settings one is best in clean scenes only, one on the whole, one at the cost of recall in one kind or in both."""
    mentions = {  # policy -> for each kind of tiles (hallucinated, mentioned, recalled) names in a caption
        NoPruning(): {False: "dog cat bus", True: "dog bus"},
        LOOPING: {kind: "dog dog dog dog dog dog dog dog dog dog dog dog cat bus" for kind in (False, True)},  # CHAIR_i 1 of 14
        WORSE: {False: "dog cat", True: "dog cat bus cup"},
        UNEVEN: {False: "dog", True: "dog cat"},  # on the whole as much recall as without pruning
        BETTER: {False: "dog cat bus", True: "dog cat"},  # CHAIR_i 1 of 5, distinct CHAIR_i lowest
        SILENT: {False: "dog", True: "dog"},
        StepTopK(8): {False: "dog", True: "dog"},
        StepTopK(16): {False: "dog bus", True: "dog cat bus cup tv"},
    }
    policies = {(clutter, policy): names[clutter] for policy, names in mentions.items() for clutter in (False, True)}
    grid = [Experiment(n_images=2, tiles=3, clutter=clutter, policy=policy) for clutter, policy in policies]
    monkeypatch.setattr(redundancy, "read_grid", lambda path: grid)
    monkeypatch.setattr(redundancy, "truth", lambda experiment: {1: {"dog", "cat"}, 2: {"dog", "cat"}})

    class Told(Store):
        def captions(self, experiment):
            text = " and ".join(f"a {name}" for name in policies[experiment.clutter, experiment.policy].split())
            return redundancy.pd.DataFrame({"image_id": [1, 2], "caption": [text, text]})

    chosen = chosen_rules(Told(tmp_path))
    assert {name: each.setting for name, each in chosen.items()} == {
        "one step": Setting(BETTER),
        "per step, nothing lost": Setting(StepTopK(16)),  # none keeps the recall: that of highest recall
    }
    assert [each.by for each in chosen.values()] == ["distinct_chair_i", "recall"]
    assert [each.n_candidates for each in chosen.values()] == [5, 2]
    assert [bool(each.missed) for each in chosen.values()] == [False, True]
    assert [bool(each.subject_to) for each in chosen.values()] == [True, False]
    assert chosen["one step"].f1 == pytest.approx((8 / 9, 6 / 9))  # of 5 and of 5 distinct names, 4 true objects
    assert list(all_rules(chosen)) == [redundancy.PUBLISHED, "one step", "per step, nothing lost", ORACLE]


def test_every_setting_of_the_grid_belongs_to_one_way_of_selecting():
    named = {
        Setting(NoPruning()): "",
        Setting(Keep()): "",
        Setting(Keep(), "first-token"): "",
        Setting(PruneHal()): "one step",
        Setting(PruneHal(selection="random")): "random",
        Setting(Accumulated()): "accumulated steps",
        Setting(Accumulated(), "draft"): "draft, then prune",
        Setting(StepTopK(8)): "per step, nothing lost",
        Setting(Informative(), "first-token"): "informative tokens",
        Setting(Standout(), "first-token"): "standout tokens",
    }
    assert {rule: redundancy._family(rule) for rule in named} == named


def test_the_shipped_rows_choose_rules_and_the_test_grid_holds_them():
    chosen = chosen_rules(Store.shipped())
    assert all(isinstance(each, Chosen) and not each.selected_on_test for each in chosen.values())
    reported = {
        Setting(each.policy, each.mode) for each in redundancy.read_grid(redundancy.data_path("grids", "redundancy_test.toml"))
    }
    assert reported == {Setting(NoPruning()), *all_rules(chosen).values(), *controls(chosen).values()}
    for name, (policy, mode) in controls(chosen).items():
        rule = chosen[name.removesuffix(": random")].setting
        assert Setting(replace(policy, selection="top", kept="layer"), mode) == rule
        assert policy.kept == ("shared" if isinstance(policy, Informative | Standout) else "layer")
    assert np.isfinite([each.value for each in chosen.values()]).all()
