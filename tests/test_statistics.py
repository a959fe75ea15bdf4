"""Intervals and tests against scipy, statsmodels, loop-written twins, known answers and simulated coverage."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from prunehal.stats import bootstrap
from prunehal.stats.bootstrap import Interval
from prunehal.stats.intervals import adjusted_logit, association, bootstrap_interval, paired_bootstrap

METRICS = ["chair_i", "chair_s", "distinct_chair_i", "absent", "recall", "f1", "repeats", "unfinished", "words"]


def make_items(n: int, rng: np.random.Generator, rate: np.ndarray | float = 0.2) -> pd.DataFrame:
    mentions, truth = rng.integers(0, 8, n), rng.integers(1, 6, n)
    wrong, recalled = rng.binomial(mentions, rate), rng.binomial(truth, 0.7)
    absent = (wrong + 1) // 2
    distinct = absent + np.minimum(recalled, mentions - wrong)
    return pd.DataFrame(
        {
            "image_id": np.arange(n),
            "words": rng.integers(5, 60, n),
            "n_mentions": mentions,
            "n_hallucinated": wrong,
            "n_truth": truth,
            "n_recalled": recalled,
            "hallucinated": wrong > 0,
            "n_distinct": distinct,
            "n_absent": absent,
            "n_repeats": mentions - distinct,
            "unfinished": wrong > 1,
        }
    )


def pooled(items: pd.DataFrame, metric: str) -> float:
    return {
        "chair_i": items["n_hallucinated"].sum() / items["n_mentions"].sum(),
        "chair_s": items["hallucinated"].mean(),
        "distinct_chair_i": items["n_absent"].sum() / items["n_distinct"].sum(),
        "absent": items["n_absent"].mean(),
        "recall": items["n_recalled"].sum() / items["n_truth"].sum(),
        "f1": 2 * items["n_recalled"].sum() / (items["n_distinct"].sum() + items["n_truth"].sum()),
        "repeats": items["n_repeats"].sum() / items["n_mentions"].sum(),
        "unfinished": items["unfinished"].mean(),
        "words": items["words"].mean(),
    }[metric]


@pytest.mark.parametrize("metric", METRICS)
def test_bootstrap_equals_scipy_draw_for_draw(metric, monkeypatch):
    monkeypatch.setattr(bootstrap, "_CHUNK", 40 * 37)  # many chunks, the last one short
    rng = np.random.default_rng(1)
    a, b = make_items(40, rng), make_items(40, rng, 0.4)

    def one(i):
        return pooled(a.iloc[i], metric)

    def difference(i):
        return pooled(b.iloc[i], metric) - pooled(a.iloc[i], metric)

    for ours, statistic in [
        (bootstrap_interval(a, metric, 250, 7), one),
        (paired_bootstrap(a, b, metric, 250, 7), difference),
    ]:
        theirs = stats.bootstrap(
            (np.arange(40),), statistic, n_resamples=250, vectorized=False, rng=np.random.default_rng(7), method="BCa"
        ).confidence_interval
        assert ours.estimate == pytest.approx(statistic(np.arange(40)), abs=1e-12)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
        assert ours.n == 40


def plain_draws(units, n_resamples, seed):
    """Draw units by one call, and count each by a loop."""
    times = np.zeros((n_resamples, units), dtype=int)
    for row, drawn in enumerate(np.random.default_rng(seed).integers(0, units, (n_resamples, units))):
        for unit in drawn:
            times[row, unit] += 1
    return times


@pytest.fixture(params=["kept", "not kept"])
def keeping(request, monkeypatch):
    """Keep the draws for the next interval, or make them anew, as for units by the ten thousand."""
    bootstrap._kept_draws.cache_clear()
    if request.param == "not kept":
        monkeypatch.setattr(bootstrap, "_KEPT", 0)
    yield request.param == "kept"
    bootstrap._kept_draws.cache_clear()


@pytest.mark.parametrize(
    ("units", "n_resamples", "step", "chunk"),
    [(7, 100, 100, 2_000_000), (7, 101, 13, 7 * 9), (431, 123, 50, 431 * 11), (431, 123, 1, 1), (503, 150, 1000, 503 * 149)],
)
def test_draws_are_those_of_one_plain_call_in_any_chunks(units, n_resamples, step, chunk, keeping, monkeypatch):
    monkeypatch.setattr(bootstrap, "_CHUNK", chunk)
    plain = plain_draws(units, n_resamples, seed=3)
    for _ in range(2):  # the second time from what was kept
        parts = list(bootstrap._drawn(units, n_resamples, 3, step))
        assert [len(part) for part in parts[:-1]] == [step] * (len(parts) - 1)
        assert all(part.dtype == float for part in parts)
        assert (np.concatenate(parts) == plain).all()
    assert bootstrap._kept_draws.cache_info().currsize == keeping


def test_intervals_do_not_depend_on_chunks_or_on_what_is_kept(monkeypatch):
    items = make_items(431, np.random.default_rng(17))
    found = []
    for chunk, kept in ((2_000_000, 25_000_000), (431 * 7, 25_000_000), (431 * 7, 0), (1, 0)):
        monkeypatch.setattr(bootstrap, "_CHUNK", chunk)
        monkeypatch.setattr(bootstrap, "_KEPT", kept)
        bootstrap._kept_draws.cache_clear()
        found.append(bootstrap_interval(items, "distinct_chair_i", 313, seed=5))
    assert found == [found[0]] * 4


def test_what_is_kept_cannot_be_changed_by_a_statistic():
    bootstrap._kept_draws.cache_clear()

    def spoils(weights):
        values = weights[:, 0].copy()
        weights[:] = -1
        return values

    first, again = (bootstrap.bca(spoils, 20, 20, 200, 9, 0.95) for _ in range(2))
    assert first == again
    assert (bootstrap._kept_draws(20, 200, 9) == plain_draws(20, 200, 9)).all()
    with pytest.raises(ValueError, match="read-only"):
        bootstrap._kept_draws(20, 200, 9)[0, 0] = 5
    for other in ((21, 200, 9), (20, 201, 9), (20, 200, 8)):  # other units, numbers and seeds are other draws
        assert (bootstrap._kept_draws(*other) == plain_draws(*other)).all()


def test_confidence_and_seed_matter_as_they_should():
    items = make_items(60, np.random.default_rng(2))
    narrow, wide = (bootstrap_interval(items, "chair_i", 500, confidence=c) for c in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high
    assert bootstrap_interval(items, "recall", 500, seed=3) == bootstrap_interval(items, "recall", 500, seed=3)
    assert bootstrap_interval(items, "recall", 500, seed=3) != bootstrap_interval(items, "recall", 500, seed=4)


def test_pairs_are_kept_and_matched_by_image():
    rng = np.random.default_rng(3)
    a = make_items(80, rng)
    b = a.assign(words=a["words"] + 2).sample(frac=1, random_state=0)
    shift = paired_bootstrap(a, b, "words", 300)  # every pair differs by 2: no scatter is left
    assert (shift.estimate, shift.low, shift.high) == pytest.approx((2, 2, 2))
    assert paired_bootstrap(a, b, "recall", 300) == Interval(0.0, 0.0, 0.0, 80)
    worse = make_items(80, rng, 0.6)
    assert paired_bootstrap(a, worse, "chair_i", 300).low > 0  # the difference is b - a
    assert paired_bootstrap(worse, a, "chair_i", 300).high < 0


def test_mean_length_agrees_with_the_t_interval():
    items = make_items(400, np.random.default_rng(4))
    ours = bootstrap_interval(items, "words", 4000)
    words = items["words"]
    low, high = stats.t.interval(0.95, len(words) - 1, words.mean(), stats.sem(words))
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.25)


def test_paired_interval_covers_the_true_difference():
    rng, hits, runs = np.random.default_rng(5), 0, 200
    for run in range(runs):
        difficulty = rng.beta(2, 6, 150)  # shared by both captions of an image
        pair = []
        for extra in (0.0, 0.1):
            mentions = rng.integers(2, 8, 150)
            wrong = rng.binomial(mentions, difficulty + extra)
            pair.append(pd.DataFrame({"image_id": range(150), "n_mentions": mentions, "n_hallucinated": wrong}))
        interval = paired_bootstrap(*pair, "chair_i", 400, seed=run)
        hits += interval.low <= 0.1 <= interval.high
    assert 0.90 <= hits / runs <= 0.99


def test_nothing_hallucinated_has_an_empty_interval_and_no_mention_scores_zero():
    items = make_items(20, np.random.default_rng(6), 0.0)
    assert bootstrap_interval(items, "chair_i", 200) == Interval(0.0, 0.0, 0.0, 20)
    assert bootstrap_interval(items.assign(n_mentions=0), "chair_i", 200).estimate == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"metric": "chair"}, "unknown metric 'chair'; expected one of"),
        (
            lambda a: {"items_b": a.drop(columns="n_truth"), "metric": "recall"},
            r"items_b lacks the column\(s\) \['n_truth'\]",
        ),
        (lambda a: {"items_b": a.iloc[1:]}, r"differ in 1 image_id\(s\), such as \[0\]"),
        (lambda a: {"items_a": pd.concat([a, a.tail(1)])}, "items_a holds image_id 9 more than once"),
        (lambda a: {"items_a": a.head(1), "items_b": a.head(1)}, "at least 2 to resample"),
        (lambda a: {"n_resamples": 10}, "n_resamples is 10"),
        (lambda a: {"confidence": 95}, "confidence is 95"),
    ],
)
def test_paired_bootstrap_names_what_is_wrong(change, message):
    a = make_items(10, np.random.default_rng(7))
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(**{"items_a": a, "items_b": a, "metric": "chair_i", **change(a)})


def slow_association(x, faithful):
    high, low = x[faithful], x[~faithful]
    auc = np.mean([(h > v) + 0.5 * (h == v) for h in high for v in low])
    pooled_variance = ((len(high) - 1) * high.var(ddof=1) + (len(low) - 1) * low.var(ddof=1)) / (len(x) - 2)
    return auc, (high.mean() - low.mean()) / np.sqrt(pooled_variance)


def test_association_equals_its_loop_written_twin_and_scipy():
    rng = np.random.default_rng(8)
    x = rng.integers(0, 12, 60).astype(float)  # many ties
    faithful = rng.random(60) < 0.7
    clusters = np.repeat([f"image {i}" for i in range(20)], 3)
    ours = association(x, faithful, clusters, n_resamples=150, seed=9)
    test = stats.mannwhitneyu(x[faithful], x[~faithful])
    assert (ours.auc.estimate, ours.cohens_d.estimate) == pytest.approx(slow_association(x, faithful))
    assert ours.auc.estimate == pytest.approx(test.statistic / (faithful.sum() * (~faithful).sum()))
    assert ours.p_value == pytest.approx(test.pvalue)
    assert (ours.n_positive, ours.n_negative, ours.auc.n) == (faithful.sum(), (~faithful).sum(), 60)

    for k, interval in enumerate((ours.auc, ours.cohens_d)):

        def whole_images(i, k=k):
            rows = (3 * np.asarray(i)[:, None] + np.arange(3)).ravel()
            return slow_association(x[rows], faithful[rows])[k]

        theirs = stats.bootstrap(
            (np.arange(20),),
            whole_images,
            n_resamples=150,
            vectorized=False,
            rng=np.random.default_rng(9),
            method="BCa",
        ).confidence_interval
        assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_association_of_two_normal_samples_is_the_analytic_one():
    rng = np.random.default_rng(10)
    faithful = np.arange(3000) % 3 > 0
    ours = association(rng.normal(size=3000) + 0.5 * faithful, faithful, n_resamples=200)
    assert ours.cohens_d.low < 0.5 < ours.cohens_d.high
    assert ours.auc.low < stats.norm.cdf(0.5 / np.sqrt(2)) < ours.auc.high
    assert ours.auc.low > 0.5  # faithful mentions are the larger ones: above one half, d above zero
    assert ours.cohens_d.low > 0
    mirrored = association(np.arange(8.0), np.arange(8) < 4, n_resamples=100)
    assert (mirrored.auc.estimate, mirrored.cohens_d.estimate < 0) == (0.0, True)


def test_clusters_widen_the_interval_of_dependent_mentions():
    rng = np.random.default_rng(11)
    level, image = rng.normal(size=60), np.repeat(np.arange(60), 9)
    faithful = level + rng.normal(size=60) > 0
    # Nine copies of each mention add no knowledge: the interval of mentions is too narrow by the root of nine.
    alone, together = (association(level[image], faithful[image], c, n_resamples=600).auc for c in (None, image))
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(3, rel=0.15)


def test_association_leaves_out_resamples_without_one_class():
    x, faithful = np.arange(8.0), np.array([True] * 6 + [False] * 2)
    assert np.isfinite(association(x, faithful, n_resamples=200).auc.low)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2, 3], [True, False]), "have 3, 2 and 3 entries"),
        (([1, 2, np.nan, 4], [1, 1, 0, 0]), "1 values are not finite"),
        (([1, 2, 3, 4], [1, 1, 1, 1]), r"hallucinated \(negative\) mentions lie in 0 cluster"),
        (([1, 2, 3, 4], [1, 0, 0, 0]), r"faithful \(positive\) mentions lie in 1 cluster"),
        (([5, 5, 5, 5], [1, 1, 0, 0]), "all 4 values equal 5"),
        (([1, 2, 3, 4], [1, 2, 0, 0]), r"positive holds \[1, 2, 0\]; expected booleans"),
    ],
)
def test_association_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        association(*arguments)


def make_mentions(n_images: int, rng: np.random.Generator, slope: float = -0.8) -> pd.DataFrame:
    image = np.repeat(np.arange(n_images), 5)
    position = np.tile(np.arange(5.0), n_images) + rng.normal(size=len(image))
    attention = 0.3 - 0.02 * position + 0.05 * rng.normal(size=len(image))
    odds = slope * (attention - attention.mean()) / attention.std(ddof=1) + 0.8 * rng.normal(size=n_images)[image] - 0.5
    wrong = rng.random(len(image)) < 1 / (1 + np.exp(-odds))
    return pd.DataFrame({"image_id": image, "position": position, "attention": attention, "hallucinated": wrong})


def test_logit_equals_the_formula_interface():
    frame = make_mentions(80, np.random.default_rng(12))
    ours = adjusted_logit(frame, predictors=["attention", "position"])
    scaled = frame.assign(
        y=frame["hallucinated"].astype(int),
        **{c: (frame[c] - frame[c].mean()) / frame[c].std() for c in ("attention", "position")},
    )
    fit = smf.logit("y ~ attention + position", scaled).fit(disp=0, cov_type="cluster", cov_kwds={"groups": scaled["image_id"]})
    assert ours["term"].tolist() == ["attention", "position"]
    expected = pd.concat([fit.params, fit.conf_int()], axis=1).iloc[1:].to_numpy()
    assert np.log(ours[["odds_ratio", "low", "high"]].to_numpy()) == pytest.approx(expected, abs=1e-6)
    assert ours["p"].to_numpy() == pytest.approx(fit.pvalues.iloc[1:].to_numpy(), abs=1e-6)
    rescaled = adjusted_logit(frame.assign(attention=frame["attention"] * 100 - 3), predictors=["attention", "position"])
    pd.testing.assert_frame_equal(rescaled, ours)  # ratios are per standard deviation, whatever the unit


def test_logit_tells_a_cause_from_its_companion():
    frame = make_mentions(800, np.random.default_rng(13))
    alone = adjusted_logit(frame, predictors=["position"]).iloc[0]
    both = adjusted_logit(frame, predictors=["attention", "position"]).set_index("term")
    assert alone["low"] > 1.1  # position seems to matter ...
    assert both.loc["position", "low"] < 1 < both.loc["position", "high"]  # ... only through attention
    assert both.loc["attention", "high"] < 0.6
    assert both.loc["attention", "p"] < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictors": []}, "predictors is empty"),
        ({"predictors": ["attention", "depth"]}, r"lacks the column\(s\) \['depth'\]"),
        ({"frame": lambda f: f.assign(hallucinated=True)}, "hallucinated is True in all 200 rows"),
        ({"frame": lambda f: f.assign(hallucinated=False)}, "hallucinated is False in all 200 rows"),
        ({"frame": lambda f: f.assign(image_id=1)}, "image_id names one cluster"),
        ({"frame": lambda f: f.assign(attention=f["attention"].where(f["position"] < 4))}, "rows lack a value"),
        ({"frame": lambda f: f.assign(position=2.0)}, r"predictor\(s\) \['position'\] are constant"),
        ({"frame": lambda f: f.assign(position=1 - 2 * f["attention"])}, "collinear"),
        ({"frame": lambda f: f.assign(hallucinated=f["attention"] > 0.25)}, "separate hallucinated perfectly"),
        # quasi-complete: a flag that is raised for some of the hallucinated mentions only
        ({"frame": lambda f: f.assign(position=f["hallucinated"] & (f["image_id"] < 20))}, "separate hallucinated"),
    ],
)
def test_logit_names_what_is_wrong(change, message):
    frame = make_mentions(40, np.random.default_rng(14))
    frame = change.get("frame", lambda f: f)(frame)
    with pytest.raises(ValueError, match=message):
        adjusted_logit(frame, predictors=change.get("predictors", ["attention", "position"]))


def test_logit_refuses_percent():
    with pytest.raises(ValueError, match="confidence is 95"):
        adjusted_logit(make_mentions(10, np.random.default_rng(15)), predictors=["position"], confidence=95)
