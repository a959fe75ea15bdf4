"""The released captions: OPERA against greedy decoding at each kind of equal length, and rates by place, against plain loops."""

import pandas as pd
import pytest

from prunehal.benchmarks import ground_truth_coco, score
from prunehal.benchmarks.chair.length import difference, early_and_late, first_objects, rate_by_position
from prunehal.benchmarks.chair.released import LENGTHS, MODELS, lower_in, opera_against_greedy, opera_in_words, released_captions

TRUTH = ground_truth_coco("pattern")
CAPTIONS = {key: dict(list(texts.items())[:60]) for key, texts in released_captions().items()}


def counted(text, truth, most=None):
    """Loop over one caption's mentions up to its most-th object: how many objects it names, and how many of them are absent."""
    named, absent = [], []
    for node in score({1: text}, {1: truth}, "wordnet").items["nodes"].iloc[0]:
        if most is not None and len(named) == most:
            break
        if node not in named:
            named.append(node)
            absent += [] if node in truth else [node]
    return len(named), len(absent)


def distinct(texts, mosts):
    """Distinct CHAIR_i of captions, in percent, by loops."""
    found = [counted(text, TRUTH[image], mosts.get(image)) for image, text in texts.items()]
    return 100 * sum(absent for _, absent in found) / sum(named for named, _ in found)


@pytest.fixture(scope="module")
def table():
    return opera_against_greedy(CAPTIONS, TRUTH, n_resamples=100)


def test_opera_against_greedy_by_loops(table):
    lines = table.set_index(["model", "length"])
    for model, name in MODELS.items():
        base, ours = CAPTIONS[model, "greedy"], CAPTIONS[model, "ours"]
        fewest = {image: min(counted(text[image], TRUTH[image])[0] for text in (base, ours)) for image in base}
        for length, mosts in (("as written", {}), ("equal objects", fewest)):
            assert lines.loc[(name, length), "distinct_chair_i"] == pytest.approx(distinct(ours, mosts) - distinct(base, mosts))


def test_equal_lengths_are_equal_in_what_they_say(table):
    words = table.set_index(["model", "length"])["words"].unstack()  # noqa: PD010
    assert list(LENGTHS) == table["length"].head(3).tolist()
    assert (words["equal words"].abs() < 2).all()
    assert (words["as written"].abs() > 2).sum() >= 3
    for model in MODELS:
        a, b = (score(CAPTIONS[model, each], TRUTH, "wordnet") for each in ("greedy", "ours"))
        fewest = a.items.set_index("image_id")["n_distinct"].clip(upper=b.items.set_index("image_id")["n_distinct"]).to_dict()
        assert first_objects(a, fewest)["n_distinct"].tolist() == first_objects(b, fewest)["n_distinct"].tolist()


def test_a_true_sentence_again_lowers_chair_i_and_leaves_the_distinct_one():
    texts = {image: f"{text} A bus." for image, text in CAPTIONS["shikra", "greedy"].items()}
    truth = {image: {*TRUTH[image], "bus"} for image in texts}
    again = {image: text + " A bus." * 9 for image, text in texts.items()}
    for equal in (None, "objects"):
        found = difference(texts, again, truth, "fixed", equal=equal, n_resamples=100)
        assert found["distinct_chair_i"].estimate == found["recall"].estimate == found["absent"].estimate == 0
    assert difference(texts, again, truth, "fixed", n_resamples=100)["chair_i"].high < 0


def test_what_is_equal_has_a_name():
    texts = CAPTIONS["shikra", "greedy"]
    with pytest.raises(ValueError, match="equal=True: expected one of 'objects', 'words', or None"):
        difference(texts, texts, TRUTH, "fixed", equal=True)


def test_lower_counts_whole_intervals_below_zero():
    ends = {"chair_i_high": [-1.0, 0.0, -2.0, 1.0], "distinct_chair_i_high": [0.1, 0.2, -0.3, 0.4], "recall_high": [1.0] * 4}
    made = pd.DataFrame({"length": ["as written", "equal words"] * 2} | ends)
    assert lower_in(made).loc["as written"].tolist() == [2, 1, 0]
    assert lower_in(made).loc["equal words"].tolist() == [0, 0, 0]


def test_words_name_the_models_that_are_lower(table):
    counts = lower_in(table)
    for length, said in zip(LENGTHS, opera_in_words(table), strict=True):
        assert said.startswith(f"{length}, of 4 models: CHAIR_i lower in {counts.loc[length, 'chair_i']}")
        assert f"distinct CHAIR_i lower in {counts.loc[length, 'distinct_chair_i']}" in said


def test_rates_by_place_add_up_to_both_measures():
    result = score(CAPTIONS["instructblip", "greedy"], TRUTH, "wordnet")
    rates = rate_by_position(result, [0, 20, 40, 80, 1000], n_resamples=100)
    for metric, n, rate in (("chair_i", "n_mentions", "rate"), ("distinct_chair_i", "n_distinct", "distinct_rate")):
        assert (rates[n] * rates[rate]).sum() / rates[n].sum() == pytest.approx(result.metrics[metric])
    ends = early_and_late(rates)
    assert ends.loc["objects", "early"] == rates["distinct_rate"].iloc[0]
    assert ends.loc["mentions", "late"] == rates["rate"].iloc[-1]
    assert ends.loc["mentions", ["early_words", "late_words"]].tolist() == ["0-19", "80-999"]


def test_places_without_enough_mentions_are_an_error_with_the_fix():
    rates = rate_by_position(score({1: "A dog.", 2: "A cat."}, {1: {"dog"}, 2: {"cat"}}), [0, 9], n_resamples=100)
    with pytest.raises(ValueError, match="no place holds 30 mentions; expected one that does; add captions, or ask for fewer"):
        early_and_late(rates)
