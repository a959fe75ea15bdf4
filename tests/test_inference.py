"""Tests, margins, sample sizes and the model of mentions against loop-written twins, scipy, statsmodels and simulation."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from prunehal.stats.intervals import bootstrap_interval, paired_bootstrap
from prunehal.stats.odds import adjusted_logit
from prunehal.stats.pooled import METRICS, counts, linearised, paired_counts, ratio
from prunehal.stats.testing import WORSE, equivalence, holm, images_needed, mention_model, no_harm, paired_p_value, power_of


def make_items(n, rng, rate=0.2, mentions=4):
    named, truth = rng.poisson(mentions, n), rng.integers(1, 6, n)
    wrong = rng.binomial(named, rate)
    absent, recalled = (wrong + 1) // 2, rng.binomial(truth, 0.7)
    distinct = absent + np.minimum(recalled, named - wrong)
    return pd.DataFrame(
        {
            "image_id": np.arange(n),
            "words": rng.integers(5, 60, n),
            "n_mentions": named,
            "n_hallucinated": wrong,
            "n_truth": truth,
            "n_recalled": recalled,
            "hallucinated": wrong > 0,
            "n_distinct": distinct,
            "n_absent": absent,
            "n_repeats": named - distinct,
            "unfinished": wrong > 1,
        }
    )


def make_pair(n, rng, rate_b=0.2, mentions_b=4):
    a, b = make_items(n, rng), make_items(n, rng, rate_b, mentions_b)
    truth = a["n_truth"]  # of the image, so the same for both
    return a, b.assign(n_truth=truth, n_recalled=np.minimum(b["n_recalled"], truth))


# Pooled counts


def test_the_delta_method_error_is_the_error_of_the_bootstrap():
    items = make_items(400, np.random.default_rng(0))
    top, bottom = counts(items, "chair_i").to_numpy().T
    r, moved = linearised(top, bottom)
    interval = bootstrap_interval(items, "chair_i", 4000, confidence=0.6827)  # one standard error either way
    assert r == pytest.approx(interval.estimate)
    assert moved.sum() == pytest.approx(0, abs=1e-9)
    assert moved.std(ddof=1) / 20 == pytest.approx((interval.high - interval.low) / 2, rel=0.05)
    assert [part.tolist() for part in linearised(np.zeros(2), np.zeros(2))] == [0.0, [0.0, 0.0]]


def test_leaving_an_image_out_moves_the_ratio_as_linearised():
    top, bottom = counts(make_items(300, np.random.default_rng(1)), "chair_i").to_numpy().T
    r, moved = linearised(top, bottom)
    jackknife = [r - np.delete(top, i).sum() / np.delete(bottom, i).sum() for i in range(300)]
    assert np.array(jackknife) * 300 == pytest.approx(moved, abs=0.02)


def test_counts_are_matched_by_image():
    a = make_items(30, np.random.default_rng(2))
    left, right = paired_counts(a, a.sample(frac=1, random_state=1), "recall")
    pd.testing.assert_frame_equal(left, right)
    assert ratio(left)(np.ones((1, 30))).item() == pytest.approx(a["n_recalled"].sum() / a["n_truth"].sum())


# Many looks


def test_holm_by_hand_and_by_statsmodels():
    p = [0.01, 0.04, 0.03, 0.005, 0.6]
    frame = pd.DataFrame({"t": list("abcde"), "p": p}, index=[9, 4, 7, 1, 0])
    out = holm(frame, "p")
    # Sorted: 5 * 0.005, 4 * 0.01, 3 * 0.03, then 2 * 0.04 raised to the one before, 0.6.
    assert out["p_holm"].to_numpy() == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.6])
    assert out["rejected"].tolist() == [True, False, False, True, False]
    assert (out.index.tolist(), out["t"].tolist(), list(frame)) == ([9, 4, 7, 1, 0], list("abcde"), ["t", "p"])
    rejected, adjusted, *_ = multipletests(p, 0.1, method="holm")
    pd.testing.assert_frame_equal(holm(frame, "p", 0.1), frame.assign(p_holm=adjusted, rejected=rejected))
    assert holm(frame, "p", 0.1)["rejected"].sum() == 4


def test_holm_keeps_the_chance_of_any_false_rejection(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # multipletests collects garbage at each call
    rng = np.random.default_rng(3)
    runs = [holm(pd.DataFrame({"p_value": rng.random(9)}))["rejected"].any() for _ in range(600)]
    assert np.mean(runs) < 0.08  # nine looks at 5% would make a false find in 37% of the runs


@pytest.mark.parametrize(
    ("frame", "arguments", "message"),
    [
        ({"p_value": [0.1, 1.2]}, {}, r"p_value holds \[1.2\]; expected numbers in \[0, 1\]"),
        ({"p_value": [0.1, None]}, {}, r"p_value holds \[nan\]"),
        ({"p_value": ["0.1", "<0.01"]}, {}, r"p_value holds \['<0.01'\]"),
        ({"p_value": []}, {}, "the frame holds no rows"),
        ({"p": [0.1]}, {}, "lacks the column 'p_value'; it has"),
        ({"p_value": [0.1]}, {"alpha": 5}, "alpha is 5, expected a fraction between 0 and 1"),
    ],
)
def test_holm_names_what_is_wrong(frame, arguments, message):
    with pytest.raises(ValueError, match=message):
        holm(pd.DataFrame(frame), **arguments)


# Swapping


def slow_p_value(a, b, metric, studentised=True):
    """Try all swaps of all images, one by one."""
    (ta, ba), (tb, bb) = (frame.to_numpy().T.tolist() for frame in paired_counts(a, b, metric))
    n = len(ta)

    def statistic(swaps):
        sides = [[], []]
        for i, swap in enumerate(swaps):
            pair = [(ta[i], ba[i]), (tb[i], bb[i])]
            sides[0].append(pair[swap])
            sides[1].append(pair[1 - swap])
        (ra, ma), (rb, mb) = ((sum(t for t, _ in s) / max(sum(m for _, m in s), 1), sum(m for _, m in s) / n) for s in sides)
        squares = [
            ((t1 - rb * m1) / (mb or 1) - (t0 - ra * m0) / (ma or 1)) ** 2
            for (t0, m0), (t1, m1) in zip(*sides, strict=True)
        ]  # fmt: skip
        return (rb - ra) / (sum(squares) ** 0.5 if studentised and rb != ra else 1)

    observed = abs(statistic([0] * n))
    return np.mean([abs(statistic(swaps)) >= observed * (1 - 1e-7) for swaps in product((0, 1), repeat=n)])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", [4, 5, 6])
def test_the_exact_p_value_is_that_of_all_swaps(metric, seed):
    a, b = make_pair(9, np.random.default_rng(seed), 0.5, 6)
    p = paired_p_value(a, b.sample(frac=1, random_state=0), metric)
    assert p == pytest.approx(slow_p_value(a, b, metric))
    assert paired_p_value(b, a, metric) == pytest.approx(p)  # two-sided
    assert paired_p_value(a, b, metric, seed=1) == p  # exact: nothing is drawn


def test_images_that_do_not_differ_stay_in_the_sums():
    rng = np.random.default_rng(31)
    for _ in range(5):
        a, b = make_pair(8, rng, 0.5, 6)
        same = make_items(3, rng, 0.1, 30).assign(image_id=[101, 102, 103])  # long captions, so that they weigh
        a, b = pd.concat([a, same]), pd.concat([same, b])
        assert paired_p_value(a, b, "chair_i", 256) == pytest.approx(slow_p_value(a, b, "chair_i"))  # exact by 2^8 of 2^11 swaps


def test_random_swaps_come_near_all_swaps():
    a, b = make_pair(14, np.random.default_rng(7), 0.45)
    exact, drawn = paired_p_value(a, b, "words", 2**14), paired_p_value(a, b, "words", 3000)
    assert exact != drawn
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 3000))
    assert drawn == paired_p_value(a, b, "words", 3000) != paired_p_value(a, b, "words", 3000, seed=1)


def test_mean_differences_are_scipys_and_fractions_of_captions_mcnemars():
    a, b = make_pair(11, np.random.default_rng(8))
    theirs = stats.permutation_test(
        (a["words"], b["words"]), lambda x, y, axis: y.mean(axis) - x.mean(axis), permutation_type="samples", vectorized=True
    )
    assert paired_p_value(a, b, "words") == pytest.approx(theirs.pvalue)
    flags = np.zeros((200, 2), dtype=bool)
    flags[:9, 0], flags[9:11, 1], flags[11:60] = True, True, True  # 9 against 2 discordant captions, among 200
    x, y = (pd.DataFrame({"image_id": range(200), "hallucinated": column}) for column in flags.T)
    table = mcnemar([[49, 9], [2, 140]], exact=True)
    assert paired_p_value(x, y, "chair_s") == pytest.approx(table.pvalue) == pytest.approx(2 * stats.binom.cdf(2, 11, 0.5))


def test_equal_conditions_and_constant_differences():
    a = make_items(300, np.random.default_rng(9))
    for metric in METRICS:
        assert paired_p_value(a, a, metric) == 1.0
    one = a.assign(words=a["words"].where(a["image_id"] > 0, 1000))
    assert paired_p_value(a, one, "words") == 1.0  # one image can be swapped either way
    assert paired_p_value(a, a.assign(words=a["words"] + 2), "words", 999) == pytest.approx(2 / 1000)
    assert paired_p_value(a.head(8), a.head(8).assign(words=a["words"] + 2), "words") == pytest.approx(2 / 2**8)
    assert paired_p_value(a.assign(n_mentions=0, n_hallucinated=0), a, "chair_i", 999) == pytest.approx(2 / 1000)


def test_a_difference_in_length_alone_is_not_found_in_chair_i():
    # Captions of a fourth of the mentions and the same rate: the bare difference rejects in about one run of nine.
    rng, runs = np.random.default_rng(10), 500
    found = [paired_p_value(*make_pair(80, rng, 0.2, 16), "chair_i", 199, seed) <= 0.05 for seed in range(runs)]
    assert 0.02 <= np.mean(found) <= 0.075


def test_a_real_difference_is_found():
    a, b = make_pair(150, np.random.default_rng(11), 0.4)
    assert paired_p_value(a, b, "chair_i") == pytest.approx(2 / 10_000)  # the smallest that 9999 swaps can show


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "chair"}, "unknown metric 'chair'"),
        ({"n_resamples": 50}, "n_resamples is 50"),
        (
            {"items_a": make_items(1, np.random.default_rng(0)), "items_b": make_items(1, np.random.default_rng(0))},
            "there are 1 im",
        ),
        ({"items_b": make_items(9, np.random.default_rng(0))}, "differ in 1 image_id"),
    ],
)
def test_paired_p_value_names_what_is_wrong(change, message):
    a = make_items(10, np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        paired_p_value(**{"items_a": a, "items_b": a, "metric": "chair_i", **change})


# Margins


def test_equivalence_of_means_is_the_two_one_sided_t_tests():
    rng = np.random.default_rng(12)
    a = make_items(400, rng)
    b = a.assign(words=a["words"] + rng.normal(0.4, 4, 400))
    for alpha in (0.025, 0.05, 0.1):
        bounds = []
        for margin in np.arange(0.3, 1.6, 0.02):
            p = ttost_paired(b["words"].to_numpy(), a["words"].to_numpy(), -margin, margin)[0]
            bounds.append((margin, p < alpha, equivalence(a, b, "words", margin, alpha, 2000).holds))
        theirs, ours = (min(m for m, *holds in bounds if holds[k]) for k in (0, 1))
        assert ours == pytest.approx(theirs, abs=0.061)
        assert 0.4 < theirs < 1.5


def test_the_interval_is_the_paired_one_at_one_minus_two_alpha():
    a, b = make_pair(120, np.random.default_rng(13))
    for test in (equivalence, no_harm):
        out = test(a, b, "chair_i", 0.05, 0.1, 500, 3)
        assert out.interval == paired_bootstrap(a, b, "chair_i", 500, 3, 0.8)
        assert (out.metric, out.margin, out.alpha) == ("chair_i", 0.05, 0.1)
        assert str(out) == f"chair_i, {out.interval}: {out.verdict}"


def with_rate(a, column, total, share):
    """Return items whose numerator is a share of the total, one image at a time."""
    values = np.floor(np.arange(1, len(a) + 1) * share) - np.floor(np.arange(len(a)) * share)
    return a.assign(**{column: values * total})


@pytest.mark.parametrize(
    ("share", "equal", "harm_if_higher", "harm_if_lower"),
    [
        (0.50, "equivalent", "no harm", "no harm"),
        (0.70, "different", "harm", "no harm"),
        (0.30, "different", "no harm", "harm"),
        (0.55, "undecided", "undecided", "no harm"),
        (0.45, "undecided", "no harm", "undecided"),
    ],
)
def test_verdicts_follow_the_direction_that_is_worse(share, equal, harm_if_higher, harm_if_lower):
    rng = np.random.default_rng(14)
    a = pd.DataFrame({"image_id": range(600), "n_mentions": 1, "n_truth": 1, "n_distinct": 1})
    for metric in METRICS:
        column = METRICS[metric][0][0]
        base = a.assign(**{column: rng.permutation(np.arange(600) % 2)})
        other = with_rate(a, column, 1, share)
        kind = equivalence(base, other, metric, 0.08, n_resamples=1000)
        harm = no_harm(base, other, metric, 0.08, n_resamples=1000)
        expected = harm_if_higher if WORSE[metric] == "higher" else harm_if_lower
        assert kind.verdict.split(":")[0] == equal
        assert harm.verdict.split(":")[0] == expected
        assert (kind.holds, harm.holds) == (equal == "equivalent", expected == "no harm")
    better = ("recall", "f1", "words")  # the more of them the better
    assert dict(WORSE) == {metric: "lower" if metric in better else "higher" for metric in METRICS}


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    items = make_items(50, np.random.default_rng(32)).assign(n_distinct=lambda f: f["n_recalled"] + f["n_absent"])
    precision = 1 - items["n_absent"].sum() / items["n_distinct"].sum()
    recall = items["n_recalled"].sum() / items["n_truth"].sum()
    assert bootstrap_interval(items, "f1", 100).estimate == pytest.approx(2 * precision * recall / (precision + recall))
    assert bootstrap_interval(items, "distinct_chair_i", 100).estimate == pytest.approx(1 - precision)


@pytest.mark.parametrize("metric", METRICS)
def test_only_numbers_of_a_caption_may_have_margins_above_one(metric):
    a, b = make_pair(60, np.random.default_rng(33), 0.4)
    number = metric in ("absent", "words")
    for test, name in (
        (lambda: equivalence(a, b, metric, 1.5, n_resamples=100), "margin"),
        (lambda: images_needed(a, b, metric, 1.5), "difference"),
    ):
        if number:
            test()
        else:
            with pytest.raises(ValueError, match=f"{name} is 1.5, but {metric} is a fraction"):
                test()


def test_verdicts_in_words():
    a = pd.DataFrame({"image_id": range(400), "n_truth": 1, "n_recalled": np.arange(400) % 2})
    worse = with_rate(a, "n_recalled", 1, 0.25)
    out = no_harm(a, worse, "recall", 0.02)
    assert out.verdict == "harm: recall is more than 0.02 lower, by the upper end of the 90% interval"
    out = no_harm(a, worse, "recall", 0.25, alpha=0.025)
    low = -paired_bootstrap(a, worse, "recall").low
    assert out.verdict == f"undecided: recall may be {low:.3g} lower, by the lower end of the 95% interval"
    assert equivalence(a, worse, "recall", 0.25).verdict == "undecided: the 90% interval crosses an end of [-0.25, 0.25]"
    assert equivalence(a, worse, "recall", 0.1).verdict == "different: the 90% interval lies outside [-0.1, 0.1]"


def test_equality_on_few_images_says_how_little_that_shows():
    a = make_items(20, np.random.default_rng(15))
    for test in (equivalence, no_harm):
        # 1 - 0.05^(1/20) = 13.9%: were that many images unlike, twenty equal ones would come up in 5% of the samples.
        assert test(a, a, "chair_s", 0.01).verdict.endswith("; all 20 images differ alike, yet up to 13.91% of images may not")
    moved = equivalence(a, a.assign(words=a["words"] + 0.1), "words", 1)
    assert moved.verdict.endswith("may not")  # no scatter but rounding


def test_conditions_that_differ_by_the_margin_pass_at_the_rate_alpha():
    rng, runs = np.random.default_rng(16), 300
    passed = np.zeros(2)
    for run in range(runs):
        a, b = make_pair(150, rng, 0.3)  # chair_i is worse by exactly 0.1
        passed += [test(a, b, "chair_i", 0.1, 0.1, 300, run).holds for test in (equivalence, no_harm)]
    assert passed / runs == pytest.approx([0.1, 0.1], abs=0.055)


@pytest.mark.parametrize("test", [equivalence, no_harm])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": 0}, "margin is 0, expected a positive number in the unit of chair_i"),
        ({"margin": -0.01}, "margin is -0.01"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"margin": 1}, "margin is 1, but chair_i is a fraction; expected less than 1; pass 0.01 for one point"),
        ({"margin": 0.1, "alpha": 0.5}, "alpha is 0.5, expected a fraction between 0 and 0.5"),
        ({"margin": 0.1, "metric": "chair"}, "unknown metric 'chair'"),
    ],
)
def test_margins_name_what_is_wrong(test, arguments, message):
    a = make_items(10, np.random.default_rng(17))
    with pytest.raises(ValueError, match=message):
        test(a, a, **{"metric": "chair_i", **arguments})


# Sample size


def test_the_power_of_a_mean_difference_is_that_of_the_paired_t_test():
    a, b = make_pair(200, np.random.default_rng(18))
    spread = (b["words"] - a["words"]).std()
    # The noncentral t distribution, written out.
    for n, difference in ((20, 8.0), (90, -4.0), (400, 1.0)):
        shift, edge = abs(difference) / spread * np.sqrt(n), stats.t.isf(0.025, n - 1)
        assert power_of(n, a, b, "words", difference) == pytest.approx(stats.nct.sf(edge, n - 1, shift), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("scale", "power"), [(0.01, 0.8), (0.3, 0.9), (1, 0.8), (3, 0.95), (0.3, 0.06)])
def test_the_number_of_images_is_the_smallest_that_suffices(metric, scale, power):
    pilot = make_pair(200, np.random.default_rng(19), 0.3, 6)
    difference = scale * (20 if metric == "words" else 0.3)
    n = images_needed(*pilot, metric, difference, power)
    assert power_of(n, *pilot, metric, difference) >= power
    assert n == 2 or power_of(n - 1, *pilot, metric, difference) < power
    assert n == images_needed(*pilot, metric, -difference, power) <= images_needed(*pilot, metric, difference, 0.99)


def test_that_many_images_do_show_the_difference():
    rng, runs = np.random.default_rng(20), 300

    def sample(n):
        level = rng.beta(2, 8, n)  # of the image, so the captions of one image hallucinate alike
        pair = []
        for extra, mentions in ((0.0, 6), (0.08, 3)):
            named = rng.poisson(mentions, n)
            wrong = rng.binomial(named, level + extra)
            pair.append(pd.DataFrame({"image_id": range(n), "n_mentions": named, "n_hallucinated": wrong}))
        return pair

    n = images_needed(*sample(20_000), "chair_i", 0.08)
    assert 50 < n < 400
    found = [paired_bootstrap(*sample(n), "chair_i", 400, run).low > 0 for run in range(runs)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)  # three standard errors


def test_differences_far_beyond_the_spread_are_found():
    rng = np.random.default_rng(30)
    a = make_items(50, rng)
    b = a.assign(words=a["words"] + rng.normal(0, 1, 50))
    found = np.array([[power_of(n, a, b, "words", d) for n in (10, 21, 22, 23, 36, 400)] for d in np.geomspace(5, 500, 120)])
    assert (found > 0.999).all()  # where the noncentral t itself is undefined at some points
    assert images_needed(a, b, "words", 500) == 2


def test_pairing_saves_images():
    rng = np.random.default_rng(21)
    a = make_items(400, rng)
    close = a.assign(words=a["words"] + rng.integers(-3, 4, 400))
    shuffled = close.assign(image_id=rng.permutation(400))
    assert images_needed(a, close, "words", 1) * 20 < images_needed(a, shuffled, "words", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"difference": 0}, "difference is 0, expected a number other than 0"),
        ({"difference": float("nan")}, "difference is nan"),
        ({"power": 80}, "power is 80, expected a fraction above alpha = 0.05"),
        ({"power": 0.05}, "power is 0.05, expected a fraction above alpha"),
        ({"alpha": 0}, "alpha is 0"),
        ({"items_b": "same"}, "all 10 images of the pilot differ alike in words; expected differences that vary"),
        ({"items_b": "shifted"}, "differ alike in words"),
    ],
)
def test_images_needed_names_what_is_wrong(arguments, message):
    a, b = make_pair(10, np.random.default_rng(22))
    others = {"same": a, "shifted": a.assign(words=a["words"] + 0.1)}
    arguments = {**arguments, "items_b": others.get(arguments.get("items_b"), b)}
    with pytest.raises(ValueError, match=message):
        images_needed(**{"items_a": a, "metric": "words", "difference": 1, **arguments})


def test_power_names_what_is_wrong():
    a, b = make_pair(10, np.random.default_rng(23))
    with pytest.raises(ValueError, match="n is 1, expected at least 2"):
        power_of(1, a, b, "words", 1)
    with pytest.raises(ValueError, match="difference is -5, but recall is a fraction"):
        power_of(9, a, b, "recall", -5)
    with pytest.raises(ValueError, match="there are 1 images, expected at least 2"):
        power_of(9, a.head(1), b.head(1), "words", 1)


# Mentions


def make_mentions(n_images, rng, level=1.0, slope=-0.8):
    image = np.repeat(np.arange(n_images), rng.integers(1, 8, n_images))
    position = rng.normal(size=len(image))
    attention = 0.3 - 0.02 * position + 0.05 * rng.normal(size=len(image))
    odds = slope * (attention - 0.3) / 0.054 + level * rng.normal(size=n_images)[image] - 0.5
    wrong = rng.random(len(image)) < 1 / (1 + np.exp(-odds))
    return pd.DataFrame({"image_id": image, "position": position, "attention": attention, "hallucinated": wrong})


def test_the_mention_model_equals_the_formula_interface():
    frame = make_mentions(150, np.random.default_rng(24), level=2.0).sample(frac=1, random_state=0)
    ours = mention_model(frame, predictors=["attention", "position"], confidence=0.9)
    scaled = frame.assign(
        y=frame["hallucinated"].astype(int),
        **{c: (frame[c] - frame[c].mean()) / frame[c].std() for c in ("attention", "position")},
    )
    model = smf.gee(
        "y ~ attention + position", "image_id", scaled, family=sm.families.Binomial(), cov_struct=sm.cov_struct.Exchangeable()
    )
    fit = model.fit(maxiter=500)
    assert model.cov_struct.dep_params > 0.1  # so the correlation matters
    assert ours["term"].tolist() == ["attention", "position"]
    expected = pd.concat([fit.params, fit.conf_int(0.1)], axis=1).iloc[1:].to_numpy()
    assert np.log(ours[["odds_ratio", "low", "high"]].to_numpy()) == pytest.approx(expected, abs=1e-5)
    assert ours["p"].to_numpy() == pytest.approx(fit.pvalues.iloc[1:].to_numpy(), abs=1e-5)
    assert list(ours) == list(adjusted_logit(frame, predictors=["position"]))


def test_the_mention_model_solves_the_estimating_equations():
    # Liang and Zeger's equations, written out for the odds found: sum over images of D' V^-1 (y - mu) = 0.
    frame = make_mentions(60, np.random.default_rng(25))
    x = (frame["attention"] - frame["attention"].mean()) / frame["attention"].std()
    fit = sm.GEE(
        frame["hallucinated"].astype(float),
        sm.add_constant(x),
        groups=frame["image_id"],
        family=sm.families.Binomial(),
        cov_struct=sm.cov_struct.Exchangeable(),
    ).fit(maxiter=200)
    slope = np.log(mention_model(frame, predictors=["attention"])["odds_ratio"][0])
    rho, total = fit.model.cov_struct.dep_params, np.zeros(2)
    for _, rows in frame.groupby("image_id"):
        design = np.column_stack([np.ones(len(rows)), x[rows.index]])
        mu = 1 / (1 + np.exp(-(fit.params.iloc[0] + slope * x[rows.index].to_numpy())))
        root = np.sqrt(mu * (1 - mu))
        v = np.outer(root, root) * np.where(np.eye(len(rows)), 1, rho)
        total += (design * (root**2)[:, None]).T @ np.linalg.solve(v, rows["hallucinated"] - mu)
    assert total == pytest.approx([0, 0], abs=1e-3)


def test_without_correlation_the_mention_model_is_the_logit():
    frame = make_mentions(600, np.random.default_rng(26), level=0.0)
    gee, logit = (model(frame, predictors=["attention", "position"]) for model in (mention_model, adjusted_logit))
    numbers = ["odds_ratio", "low", "high"]
    assert gee[numbers].to_numpy() == pytest.approx(logit[numbers].to_numpy(), rel=0.03)


def test_the_mention_model_covers_the_odds_of_the_population():
    # With a normal level of the images the odds of the population are nearer to 1 than those within an image.
    rng, runs = np.random.default_rng(27), 120
    truth = np.log(adjusted_logit(make_mentions(30_000, rng, 1.5), predictors=["attention"])["odds_ratio"][0])
    assert truth == pytest.approx(-0.8 / np.sqrt(1 + 0.346 * 1.5**2), rel=0.05)
    tables = [mention_model(make_mentions(120, rng, 1.5), predictors=["attention"]).iloc[0] for _ in range(runs)]
    covered = np.mean([np.log(t["low"]) <= truth <= np.log(t["high"]) for t in tables])
    assert 0.88 <= covered <= 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop_duplicates("image_id"), "image_id holds 0 pairs of rows of one group, expected more than 3"),
        (lambda f: f.assign(image_id=1), "image_id names one cluster"),
        (lambda f: f.assign(hallucinated=True), "hallucinated is True in all"),
        (lambda f: f.drop(columns="position"), r"lacks the column\(s\) \['position'\]"),
        (lambda f: f.assign(position=2 * f["attention"]), "collinear"),
        (lambda f: f.assign(hallucinated=f["attention"] > 0.3), "separate hallucinated"),
    ],
)
def test_the_mention_model_names_what_is_wrong(change, message):
    frame = change(make_mentions(80, np.random.default_rng(28)))
    with pytest.raises(ValueError, match=message):
        mention_model(frame, predictors=["attention", "position"])


def test_the_mention_model_does_not_hide_that_it_did_not_converge(monkeypatch):
    fit = sm.GEE.fit
    monkeypatch.setattr(sm.GEE, "fit", lambda self, maxiter: fit(self, maxiter=2))
    with pytest.raises(ValueError, match="do not converge"):
        mention_model(make_mentions(80, np.random.default_rng(29)), predictors=["attention"])
