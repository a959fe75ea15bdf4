"""Training seeds: rows of several models, counted, pooled over seeds by scene, each seed by its own choice."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from prunehal import load
from prunehal.benchmarks import score
from prunehal.core import Accumulated, Informative, NoPruning, PruneHal, Standout
from prunehal.experiments import Experiment, Store
from prunehal.experiments.images import truth
from prunehal.files.paths import data_path
from prunehal.stats.distinct_bounds import bounded, level_bounds
from prunehal.studies.nb08_redundancy.rules import ORACLE, PUBLISHED, all_rules, chosen_rules
from prunehal.studies.nb11_seeds import in_words as seeds_reading
from prunehal.studies.nb11_seeds import rows as seeds
from prunehal.studies.nb11_seeds.in_words import (
    ALL,
    CARD_SCENES,
    beside_cards,
    claims,
    effects,
    from_cards,
    headline,
    transfer,
    verdicts,
    within,
)
from prunehal.studies.nb11_seeds.rows import COUNTS, NONE, measure, setting_name, stored
from prunehal.studies.settings import Setting

LENGTH = 30  # tokens of a caption
OTHER = {  # what the model of the other seed may choose from; the first and the last are the embedded model's choices, too
    "one step": Setting(PruneHal(r=0.9, t=1)),
    "accumulated steps": Setting(Accumulated(r=0.5, t=1, wait=8)),
    "informative tokens": Setting(Informative(p=0.8, grid=12, window=23), "first-token"),
    "standout tokens": Setting(Standout(part=0.25, grid=12, window=23), "first-token"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a model that is not quite the embedded one."""
    model, processor = load()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.model.language_model.parameters():
            weight.add_(0.02 * torch.randn_like(weight) * weight.abs().mean())
    path = tmp_path_factory.mktemp("runs") / "model"
    model.to(torch.bfloat16).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """Return the rows, the file and the folder of work, of three scenes, two for what others chose."""
    rules = [Setting(NoPruning()), *OTHER.values()]
    plain = Experiment(n_images=1, max_new_tokens=LENGTH, tiles=3)
    grid = [rule.on(replace(plain, clutter=clutter)) for clutter in (False, True) for rule in rules]
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds, "candidates", lambda: grid)
        patch.setattr(seeds, "_of", lambda *given, of=seeds._of: replace(of(*given), max_new_tokens=LENGTH))
        frame = measure([folder], work, work / "seeds.csv.gz", n_images=3, n_transfer=2, progress=False)
    return frame, work / "seeds.csv.gz", work


def test_every_model_is_captioned_by_its_own_choices_and_by_those_of_the_other(made):
    frame = made[0]
    sizes = frame.groupby(["seed", "rule", "own"])["image_id"].nunique()
    shipped = chosen_rules(Store.shipped())
    for seed in (0, 1):
        for rule in (NONE, PUBLISHED, ORACLE, *seeds.FAMILIES):
            assert sizes[seed, rule, True] == 3
            same = rule not in OTHER or shipped[rule].setting == OTHER[rule]
            assert sizes.get((seed, rule, False), 0) == (0 if same else 2)
    assert frame.groupby("seed")["weights"].nunique().tolist() == [1, 1]
    assert frame["weights"].nunique() == 2
    assert not frame.duplicated(["seed", "rule", "setting", "clutter", "image_id"]).any()


def test_counts_are_those_of_the_captions(made, folder):
    frame, _, work = made
    for seed, model, dtype in ((0, "embedded", "auto"), (1, str(folder), "float32")):
        experiment = Experiment(model=model, dtype=dtype, split="test", n_images=3, tiles=3, clutter=True, max_new_tokens=LENGTH)
        pruned = replace(experiment, policy=PruneHal(r=0.4, t=3))
        texts = Store(work / f"seed{seed}").captions(pruned).set_index("image_id")
        rows = frame[(frame["seed"] == seed) & frame["clutter"] & (frame["rule"] == PUBLISHED)].set_index("image_id")
        for image_id, known in truth(experiment).items():
            line, text = rows.loc[image_id], texts.loc[image_id, "caption"]
            found = score({image_id: text}, {image_id: known}).items.iloc[0]
            assert line[COUNTS[:-1]].tolist() == found[COUNTS[:-1]].tolist()
            assert line["n_absent"] == len({*found["nodes"]} - {*known})
            assert line["unfinished"] == (not texts.loc[image_id, "finished"])
            assert line["n_truth"] == len(known)
    assert frame["unfinished"].any()  # of captions of at most 30 tokens


def test_rows_are_read_again_and_refused_under_other_weights(made):
    frame, path, _ = made
    pd.testing.assert_frame_equal(stored(path), frame, check_dtype=False)


def test_the_same_weights_twice_and_no_other_model_are_refused(folder, tmp_path):
    for others in ([], [folder, folder], ["embedded"]):
        with pytest.raises(ValueError, match="each trained from another seed"):
            measure(others, tmp_path, tmp_path / "seeds.csv.gz", progress=False)
    assert list(tmp_path.iterdir()) == []


# Reading, on rows that are told.


def told(own_of_b="b", n=40):
    """Return rows of two seeds: no pruning, the oracle and one rule, whose setting is "a" or, for seed 1, perhaps another."""
    rng = np.random.default_rng(3)
    lines = []
    for seed in (0, 1):
        settings = [(NONE, "nopruning", True), (ORACLE, "keep", True)]
        settings += [("one step", name, name == ("a" if seed == 0 else own_of_b)) for name in dict.fromkeys(("a", own_of_b))]
        for rule, setting, own in settings:
            for image_id in range(n if own else n // 2):
                wrong = 0 if rule == ORACLE else int(rng.integers(0, 3)) + seed
                line = {"seed": seed, "rule": rule, "setting": setting, "own": own, "clutter": True, "image_id": image_id}
                line |= {"words": int(rng.integers(40, 80)), "n_truth": 4}
                lines.append(line | {"n_mentions": 8, "n_hallucinated": wrong, "n_recalled": 4 - wrong})
    return pd.DataFrame(lines)


def test_effects_of_a_seed_and_of_all_are_those_that_loops_count():
    rows = told()
    found = effects(rows, n_resamples=200).set_index(["seed", "rule"])
    assert list(found.index.get_level_values(0).unique()) == ["0", "1", ALL]
    for seed, among in (("0", [0]), ("1", [1]), (ALL, [0, 1])):
        totals = {}
        for line in rows[rows["own"] & rows["seed"].isin(among)].itertuples():
            total = totals.setdefault(line.rule, dict.fromkeys("nwmrtb", 0))
            for key, value in zip(
                "nwmrtb", (1, line.n_hallucinated, line.n_mentions, line.n_recalled, 4, line.words), strict=True
            ):
                total[key] += value
        line, ours, none = found.loc[(seed, "one step")], totals["one step"], totals[NONE]
        assert line["captions"] == ours["n"] == 40 * len(among)
        assert line["setting"] == "; ".join(dict.fromkeys("ab"[s] for s in among))
        assert line["d_chair_i"] == pytest.approx(100 * (ours["w"] / ours["m"] - none["w"] / none["m"]))
        assert line["d_recall"] == pytest.approx(100 * (ours["r"] / ours["t"] - none["r"] / none["t"]))
        assert line["d_words"] == pytest.approx(ours["b"] / ours["n"] - none["b"] / none["n"])
        assert line["chair_i"] == pytest.approx(100 * ours["w"] / ours["m"])
        assert line["d_chair_i_low"] < line["d_chair_i"] < line["d_chair_i_high"]
        ends = []  # distinct CHAIR_i if all absent objects of a caption were one, and if none was said twice
        for rule in (NONE, "one step"):
            part = rows[rows["own"] & (rows["rule"] == rule) & rows["seed"].isin(among)]
            absent = [min(part["n_hallucinated"].sum(), sum(wrong > 0 for wrong in part["n_hallucinated"]))]
            absent += [part["n_hallucinated"].sum()]
            ends.append([100 * each / (each + part["n_recalled"].sum()) for each in absent])
        assert line[["distinct_chair_i_least", "distinct_chair_i_most"]].tolist() == pytest.approx(ends[1])
        assert line["d_distinct_chair_i_least"] == pytest.approx(ends[1][0] - ends[0][1])
        assert line["d_distinct_chair_i_most"] == pytest.approx(ends[1][1] - ends[0][0])
        assert line["d_distinct_chair_i_low"] < line["d_distinct_chair_i_least"] < line["d_distinct_chair_i_most"]
        assert line["repeats_least"] == pytest.approx(100 * (ours["m"] - ours["w"] - ours["r"]) / ours["m"])
        assert np.isnan(line["unfinished"])


def test_counted_objects_and_captions_leave_no_range():
    rows = told().assign(unfinished=True)
    rows["n_absent"] = rows["n_hallucinated"].clip(upper=2)
    table = effects(rows, n_resamples=200)
    assert (table["unfinished"] == 100).all()
    for name in ("distinct_chair_i", "absent", "repeats"):
        assert (table[f"{name}_least"] == table[f"{name}_most"]).all()
    line = table[(table["seed"] == ALL) & (table["rule"] == "one step")].iloc[0]
    assert within(line, "d_distinct_chair_i").count("between") == 0
    absent = {rule: part["n_absent"].sum() for rule, part in rows[rows["own"]].groupby("rule")}
    recalled = {rule: part["n_recalled"].sum() for rule, part in rows[rows["own"]].groupby("rule")}
    f1 = {rule: 2 * recalled[rule] / (recalled[rule] + absent[rule] + 4 * 80) for rule in absent}
    assert line["won_least"] == pytest.approx((f1["one step"] - f1[NONE]) / (f1[ORACLE] - f1[NONE]))


def lines_of(numbers):
    """Return lines of effects: (seed, rule) -> changes of recall, of distinct CHAIR_i and of F1, as (least, most), +-1."""
    lines = []
    for (seed, rule), (recall, distinct, f1) in numbers.items():
        line = {"seed": seed, "clutter": False, "rule": rule, "d_recall": recall}
        line |= {"d_recall_low": recall - 1, "d_recall_high": recall + 1}
        for name, (least, most) in {"d_distinct_chair_i": distinct, "d_f1": f1}.items():
            line |= {f"{name}_least": least, f"{name}_most": most, f"{name}_low": least - 1, f"{name}_high": most + 1}
        lines.append(line)
    return pd.DataFrame([*lines, {"seed": ALL, "clutter": False, "rule": NONE}])


def test_the_headline_says_what_holds_whatever_was_repeated():
    hurts, open_ = (-5.0, (2.0, 9.0), (-8.0, -4.0)), (-5.0, (0.5, 9.0), (-8.0, -4.0))
    table = lines_of({(ALL, "a"): hurts, ("0", "a"): hurts, ("1", "a"): open_})
    assert verdicts(table.iloc[0]) == {"recall": "lower", "distinct CHAIR_i": "higher", "F1": "lower"}
    assert verdicts(table.iloc[2])["distinct CHAIR_i"] == "unclear"
    assert headline(table) == [
        "clean tiles, a: recall -5.0 [-6.0, -4.0], lower; distinct CHAIR_i between +2.0 and +9.0 [1.0, 10.0], higher; "
        "F1 between -8.0 and -4.0 [-9.0, -3.0], lower; 1 of 2 seeds say all three alone."
    ]


def test_cards_leave_open_the_pruned_captions_alone(monkeypatch):
    monkeypatch.setattr(seeds_reading, "CARD_SCENES", 15)
    rows = told()
    found = beside_cards(rows, {0: {True: 0.25}, 1: {True: 0.5}}).set_index(["rule", "seed"])
    part = rows[rows["own"] & (rows["rule"] == "one step") & (rows["seed"] == 1) & (rows["image_id"] < 15)]
    for end, absent in (("least", part["n_hallucinated"].clip(upper=1).sum()), ("most", part["n_hallucinated"].sum())):
        rate = 100 * absent / (absent + part["n_recalled"].sum())
        assert found.loc[("one step", 1), end] == pytest.approx(rate)
        assert found.loc[("one step", 1), f"d_{end}"] == pytest.approx(rate - 50)
    assert (found.loc["one step", "none"] == [25, 50]).all()


def test_model_cards_are_about_the_first_scenes_of_the_stored_rows():
    """Where the mentions agree to the digit, the distinct objects that the cards counted are those of the same captions."""
    rows = stored()
    none = rows[(rows["rule"] == NONE) & rows["own"]]
    first = sorted(none["image_id"].unique())[:CARD_SCENES]
    cards = json.loads(data_path("embedded", "seeds.json").read_text(encoding="utf-8"))
    assert len(cards) == none["seed"].nunique() == len(from_cards())
    for (seed, clutter), part in none[none["image_id"].isin(first)].groupby(["seed", "clutter"]):
        card = cards[seed]["captions"][f"test, 3 {'cluttered' if clutter else 'clean'} background tiles"]
        assert cards[seed]["weights"] == part["weights"].iloc[0]
        assert card["chair_i"] == pytest.approx(part["n_hallucinated"].sum() / part["n_mentions"].sum(), abs=1e-12)
        assert card["recall"] == pytest.approx(part["n_recalled"].sum() / part["n_truth"].sum(), abs=1e-12)
        least, most = level_bounds(bounded(part), "distinct_chair_i")
        assert least < from_cards()[seed][clutter] == card["distinct_chair_i"] < most


ACCUMULATED = "accumulated steps"


def claimed(changed):
    """Return the claims of a table in which all hold, but for changed cells: (rule, column) -> value."""
    ends = {"recall": (1.0, 3.0), "f1": (1.0, 3.0)}
    lines = [{"seed": ALL, "clutter": True, "rule": NONE}]
    for rule in (PUBLISHED, ACCUMULATED, ORACLE, "standout tokens"):
        sign = -1 if rule == PUBLISHED else 1
        line = {"seed": ALL, "clutter": True, "rule": rule, "d_recall": 2.0 * sign}
        for name, given in (ends | {"distinct_chair_i": (-3.0, -1.0)}).items():
            low, high = sorted(sign * each for each in given)
            line |= {f"d_{name}_low": low, f"d_{name}_high": high, f"d_{name}_least": low, f"d_{name}_most": high}
        line |= {"won_least": 0.6, "won_most": 0.65, "won_low": 0.55, "won_high": 0.7}
        lines.append(line | {column: value for (of, column), value in changed.items() if of == rule})
    return claims(pd.DataFrame(lines))["cluttered tiles"]


@pytest.mark.parametrize(
    ("rule", "changed", "number", "verdict"),
    [
        (PUBLISHED, {"d_f1_high": 0.1}, 0, "unclear"),
        (PUBLISHED, {"d_f1_low": 0.1, "d_f1_high": 2.0}, 0, "refuted"),
        (ACCUMULATED, {"d_recall_low": -0.1}, 1, "unclear"),
        (ACCUMULATED, {"d_recall_low": -3.0, "d_recall_high": -0.1}, 1, "refuted"),
        (ORACLE, {"d_f1_low": -0.1}, 2, "unclear"),
        (ORACLE, {"d_distinct_chair_i_low": -9.0}, 2, "confirmed"),
    ],
)
def test_each_claim_has_its_own_condition(rule, changed, number, verdict):
    said = claimed({(rule, column): value for column, value in changed.items()})
    found = [each.split(":")[0] for each in said.iloc[:3]]
    assert found == [verdict if each == number else "confirmed" for each in range(3)]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.5, 0.7, "confirmed: between +0.60 and +0.65 [0.50, 0.70]"),
        (0.4, 0.7, "unclear: between +0.60 and +0.65 [0.40, 0.70]"),
        (0.1, 0.49, "refuted: between +0.60 and +0.65 [0.10, 0.49]"),
    ],
)
def test_half_of_the_gain_is_shown_by_the_whole_interval(low, high, said):
    changed = {("standout tokens", "won_low"): low, ("standout tokens", "won_high"): high}
    assert claimed(changed)["half of the oracle's gain in F1, by standout tokens"] == said
    nothing = claimed({("standout tokens", "won_least"): np.nan})
    assert nothing["half of the oracle's gain in F1, by standout tokens"] == "unclear: no gain for sure"


def test_an_interval_over_seeds_draws_whole_scenes():
    """Two seeds that say the same of every scene are no more evidence than one of them."""
    rows = told(own_of_b="a")
    twice = pd.concat([rows[rows["seed"] == 0].assign(seed=seed) for seed in (0, 1)])
    found = effects(twice, n_resamples=200).set_index(["seed", "rule"])
    for end in ("d_chair_i_low", "d_chair_i_high", "d_recall_low"):
        assert found.loc[(ALL, "one step"), end] == pytest.approx(found.loc[("0", "one step"), end])


def test_transfer_compares_with_the_own_choice_on_the_scenes_of_both():
    rows = told()
    found = transfer(rows, n_resamples=200)
    assert list(zip(found["seed"], found["setting"], found["chosen_by"], strict=True)) == [(0, "b", "1"), (1, "a", "0")]
    for line in found.itertuples():
        other = rows[(rows["seed"] == line.seed) & (rows["setting"] == line.setting)]
        mine = rows[(rows["seed"] == line.seed) & (rows["rule"] == "one step") & rows["own"] & (rows["image_id"] < 20)]
        rates = [100 * each["n_hallucinated"].sum() / each["n_mentions"].sum() for each in (mine, other)]
        assert line.d_chair_i == pytest.approx(rates[1] - rates[0])
    assert transfer(told(own_of_b="a"), n_resamples=200).empty


def test_the_shipped_lines_of_the_embedded_model_are_those_of_the_shipped_captions():
    """Equal where both were counted, and the distinct objects of the captions lie within the range of their counts."""
    store, rows = Store.shipped(), stored()
    rules = {NONE: Setting(NoPruning())} | all_rules(chosen_rules(store))
    names = {setting_name(rule) for rule in rules.values()}  # by today's rule, which the stored lines were not chosen by
    own = rows[(rows["seed"] == 0) & rows["setting"].isin(names)].set_index(["rule", "clutter", "image_id"]).sort_index()
    counted, seen = COUNTS[:3], 0
    for rule in own.index.unique("rule"):
        for clutter in (False, True):
            cell = Experiment(split="test", n_images=100, tiles=3, clutter=clutter)
            items = store.score(rules[rule].on(cell)).items.set_index("image_id")
            lines = own.loc[(rule, clutter)].loc[items.index]
            pd.testing.assert_frame_equal(lines[counted], items[counted], check_dtype=False)
            least, most = level_bounds(bounded(lines), "distinct_chair_i")
            assert least <= items["n_absent"].sum() / items["n_distinct"].sum() <= most
            seen += len(lines)
    assert seen == 2 * (3 + len(seeds.FAMILIES)) * 100
