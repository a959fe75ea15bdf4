"""Policies beyond the paper as an analysis: the choice on validation, the shipped grids, comparison, transfer and the oracle."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import prunehal as ph
from prunehal.core import (
    Accumulated,
    Bank,
    Informative,
    Keep,
    MassShare,
    NoPruning,
    PruneHal,
    RobustVote,
    Standout,
    StepTopK,
    attach,
)
from prunehal.experiments import Experiment, read_grid, sweep
from prunehal.experiments.choosing import Chosen
from prunehal.experiments.compare import LEVELS
from prunehal.experiments.images import truth
from prunehal.files.paths import data_path
from prunehal.studies.nb10_other_policies.automatic import chosen_ratios, transfer
from prunehal.studies.nb10_other_policies.compare import (
    as_table,
    chosen_policies,
    compare,
    controls,
    footnotes,
    lowers,
    shown_parts,
    verdict,
)
from prunehal.studies.nb10_other_policies.controls import against_controls
from prunehal.studies.nb10_other_policies.families import FALLBACK, candidates, standing, tried
from prunehal.studies.settings import Setting
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import scene

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
    assert {each[family].setting for each in both for family in ("PruneHal", "MassShare", "Informative", "Standout")} | {
        NONE
    } <= redundant


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
            assert found[choice.setting]["distinct_chair_i"] == min(m["distinct_chair_i"] for m in keeping.values())
            assert choice.setting in keeping
        else:
            assert found[choice.setting]["recall"] == max(m["recall"] for m in found.values())


@pytest.mark.parametrize("tiles", [0, 3])
def test_every_candidate_is_shown_and_the_choice_marked(tiles):
    store, families = ph.Store.shipped(), candidates(tiles)
    chosen = chosen_policies(store, tiles)
    table = tried(store, chosen, tiles, n_resamples=100)
    assert len(table) == sum(map(len, families.values()))
    assert table["family"].drop_duplicates().tolist() == list(families)
    for family, part in table.groupby("family"):
        experiments, base = families[family], store.score(NONE.on(families[family][0])).metrics
        assert part["setting"].tolist() == [Setting(each.policy, each.mode).label for each in experiments]
        assert part["images"].tolist() == [each.n_images for each in experiments]
        for line, each in zip(part.to_dict("records"), experiments, strict=True):
            metrics = store.score(each).metrics
            for metric in ("chair_i", "distinct_chair_i", "recall"):
                assert line[metric] == pytest.approx(100 * metrics[metric])
                assert line[f"d_{metric}"] == pytest.approx(100 * (metrics[metric] - base[metric]))
        marked = part[part["choice"] != ""]
        assert marked["setting"].tolist() == [chosen[family].setting.label]
        kept = (part["d_recall"] >= -1 - 1e-9).any()
        assert marked["choice"].tolist() == ["chosen" if kept else FALLBACK] == [standing(chosen[family])]


def test_the_options_of_the_policies_are_among_the_candidates():
    policies = [each.policy for part in candidates().values() for each in part]
    accumulated = [each for each in policies if type(each) is Accumulated]
    assert {(each.window, each.grid) for each in accumulated} >= {(None, None), (4, None), (None, 12), (4, 12)}
    assert {each.content for each in accumulated} == {True, False}
    robust = [each for each in policies if isinstance(each, RobustVote)]
    assert {each.z for each in robust} == {2.0, 3.0}
    assert {each.like for each in robust} == {None, 8}
    assert {each.every for each in policies if isinstance(each, Bank) and each.back == "key"} == {1, 4}


def test_controls_change_one_thing(chosen):
    found = controls(chosen)
    for family in ("PruneHal", "RobustVote", "MassShare", "Informative", "Standout"):
        policy, mode = chosen[family].setting
        kept = "shared" if isinstance(policy, Informative | Standout) else "layer"
        assert found[f"{family}, random tokens"] == Setting(replace(policy, selection="random", kept=kept), mode)
    for family in ("Bank by fall", "Bank by key"):
        policy, mode = chosen[family].setting
        assert found[f"{family}, int8"] == Setting(replace(policy, store="int8"), mode)
    assert len(found) == 2 + 5 + 2


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
        "d": Setting(StepTopK(k=8)),
        "oracle": Setting(Keep(), "first-token"),
    }
    store = sweep([base, *(each.on(base) for each in settings.values())], tmp_path_factory.mktemp("rows"), progress=False)
    return store, settings, base


def test_settings_are_compared_with_no_pruning(small):
    store, settings, base = small
    table = compare(store, settings, base, n_resamples=200)
    plain = store.score(base).metrics
    words = {name: store.score(each.on(base)).metrics for name, each in settings.items()}
    assert table.index.tolist() == [*"abcd", "oracle"]
    for name, line in table.iterrows():
        for metric in ("chair_i", "distinct_chair_i", "recall"):
            assert line[f"d_{metric}"] == pytest.approx(100 * (words[name][metric] - plain[metric]))
        for metric in ("distinct_chair_i", "recall"):
            assert line[f"equal_{metric}_low"] <= line[f"equal_{metric}"] <= line[f"equal_{metric}_high"]
        assert line["p_holm"] >= line["p_distinct_chair_i"]
        assert line["p_holm_recall"] >= line["p_recall"]
        shown = (
            line["rejected"],
            line["d_distinct_chair_i"] < 0,
            line["equal_distinct_chair_i_high"] < 0,
            line["d_recall_low"] >= -1,
        )
        assert line["lowers"] == all(shown)
        for metric in ("distinct_chair_i", "recall"):
            wins = (words[name][metric] - plain[metric]) / (words["oracle"][metric] - plain[metric])
            assert line[f"part_{metric}"] == pytest.approx(wins)
        assert (line["attended"] < line["visual"]) == (name == "d")


@pytest.mark.parametrize("policy", [StepTopK(k=8), StepTopK(k=100, step=5), MassShare(p=0.8)])
def test_attended_tokens_are_those_with_weight_at_each_step(policy, tmp_path):
    base = Experiment(split="test", n_images=2)
    settings = {"a": Setting(policy)}
    store = sweep([base, settings["a"].on(base)], tmp_path, progress=False)
    model, processor = ph.load()
    seen = []
    for i in range(2):
        inputs = processor(images=scene("test", i).image(), text=build_prompt(1), return_tensors="pt")
        cache = attach(model, inputs, policy, maps=True)
        model.generate(**inputs, **cache.options, max_new_tokens=base.max_new_tokens, do_sample=False)
        maps = cache.trace.maps[:, :, 0]  # (step, layer, visual)
        seen.append(np.mean([(maps[m, layer] > 0).sum() for m in range(maps.shape[0]) for layer in range(maps.shape[1])]))
    table = compare(store, settings, base, n_resamples=200)
    assert table.loc["a", "attended"] == pytest.approx(100 * np.mean(seen) / 144, abs=0.02)


def test_a_policy_lowers_only_where_recall_stays_and_fewer_objects_are_no_reason(tmp_path):
    base = Experiment(split="test", n_images=40)
    settings = {name: Setting(PruneHal(r=r)) for name, r in (("silent", 0.5), ("short", 0.6), ("same", 0.7))}
    store = ph.Store(tmp_path)
    present = {key: sorted(names) for key, names in truth(base).items()}
    texts = {
        base: lambda names: f"There is a {names[0]}, a {names[1]} and a {_absent(names)}.",
        settings["silent"].on(base): lambda names: f"There is a {names[0]}, a wall, a floor and a wall.",
        settings["short"].on(base): lambda names: f"There is a {names[0]} and a {names[1]}.",
        settings["same"].on(base): lambda names: f"There is a {', a '.join(names[:3])} and a wall.",
    }
    with store.writing():
        for experiment, text in texts.items():
            store.append(experiment, [_row(key, text(names)) for key, names in present.items()])
    table = compare(store, settings, base, n_resamples=200)
    assert table["rejected"].tolist() == [True] * 3
    assert table["lowers"].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"d_recall": -0.9, "d_recall_low": -3.5, "d_recall_high": 1.7}, False),  # the estimate alone is within a point
        ({"d_recall_low": -1.0}, True),
        ({"equal_distinct_chair_i_high": 0.0}, False),
        ({"rejected": False}, False),
        ({"d_distinct_chair_i": 3.0}, False),
    ],
)
def test_equal_recall_and_length_are_shown_by_intervals(changed, expected):
    line = {"rejected": True, "d_distinct_chair_i": -3.0, "equal_distinct_chair_i_high": -0.2}
    line |= {"d_recall": 0.0, "d_recall_low": -0.5, "d_recall_high": 0.5}
    assert lowers(pd.DataFrame([line | changed])).tolist() == [expected]


def _absent(names):
    return next(name for name in ("zebra", "giraffe", "bear", "toilet", "surfboard") if name not in names)


def _row(key, text):
    row = {"key": key, "caption": text, "tokens": 9, "finished": True, "visual": 9.0, "events": [], "voted": []}
    return row | {"layers": [0], "mass": [0.5], "mentions": []}


def planted(**oracle):
    line = {"rejected": False, "lowers": False, "p_holm": 1.0, "p_holm_recall": 1.0}
    line |= {f"{kind}_{metric}{end}": 0.0 for kind in ("d", "part") for metric in ("distinct_chair_i", "recall") for end in ENDS}
    return {"A": line, "B": line, "A, random tokens": line, "oracle": line | oracle}


ENDS = ("", "_low", "_high")


@pytest.mark.parametrize(("metric", "sign"), [("distinct_chair_i", -1), ("recall", 1)])
def test_a_part_of_the_oracles_gain_is_shown_by_its_interval_and_after_correction(metric, sign):
    p = "p_holm_recall" if metric == "recall" else "p_holm"

    def gaining(low, high, p_value):
        low, high = sorted((sign * low, sign * high))
        return planted(**{f"d_{metric}_low": low, f"d_{metric}_high": high, p: p_value})

    for low, high, p_value in ((-5.0, -3.0, 0.01), (-0.5, 9.0, 0.01), (0.0, 9.0, 0.01), (3.0, 5.0, 0.06)):
        assert shown_parts(pd.DataFrame.from_dict(gaining(low, high, p_value), orient="index"), metric) is None
    lines = gaining(3.0, 5.0, 0.01)
    lines["A"] = lines["A"] | {f"part_{metric}_low": 0.01, p: 0.2}
    lines["B"] = lines["A"] | {p: 0.04}
    lines["C"] = lines["B"] | {f"part_{metric}_low": -0.1}
    shown = shown_parts(pd.DataFrame.from_dict(lines, orient="index"), metric)
    assert shown.to_dict() == {"A": False, "B": True, "C": False, "A, random tokens": False}


def said_of(lines):
    """Return the sentences of the verdict on planted lines, without what introduces each list."""
    said = verdict(pd.DataFrame.from_dict(lines, orient="index"))
    return [sentence.rpartition(": ")[2] for sentence in said[:4]], said[4:]


def test_the_words_follow_the_numbers():
    named, oracle = said_of(planted())
    assert named == ["no policy"] * 3 + ["A +0.0 [0.0, 0.0], B +0.0 [0.0, 0.0]"]
    assert oracle == [
        f"The oracle changes {label} by +0.0 [0.0, 0.0]: no gain is shown after Holm's correction, so no part of it is asked for"
        for label in ("distinct CHAIR_i", "recall")
    ]
    lines = planted(d_recall=4.0, d_recall_low=1.0, d_recall_high=9.0, p_holm_recall=0.01)
    lines["A, random tokens"] = lines["A, random tokens"] | {"rejected": True, "d_distinct_chair_i": 3.0}
    lines["C, published"] = lines["A"] | {"rejected": True, "d_distinct_chair_i": 4.0}
    lines["A"] = lines["A"] | {"rejected": True, "lowers": True, "d_distinct_chair_i": -2.0}
    lines["A"] |= {"part_recall": 0.25, "part_recall_low": 0.1, "part_recall_high": 0.5}
    lines["B"] = lines["B"] | {"rejected": True, "d_distinct_chair_i": -4.0}
    lines["B"] |= {"part_recall": -1.25, "part_recall_low": -2.0, "part_recall_high": 0.25}
    named, oracle = said_of(lines)
    assert named == ["A -2.0 [0.0, 0.0]", "B -4.0 [0.0, 0.0]", "C, published +4.0 [0.0, 0.0]", "no policy"]
    assert oracle[1].endswith(
        "by +4.0 [1.0, 9.0]; the policies' parts of that: A 25% [10%, 50%], C, published 0% [0%, 0%], B -125% [-200%, 25%]"
    )
    assert oracle[2].endswith("Holm's correction): no policy")
    lines["A"]["p_holm_recall"] = 0.01
    assert said_of(lines)[1][2].endswith("Holm's correction): A")


def test_a_policy_is_compared_with_itself_after_one_change(tmp_path):
    base = Experiment(split="test", n_images=6)
    settings = {"P": Setting(PruneHal(r=0.7, t=1)), "P, random tokens": Setting(PruneHal(r=0.7, t=1, selection="random"))}
    settings |= {"B": Setting(Bank()), "B, int8": Setting(Bank(store="int8")), "alone": Setting(MassShare())}
    store = sweep([each.on(base) for each in settings.values()], tmp_path, progress=False)
    table = against_controls(store, settings, base, n_resamples=200)
    assert table.index.tolist() == [("P", "P, random tokens"), ("B, int8", "B")]
    for (ours, theirs), line in table.iterrows():
        a, b = (store.score(settings[name].on(base)) for name in (ours, theirs))
        for metric in ("distinct_chair_i", "recall"):
            assert line[f"d_{metric}"] == pytest.approx(100 * (a.metrics[metric] - b.metrics[metric]))
        texts = [store.captions(settings[name].on(base))["caption"].tolist() for name in (ours, theirs)]
        assert line["other"] == pytest.approx(100 * np.mean([x != y for x, y in zip(*texts, strict=True)]))
        assert line["p_holm"] >= line["p_distinct_chair_i"]


def test_footnotes_name_what_the_columns_leave_out():
    settings = {"D": Setting(MassShare(), "draft"), "S": Setting(StepTopK(k=8)), "B": Setting(Bank()), "P": Setting(PruneHal())}
    settings |= {"C": Setting(Bank(store="cpu")), "I": Setting(Bank(store="int8"))}
    said = [each.partition(": ") for each in footnotes(settings)[1:]]
    assert [names for names, _, _ in said] == ["D", "S", "B; C", "I"]
    assert "rounded" in said[-1][2]
    assert len(footnotes({"P": settings["P"]})) == 1


def test_the_table_shows_recall_at_equal_length_and_marks_a_fallback(small):
    store, settings, base = small
    table = compare(store, settings, base, n_resamples=200)
    choices = {"a": _choice(settings["a"], missed=(("recall", 0.01),)), "b": _choice(settings["b"])}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in as_table(table, settings, choices).splitlines()]
    head, body = lines[0], {line[0]: line for line in lines[2 : 3 + len(settings)]}
    assert list(body) == ["no pruning", f"a ({FALLBACK})", "b", "c", "d", "oracle"]
    line = table.loc["a"]
    ends = f"[{line['equal_recall_low']:.1f}, {line['equal_recall_high']:.1f}]"
    assert body[f"a ({FALLBACK})"][head.index("of recall at equal objects")] == f"{line['equal_recall']:+.1f} {ends}"
    for name, experiment in (("no pruning", base), ("c", settings["c"].on(base))):
        metrics = store.score(experiment).metrics
        for metric, label in LEVELS.items():
            unit, digits = 1 if metric in ("absent", "words") else 100, 2 if metric == "absent" else 1
            assert body[name][head.index(label)] == f"{unit * metrics[metric]:.{digits}f}"
    assert FALLBACK not in as_table(table, settings)


def _choice(setting, **options):
    return Chosen(setting, "validation", "distinct_chair_i", 0.0, NONE, (), 2, 2, False, (0.0, 0.0), frozenset(), **options)


def test_regret_is_how_much_worse_it_is_than_what_was_chosen_here(small):
    store, settings, base = small
    there, here = {"X": _choice(settings["a"])}, {"X": _choice(settings["c"])}
    table = transfer(store, there, here, base, ["X"], n_resamples=200).set_index("chosen")
    ours, theirs = (store.score(settings[name].on(base)).metrics for name in "ac")
    for metric, worse in (("distinct_chair_i", 1), ("recall", -1)):
        line = table.loc["there"]
        assert line[f"regret_{metric}"] == pytest.approx(worse * 100 * (ours[metric] - theirs[metric]))
        assert line[f"regret_{metric}_low"] < line[f"regret_{metric}"] < line[f"regret_{metric}_high"]
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
        model.generate(**inputs, **cache.options, max_new_tokens=30)
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
