"""Policies beyond the paper as an analysis: the choice on validation, the shipped grids, comparison, transfer and the oracle."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import prunehal as ph
from prunehal.automatic import chosen_ratios, transfer
from prunehal.beyond import Setting, candidates, chosen_policies, compare, controls, of_oracle, verdict
from prunehal.core import Accumulated, MassShare, NoPruning, PruneHal, attach
from prunehal.experiments import Experiment, read_grid, sweep
from prunehal.experiments.pictures import truth
from prunehal.resources import data_path
from prunehal.selection_rule import Chosen
from prunehal.testbed.model import build_prompt
from prunehal.testbed.scenes import scene

NONE = Setting(NoPruning())


@pytest.fixture(scope="module")
def chosen():
    return chosen_policies(ph.Store.shipped())


def test_the_shipped_grid_holds_what_validation_chose_and_its_controls(chosen):
    stored = [each for name in ("thresholds", "beyond_test") for each in read_grid(data_path("grids", f"{name}.toml"))]
    wanted = {each.setting for each in chosen.values()} | set(controls(chosen).values()) | {NONE}
    at_one = {Setting(each.policy, each.mode) for each in stored if each.split == "test" and not each.tiles}
    assert wanted <= at_one
    own = {Setting(each.policy, each.mode) for each in read_grid(data_path("grids", "beyond_test.toml")) if not each.tiles}
    assert own <= wanted
    redundant = {Setting(each.policy, each.mode) for each in stored if each.split == "test" and each.tiles == 3}
    both = (chosen, chosen_policies(ph.Store.shipped(), tiles=3))
    assert {each[family].setting for each in both for family in ("PruneHal", "MassShare")} | {NONE} <= redundant


@pytest.mark.parametrize("tiles", [0, 3])
def test_a_choice_keeps_the_recall_or_has_the_highest(tiles):
    store, families = ph.Store.shipped(), candidates(tiles)
    for family, choice in chosen_policies(store, tiles).items():
        experiments = families[family]
        assert {each.split for each in experiments} == {"validation"}
        assert choice.n_candidates == len(experiments)
        base = store.score(NONE.on(experiments[0])).metrics
        found = {Setting(each.policy, each.mode): store.score(each).metrics for each in experiments}
        keeping = {setting: m for setting, m in found.items() if m["recall"] >= base["recall"] - 0.01 - 1e-12}
        if keeping:
            assert found[choice.setting]["chair_i"] == min(m["chair_i"] for m in keeping.values())
            assert choice.setting in keeping
        else:
            assert found[choice.setting]["recall"] == max(m["recall"] for m in found.values())


def test_every_family_is_one_policy_at_one_time():
    for family, experiments in candidates().items():
        kinds = {(each.mode, "" if each.mode != "decoding" else type(each.policy)) for each in experiments}
        assert len(kinds) == 1, family
    assert {each.model for part in candidates(model="some/model").values() for each in part} == {"some/model"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    base = Experiment(split="test", n_images=8)
    settings = {
        "a": Setting(PruneHal(r=0.4, t=3)),
        "b": Setting(MassShare(p=0.8), "draft"),
        "c": Setting(Accumulated(r=0.5, t=1)),
    }
    store = sweep([base, *(each.on(base) for each in settings.values())], tmp_path_factory.mktemp("rows"), progress=False)
    return store, settings, base


def test_settings_are_compared_with_no_pruning(small):
    store, settings, base = small
    table = compare(store, settings, base, n_resamples=200)
    plain = store.score(base).metrics
    words = {name: store.score(each.on(base)).metrics for name, each in settings.items()}
    assert table.index.tolist() == ["a", "b", "c"]
    for name, line in table.iterrows():
        for metric in ("chair_i", "recall"):
            assert line[f"d_{metric}"] == pytest.approx(100 * (words[name][metric] - plain[metric]))
        assert line["equal_low"] <= line["equal_chair_i"] <= line["equal_high"]
        assert line["equal_recall_low"] <= line["equal_recall"] <= line["equal_recall_high"]
        assert line["p_holm"] >= line["p_chair_i"]
        assert line["lowers"] == bool(line["rejected"] and line["d_chair_i"] < 0 and line["d_recall"] >= -1)


def planted(**columns):
    return pd.DataFrame(columns, index=["a", "b", "oracle"])


def test_a_policy_lowers_only_where_recall_stays(tmp_path):
    base = Experiment(split="test", n_images=40)
    settings = {"silent": Setting(PruneHal(r=0.5)), "same": Setting(PruneHal(r=0.6))}
    store = ph.Store(tmp_path)
    present = {key: sorted(names) for key, names in truth(base).items()}
    texts = {
        base: lambda names: f"There is a {names[0]}, a {names[1]} and a {_absent(names)}.",
        settings["silent"].on(base): lambda names: f"There is a {names[0]}.",
        settings["same"].on(base): lambda names: f"There is a {names[0]} and a {names[1]}.",
    }
    with store.writing():
        for experiment, text in texts.items():
            store.append(experiment, [_row(key, text(names)) for key, names in present.items()])
    table = compare(store, settings, base, n_resamples=200)
    assert table["rejected"].tolist() == [True, True]
    assert table["lowers"].tolist() == [False, True]


def _absent(names):
    return next(name for name in ("zebra", "giraffe", "bear", "toilet", "surfboard") if name not in names)


def _row(key, text):
    row = {"key": key, "caption": text, "tokens": 9, "finished": True, "visual": 9.0, "events": [], "voted": []}
    return row | {"layers": [0], "mass": [0.5], "mentions": []}


def test_parts_of_the_oracles_gain():
    worse = planted(d_chair_i=[1.0, -2.0, 4.0], d_chair_i_low=[0.0, -3.0, 3.0], d_chair_i_high=[2.0, -1.0, 5.0])
    assert of_oracle(worse, "chair_i") is None
    unsure = worse.assign(d_chair_i=-4.0, d_chair_i_low=-9.0, d_chair_i_high=0.5)
    assert of_oracle(unsure, "chair_i") is None
    better = planted(d_chair_i=[1.0, -2.0, -4.0], d_chair_i_low=[0.0, -3.0, -5.0], d_chair_i_high=[2.0, -1.0, -3.0])
    assert of_oracle(better, "chair_i").to_dict() == {"a": -0.25, "b": 0.5}
    recall = planted(d_recall=[1.0, -2.0, 4.0], d_recall_low=[0.0, -3.0, 3.0], d_recall_high=[2.0, -1.0, 5.0])
    assert of_oracle(recall, "recall").to_dict() == {"a": 0.25, "b": -0.5}


def test_the_words_follow_the_numbers():
    low, high = {"d_chair_i_low": -9.0, "d_recall_low": -9.0}, {"d_chair_i_high": 9.0, "d_recall_high": 9.0}
    line = {"d_chair_i": 0.0, "d_recall": 0.0, "rejected": False, "lowers": False} | low | high
    lines = {"A": line, "B": line, "A, random tokens": line | {"rejected": True, "d_chair_i": 3.0}, "oracle": line}
    said = verdict(pd.DataFrame.from_dict(lines, orient="index"))
    assert [sentence.rpartition(": ")[2] for sentence in said[:3]] == ["no policy"] * 3
    assert said[3:] == [
        f"The oracle changes {label} by +0.0 [-9.0, 9.0]: there is no gain of which a selection could win a part"
        for label in ("CHAIR_i", "recall")
    ]
    lines["A"] = line | {"rejected": True, "lowers": True, "d_chair_i": -2.0, "d_recall": 1.0}
    lines["B"] = line | {"rejected": True, "d_chair_i": -4.0, "d_recall": -5.0}
    lines["C"] = line | {"rejected": True, "d_chair_i": 4.0}
    lines["oracle"] = line | {"d_chair_i": -4.0, "d_chair_i_high": -1.0, "d_recall": 4.0, "d_recall_low": 1.0}
    said = verdict(pd.DataFrame.from_dict(lines, orient="index"))
    assert [sentence.rpartition(": ")[2] for sentence in said[:3]] == ["A", "B", "C"]
    assert said[3].endswith("by -4.0 [-9.0, -1.0]; of that the policies win: B 100%, A 50%, C -100%")
    assert said[4].endswith("by +4.0 [1.0, 9.0]; of that the policies win: A 25%, C 0%, B -125%")


def test_transfer_is_the_difference_from_what_was_chosen_here(small):
    store, settings, base = small

    def choice(setting):
        return Chosen(setting, "validation", "chair_i", 0.0, NONE, (), 2, 2, False, frozenset())

    there, here = {"X": choice(settings["a"])}, {"X": choice(settings["c"])}
    table = transfer(store, there, here, base, ["X"], n_resamples=200).set_index("chosen")
    ours, theirs = (store.score(settings[name].on(base)).metrics for name in "ac")
    for metric in ("chair_i", "recall"):
        assert table.loc["there", f"regret_{metric}"] == pytest.approx(100 * (ours[metric] - theirs[metric]))
        assert math.isnan(table.loc["here", f"regret_{metric}"])
    assert table["family"].tolist() == ["X", "X"]
    assert table.loc["here", "recall"] == pytest.approx(100 * theirs["recall"])


@pytest.mark.parametrize("tiles", [0, 1])
def test_the_ratios_are_those_of_whole_captions(tiles):
    model, processor = ph.load()
    scenes, policy = [scene("test", i) for i in range(3)], MassShare(p=0.85)
    frame = chosen_ratios(model, processor, scenes, policy, tiles=tiles, batch_size=2)
    for each in scenes:
        images = each.tiles(tiles, False)[0]
        inputs = processor(images=images, text=build_prompt(tiles + 1), return_tensors="pt")
        cache = attach(model, inputs, policy)
        model.generate(**inputs, past_key_values=cache, max_new_tokens=30)
        mine = frame[frame["image_id"] == each.image_id]
        assert mine["kept"].tolist() == cache.events["kept"][0]
        assert mine["ratio"].tolist() == [len(cache.kept(layer)[0]) / (144 * (tiles + 1)) for layer in range(6)]


def test_labels_tell_candidates_apart(chosen):
    settings = {Setting(each.policy, each.mode) for part in candidates().values() for each in part}
    settings |= set(controls(chosen).values())
    assert len({each.label for each in settings}) == len(settings)
    assert Setting(Accumulated(r=0.5, t=1, content=True), "draft").label == "Accumulated(r = 0.5, t = 1, content = True), draft"


def test_the_modes_are_part_of_a_setting():
    base = Experiment(split="test", tiles=3)
    assert Setting(MassShare(), "draft").on(base) == replace(base, policy=MassShare(), mode="draft")
    assert np.all([each.mode == "decoding" for each in candidates()["MassShare"]])
