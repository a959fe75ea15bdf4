"""Choosing and reporting: the rule by hand, what it refuses, what it marks, and the project's own choice on the stored rows."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from prunehal.benchmarks import score
from prunehal.benchmarks.chair.score import ChairResult
from prunehal.experiments.choosing import CHOSEN_BY, REPORTED, Graded, choose, choose_by_rule, report
from prunehal.stats.intervals import paired_bootstrap


def graded(split="validation", first=0, n=20, **settings):
    """Grade settings given as name=(hallucinated of 40 mentions, recalled of 40 objects); no object is mentioned twice."""
    results = {}
    for name, (wrong, recalled) in settings.items():
        items = pd.DataFrame({"image_id": np.arange(first, first + n), "words": 10, "n_mentions": 2, "n_truth": 2})
        for column, total in (("n_hallucinated", wrong), ("n_recalled", recalled)):
            items[column] = np.clip(total - 2 * np.arange(n), 0, 2)
        items["hallucinated"] = items["n_hallucinated"] > 0
        items = items.assign(n_absent=items["n_hallucinated"], n_distinct=2, n_repeats=0, unfinished=False)
        metrics = {
            "chair_i": wrong / 40,
            "distinct_chair_i": wrong / 40,
            "f1": 2 * recalled / 80,
            "chair_s": items["hallucinated"].mean(),
            "recall": recalled / 40,
            "words": 10.0,
        }
        results[name] = ChairResult("fixed", metrics, items, pd.DataFrame())
    return Graded(split, results)


def counted(**settings):
    """Grade settings given as name=(distinct absent objects, distinct objects named, recalled of 200) over 100 images."""
    results = {}
    for name, (absent, distinct, recalled) in settings.items():
        items = pd.DataFrame({"image_id": np.arange(100)})
        found = {"distinct_chair_i": absent / distinct, "recall": recalled / 200, "f1": 2 * recalled / (distinct + 200)}
        results[name] = ChairResult("fixed", found, items, pd.DataFrame())
    return Graded("validation", results)


TESTS = ["mytest", "minitest", "valtest", "MYTEST", "minitest2", "coco_minitest", "latestTest", "latest-test"]
GRID = {"none": (12, 30), "mild": (10, 30), "hard": (2, 20), "odd": (10, 34)}


@pytest.mark.parametrize(
    ("by", "subject_to", "expected"),
    [
        ("distinct_chair_i", None, "hard"),
        ("chair_i", None, "hard"),
        ("chair_i", {"recall": 0.01}, "mild"),  # hard loses ten of 40 objects; mild and odd tie, and mild is first
        ("chair_i", {"recall": 0.25}, "hard"),  # a loss of exactly the limit is allowed
        ("chair_i", {"recall": 0.2499}, "mild"),
        ("recall", None, "odd"),
        ("chair_s", {"words": 0}, "hard"),
        ("recall", {"chair_i": 0, "chair_s": 0}, "odd"),
    ],
)
def test_the_best_of_those_that_meet_the_limits_is_chosen(by, subject_to, expected):
    chosen = choose(graded(**GRID), by, subject_to, baseline="none")
    assert chosen.setting == expected
    wrong, recalled = (count / 40 for count in GRID[expected])
    assert chosen.value == {"chair_i": wrong, "distinct_chair_i": wrong, "recall": recalled, "chair_s": 0.05}[by]
    assert chosen.f1 == (recalled, 30 / 40)
    assert (chosen.split, chosen.by, chosen.n_candidates, chosen.selected_on_test) == ("validation", by, 3, False)


def test_the_baseline_is_no_candidate_and_its_loss_is_measured_from_it():
    worst = {"none": (1, 30), "a": (9, 30), "b": (8, 29)}
    assert choose(graded(**worst), baseline="none").setting == "b"
    assert choose(graded(**worst), baseline="a").setting == "none"
    assert choose(graded(**worst), subject_to={"recall": 0}, baseline="none").setting == "a"
    assert choose(graded(**worst), subject_to={"recall": 0}, baseline="none").n_allowed == 1


def test_where_no_setting_meets_the_limits_another_metric_may_decide():
    worst = {"none": (12, 30), "a": (2, 20), "b": (9, 24)}
    found = choose(graded(**worst), subject_to={"recall": 0.01}, otherwise="recall", baseline="none")
    assert (found.setting, found.by, found.subject_to, found.n_allowed) == ("b", "recall", (), 2)
    assert found.note == (
        "highest recall of 2 settings on the validation split, as none has recall at most 0.01 lower than the baseline; F1 of "
        "distinct objects 0.600, of the baseline 0.750"
    )
    met = choose(graded(**GRID), subject_to={"recall": 0.01}, otherwise="recall", baseline="none")
    assert (met.setting, met.by, met.missed) == ("mild", "distinct_chair_i", ())
    with pytest.raises(ValueError, match=r"unknown metric\(s\) \['recal'\]"):
        choose(graded(**GRID), otherwise="recal", baseline="none")


NONE = (40, 200, 160)  # distinct CHAIR_i 0.20, recall 0.80, F1 0.80


def test_the_rule_takes_the_lowest_distinct_chair_i_of_those_that_lose_at_most_a_point_of_recall():
    assert CHOSEN_BY == {"recall": 0.01}
    grid = counted(none=NONE, more=(36, 198, 162), a_point=(30, 188, 158), beyond=(10, 167, 157))
    assert grid.results["none"].metrics["recall"] - grid.results["a_point"].metrics["recall"] > 0.01  # in floating point
    chosen = choose_by_rule(grid, "none")
    assert (chosen.setting, chosen.by, chosen.value) == ("a_point", "distinct_chair_i", 30 / 188)
    assert (chosen.subject_to, chosen.missed, chosen.n_candidates, chosen.n_allowed) == ((("recall", 0.01),), (), 3, 2)
    assert choose_by_rule(counted(none=NONE, more=(36, 198, 162), beyond=(10, 167, 157)), "none").setting == "more"


def test_where_no_setting_keeps_the_recall_the_rule_takes_the_highest_and_says_so():
    chosen = choose_by_rule(counted(none=NONE, low=(5, 105, 100), high=(60, 210, 150), mid=(10, 140, 130)), "none")
    assert (chosen.setting, chosen.by, chosen.value) == ("high", "recall", 0.75)
    assert (chosen.subject_to, chosen.missed, chosen.n_allowed) == ((), (("recall", 0.01),), 3)


def test_a_tie_in_the_rule_goes_to_the_first():
    first, second = (20, 180, 160), (20, 180, 170)
    assert choose_by_rule(counted(none=NONE, b=first, a=second), "none").setting == "b"
    assert choose_by_rule(counted(none=NONE, a=second, b=first), "none").setting == "a"


def test_f1_is_shown_and_decides_nothing():
    grid = counted(none=NONE, cleaner=(10, 168, 158), fuller=(20, 190, 170))
    f1 = {name: result.metrics["f1"] for name, result in grid.results.items()}
    assert f1["fuller"] > f1["cleaner"]
    chosen = choose_by_rule(grid, "none")
    assert chosen.setting == "cleaner"
    assert chosen.f1 == (f1["cleaner"], f1["none"]) == (316 / 368, 320 / 400)
    assert chosen.note.endswith("; F1 of distinct objects 0.859, of the baseline 0.800")
    without = {name: replaced(result, f1=float("nan")) for name, result in grid.results.items()}
    assert choose_by_rule(Graded("validation", without), "none").setting == "cleaner"


def replaced(result, **metrics):
    return dataclasses.replace(result, metrics=result.metrics | metrics)


def test_a_caption_that_repeats_what_is_there_is_not_chosen():
    truth = {1: {"dog", "cat"}}
    texts = {
        "none": "A dog and a cat. A bus. A car.",
        "loops": "A dog and a cat. A bus. A car. A dog. A dog. A dog. A dog.",
        "plain": "A dog and a cat. A bus.",
    }
    grid = Graded("validation", {name: score({1: text}, truth) for name, text in texts.items()})
    assert choose(grid, "chair_i", CHOSEN_BY, baseline="none").setting == "loops"  # 2 of 8 mentions, against 1 of 3
    assert choose_by_rule(grid, "none").setting == "plain"  # 1 of 3 objects, against 2 of 4


def test_the_rule_is_not_for_a_test_split():
    with pytest.raises(ValueError, match="results of the 'test' split"):
        choose_by_rule(graded("test", **GRID), "none")
    with pytest.raises(ValueError, match="the baseline 'plain' has no results"):
        choose_by_rule(graded(**GRID), "plain")


def test_a_limit_that_rounding_misses_is_met():
    grid = graded(none=(12, 32), a=(10, 28))
    assert (32 - 28) / 40 == 0.1 < 32 / 40 - 28 / 40  # in floating point
    assert choose(grid, subject_to={"recall": 0.1}, baseline="none").setting == "a"


def test_settings_are_anything_hashable_even_none():
    results = graded(**GRID).results
    grid = Graded("dev", {None: results["none"], (0.4, 3): results["hard"], frozenset({1}): results["mild"]})
    assert choose(grid, baseline=None).setting == (0.4, 3)


@pytest.mark.parametrize(
    "split", ["test", "Test", "TEST", "test2015", "coco_test", "minitest-Test", "test-dev", "cocoTest", *TESTS]
)
def test_choosing_on_a_test_split_is_refused_by_name(split):
    with pytest.raises(ValueError, match=f"results of the '{split}' split, expected .* allow_test_selection=True"):
        choose(graded(split, **GRID), baseline="none")


@pytest.mark.parametrize("split", ["validation", "val2014", "train", "latest", "contest", "dev", "Latest_2", "fastest-run"])
def test_other_splits_may_be_chosen_on(split):
    assert not choose(graded(split, **GRID), baseline="none").selected_on_test


def test_a_choice_on_test_is_marked_wherever_it_goes():
    test = graded("test", **GRID)
    chosen = choose(test, baseline="none", allow_test_selection=True)
    found = report(chosen, test, n_resamples=100)
    for answer in (chosen, found):
        assert answer.selected_on_test
        assert "CHOSEN ON TEST" in answer.note
        assert answer.label == "hard (CHOSEN ON TEST)"
    other = report(chosen, graded("validation", 100, **GRID), n_resamples=100)
    assert other.selected_on_test
    assert "CHOSEN ON TEST" in other.note
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.selected_on_test = False
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.selected_on_test = False


def test_permission_alone_marks_nothing():
    chosen = choose(graded(**GRID), baseline="none", allow_test_selection=True)
    found = report(chosen, graded("test", 100, **GRID), allow_test_selection=True, n_resamples=100)
    assert not chosen.selected_on_test
    assert not found.selected_on_test
    assert "CHOSEN ON" not in found.note + found.label


def test_the_report_is_the_paired_interval_on_the_other_split():
    chosen = choose(graded(**GRID), subject_to={"recall": 0.01}, baseline="none")
    test = graded("test", 100, none=(15, 30), mild=(9, 31))
    found = report(chosen, test, n_resamples=300, seed=4, confidence=0.9)
    assert tuple(found.differences) == REPORTED
    for metric, interval in found.differences.items():
        assert interval == paired_bootstrap(test.results["none"].items, test.results["mild"].items, metric, 300, 4, 0.9)
    assert found.differences["distinct_chair_i"].estimate == pytest.approx(-6 / 40)  # setting minus baseline
    assert (found.label, found.split) == ("mild (chosen on validation)", "test")
    assert found.note == (
        "lowest distinct_chair_i of 3 settings on the validation split, given recall at most 0.01 lower than the baseline; F1 of "
        "distinct objects 0.750, of the baseline 0.750; reported on the test split"
    )


@pytest.mark.parametrize(
    ("split", "first"),
    [("val2014", 0), ("val2014", 100), ("test", 0), ("test", 19)],  # same name, new name for the same images, one image shared
)
def test_reporting_where_it_was_chosen_is_refused_or_marked(split, first):
    chosen = choose(graded("val2014", **GRID), baseline="none")
    seen = 20 if first == 0 else 1 if first == 19 else 0
    with pytest.raises(ValueError, match=f"'hard' was chosen on the 'val2014' split, with {seen} of the 20 images of '{split}'"):
        report(chosen, graded(split, first, **GRID))
    found = report(chosen, graded(split, first, **GRID), allow_test_selection=True, n_resamples=100)
    assert found.selected_on_test
    assert "CHOSEN ON IMAGES REPORTED HERE" in found.note
    assert found.label == "hard (CHOSEN ON IMAGES REPORTED HERE)"


def test_images_that_share_nothing_pass():
    chosen = choose(graded("val2014", **GRID), baseline="none")
    assert not report(chosen, graded("test", 20, **GRID), n_resamples=100).selected_on_test


def test_what_was_graded_stays_as_it_was():
    results = dict(graded(**GRID).results)
    grid = Graded("validation", results)
    del results["hard"]
    assert choose(grid, baseline="none").setting == "hard"
    with pytest.raises(TypeError):
        grid.results["hard"] = grid.results["none"]


def test_choosing_among_equals_on_test_promises_a_gain_that_is_not_there():
    # Twenty settings that are all the same: the best one seems better on its own split, and not on another.
    rng, there, elsewhere = np.random.default_rng(0), [], []

    def split(name, first):
        results = {}
        for setting in range(20):
            wrong = rng.binomial(4, 0.2, 60)
            items = pd.DataFrame({"image_id": range(first, first + 60), "n_mentions": 4, "n_hallucinated": wrong})
            items = items.assign(words=9, n_truth=2, n_recalled=1, hallucinated=wrong > 0, unfinished=False, n_repeats=0)
            items = items.assign(n_distinct=4, n_absent=wrong)
            metrics = {"distinct_chair_i": wrong.sum() / 240, "f1": 1 / 3}
            results[setting] = ChairResult("fixed", metrics, items, pd.DataFrame())
        return Graded(name, results)

    for _ in range(40):
        chosen = choose(split("validation", 0), baseline=0)
        there.append(chosen.value)
        elsewhere.append(report(chosen, split("test", 60), n_resamples=100).differences["distinct_chair_i"].estimate)
    assert np.mean(there) < 0.17  # against a truth of 0.2
    assert np.mean(elsewhere) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "duplicates"}, r"unknown metric\(s\) \['duplicates'\]; expected some of"),
        ({"subject_to": {"chair": 0}}, r"unknown metric\(s\) \['chair'\]"),
        ({"subject_to": {"recall": -0.01}}, r"subject_to holds {'recall': -0.01}; expected how much worse"),
        ({"subject_to": {"recall": float("nan")}}, "subject_to holds"),
        ({"baseline": "plain"}, "the baseline 'plain' has no results on the validation split; it holds 'none', 'hard'"),
        ({"subject_to": {"recall": 0.2}}, r"none of 1 settings .* 'hard' comes nearest, and misses by 0.05"),
    ],
)
def test_choose_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose(graded(none=(12, 30), hard=(2, 20)), **{"baseline": "none", **arguments})


def test_graded_and_report_name_what_is_wrong():
    with pytest.raises(ValueError, match="baseline 'none' only; expected others to choose from"):
        choose(graded(none=(1, 2)), baseline="none")
    with pytest.raises(ValueError, match="split is '', expected the name of a split"):
        graded("", **GRID)
    with pytest.raises(ValueError, match="the validation split has no results"):
        Graded("validation", {})
    short = graded(n=19, a=(1, 2)).results["a"]
    with pytest.raises(ValueError, match=r"'a' and 'none' were scored on different images .* 1 such as 19;"):
        Graded("validation", {**graded(**GRID).results, "a": short})
    chosen = choose(graded(**GRID), baseline="none")
    with pytest.raises(ValueError, match="the chosen setting 'hard' has no results on the test split; it holds 'none'"):
        report(chosen, graded("test", 50, none=(1, 2)))
    with pytest.raises(ValueError, match="the baseline 'none' has no results on the test split"):
        report(chosen, graded("test", 50, hard=(1, 2)))
