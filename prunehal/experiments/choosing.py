"""Choose a setting on one split, report it on another: a rule that the types keep.

The best of many settings is partly the luckiest, so its gain on the rows that chose it is too large on average (Cawley and Talbot
2010, "On Over-fitting in Model Selection and Subsequent Selection Bias in Performance Evaluation", JMLR 11). `choose` therefore
refuses rows of a test split, and of a final one, and `report` refuses images that the choice has seen. Both can be
allowed in the call; the result is then marked in every table and plot: `selected_on_test`, `note` and `label`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from prunehal.experiments.graded import Graded
from prunehal.files.records import some
from prunehal.stats.bootstrap import Interval
from prunehal.stats.intervals import paired_bootstrap
from prunehal.stats.testing import WORSE

__all__ = ["CHOSEN_BY", "ROUNDING", "Chosen", "Graded", "Reported", "choose", "choose_by_rule", "report"]

CHOSEN_BY = {"recall": 0.01}  # how much recall the project's own choices may lose on the validation split
REPORTED = ("distinct_chair_i", "chair_i", "absent", "recall", "repeats", "unfinished", "words")  # metrics of a report

ROUNDING = 1e-12  # 0.80 - 0.79 is a little more than 0.01 in floating point


@dataclass(frozen=True)
class Chosen:
    """A setting and how it was chosen.

    Attributes:
        setting: the best setting.
        split: where it was chosen.
        by: the metric that ranked the settings.
        value: that metric of the setting on that split; too good an estimate, as the best of `n_candidates`.
        baseline: the setting that it is compared with.
        subject_to: (metric, largest worsening against the baseline) pairs that it had to meet.
        missed: such pairs that no setting met, where ``otherwise`` named another metric to choose by.
        n_candidates, n_allowed: settings compared; those of them that met the conditions it was chosen by.
        selected_on_test: whether the split was a test split or a final one.
        f1: F1 of the distinct objects that the setting names on that split, and the baseline's; shown only, it decides nothing.
        images: image_ids that the choice has seen.
    """

    setting: Hashable
    split: str
    by: str
    value: float
    baseline: Hashable
    subject_to: tuple[tuple[str, float], ...]
    n_candidates: int
    n_allowed: int
    selected_on_test: bool
    f1: tuple[float, float]
    images: frozenset[Hashable] = field(repr=False)
    missed: tuple[tuple[str, float], ...] = ()

    @property
    def note(self) -> str:
        """One sentence for a caption: the rule, the split, and a warning where one is due."""
        best = "lowest" if WORSE[self.by] == "higher" else "highest"
        text = f"{best} {self.by} of {self.n_candidates} settings on the {self.split} split"
        given, missed = (
            " and ".join(f"{metric} at most {most:g} {WORSE[metric]}" for metric, most in limits)
            for limits in (self.subject_to, self.missed)
        )
        if given:
            text += f", given {given} than the baseline"
        if missed:
            text += f", as none has {missed} than the baseline"
        text += "; F1 of distinct objects {:.3f}, of the baseline {:.3f}".format(*self.f1)
        return text + ("; CHOSEN ON TEST, so its gain there is optimistic" if self.selected_on_test else "")

    @property
    def label(self) -> str:
        """A short name for a legend or a row."""
        return f"{self.setting} ({'CHOSEN ON TEST' if self.selected_on_test else f'chosen on {self.split}'})"


@dataclass(frozen=True, eq=False)
class Reported:
    """A chosen setting against its baseline.

    Attributes:
        chosen: the choice.
        split: where it is reported.
        differences: metric -> setting minus baseline, paired over the images of the split.
        selected_on_test: whether the choice has seen a test split or any image that is reported.
    """

    chosen: Chosen
    split: str
    differences: Mapping[str, Interval]
    selected_on_test: bool

    @property
    def note(self) -> str:
        """One sentence for a caption: the rule, both splits, and a warning where one is due."""
        text = self.chosen.note
        if self.selected_on_test and not self.chosen.selected_on_test:
            text += "; CHOSEN ON IMAGES REPORTED HERE, so its gain is optimistic"
        return f"{text}; reported on the {self.split} split"

    @property
    def label(self) -> str:
        """A short name for a legend or a row."""
        if self.selected_on_test and not self.chosen.selected_on_test:
            return f"{self.chosen.setting} (CHOSEN ON IMAGES REPORTED HERE)"
        return self.chosen.label


def choose(
    results: Graded,
    by: str = "distinct_chair_i",
    subject_to: Mapping[str, float] | None = None,
    *,
    baseline: Hashable,
    otherwise: str | None = None,
    allow_test_selection: bool = False,
) -> Chosen:
    """Choose the best setting of a split; the baseline itself is no candidate, and a tie goes to the first.

    Args:
        results: scores of the settings, the baseline among them.
        by: a name of `prunehal.stats.testing.WORSE`, such as "distinct_chair_i" (lowest) or "recall" (highest).
        subject_to: metric -> how much worse than the baseline it may be at most, as in `prunehal.stats.testing.no_harm`:
            {"recall": 0.01} lets recall fall by a point.
        baseline: the setting to compare with, such as no pruning.
        otherwise: the metric to choose by, without conditions, where no setting meets them; None refuses.
        allow_test_selection: choose on a test split all the same; the result is marked (``selected_on_test``).

    Raises:
        ValueError: a test split, an unknown metric, a baseline without results or without another setting, a limit below zero, no
            setting that meets the conditions.

    >>> from prunehal.benchmarks import score
    >>> truth, texts = {1: {"dog"}, 2: {"cat"}}, {"none": ("A dog, a bus.", "A cat."), "cut": ("A dog.", "A cat.")}
    >>> graded = {name: score(dict(zip(truth, pair)), truth) for name, pair in texts.items()}
    >>> chosen = choose(Graded("validation", graded), subject_to={"recall": 0.01}, baseline="none")
    >>> chosen.label
    'cut (chosen on validation)'
    >>> chosen.note.split("; ")[1]
    'F1 of distinct objects 1.000, of the baseline 0.800'
    """
    if results.is_test and not allow_test_selection:
        final = f" ({results.n_final} scenes of the final split)" if results.n_final else ""
        raise ValueError(
            f"these are results of the {results.split!r} split{final}, expected those of a split to choose on, such as "
            "'validation'; the best of many settings is partly luck, and here nothing would be left to show it; pass "
            "allow_test_selection=True to mark the choice instead"
        )
    limits = dict(subject_to or {})
    if unknown := {by, *limits, *([] if otherwise is None else [otherwise])} - set(WORSE):
        raise ValueError(f"unknown metric(s) {sorted(unknown)}; expected some of {sorted(WORSE)}; pass these names")
    if negative := {metric: limit for metric, limit in limits.items() if not limit >= 0}:
        raise ValueError(f"subject_to holds {negative}; expected how much worse a metric may be, 0 or more; drop the sign")
    _need(results, baseline, "baseline")
    candidates = {setting: result.metrics for setting, result in results.results.items() if setting != baseline}
    if not candidates:
        raise ValueError(
            f"the {results.split} split has results of the baseline {baseline!r} only; expected others to choose from; score some"
        )
    base = results.results[baseline].metrics

    def excess(metrics: Mapping[str, float]) -> float:
        worse_by = {metric: _harm(metric, metrics[metric]) - _harm(metric, base[metric]) for metric in limits}
        return max((worse_by[metric] - most for metric, most in limits.items()), default=0)

    allowed = [setting for setting, metrics in candidates.items() if excess(metrics) <= ROUNDING]
    if not allowed and otherwise is not None:
        found = choose(results, otherwise, baseline=baseline, allow_test_selection=allow_test_selection)
        return replace(found, missed=tuple(limits.items()))
    if not allowed:
        nearest = min(candidates, key=lambda setting: excess(candidates[setting]))
        raise ValueError(
            f"none of {len(candidates)} settings on the {results.split} split meets {limits}; {nearest!r} comes nearest, and "
            f"misses by {excess(candidates[nearest]):.3g}; expected at least one; widen subject_to or add settings"
        )
    best = min(allowed, key=lambda setting: _harm(by, candidates[setting][by]))
    return Chosen(
        setting=best,
        split=results.split,
        by=by,
        value=candidates[best][by],
        baseline=baseline,
        subject_to=tuple(limits.items()),
        n_candidates=len(candidates),
        n_allowed=len(allowed),
        selected_on_test=results.is_test,
        f1=(candidates[best]["f1"], base["f1"]),
        images=results.images,
    )


def choose_by_rule(results: Graded, baseline: Hashable) -> Chosen:
    """Choose by the project's one rule, which every choice of its own follows.

    Among the settings whose recall on the validation split is at most a point below the baseline's, no pruning, the lowest
    distinct CHAIR_i. Where none keeps the recall, the setting of highest recall, and ``missed`` holds the limit. F1 of the
    distinct objects is shown beside it and decides nothing.

    Args:
        results: scores of the settings, the baseline among them, on a split to choose on.
        baseline: no pruning.

    Raises:
        ValueError: a test split, a baseline without results or without another setting.

    >>> from prunehal.benchmarks import score
    >>> truth, texts = {1: {"dog"}, 2: {"cat"}}, {"none": ("A dog, a bus.", "A cat."), "cut": ("A dog.", "")}
    >>> graded = {name: score(dict(zip(truth, pair)), truth) for name, pair in texts.items()}
    >>> choose_by_rule(Graded("validation", graded), "none").missed
    (('recall', 0.01),)
    """
    return choose(results, "distinct_chair_i", CHOSEN_BY, baseline=baseline, otherwise="recall")


def report(
    chosen: Chosen,
    results_on_test: Graded,
    *,
    allow_test_selection: bool = False,
    n_resamples: int = 5000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Reported:
    """Compare a chosen setting with its baseline on images that did not choose it.

    Args:
        chosen: what `choose` gave.
        results_on_test: scores on another split, of the chosen setting and the baseline at least.
        allow_test_selection: report on images that the choice has seen all the same; the result is marked. Not needed for a
            choice that is marked already.
        n_resamples, seed, confidence: of the bootstrap over images.

    Returns:
        The paired differences in the metrics of REPORTED, setting minus baseline, as fractions.

    Raises:
        ValueError: the split of the choice or images of it, the setting or the baseline without results.

    >>> from prunehal.benchmarks import score
    >>> truth, texts = {1: {"dog"}, 2: {"cat"}}, {"none": ("A dog, a bus.", "A cat."), "cut": ("A dog.", "A cat.")}
    >>> graded = {name: score(dict(zip(truth, pair)), truth) for name, pair in texts.items()}
    >>> again = {name: score(dict(zip((3, 4), pair)), {3: {"dog"}, 4: {"cat"}}) for name, pair in texts.items()}
    >>> found = report(choose(Graded("validation", graded), baseline="none"), Graded("test", again), n_resamples=100)
    >>> round(found.differences["chair_i"].estimate, 3), found.selected_on_test
    (-0.333, False)
    """
    _need(results_on_test, chosen.setting, "chosen setting")
    _need(results_on_test, chosen.baseline, "baseline")
    seen = chosen.images & results_on_test.images
    same = bool(seen) or chosen.split == results_on_test.split
    if same and not (chosen.selected_on_test or allow_test_selection):
        raise ValueError(
            f"{chosen.setting!r} was chosen on the {chosen.split!r} split, with {len(seen)} of the {len(results_on_test.images)} "
            f"images of {results_on_test.split!r}; expected another split, of other images (ids must be unique across splits); "
            "report on that, or pass allow_test_selection=True to mark the report instead"
        )
    a, b = (results_on_test.results[setting].items for setting in (chosen.baseline, chosen.setting))
    differences = {metric: paired_bootstrap(a, b, metric, n_resamples, seed, confidence) for metric in REPORTED}
    return Reported(chosen, results_on_test.split, MappingProxyType(differences), chosen.selected_on_test or same)


def _harm(metric: str, value: float) -> float:
    """Turn a metric so that up is worse."""
    return value if WORSE[metric] == "higher" else -value


def _need(graded: Graded, setting: Hashable, role: str) -> None:
    if setting not in graded.results:
        raise ValueError(
            f"the {role} {setting!r} has no results on the {graded.split} split; it holds {some(graded.results)}; score it there"
        )
