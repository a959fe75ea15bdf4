"""Training seeds: rows of several models, counted, pooled over seeds by scene, each seed by its own choice."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from prunehal import load, seeds
from prunehal.benchmarks import score
from prunehal.core import Accumulated, Informative, NoPruning, PruneHal, Standout
from prunehal.experiments import Experiment, Store
from prunehal.experiments.pictures import truth
from prunehal.redundancy import ORACLE, PUBLISHED, all_rules, chosen_rules, with_rule
from prunehal.seeds import COUNTS, NONE, measure, stored
from prunehal.seeds_reading import ALL, claims, effects, headline, transfer

LENGTH = 30  # tokens of a caption
OTHER = {  # what the model of the other seed may choose from; the first and the last are the embedded model's choices, too
    "one step": ("decoding", PruneHal(r=0.9, t=1)),
    "accumulated steps": ("decoding", Accumulated(r=0.5, t=1, wait=8)),
    "informative tokens": ("first-token", Informative(p=0.8, grid=12, window=23)),
    "standout tokens": ("first-token", Standout(part=0.25, grid=12, window=23)),
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
    rules = [("decoding", NoPruning()), *OTHER.values()]
    grid = [
        Experiment(n_images=1, max_new_tokens=LENGTH, tiles=3, clutter=c, mode=m, policy=p)
        for c in (False, True)
        for m, p in rules
    ]
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
        texts = [Store(work / f"seed{seed}").captions(each).set_index("image_id")["caption"] for each in (experiment, pruned)]
        rows = frame[(frame["seed"] == seed) & frame["clutter"] & (frame["rule"] == PUBLISHED)].set_index("image_id")
        words = [np.mean([len(text.split()) for text in each]) for each in texts]
        cap = [max(n for n in range(200) if np.mean([min(n, len(t.split())) for t in each]) <= min(words)) for each in texts]
        for image_id, known in truth(experiment).items():
            line = rows.loc[image_id]
            for prefix, text in {
                "": texts[1][image_id],
                "equal_": " ".join(texts[1][image_id].split()[: cap[1]]),
                "base_": " ".join(texts[0][image_id].split()[: cap[0]]),
            }.items():
                found = score({image_id: text}, {image_id: known}).items.iloc[0]
                for name in ("n_mentions", "n_hallucinated", "n_recalled"):
                    assert line[prefix + name] == found[name]
            assert line["n_truth"] == len(known)


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
                for prefix, more in (("", 0), ("equal_", 1), ("base_", 2)):
                    line |= {f"{prefix}n_mentions": 8 + more, f"{prefix}n_hallucinated": wrong, f"{prefix}n_recalled": 4 - wrong}
                lines.append(line)
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
        own = rows[rows["own"] & (rows["rule"] == "one step") & rows["seed"].isin(among)]
        cut = 100 * (own["equal_n_hallucinated"].sum() / own["equal_n_mentions"].sum())
        cut -= 100 * own["base_n_hallucinated"].sum() / own["base_n_mentions"].sum()
        assert line["equal_chair_i"] == pytest.approx(cut)

        def f1(total):
            precision, recall = 1 - total["w"] / total["m"], total["r"] / total["t"]
            return 2 * precision * recall / (precision + recall)

        assert line["won"] == pytest.approx((f1(ours) - f1(none)) / (f1(totals[ORACLE]) - f1(none)))


def test_the_headline_says_what_corrected_tests_show():
    names = ["captions", "d_chair_i", "p_chair_i", "d_recall", "p_recall"]
    numbers = {  # seed -> rule -> captions, changes and p-values
        ALL: {"a": (80, 2.0, 0.001, 0.1, 0.9), "b": (80, 0.5, 0.3, 3.0, 0.001), "c": (80, -2.0, 0.001, -4.0, 0.001)},
        "0": {"a": (40, 2.0, 0.001, 0.1, 0.9), "b": (40, 0.5, 0.3, 3.0, 0.02), "c": (40, -2.0, 0.001, -4.0, 0.001)},
        "1": {"a": (40, 2.0, 0.001, -0.1, 0.9), "b": (40, 0.5, 0.3, 3.0, 0.001), "c": (40, -2.0, 0.5, -4.0, 0.5)},
    }
    lines = [{"seed": seed, "clutter": False, "rule": NONE} for seed in numbers]
    for seed, rules in numbers.items():
        for rule, values in rules.items():
            line = {"seed": seed, "clutter": False, "rule": rule, "won": 0.5 if rule == "b" else np.nan}
            line |= dict(zip(names, values, strict=True)) | {"won_low": 0.4, "won_high": 0.6}
            ends = {f"d_{m}_{end}": line[f"d_{m}"] + d for m in ("chair_i", "recall") for end, d in (("low", -1), ("high", 1))}
            lines.append(line | ends)
    said = [
        "CHAIR_i +2.0 [1.0, 3.0], recall +0.1 [-0.9, 1.1], 80 captions: it hurts; 2 of 2 seeds say the same alone.",
        "CHAIR_i +0.5 [-0.5, 1.5], recall +3.0 [2.0, 4.0], 80 captions; 0.50 [0.40, 0.60] of the oracle's gain in F1: it helps; "
        "1 of 2 seeds say the same alone.",
        "CHAIR_i -2.0 [-3.0, -1.0], recall -4.0 [-5.0, -3.0], 80 captions: it buys the one with the other; 1 of 2 seeds say the "
        "same alone.",
    ]
    assert headline(pd.DataFrame(lines)) == [f"clean tiles, {rule}: {text}" for rule, text in zip("abc", said, strict=True)]


ACCUMULATED = "accumulated steps"


def claimed(changed):
    """Return the claims of a table in which all hold, but for changed cells: (rule, column) -> value."""
    ends = {"chair_i": (-0.5, 0.5), "recall": (1.0, 3.0)}
    rules = {PUBLISHED: (8.0, -9.0), ACCUMULATED: (0.0, 2.0), ORACLE: (-20.0, 15.0)}
    lines = []
    for rule in (NONE, *rules, "standout tokens"):
        chair_i, recall = rules.get(rule, (0.0, 0.0))
        line = {"seed": ALL, "clutter": True, "rule": rule, "d_chair_i": chair_i, "d_recall": recall, "won": 0.6}
        line |= {f"d_{m}_{end}": value for m, both in ends.items() for end, value in zip(("low", "high"), both, strict=True)}
        line |= {"p_chair_i": 0.001 if chair_i else 1.0, "p_recall": 0.001 if recall else 1.0, "won_low": 0.55, "won_high": 0.7}
        lines.append(line | {column: value for (of, column), value in changed.items() if of == rule})
    return claims(pd.DataFrame(lines))["cluttered tiles"]


@pytest.mark.parametrize(
    ("rule", "changed", "number", "verdict"),
    [
        (PUBLISHED, {"p_chair_i": 1.0, "p_recall": 1.0}, 0, "not shown"),
        (PUBLISHED, {"d_chair_i": -8.0, "d_recall": 9.0}, 0, "refuted"),
        (PUBLISHED, {"d_chair_i": -8.0}, 0, "not shown"),
        (ACCUMULATED, {"d_chair_i_high": 1.1}, 1, "not shown"),
        (ACCUMULATED, {"d_recall_low": -0.1}, 1, "not shown"),
        (ACCUMULATED, {"d_recall_low": -3.0, "d_recall_high": -0.1}, 1, "refuted"),
        (ACCUMULATED, {"d_chair_i_low": 1.1, "d_chair_i_high": 2.0}, 1, "refuted"),
        (ACCUMULATED, {"d_chair_i_low": -2.0, "d_chair_i_high": -1.1}, 1, "confirmed"),
        (ORACLE, {"p_chair_i": 1.0, "p_recall": 1.0}, 2, "not shown"),
    ],
)
def test_each_claim_has_its_own_condition(rule, changed, number, verdict):
    said = claimed({(rule, column): value for column, value in changed.items()})
    found = [re.split(r" \(|: ", each)[0] for each in said.iloc[:3]]
    assert found == [verdict if each == number else "confirmed" for each in range(3)]


def test_half_of_the_gain_is_shown_by_the_whole_interval():
    cells = [
        {("standout tokens", "won_low"): low, ("standout tokens", "won"): won}
        for low, won in ((0.5, 0.6), (0.4, 0.6), (0.4, 0.45))
    ]
    words = ("shown (0.60 [0.50, 0.70])", "by the estimate (0.60 [0.40, 0.70])", "missed (0.45 [0.40, 0.70])")
    assert [claimed(changed)["half of the oracle's gain in F1, by standout tokens"] for changed in cells] == list(words)
    assert claimed({("standout tokens", "won"): np.nan})["half of the oracle's gain in F1, by standout tokens"] == "no gain shown"


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
    store, rows = Store.shipped(), stored()
    own = rows[(rows["seed"] == 0) & rows["own"]].set_index(["rule", "clutter", "image_id"]).sort_index()
    rules = {NONE: ("decoding", NoPruning())} | all_rules(chosen_rules(store))
    seen = 0
    for rule in own.index.unique("rule"):
        for clutter in (False, True):
            cell = Experiment(split="test", n_images=100, tiles=3, clutter=clutter)
            items = store.score(with_rule(cell, rules[rule])).items.set_index("image_id")
            lines = own.loc[(rule, clutter)].loc[items.index]
            pd.testing.assert_frame_equal(lines[COUNTS], items[COUNTS], check_dtype=False)
            seen += len(lines)
    assert seen == 2 * (3 + len(seeds.FAMILIES)) * 100
