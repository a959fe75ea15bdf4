"""Effects: which options of a policy matter, from a table of settings that differ in many of them at once.

A linear model of a difference from the baseline, in which every setting weighs alike: options are categories, covariates (such as
the budget of visual tokens) polynomials, because what a budget costs is no straight line. By statsmodels. The p-values here take
the settings as the sample and the images as fixed; `prunehal.experiments.over_images` takes the images as a sample, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import pandas as pd

from prunehal.stats.testing import holm

if TYPE_CHECKING:
    from statsmodels.regression.linear_model import RegressionResults

__all__ = ["DEGREE", "design", "explained", "interactions", "main_effects", "marginal_means"]

DEGREE = 3  # of the polynomial of a covariate: bends, and bends differently at its ends


def main_effects(
    table: pd.DataFrame, response: str, options: Sequence[str], covariates: Sequence[str] = ("visual",), degree: int = DEGREE
) -> pd.DataFrame:
    """Return what each option contributes when all others are held, the largest first (type II analysis of variance).

    Args:
        table: one line for each setting, as `prunehal.experiments.changes` returns it.
        response: column to explain, such as ``d_chair_i``.
        options: columns of categories.
        covariates: columns of numbers that are held, too; the budget among them compares at equal budget.
        degree: of the polynomial of each covariate, 1 to 5.

    Returns:
        One line for each option and covariate: term, df (columns of the model that are its own), share (of the sum of squares of
        the response that only this term explains), p (F test), p_holm.

    Raises:
        ValueError: a column is missing, does not vary or lacks values; another degree.

    >>> table = pd.DataFrame({"kept": list("abab") * 5, "visual": range(20), "d": [0.0, 1.1, 0.1, 1.0] * 5})
    >>> main_effects(table, "d", ["kept"])["term"].tolist()
    ['kept', 'visual']
    """
    _check(table, response, options, covariates)
    whole = _fit(table, response, options, covariates, degree)
    lines = []
    for term in (*options, *covariates):
        rest = [[name for name in names if name != term] for names in (options, covariates)]
        fit = _fit(table, response, *rest, degree)
        _, p, columns = whole.compare_f_test(fit)
        lines.append({"term": term, "df": int(columns), "share": (fit.ssr - whole.ssr) / whole.centered_tss, "p": p})
    frame = holm(pd.DataFrame(lines), "p").drop(columns="rejected")
    return frame.sort_values("share", ascending=False, ignore_index=True)


def explained(
    table: pd.DataFrame, response: str, options: Sequence[str], covariates: Sequence[str] = ("visual",), degree: int = DEGREE
) -> float:
    """Return R^2: the share of the sum of squares of the response that all main effects and covariates explain together.

    The shares of :func:`main_effects` do not add up to it: what two terms explain alike belongs to neither.

    Args:
        table, response, options, covariates, degree: as :func:`main_effects`.

    >>> table = pd.DataFrame({"kept": list("abab") * 5, "visual": range(20), "d": [0.0, 1.0, 0.0, 1.0] * 5})
    >>> round(explained(table, "d", ["kept"]), 6)
    1.0
    """
    _check(table, response, options, covariates)
    return float(_fit(table, response, options, covariates, degree).rsquared)


def interactions(
    table: pd.DataFrame, response: str, options: Sequence[str], covariates: Sequence[str] = ("visual",), degree: int = DEGREE
) -> pd.DataFrame:
    """Return what each pair of options explains beyond the main effects of all, the largest first.

    Args:
        table, response, options, covariates, degree: as :func:`main_effects`.

    Returns:
        One line for each pair: first, second, share (of the sum of squares of the response), p (F test of the larger model; 1.0
        where no combination of the two is left to tell), p_holm (over all pairs).

    >>> table = pd.DataFrame({"a": list("xxyy") * 5, "b": list("uv") * 10, "d": [0, 0.1, 0, 1.1] * 3 + [0.1, 0, 0.1, 1] * 2})
    >>> bool(interactions(table, "d", ["a", "b"], ())["p"][0] < 0.001)
    True
    """
    _check(table, response, options, covariates)
    plain = _fit(table, response, options, covariates, degree)
    lines = []
    for pair in combinations(options, 2):
        fit = _fit(table, response, options, covariates, degree, pair)
        p = fit.compare_f_test(plain)[1] if fit.df_model > plain.df_model else 1.0
        share = (plain.ssr - fit.ssr) / plain.centered_tss
        lines.append({"first": pair[0], "second": pair[1], "share": share, "p": p})
    frame = holm(pd.DataFrame(lines), "p").drop(columns="rejected")
    return frame.sort_values("share", ascending=False, ignore_index=True)


def marginal_means(
    table: pd.DataFrame,
    response: str,
    options: Sequence[str],
    covariates: Sequence[str] = ("visual",),
    degree: int = DEGREE,
    *,
    of: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the mean response at each value of an option (or of each combination of two), all else as in the table.

    Args:
        table, response, options, covariates, degree: as :func:`main_effects`.
        of: the option, or two whose interaction is in the model then; by default each option by itself.
        confidence: of the intervals.

    Returns:
        Columns: option and value (two of each, if ``of`` names two), mean, low, high.

    >>> table = pd.DataFrame({"a": list("xxyy") * 5, "b": list("uv") * 10, "d": [0, 0.1, 0, 1.1] * 3 + [0.1, 0, 0.1, 1] * 2})
    >>> marginal_means(table, "d", ["a", "b"], (), of=["a"])["mean"].round(2).tolist()
    [0.05, 0.55]
    """
    if of is None:
        parts = [
            marginal_means(table, response, options, covariates, degree, of=[name], confidence=confidence) for name in options
        ]
        return pd.concat(parts, ignore_index=True)
    _check(table, response, options, covariates)
    pair = tuple(of) if len(of) == 2 else ()
    fit, lines = _fit(table, response, options, covariates, degree, pair), []
    for values, _ in table.groupby(list(of), sort=True):
        at = design(table, options, covariates, degree, pair, dict(zip(of, values, strict=True))).mean()
        test = fit.t_test(at.to_numpy())
        low, high = test.conf_int(1 - confidence)[0]
        names = {"option": of[0], "value": values[0]} if len(of) == 1 else dict(zip(of, values, strict=True))
        lines.append(names | {"mean": test.effect[0], "low": low, "high": high})
    return pd.DataFrame(lines)


def design(
    table: pd.DataFrame,
    options: Sequence[str],
    covariates: Sequence[str] = ("visual",),
    degree: int = DEGREE,
    pair: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return the columns of the model, one line for each setting.

    Args:
        table, options, covariates, degree: as :func:`main_effects`.
        pair: two options whose products are columns, too.
        values: option -> value that all lines get instead of their own.

    Returns:
        constant; one column for each value of an option but the first, ``option=value``; products of a pair, where the table has
        that combination; powers of each standardised covariate, ``visual^1`` and so on.

    >>> table = pd.DataFrame({"kept": ["layer", "shared", "layer"], "visual": [40.0, 50.0, 60.0]})
    >>> design(table, ["kept"], degree=2).columns.tolist()
    ['constant', 'kept=shared', 'visual^1', 'visual^2']
    """
    if degree not in range(1, 6):
        raise ValueError(f"degree is {degree!r}, expected 1 to 5; 3 lets the budget bend")
    values = {} if values is None else values
    columns = {"constant": pd.Series(1.0, table.index)}
    own = dict(columns)  # without `values`, to see which combinations the table has
    for name in options:
        for value in sorted(table[name].unique())[1:]:
            given = pd.Series(values[name], table.index) if name in values else table[name]
            columns[f"{name}={value}"] = (given == value).astype(float)
            own[f"{name}={value}"] = (table[name] == value).astype(float)
    of_pair = [[column for column in columns if column.startswith(f"{name}=")] for name in pair]
    for one, other in product(*of_pair) if pair else ():
        if (own[one] * own[other]).any():
            columns[f"{one}, {other}"] = columns[one] * columns[other]
    for name in covariates:
        z = (table[name].astype(float) - table[name].mean()) / table[name].std()
        columns |= {f"{name}^{power}": z**power for power in range(1, degree + 1)}
    return pd.DataFrame(columns)


def _fit(
    table: pd.DataFrame,
    response: str,
    options: Sequence[str],
    covariates: Sequence[str],
    degree: int,
    pair: Sequence[str] = (),
) -> RegressionResults:
    import statsmodels.api as sm  # takes a second or two to import, and nothing else here needs it

    return sm.OLS(table[response].astype(float), design(table, options, covariates, degree, pair)).fit()


def _check(table: pd.DataFrame, response: str, options: Sequence[str], covariates: Sequence[str]) -> None:
    names = [response, *options, *covariates]
    if absent := [name for name in names if name not in table]:
        raise ValueError(f"the table lacks the column(s) {', '.join(absent)}; it has {list(table.columns)}; name those")
    if constant := [name for name in names if table[name].nunique(dropna=False) < 2]:
        raise ValueError(f"{', '.join(constant)} does not vary in the table; expected two values or more; leave it out")
    if gaps := [name for name in names if table[name].isna().any()]:
        raise ValueError(f"{', '.join(gaps)} lacks values; expected one in each line; fill them")
