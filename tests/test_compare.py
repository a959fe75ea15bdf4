"""Compare: the table of changes, and the comparison at equal length, by hand from rows that are made up."""

from dataclasses import replace

import pytest

from prunehal.core import NoPruning, PruneHal, TopK
from prunehal.experiments import Experiment, Store, at_equal_length, changes, graded
from prunehal.experiments.compare import LEVELS, METRICS, N_RESAMPLES, PRIMARY, equal_lengths
from prunehal.experiments.images import image_keys, truth
from prunehal.stats.bootstrap import Interval
from prunehal.stats.intervals import paired_bootstrap
from prunehal.stats.testing import paired_p_value

BASE = Experiment(split="test", n_images=4)
PRUNED = replace(BASE, n_images=3, policy=PruneHal(r=0.9, t=2))
TOP = replace(BASE, n_images=3, policy=TopK(9))
KEYS = image_keys(BASE)
TRUTH = truth(BASE)
ABSENT = next(name for name in ("zebra", "airplane", "giraffe") if not any(name in shown for shown in TRUTH.values()))


def shown(key):
    """Return a sentence of four words with an object that the image shows."""
    return f"There is a {sorted(TRUTH[key])[0]}."


WRONG = f"There is a {ABSENT}."  # four words, too
CAPTIONS = {
    BASE: [f"{shown(key)} {WRONG}" for key in KEYS[:2]] + [shown(key) for key in KEYS[2:]],
    PRUNED: [shown(KEYS[0]), f"{shown(KEYS[1])} {WRONG}", shown(KEYS[2])],
    TOP: [WRONG, WRONG, WRONG],
}
VISUAL = {BASE: 100.0, PRUNED: 40.0, TOP: 9.0}
PRUNES = {BASE: [0, 0, 0, 0], PRUNED: [2, 1, 1], TOP: [1, 1, 1]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("rows"))
    with store.writing():
        for experiment, captions in CAPTIONS.items():
            rows = []
            for key, caption, prunes in zip(image_keys(experiment), captions, PRUNES[experiment], strict=True):
                finished = (experiment, key) != (TOP, KEYS[1])
                row = {"key": key, "caption": caption, "tokens": len(caption.split()), "finished": finished}
                row |= {"visual": VISUAL[experiment], "events": [[2, "forced", 9]] * prunes, "voted": [], "layers": [0]}
                rows.append(row | {"mass": [0.5], "mentions": []})
            store.append(experiment, rows)
    return store


def test_the_table_of_changes_by_hand(store):
    table = changes(store, [PRUNED, TOP], BASE, n_resamples=200)
    pruned, top = table.to_dict("records")
    assert [pruned["experiment"], pruned["name"], pruned["policy"]] == [PRUNED, PRUNED.name, "PruneHal"]
    assert (pruned["r"], pruned["t"], top["policy"], top["k"]) == (0.9, 2, "TopK", 9)
    assert (pruned["visual"], pruned["prunes"]) == pytest.approx((40, 4 / 3))
    assert (top["visual"], top["prunes"]) == pytest.approx((9, 1))
    # The first three images: the baseline names 5 objects, 2 of them absent, in 2 of 3 captions; the pruned one 4, 1 in 1.
    assert pruned["chair_i"] == pytest.approx(100 / 4)
    assert pruned["d_chair_i"] == pytest.approx(100 * (1 / 4 - 2 / 5))
    assert pruned["d_chair_s"] == pytest.approx(100 * (1 / 3 - 2 / 3))
    assert pruned["d_recall"] == pytest.approx(0)
    assert (pruned["words"], pruned["d_words"]) == pytest.approx((16 / 3, 16 / 3 - 20 / 3))
    assert (top["chair_i"], top["recall"]) == (100, 0)
    assert top["d_recall"] == pytest.approx(-100 * 3 / sum(len(TRUTH[key]) for key in KEYS[:3]))
    assert pruned["distinct_chair_i"] == pytest.approx(100 / 4)  # nothing is named twice
    assert pruned["d_absent"] == pytest.approx(1 / 3 - 2 / 3)  # of a caption, not in percent
    assert (pruned["repeats"], pruned["d_repeats"], pruned["unfinished"]) == (0, 0, 0)
    assert (top["unfinished"], top["d_unfinished"]) == pytest.approx((100 / 3, 100 / 3))
    assert not [name for name in table if name.startswith("p_")]


def test_beside_every_chair_i_stands_what_repetition_cannot_lower(store):
    table = changes(store, [PRUNED, TOP], BASE, n_resamples=200)
    assert list(LEVELS) == ["chair_i", "distinct_chair_i", "absent", "recall", "repeats", "unfinished", "words"]
    for name in (*LEVELS, "chair_s", "f1"):
        assert {name, f"d_{name}", f"d_{name}_low", f"d_{name}_high"} <= set(table)
        assert METRICS[name] == (1 if name in ("absent", "words") else 100)
        for line in table.to_dict("records"):
            assert line[name] == pytest.approx(METRICS[name] * store.score(line["experiment"]).metrics[name])
            assert line[f"d_{name}_low"] <= line[f"d_{name}"] <= line[f"d_{name}_high"]
    assert PRIMARY == ("distinct_chair_i", "recall")


def test_intervals_and_p_values_are_those_of_the_same_images(store):
    (line,) = changes(store, [PRUNED], BASE, p_values=True, n_resamples=200).to_dict("records")
    ours, theirs = store.score(PRUNED).items, store.score(replace(BASE, n_images=3)).items
    for metric, unit in METRICS.items():
        interval = paired_bootstrap(theirs, ours, metric, n_resamples=200)
        assert (line[f"d_{metric}_low"], line[f"d_{metric}_high"]) == pytest.approx((unit * interval.low, unit * interval.high))
    assert line["p_distinct_chair_i"] == paired_p_value(theirs, ours, "distinct_chair_i")
    assert line["p_recall"] == paired_p_value(theirs, ours, "recall")
    assert [name for name in line if name.startswith("p_")] == ["p_distinct_chair_i", "p_recall"]


def test_each_p_value_is_of_its_own_metric(store, monkeypatch):
    """Three images are too few for p-values that differ, so each is replaced by what it was asked about."""
    theirs = store.score(replace(BASE, n_images=3)).items

    def asked(base, items, metric):
        assert (base["n_mentions"].tolist(), len(items)) == (theirs["n_mentions"].tolist(), 3)
        return metric

    monkeypatch.setattr("prunehal.experiments.compare.paired_p_value", asked)
    (line,) = changes(store, [PRUNED], BASE, p_values=True, n_resamples=200).to_dict("records")
    assert {name: line[f"p_{name}"] for name in PRIMARY} == {name: name for name in PRIMARY}


def test_a_table_and_a_report_have_the_same_intervals(store):
    """One number of resamples for all that is shown of a comparison."""
    line = changes(store, [PRUNED], BASE).iloc[0]
    interval = paired_bootstrap(store.score(replace(BASE, n_images=3)).items, store.score(PRUNED).items, "words")
    assert (line["d_words_low"], line["d_words_high"]) == (interval.low, interval.high)
    assert N_RESAMPLES == 5000


def test_at_equal_length_both_captions_of_an_image_name_equally_many_objects(store):
    found = at_equal_length(store, TOP, BASE, n_resamples=200)
    # One object is left of each caption of the baseline: the one that is true. The others name an absent one, and nothing else.
    assert list(found) == ["distinct_chair_i", "recall", "chair_i", "words"]
    assert (found["words"].estimate, found["distinct_chair_i"].estimate, found["chair_i"].estimate) == (0, 1, 1)
    assert found["recall"].estimate == pytest.approx(-3 / sum(len(TRUTH[key]) for key in KEYS[:3]))
    assert all(isinstance(interval, Interval) and interval.n == 3 for interval in found.values())


def test_the_columns_at_equal_length_are_those_intervals_in_percent(store):
    table = equal_lengths(store, [BASE, PRUNED, TOP], BASE, n_resamples=200)
    assert list(table) == [f"equal_{name}{end}" for name in PRIMARY for end in ("", "_low", "_high")]
    assert table.iloc[0].isna().all()  # the baseline itself
    for line, experiment in zip(table.iloc[1:].to_dict("records"), (PRUNED, TOP), strict=True):
        found = at_equal_length(store, experiment, BASE, n_resamples=200)
        for name in PRIMARY:
            interval = found[name]
            ours = [line[f"equal_{name}{end}"] for end in ("", "_low", "_high")]
            assert ours == pytest.approx([100 * value for value in (interval.estimate, interval.low, interval.high)])


def test_other_images_are_refused_by_name(store):
    other = replace(PRUNED, split="validation")
    with pytest.raises(ValueError, match=r"split='validation' of validation_prunehal.*: the baseline has 'test'"):
        changes(store, [other], BASE)
    with pytest.raises(ValueError, match="expected the same images; compare within a split"):
        at_equal_length(store, other, BASE)


def test_grading_takes_what_differs_in_the_policy_only(store):
    none = replace(BASE, n_images=3, policy=NoPruning())
    grade = graded(store, [none, PRUNED])
    assert (grade.split, list(grade.results)) == ("test", [NoPruning(), PruneHal(r=0.9, t=2)])
    with pytest.raises(ValueError, match=r"the experiments differ in max_new_tokens; expected the same but for the policy"):
        graded(store, [none, replace(PRUNED, max_new_tokens=5)])
