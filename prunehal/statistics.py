"""Intervals and tests for captions and their mentions: bootstrap over images, effect sizes, adjusted odds.

Images are drawn, never mentions or captions alone: mentions of one caption depend on each other, and two methods that
caption the same images are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats

from prunehal.bootstrap import Interval, Statistic, bca, check_confidence

__all__ = ["Association", "Interval", "adjusted_logit", "association", "bootstrap_interval", "paired_bootstrap"]

# metric -> (numerator, denominator) columns of the items of `prunehal.benchmarks.score`; None counts captions
_METRICS = {
    "chair_i": ("n_hallucinated", "n_mentions"),
    "chair_s": ("hallucinated", None),
    "recall": ("n_recalled", "n_truth"),
    "words": ("words", None),
}


@dataclass(frozen=True)
class Association:
    """How the values of faithful (positive) and hallucinated mentions differ.

    Attributes:
        auc: P(value of a faithful mention > value of a hallucinated one), ties half; 0.5 = no association.
        cohens_d: (mean of the faithful - mean of the hallucinated) / pooled standard deviation.
        p_value: two-sided Mann-Whitney U. It takes mentions as independent; with clusters, trust the intervals.
        n_positive, n_negative: numbers of faithful and of hallucinated mentions.
    """

    auc: Interval
    cohens_d: Interval
    p_value: float
    n_positive: int
    n_negative: int

    def __str__(self) -> str:
        return (
            f"AUC {self.auc}; d {self.cohens_d}; Mann-Whitney p = {self.p_value:.2g} "
            f"({self.n_positive} faithful, {self.n_negative} hallucinated)"
        )


def bootstrap_interval(
    items: pd.DataFrame, metric: str, n_resamples: int = 5000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Estimate a pooled CHAIR metric with its interval over images.

    Args:
        items: one row per caption, as in `ChairResult.items`.
        metric: "chair_i", "chair_s" or "recall" (fractions in [0, 1]), or "words" (mean caption length).
        n_resamples, seed, confidence: of the bootstrap.

    Raises:
        ValueError: an unknown metric, a missing column, an image_id twice, fewer than two images, a setting out of
            range.

    >>> items = pd.DataFrame({"image_id": range(4), "n_hallucinated": [0, 1, 0, 2], "n_mentions": [4, 4, 3, 5]})
    >>> bootstrap_interval(items, "chair_i").estimate
    0.1875
    """
    return bca(_ratio(_counts(items, metric, "items")), len(items), len(items), n_resamples, seed, confidence)


def paired_bootstrap(
    items_a: pd.DataFrame,
    items_b: pd.DataFrame,
    metric: str,
    n_resamples: int = 5000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Estimate the difference b - a of a pooled CHAIR metric on the same images, with its interval over images.

    Each resample draws images, and takes both captions of each: what the images have in common cancels. Rows are
    matched by image_id, in any order.

    Args:
        items_a, items_b: one row per caption, as in `ChairResult.items`.
        metric: "chair_i", "chair_s" or "recall" (fractions in [0, 1]), or "words" (mean caption length).
        n_resamples, seed, confidence: of the bootstrap.

    Raises:
        ValueError: as in `bootstrap_interval`, or the two sets of images differ.

    >>> a = pd.DataFrame({"image_id": [1, 2, 3], "words": [10, 20, 30]})
    >>> b = pd.DataFrame({"image_id": [3, 2, 1], "words": [31, 21, 11]})
    >>> str(paired_bootstrap(a, b, "words"))
    '1.000 [1.000, 1.000], n = 3'
    """
    a, b = _counts(items_a, metric, "items_a"), _counts(items_b, metric, "items_b")
    if len(odd := a.index.symmetric_difference(b.index)):
        raise ValueError(
            f"items_a and items_b differ in {len(odd)} image_id(s), such as {odd[:5].tolist()}; expected the same "
            "images; keep those that both have"
        )
    ratio_a, ratio_b = _ratio(a), _ratio(b.loc[a.index])
    return bca(lambda weights: ratio_b(weights) - ratio_a(weights), len(a), len(a), n_resamples, seed, confidence)


def association(
    values: Sequence[float] | pd.Series,
    positive: Sequence[bool] | pd.Series,
    clusters: Sequence | pd.Series | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Association:
    """Compare a quantity between faithful and hallucinated mentions.

    The direction is that of the claim under test: an AUC above 0.5 and a d above 0 say that faithful mentions have the
    larger values, P(value of a faithful mention > value of a hallucinated one) > 0.5.

    Args:
        values: one number per mention, such as its visual attention.
        positive: True for a faithful mention, False for a hallucinated one.
        clusters: image_id of each mention; the bootstrap draws images then, and single mentions without it.
        n_resamples, seed, confidence: of the bootstrap; a resample that lacks one of the classes is left out.

    Raises:
        ValueError: unequal lengths, values missing or all equal, a class in fewer than two clusters.

    >>> association([3, 4, 5, 6], [False, True, False, True], n_resamples=100).auc.estimate
    0.75
    """
    x = np.asarray(values, dtype=float)
    faithful = _binary(positive, "positive")
    codes, labels = pd.factorize(np.arange(len(x)) if clusters is None else np.asarray(clusters))
    if not len(x) == len(faithful) == len(codes):
        raise ValueError(
            f"values, positive and clusters have {len(x)}, {len(faithful)} and {len(codes)} entries; expected one of "
            "each per mention; pass columns of the same frame"
        )
    if not np.isfinite(x).all() or (codes < 0).any():
        raise ValueError(
            f"{(~np.isfinite(x)).sum()} values are not finite and {(codes < 0).sum()} clusters are missing; expected a "
            "number and a cluster for each mention; drop those mentions"
        )
    for name, group in (("faithful (positive)", faithful), ("hallucinated (negative)", ~faithful)):
        if (held := len(np.unique(codes[group]))) < 2:
            raise ValueError(f"{name} mentions lie in {held} cluster(s), expected at least 2; add captions")
    if np.ptp(x) == 0:
        raise ValueError(f"all {len(x)} values equal {x[0]}; expected values that vary; check the column")
    settings = (len(labels), len(x), n_resamples, seed, confidence)
    return Association(
        auc=bca(_auc(x, faithful, codes), *settings),
        cohens_d=bca(_cohens_d(x, faithful, codes), *settings),
        p_value=float(stats.mannwhitneyu(x[faithful], x[~faithful]).pvalue),
        n_positive=int(faithful.sum()),
        n_negative=int((~faithful).sum()),
    )


def adjusted_logit(
    frame: pd.DataFrame,
    outcome: str = "hallucinated",
    predictors: Sequence[str] = (),
    clusters: str = "image_id",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Regress an outcome on several predictors at once, each adjusted for the others.

    A logistic regression whose standard errors are robust to dependence within clusters. Predictors are standardised,
    so that an odds ratio is per standard deviation of its predictor and the ratios can be compared.

    Args:
        frame: one row per mention.
        outcome: column of 0/1 or booleans; odds are those of 1, so a ratio below 1 says less hallucination.
        predictors: columns of numbers, such as the visual attention and the position of the mention.
        clusters: column that names the cluster (image) of each row.

    Returns:
        One row per predictor: term, odds_ratio, low, high (confidence interval), p (two-sided, normal).

    Raises:
        ValueError: a missing column or value, an outcome with one class, a constant or collinear predictor, fewer than
            two clusters, or a separated outcome (no finite estimate exists then; Albert and Anderson 1984, Biometrika).

    >>> rng = np.random.default_rng(0)
    >>> frame = pd.DataFrame({"image_id": np.arange(400) // 4, "position": rng.normal(size=400)})
    >>> frame["hallucinated"] = rng.random(400) < 1 / (1 + np.exp(-frame["position"]))
    >>> adjusted_logit(frame, predictors=["position"]).round(1).to_dict("records")[0]["odds_ratio"] > 1.5
    True
    """
    import statsmodels.api as sm  # takes a second or two to import, and nothing else here needs it

    check_confidence(confidence)
    names = list(predictors)
    if not names:
        raise ValueError("predictors is empty; expected at least one column; name the columns to adjust for")
    if absent := {outcome, clusters, *names} - set(frame.columns):
        raise ValueError(f"the frame lacks the column(s) {sorted(absent)}; it has {list(frame.columns)}; add or rename")
    if (gaps := frame[[outcome, clusters, *names]].isna().any(axis=1)).any():
        raise ValueError(f"{gaps.sum()} of {len(frame)} rows lack a value; expected none; drop or fill those rows")
    y = _binary(frame[outcome], outcome)
    if y.all() or not y.any():
        raise ValueError(f"{outcome} is {bool(y[:1].any())} in all {len(y)} rows; expected both classes; add captions")
    codes, labels = pd.factorize(frame[clusters])
    if len(labels) < 2:
        raise ValueError(f"{clusters} names one cluster; expected at least 2; add images")
    x = frame[names].to_numpy(dtype=float)
    if constant := [name for name, column in zip(names, x.T, strict=True) if np.ptp(column) == 0]:
        raise ValueError(f"predictor(s) {constant} are constant; expected columns that vary; leave them out")
    design = np.column_stack([np.ones(len(x)), (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)])  # (mention, 1 + predictor)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(f"the predictors {names} are collinear; expected none to follow from the others; leave one out")
    if _separated(design, y):
        raise ValueError(
            f"the predictors {names} separate {outcome} perfectly, or all but ties; expected overlapping classes; "
            "add captions or leave a predictor out"
        )
    fit = sm.Logit(y.astype(float), design).fit(cov_type="cluster", cov_kwds={"groups": codes}, disp=0, maxiter=100)
    low, high = fit.conf_int(1 - confidence)[1:].T
    return pd.DataFrame(
        {
            "term": names,
            "odds_ratio": np.exp(fit.params[1:]),
            "low": np.exp(low),
            "high": np.exp(high),
            "p": fit.pvalues[1:],
        }
    )


def _binary(values: Sequence | pd.Series, name: str) -> np.ndarray:
    """Return booleans; refuse anything but two-valued input, which astype(bool) would take silently."""
    array = np.asarray(values)
    if not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} holds {pd.unique(pd.Series(array))[:5].tolist()}; expected booleans or 0/1; convert it")
    return array.astype(bool)


def _counts(items: pd.DataFrame, metric: str, name: str) -> pd.DataFrame:
    """Return numerator and denominator per image, indexed by image_id."""
    if metric not in _METRICS:
        raise ValueError(f"unknown metric {metric!r}; expected one of {sorted(_METRICS)}; pass one of these names")
    top, bottom = _METRICS[metric]
    if absent := {"image_id", top, bottom} - {None} - set(items.columns):
        raise ValueError(f"{name} lacks the column(s) {sorted(absent)}; expected the items of a ChairResult; pass those")
    if (twice := items["image_id"].duplicated()).any():
        raise ValueError(
            f"{name} holds image_id {items.loc[twice, 'image_id'].iloc[0]} more than once; expected one row per image; "
            "keep one caption of each"
        )
    return pd.DataFrame(
        {
            "top": items[top].to_numpy(dtype=float),
            "bottom": items[bottom].to_numpy(dtype=float) if bottom else np.ones(len(items)),
        },
        index=pd.Index(items["image_id"]),
    )


def _ratio(counts: pd.DataFrame) -> Statistic:
    columns = counts.to_numpy()  # (image, 2)

    def statistic(weights: np.ndarray) -> np.ndarray:
        top, bottom = (weights @ columns).T
        return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)  # no mention: 0.0, as the scorer says

    return statistic


def _auc(x: np.ndarray, faithful: np.ndarray, codes: np.ndarray) -> Statistic:
    hallucinated = np.flatnonzero(~faithful)[np.argsort(x[~faithful])]
    # How many hallucinated mentions lie below each faithful one, without and with its ties.
    fewest, most = (np.searchsorted(x[hallucinated], x[faithful], side) for side in ("left", "right"))

    def statistic(weights: np.ndarray) -> np.ndarray:
        columns = np.ascontiguousarray(weights.T)  # (unit, resample): mentions are then gathered as whole rows
        negative = np.zeros((len(hallucinated) + 1, len(weights)))  # (hallucinated mention, resample), running weight
        np.cumsum(columns[codes[hallucinated]], axis=0, out=negative[1:])
        positive = columns[codes[faithful]]  # (faithful mention, resample)
        wins = (np.einsum("mr,mr->r", positive, negative[side]) for side in (fewest, most))
        pairs = positive.sum(axis=0) * negative[-1]
        return np.divide(sum(wins) / 2, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)  # ties count half

    return statistic


def _cohens_d(x: np.ndarray, faithful: np.ndarray, codes: np.ndarray) -> Statistic:
    z = x - x.mean()  # keeps the sums of squares from cancelling
    moments = np.stack([group * power for group in (faithful, ~faithful) for power in (z**0, z, z**2)])
    sums = np.stack([np.bincount(codes, row) for row in moments], axis=1)  # (cluster, 6)

    def statistic(weights: np.ndarray) -> np.ndarray:
        n1, s1, q1, n0, s0, q0 = (weights @ sums).T
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample without one of the classes: not finite
            variance = (q1 - s1**2 / n1 + q0 - s0**2 / n0) / (n1 + n0 - 2)
            return (s1 / n1 - s0 / n0) / np.sqrt(variance)

    return statistic


def _separated(design: np.ndarray, y: np.ndarray) -> bool:
    """Tell by linear programming whether some hyperplane keeps all cases on their side, and one off it.

    Source: Konis 2007, "Linear programming algorithms for detecting separated data in binary logistic regression".
    """
    signed = np.where(y[:, None], design, -design)
    best = optimize.linprog(-signed.sum(axis=0), A_ub=-signed, b_ub=np.zeros(len(y)), bounds=(-1, 1))
    return bool(-best.fun > 1e-6)
