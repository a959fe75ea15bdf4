"""Adjusted odds of hallucination: one table from two models of dependent mentions.

Both give population-averaged odds ratios per standard deviation of a predictor, with errors that are robust to dependence within
images, and both are statsmodels':

* :func:`adjusted_logit` weights all mentions alike (independence as the working correlation);
* :func:`mention_model` lets the mentions of an image share an exchangeable correlation, and weights them by it.

Why GEE and not `BinomialBayesMixedGLM` for the latter: GEE answers the question that the logit answers, so that the two tables
can be laid side by side; it assumes no distribution of the images' levels, and stays right when the working correlation is wrong
(Liang and Zeger 1986, "Longitudinal data analysis using generalized linear models", Biometrika 73). The mixed model gives odds
within one image, farther from 1 (log odds by about sqrt(1 + 0.346 variance of the images' levels): Zeger, Liang and Albert 1988,
Biometrics 44), by a variational fit whose posterior deviations are no confidence intervals.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import optimize

from prunehal.stats.bootstrap import check_confidence

__all__ = ["adjusted_logit", "binary", "mention_model"]


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

    names = list(predictors)
    y, design, codes = _design(frame, outcome, names, clusters, confidence)
    fit = sm.Logit(y, design).fit(cov_type="cluster", cov_kwds={"groups": codes}, disp=0, maxiter=100)
    return _table(names, fit, confidence)


def mention_model(
    frame: pd.DataFrame,
    outcome: str = "hallucinated",
    predictors: Sequence[str] = (),
    groups: str = "image_id",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Regress an outcome on several predictors, where the mentions of an image are correlated alike.

    A logistic regression by generalised estimating equations with an exchangeable correlation and robust errors (see the
    module for the reasons). Where the correlation is zero it gives the odds of :func:`adjusted_logit`; where it is not, it
    counts an image of many mentions for less. If long captions hallucinate at other rates than short ones the two differ: GEE
    then mixes images and mentions, and the logit speaks of mentions.

    Args:
        frame: one row per mention.
        outcome: column of 0/1 or booleans; odds are those of 1, so a ratio below 1 says less hallucination.
        predictors: columns of numbers, such as the visual attention and the position of the mention; standardised here.
        groups: column that names the image of each row; robust errors want some tens of images.

    Returns:
        One row per predictor: term, odds_ratio, low, high (confidence interval), p (two-sided, normal).

    Raises:
        ValueError: as in :func:`adjusted_logit`; too few images with two mentions to estimate a correlation; equations that do
            not converge.

    >>> rng = np.random.default_rng(0)
    >>> frame = pd.DataFrame({"image_id": np.arange(400) // 4, "position": rng.normal(size=400)})
    >>> frame["hallucinated"] = rng.random(400) < 1 / (1 + np.exp(-frame["position"]))
    >>> table = mention_model(frame, predictors=["position"])
    >>> list(table), bool(table["low"][0] > 1)
    (['term', 'odds_ratio', 'low', 'high', 'p'], True)
    """
    import statsmodels.api as sm
    from statsmodels.tools.sm_exceptions import ConvergenceWarning, IterationLimitWarning

    names = list(predictors)
    y, design, codes = _design(frame, outcome, names, groups, confidence)
    sizes = np.bincount(codes)
    if (pairs := int((sizes * (sizes - 1)).sum() // 2)) <= design.shape[1]:  # statsmodels divides by their difference
        raise ValueError(
            f"{groups} holds {pairs} pairs of rows of one group, expected more than {design.shape[1]} to estimate a correlation "
            "from; use adjusted_logit"
        )
    model = sm.GEE(y, design, groups=codes, family=sm.families.Binomial(), cov_struct=sm.cov_struct.Exchangeable())
    try:
        with warnings.catch_warnings():
            for kind in (ConvergenceWarning, IterationLimitWarning):
                warnings.simplefilter("error", kind)  # statsmodels returns its last round all the same
            fit = model.fit(maxiter=200)
    except (ConvergenceWarning, IterationLimitWarning) as problem:
        raise ValueError(
            f"the estimating equations of {names} do not converge on {len(y)} rows ({problem}); expected to within 200 rounds; "
            "add captions, leave a predictor out or use adjusted_logit"
        ) from problem
    return _table(names, fit, confidence)


def binary(values: Sequence | pd.Series, name: str) -> np.ndarray:
    """Return booleans; refuse anything but two-valued input, which astype(bool) would take silently.

    Raises:
        ValueError: a value that is neither 0 nor 1.

    >>> binary([0, 1, True], "hallucinated").tolist()
    [False, True, True]
    """
    array = np.asarray(values)
    if not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} holds {pd.unique(pd.Series(array))[:5].tolist()}; expected booleans or 0/1; convert it")
    return array.astype(bool)


def _design(
    frame: pd.DataFrame, outcome: str, names: list[str], clusters: str, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check a frame and return the outcome, the standardised design (mention, 1 + predictor) and the number of each cluster."""
    check_confidence(confidence)
    if not names:
        raise ValueError("predictors is empty; expected at least one column; name the columns to adjust for")
    if absent := {outcome, clusters, *names} - set(frame.columns):
        raise ValueError(f"the frame lacks the column(s) {sorted(absent)}; it has {list(frame.columns)}; add or rename")
    if (gaps := frame[[outcome, clusters, *names]].isna().any(axis=1)).any():
        raise ValueError(f"{gaps.sum()} of {len(frame)} rows lack a value; expected none; drop or fill those rows")
    y = binary(frame[outcome], outcome)
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
    return y.astype(float), design, codes


def _table(names: list[str], fit: object, confidence: float) -> pd.DataFrame:
    """Lay out a fit of statsmodels, without its intercept."""
    low, high = np.asarray(fit.conf_int(1 - confidence))[1:].T
    columns = {"odds_ratio": np.exp(fit.params[1:]), "low": np.exp(low), "high": np.exp(high), "p": fit.pvalues[1:]}
    return pd.DataFrame({"term": names, **columns})


def _separated(design: np.ndarray, y: np.ndarray) -> bool:
    """Tell by linear programming whether some hyperplane keeps all cases on their side, and one off it.

    Source: Konis 2007, "Linear programming algorithms for detecting separated data in binary logistic regression".
    """
    signed = np.where(y[:, None], design, -design)
    best = optimize.linprog(-signed.sum(axis=0), A_ub=-signed, b_ub=np.zeros(len(y)), bounds=(-1, 1))
    return bool(-best.fun > 1e-6)
