"""Effects: which options of a policy matter, from a table of settings that differ in many of them at once.

A linear model of a difference from the baseline, in which every setting weighs alike: options are categories, covariates (such as
the budget of visual tokens) numbers. By statsmodels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from prunehal.inference import holm

if TYPE_CHECKING:
    from statsmodels.regression.linear_model import RegressionResults

__all__ = ["interactions", "main_effects", "marginal_means"]


def main_effects(
    table: pd.DataFrame, response: str, options: Sequence[str], covariates: Sequence[str] = ("visual",)
) -> pd.DataFrame:
    """Return what each option contributes when all others are held, the largest first (type II analysis of variance).

    Args:
        table: one line for each setting, as `prunehal.experiments.changes` returns it.
        response: column to explain, such as ``d_chair_i``.
        options: columns of categories.
        covariates: columns of numbers that are held, too; the budget among them compares at equal budget.

    Returns:
        One line for each option and covariate: term, levels, share (of the sum of squares of the response that only this term
        explains), p (F test), p_holm.

    Raises:
        ValueError: a column is missing or does not vary.

    >>> table = pd.DataFrame({"kept": list("abab") * 5, "visual": range(20), "d": [0.0, 1.1, 0.1, 1.0] * 5})
    >>> main_effects(table, "d", ["kept"])["term"].tolist()
    ['kept', 'visual']
    """
    _check(table, response, options, covariates)
    whole = _fit(table, response, options, covariates)
    lines = []
    for term in (*options, *covariates):
        rest = [[name for name in names if name != term] for names in (options, covariates)]
        fit = _fit(table, response, *rest)
        _, p, columns = whole.compare_f_test(fit)
        lines.append({"term": term, "levels": int(columns) + 1, "share": (fit.ssr - whole.ssr) / whole.centered_tss, "p": p})
    frame = holm(pd.DataFrame(lines), "p").drop(columns="rejected")
    return frame.sort_values("share", ascending=False, ignore_index=True)


def interactions(
    table: pd.DataFrame, response: str, options: Sequence[str], covariates: Sequence[str] = ("visual",)
) -> pd.DataFrame:
    """Return what each pair of options explains beyond the main effects of all, the largest first.

    Args:
        table, response, options, covariates: as :func:`main_effects`.

    Returns:
        One line for each pair: first, second, share (of the sum of squares of the response), p (F test of the larger model),
        p_holm (over all pairs).

    >>> table = pd.DataFrame({"a": list("xxyy") * 5, "b": list("uv") * 10, "d": [0, 0.1, 0, 1.1] * 3 + [0.1, 0, 0.1, 1] * 2})
    >>> bool(interactions(table, "d", ["a", "b"], ())["p"][0] < 0.001)
    True
    """
    _check(table, response, options, covariates)
    plain = _fit(table, response, options, covariates)
    lines = []
    for pair in combinations(options, 2):
        fit = _fit(table, response, options, covariates, pair)
        _, p, _ = fit.compare_f_test(plain)
        share = (plain.ssr - fit.ssr) / plain.centered_tss
        lines.append({"first": pair[0], "second": pair[1], "share": share, "p": p if np.isfinite(p) else 1.0})
    frame = holm(pd.DataFrame(lines), "p").drop(columns="rejected")
    return frame.sort_values("share", ascending=False, ignore_index=True)


def marginal_means(
    table: pd.DataFrame,
    response: str,
    options: Sequence[str],
    covariates: Sequence[str] = ("visual",),
    *,
    of: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the mean response at each value of an option (or of each combination of two), all else as in the table.

    Args:
        table, response, options, covariates: as :func:`main_effects`.
        of: the option, or two whose interaction is in the model then; by default each option by itself.
        confidence: of the intervals.

    Returns:
        Columns: option and value (two of each, if ``of`` names two), mean, low, high.

    >>> table = pd.DataFrame({"a": list("xxyy") * 5, "b": list("uv") * 10, "d": [0, 0.1, 0, 1.1] * 3 + [0.1, 0, 0.1, 1] * 2})
    >>> marginal_means(table, "d", ["a", "b"], (), of=["a"])["mean"].round(2).tolist()
    [0.05, 0.55]
    """
    if of is None:
        parts = [marginal_means(table, response, options, covariates, of=[name], confidence=confidence) for name in options]
        return pd.concat(parts, ignore_index=True)
    _check(table, response, options, covariates)
    pair = tuple(of) if len(of) == 2 else ()
    fit, lines = _fit(table, response, options, covariates, pair), []
    for values, _ in table.groupby(list(of), sort=True):
        at = _design(table, options, covariates, pair, dict(zip(of, values, strict=True))).mean()
        test = fit.t_test(at.to_numpy())
        low, high = test.conf_int(1 - confidence)[0]
        names = {"option": of[0], "value": values[0]} if len(of) == 1 else dict(zip(of, values, strict=True))
        lines.append(names | {"mean": test.effect[0], "low": low, "high": high})
    return pd.DataFrame(lines)


def _design(
    table: pd.DataFrame, options: Sequence[str], covariates: Sequence[str], pair: Sequence[str], values: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the columns of the model: one for each value of an option but the first, products of a pair, covariates.

    Args:
        values: option -> value that all lines get.
    """
    columns = {"constant": pd.Series(1.0, table.index)}
    for name in options:
        for value in sorted(table[name].unique())[1:]:
            given = pd.Series(values[name], table.index) if name in values else table[name]
            columns[f"{name}={value}"] = (given == value).astype(float)
    of_pair = [[column for column in columns if column.startswith(f"{name}=")] for name in pair]
    for one, other in product(*of_pair) if pair else ():
        columns[f"{one}, {other}"] = columns[one] * columns[other]
    return pd.DataFrame(columns | {name: table[name].astype(float) for name in covariates})


def _fit(
    table: pd.DataFrame, response: str, options: Sequence[str], covariates: Sequence[str], pair: Sequence[str] = ()
) -> RegressionResults:
    import statsmodels.api as sm  # takes a second or two to import, and nothing else here needs it

    return sm.OLS(table[response].astype(float), _design(table, options, covariates, pair, {})).fit()


def _check(table: pd.DataFrame, response: str, options: Sequence[str], covariates: Sequence[str]) -> None:
    names = [response, *options, *covariates]
    if absent := [name for name in names if name not in table]:
        raise ValueError(f"the table lacks the column(s) {', '.join(absent)}; it has {list(table.columns)}; name those")
    if constant := [name for name in names if table[name].nunique(dropna=False) < 2]:
        raise ValueError(f"{', '.join(constant)} does not vary in the table; expected two values or more; leave it out")
    if gaps := [name for name in names if table[name].isna().any()]:
        raise ValueError(f"{', '.join(gaps)} lacks values; expected one in each line; fill them")
