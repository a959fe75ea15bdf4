"""Effects over images: what options explain when not only the settings but also the images are a sample.

All settings of a sample are scored on the same images, so what an option does on these images alone looks like an effect in every
setting that has it, and no F test over settings (`prunehal.stats.effects`) sees that. Here the images are drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from prunehal.benchmarks.chair.score import ChairResult, score
from prunehal.experiments.compare import METRICS
from prunehal.experiments.experiment import Experiment
from prunehal.experiments.images import truth
from prunehal.experiments.store import Store
from prunehal.stats.bootstrap import Statistic, bca
from prunehal.stats.effects import DEGREE, design
from prunehal.stats.intervals import paired_bootstrap
from prunehal.stats.pooled import counts
from prunehal.stats.testing import holm

__all__ = ["SharedImages", "fit_over_images", "p_over_images", "share_intervals"]


@dataclass(frozen=True, eq=False)
class SharedImages:
    """Settings and a baseline, scored on the same images, to be pooled under any weights of the images.

    Attributes:
        experiments: the settings.
        results: scores of the baseline, then of each setting.
        visual: mean number of visual tokens in a layer's cache, (1 + setting, image), images as in the baseline's items.
    """

    experiments: tuple[Experiment, ...]
    results: tuple[ChairResult, ...]
    visual: np.ndarray

    @classmethod
    def read(cls, store: Store, experiments: Sequence[Experiment], baseline: Experiment) -> SharedImages:
        """Read the rows of all settings and of the baseline.

        Raises:
            ValueError: an experiment that has other images than the baseline.
            FileNotFoundError: rows are missing.

        >>> from prunehal.core import PruneHal
        >>> base = Experiment(split="test", n_images=20)
        >>> both = SharedImages.read(Store.shipped(), [Experiment(split="test", n_images=20, policy=PruneHal())], base)
        >>> both.visual.shape
        (2, 20)
        """
        keys = store.captions(baseline)["image_id"].tolist()
        facts = truth(baseline, keys)
        results, visual = [], []
        for each in (baseline, *experiments):
            for name in ("images", "split", "questions", "n_images"):
                if getattr(each, name) != getattr(baseline, name):
                    raise ValueError(
                        f"{name}={getattr(each, name)!r} of {each.name}: the baseline has {getattr(baseline, name)!r}; expected "
                        "the same images for all settings; take those that share them"
                    )
            rows = store.rows(each)
            if missing := [key for key in keys if key not in rows]:
                raise FileNotFoundError(
                    f"{store.path(each)}: {len(missing)} of {len(keys)} images of {each.name} have no row; expected all; make "
                    "them by ph.sweep([experiment], store)"
                )
            frame = pd.DataFrame(
                {"image_id": keys} | {name: [rows[key][name] for key in keys] for name in ("caption", "finished")}
            )
            results.append(score(frame, facts))
            visual.append([rows[key]["visual"] for key in keys])
        return cls(tuple(experiments), tuple(results), np.array(visual, dtype=float))

    @property
    def items(self) -> list[pd.DataFrame]:
        """One row per caption of the baseline, then of each setting, as in `ChairResult.items`."""
        return [each.items for each in self.results]

    def change(self, metric: str) -> Statistic:
        """Return the function weights (resample, image) -> changes from the baseline (resample, setting), in points or words."""
        top, bottom = np.stack([counts(each, metric).to_numpy() for each in self.items], axis=-1).transpose(1, 0, 2)

        def statistic(weights: np.ndarray) -> np.ndarray:
            above, below = weights @ top, weights @ bottom  # (resample, 1 + setting)
            pooled = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
            return METRICS[metric] * (pooled[:, 1:] - pooled[:, :1])

        return statistic

    def budget(self, weights: np.ndarray) -> np.ndarray:
        """Turn weights (resample, image) into visual tokens attended to, in percent of the baseline's, (resample, setting)."""
        held = weights @ self.visual.T
        return 100 * held[:, 1:] / held[:, :1]

    def table(self, intervals: Sequence[str] = (), n_resamples: int = 5000) -> pd.DataFrame:
        """Return one line for each setting, as `prunehal.experiments.changes` does.

        Args:
            intervals: metrics that get a 95% interval (paired, BCa); each takes a bootstrap for every setting.
            n_resamples: of that.

        Returns:
            Columns: experiment, one for each option of the policies, visual, each metric, d_ of it, d_..._low and d_..._high.
        """
        even = np.ones((1, self.visual.shape[1]))
        frame = pd.DataFrame([{"experiment": each, **vars(each.policy)} for each in self.experiments])
        frame = frame.assign(visual=self.budget(even)[0])
        base, *ours = self.items
        for metric, unit in METRICS.items():
            frame[metric] = [unit * each.metrics[metric] for each in self.results[1:]]
            frame[f"d_{metric}"] = self.change(metric)(even)[0]
        for metric in intervals:
            found = [paired_bootstrap(base, each, metric, n_resamples=n_resamples) for each in ours]
            for end in ("low", "high"):
                frame[f"d_{metric}_{end}"] = [METRICS[metric] * getattr(interval, end) for interval in found]
        return frame


def share_intervals(
    table: pd.DataFrame,
    options: Sequence[str],
    change: Statistic,
    budget: Statistic,
    n_images: int,
    degree: int = DEGREE,
    *,
    n_resamples: int = 5000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the share of each option as `main_effects` does, with its interval over images (BCa), the largest first.

    A share is never negative, and an option that does nothing gets one of about df over the number of settings: judge whether
    there is an effect by :func:`p_over_images`, and how large it is by this interval. In simulations with noisy captions (60
    settings, 60 images) it held the share that endless images would give about nine times in ten.

    Args:
        table: one line for each setting; columns of options.
        options: to explain the change by.
        change, budget: weights (resample, image) -> (resample, setting), such as those of `SharedImages`.
        n_images: number of images.
        degree: of the polynomial of the budget.
        n_resamples, seed, confidence: of the bootstrap.

    Returns:
        Columns: term, share, low, high.

    Raises:
        ValueError: fewer than two images, a setting out of range.

    >>> table = pd.DataFrame({"kept": list("abab") * 5})
    >>> does = np.random.default_rng(0).normal([[0.0], [1.0], [0.0], [1.0]] * 5, 0.5, (20, 30))  # (setting, image)
    >>> budget = np.random.default_rng(1).normal(50, 5, (20, 30))
    >>> pools = [lambda weights, m=m: weights @ m.T / weights.sum(axis=1, keepdims=True) for m in (does, budget)]
    >>> bool(share_intervals(table, ["kept"], *pools, 30, n_resamples=200)["low"][0] > 0.5)
    True
    """
    plain = design(table, options, ()).to_numpy()
    center, scale = _scale(budget, n_images)

    def share_without(names: Sequence[str]) -> Statistic:
        rest = design(table, names, ()).to_numpy()

        def statistic(weights: np.ndarray) -> np.ndarray:
            y, powers = change(weights), _powers((budget(weights) - center) / scale, degree)
            total = ((y - y.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
            gain = _unexplained(rest, powers, y) - _unexplained(plain, powers, y)
            return np.divide(gain, total, out=np.zeros_like(gain), where=total > 0)

        return statistic

    lines = []
    for term in options:
        found = bca(share_without([name for name in options if name != term]), n_images, n_images, n_resamples, seed, confidence)
        lines.append({"term": term, "share": found.estimate, "low": found.low, "high": found.high})
    return pd.DataFrame(lines).sort_values("share", ascending=False, ignore_index=True)


def p_over_images(
    table: pd.DataFrame,
    options: Sequence[str],
    change: Statistic,
    budget: Statistic,
    n_images: int,
    terms: Sequence[str | tuple[str, str]],
    degree: int = DEGREE,
) -> pd.DataFrame:
    """Test options, or pairs of them, against chance in the settings and in the images; at equal budget.

    Wald's F of a term's coefficients. Their covariance is the sum of two: over settings (least squares, images held) and over
    images (leaving one out, settings held). The noise of single captions is in both, so that the test errs on the safe side, as
    the sum of variances of crossed samples does (Owen 2007, "The pigeonhole bootstrap", Ann. Appl. Statist. 1).

    Args:
        table, options, change, budget, n_images, degree: as :func:`share_intervals`.
        terms: options (beside all others), or pairs of options (beyond all main effects).

    Returns:
        One line for each term, as given: term, df, p (1.0 where the table cannot tell the term from others), p_holm.

    >>> table = pd.DataFrame({"kept": list("abab") * 5})
    >>> does = np.random.default_rng(0).normal([[0.0], [1.0], [0.0], [1.0]] * 5, 0.5, (20, 30))  # (setting, image)
    >>> budget = np.random.default_rng(1).normal(50, 5, (20, 30))
    >>> pools = [lambda weights, m=m: weights @ m.T / weights.sum(axis=1, keepdims=True) for m in (does, budget)]
    >>> bool(p_over_images(table, ["kept"], *pools, 30, ["kept"])["p"][0] < 1e-6)
    True
    """
    lines = []
    for term in terms:
        pair = () if isinstance(term, str) else term
        names = design(table, options, (), pair=pair)
        mine = [n for n, column in enumerate(names) if (", " in column if pair else column.startswith(f"{term}="))]
        label = term if isinstance(term, str) else " x ".join(term)
        fit = fit_over_images(names, change, budget, n_images, degree) if mine else None
        if fit is None:
            lines.append({"term": label, "df": len(mine), "p": 1.0})
            continue
        params, covariance, freedom = fit
        f = params[mine] @ np.linalg.solve(covariance[np.ix_(mine, mine)], params[mine]) / len(mine)
        lines.append({"term": label, "df": len(mine), "p": stats.f.sf(f, len(mine), freedom)})
    return holm(pd.DataFrame(lines), "p").drop(columns="rejected")


def fit_over_images(
    names: pd.DataFrame, change: Statistic, budget: Statistic, n_images: int, degree: int = DEGREE
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Fit the change by columns of options and powers of the budget, with an error from both samples, settings and images.

    Args:
        names: columns of options, one line for each setting, such as `prunehal.stats.effects.design` gives.
        change, budget, n_images, degree: as :func:`share_intervals`.

    Returns:
        Coefficients (those of the columns, then of the powers), their covariance, and degrees of freedom; None where the settings
        cannot tell the columns apart.

    >>> does = np.random.default_rng(0).normal([[0.0], [1.0], [0.0], [1.0]] * 5, 0.5, (20, 30))  # (setting, image)
    >>> pools = [lambda weights, m=m: weights @ m.T / weights.sum(axis=1, keepdims=True) for m in (does, does**2)]
    >>> names = design(pd.DataFrame({"kept": list("abab") * 5}), ["kept"], ())
    >>> [each.shape for each in fit_over_images(names, *pools, 30, 2)[:2]]
    [(4,), (4, 4)]
    """
    import statsmodels.api as sm

    center, scale = _scale(budget, n_images)
    weights = np.concatenate([np.ones((1, n_images)), 1.0 - np.eye(n_images)])  # all images, then all but one
    y, powers = change(weights), _powers((budget(weights) - center) / scale, degree)
    x = np.concatenate([np.broadcast_to(names.to_numpy(), (len(y), *names.shape)), powers], axis=-1)  # (fit, setting, column)
    if np.linalg.matrix_rank(x[0]) < x.shape[-1]:
        return None
    turned = x.transpose(0, 2, 1)
    left_out = np.linalg.solve(turned @ x, turned @ y[..., None])[1:, :, 0]
    fit = sm.OLS(y[0], x[0]).fit()
    moved = left_out - left_out.mean(axis=0)
    return fit.params, fit.cov_params() + (n_images - 1) / n_images * moved.T @ moved, min(n_images - 1, fit.df_resid)


def _scale(budget: Statistic, n_images: int) -> tuple[float, float]:
    """Return mean and spread of the settings' budgets, so that powers of them stay of one size."""
    all_images = budget(np.ones((1, n_images)))
    return all_images.mean(), all_images.std()


def _powers(z: np.ndarray, degree: int) -> np.ndarray:
    """Return (fit, setting, degree)."""
    return np.stack([z**power for power in range(1, degree + 1)], axis=-1)


def _unexplained(x: np.ndarray, powers: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the residual sums of squares of fits that share the columns x but not the powers (Frisch and Waugh 1933).

    Args:
        x: (setting, column).
        powers: (fit, setting, degree).
        y: (fit, setting).
    """
    u, values, _ = np.linalg.svd(x, full_matrices=False)
    u = u[:, values > 1e-10 * values[0]]
    both = np.concatenate([powers, y[..., None]], axis=-1)
    both = both - u @ (u.T @ both)
    z, rest = both[..., :-1], both[..., -1]
    moments = (z.transpose(0, 2, 1) @ rest[..., None])[..., 0]
    solved = np.linalg.solve(z.transpose(0, 2, 1) @ z, moments[..., None])[..., 0]
    return (rest**2).sum(axis=1) - (moments * solved).sum(axis=1)
