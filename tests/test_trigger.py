"""Trigger: times to a prune against a loop of Kaplan and Meier, votes, saturation and factors by hand, on made-up rows."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from prunehal.core import NoPruning, PruneHal, TopK
from prunehal.experiments import Experiment, Store, read_grid
from prunehal.experiments.images import image_keys
from prunehal.files.paths import data_path
from prunehal.studies.nb06_trigger.votes import (
    at_edge,
    chosen_factors,
    factors_at_equal_budget,
    on_mentions,
    saturation,
    time_to_prune,
    vote_rate,
)

T = 2
ONE = Experiment(n_images=12, policy=PruneHal(r=0.7, t=T))


def row(key, tokens, finished, steps, voted=(), mentions=()):
    """Return a row whose prunes came at the given steps."""
    events = [[step, "vote", 9] for step in steps]
    row = {"key": key, "caption": "A.", "tokens": tokens, "finished": finished, "visual": 9.0, "events": events}
    found = [[node, wrong, step, [0.5], 1.0] for node, wrong, step in mentions]
    return row | {"voted": list(voted), "layers": [0], "mass": [0.5], "mentions": found}


def stored(folder, rows, experiment=ONE):
    store = Store(folder)
    with store.writing():
        store.append(experiment, rows)
    return store


def kaplan_meier(durations, happened):
    """Return step -> (share that was pruned by then, captions at risk), at every step at which one was pruned."""
    alive, found = 1.0, {}
    for step in range(1, max(durations) + 1):
        at_risk = sum(1 for duration in durations if duration >= step)
        pruned = sum(1 for duration, yes in zip(durations, happened, strict=True) if yes and duration == step)
        if pruned:
            alive *= 1 - pruned / at_risk
            found[step] = (1 - alive, at_risk)
    return found


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_times_to_a_prune_are_those_of_the_loop(tmp_path, number, seed):
    rng, rows, durations, happened = np.random.default_rng(seed), [], [], []
    for key in image_keys(ONE):
        tokens, finished = int(rng.integers(4, 12)), bool(rng.random() < 0.6)
        steps = sorted(rng.choice(np.arange(2, tokens + 1), int(rng.integers(0, T + 1)), replace=False).tolist())
        rows.append(row(key, tokens, finished, steps))
        happened.append(len(steps) >= number)
        durations.append(steps[number - 1] if happened[-1] else tokens + finished)
    assert 0 < sum(happened) < 12
    curve = time_to_prune(stored(tmp_path, rows), ONE, number)
    expected = kaplan_meier(durations, happened)
    assert curve.iloc[0].tolist() == [1, 0, 12]
    assert curve["step"].tolist()[1:] == list(expected)
    assert curve["pruned"].tolist()[1:] == pytest.approx([pruned for pruned, _ in expected.values()])
    assert curve["at_risk"].tolist()[1:] == [at_risk for _, at_risk in expected.values()]


def test_a_caption_that_ends_is_censored_not_counted_as_never_pruned(tmp_path):
    two = Experiment(n_images=2, policy=PruneHal(r=0.7, t=T))
    first, second = image_keys(two)
    curve = time_to_prune(stored(tmp_path, [row(first, 3, False, []), row(second, 9, True, [5])], two), two)
    assert curve.to_numpy().tolist() == [[1, 0, 2], [5, 1, 1]]


def test_saturation_by_hand(tmp_path):
    four = Experiment(n_images=4, policy=PruneHal(r=0.7, t=T))
    prunes = ([2, 6], [2], [3, 8], [])
    rows = [row(key, 10 + n, True, steps) for n, (key, steps) in enumerate(zip(image_keys(four), prunes, strict=True))]
    (line,) = saturation(stored(tmp_path, rows, four), four).to_dict("records")
    assert line == {"r": 0.7, "t": 2, "prunes": 5 / 4, "all_used": 0.5, "last_step": 7.0, "tokens": 11.5}


@pytest.mark.parametrize("policy", [NoPruning(), TopK(9)])
def test_saturation_of_a_policy_without_r_and_t_is_refused_by_name(tmp_path, policy):
    with pytest.raises(ValueError, match=rf"policy={type(policy).__name__}\(.*has no r and t; expected PruneHal\(\.\.\.\)"):
        saturation(Store(tmp_path), Experiment(policy=policy))


def test_votes_and_what_the_step_wrote_by_hand(tmp_path):
    two = Experiment(n_images=2, policy=PruneHal(r=0.7, t=T))
    first, second = image_keys(two)
    rows = [
        row(first, 4, True, [3], voted=[3, 5], mentions=[("dog", False, 2), ("cat", True, 3), ("cat", False, 3)]),
        row(second, 3, False, [], voted=[], mentions=[("bus", True, 3)]),
    ]
    found = vote_rate(stored(tmp_path, rows, two), two)
    assert found[["image_id", "step", "voted", "names_object", "hallucinated"]].to_numpy().tolist() == [
        [first, 2, False, True, False],
        [first, 3, True, True, True],  # two names by one token count once, as the first of them
        [first, 4, False, False, False],
        [first, 5, True, False, False],  # the end token
        [second, 2, False, False, False],
        [second, 3, False, True, True],
    ]


def test_votes_and_prunes_on_mentions_by_hand(tmp_path):
    three = Experiment(n_images=3, policy=PruneHal(r=0.7, t=T))
    first, second, third = image_keys(three)
    rows = [
        # a prune that was forced at a name is none of the vote
        row(first, 4, True, [3], voted=[3, 5], mentions=[("dog", False, 2), ("cat", True, 3)]),
        row(second, 3, False, [2, 3], voted=[2, 3], mentions=[("bus", True, 3)]),
        row(third, 2, False, [], voted=[], mentions=[]),
    ]
    rows[0]["events"] += [[2, "forced", 12]]
    line = on_mentions(stored(tmp_path, rows, three), three, n_resamples=200).iloc[0]
    assert line["votes"] == pytest.approx(4 / 3)
    assert line["steps_naming"] == pytest.approx(100 * 3 / 7)  # 4 + 2 + 1 steps from m = 2
    assert line["votes_naming"] == pytest.approx(100 * 2 / 4)
    assert line["prunes_naming"] == pytest.approx(100 * 2 / 3)
    assert line["prunes_naming_low"] <= line["prunes_naming"] <= line["prunes_naming_high"]


def test_without_votes_there_is_no_share_of_them(tmp_path):
    two = Experiment(n_images=2, policy=PruneHal(r=0.7, t=T))
    line = on_mentions(stored(tmp_path, [row(key, 3, True, []) for key in image_keys(two)], two), two, n_resamples=200).iloc[0]
    assert line[["votes", "steps_naming"]].tolist() == [0, 0]
    assert line[["votes_naming", "votes_naming_low", "prunes_naming"]].isna().all()


def test_the_chosen_factor_follows_the_one_rule_against_no_pruning():
    store = Store.shipped()
    base = store.score(Experiment(split="validation", n_images=100)).metrics
    tried = [each for each in read_grid(data_path("grids", "factor.toml")) if each.split == "validation"]
    found = chosen_factors(store)
    assert set(found) == {each.policy.r for each in tried}
    for r, choice in found.items():
        metrics = {each.policy: store.score(each).metrics for each in tried if each.policy.r == r}
        keeping = {policy: m["distinct_chair_i"] for policy, m in metrics.items() if m["recall"] >= base["recall"] - 0.01 - 1e-12}
        best = min(keeping, key=keeping.get) if keeping else max(metrics, key=lambda policy: metrics[policy]["recall"])
        assert (choice.setting, choice.baseline, bool(choice.missed)) == (best, NoPruning(), not keeping)
        assert choice.n_candidates == len(metrics) == 5  # sqrt(r) among them


def test_a_factor_that_keeps_the_recall_is_chosen_by_distinct_chair_and_not_by_repetition(tmp_path, monkeypatch):
    plain = Experiment(n_images=2, split="validation")
    factors = {0.25: "A dog, a cat and a bus.", 0.5: "A dog, a dog, a dog, a dog, a cat, a bus and a car.", None: "A dog."}
    cells = {factor: replace(plain, policy=PruneHal(r=0.7, factor=factor)) for factor in factors}
    store = Store(tmp_path)
    with store.writing():
        for experiment, text in [(plain, "A dog and a cat."), *((cells[factor], text) for factor, text in factors.items())]:
            store.append(experiment, [row(key, 9, True, []) | {"caption": text} for key in image_keys(plain)])
    monkeypatch.setattr("prunehal.studies.nb06_trigger.votes.read_grid", lambda path: list(cells.values()))
    monkeypatch.setattr("prunehal.experiments.store.truth", lambda *args: {key: {"dog", "cat"} for key in image_keys(plain)})
    scores = {factor: store.score(cell).metrics for factor, cell in cells.items()}
    assert scores[0.5]["chair_i"] < scores[0.25]["chair_i"]
    assert scores[0.5]["distinct_chair_i"] > scores[0.25]["distinct_chair_i"]
    assert chosen_factors(store)[0.7].setting.factor == 0.25


def test_a_factor_at_the_edge_of_those_tried_is_named():
    tried = [each.policy for each in read_grid(data_path("grids", "factor.toml")) if each.split == "validation"]
    for policy in tried:
        of_r = sorted(each.r**0.5 if each.factor is None else each.factor for each in tried if each.r == policy.r)
        own = policy.r**0.5 if policy.factor is None else policy.factor
        assert at_edge(policy) == {0: "lowest", len(of_r) - 1: "highest"}.get(of_r.index(own), "")
    assert at_edge(PruneHal(r=0.4)) == ""


def test_the_shipped_grid_reports_the_chosen_factors_and_the_square_root():
    on_test = {
        (each.policy.r, each.policy.factor) for each in read_grid(data_path("grids", "factor.toml")) if each.split == "test"
    }
    chosen = chosen_factors(Store.shipped())
    assert on_test == {(r, factor) for r, each in chosen.items() for factor in (each.setting.factor, None)}


def shared(seed, effect, settings=24, images=30):
    """Return made-up settings whose change bends with the budget, and is larger by an effect with one factor."""
    rng = np.random.default_rng(seed)
    factors = [(None, 0.25, 0.95)[n % 3] for n in range(settings)]
    budget = rng.uniform(30, 90, (settings, 1)) + rng.normal(0, 1, (settings, images))
    change = 40 - budget + 0.004 * budget**2 + rng.normal(0, 1, (settings, images))
    change += effect * np.array([factor == 0.25 for factor in factors])[:, None]
    return SimpleNamespace(
        experiments=[Experiment(policy=PruneHal(factor=factor)) for factor in factors],
        visual=np.ones((settings + 1, images)),
        change=lambda metric: lambda weights: weights @ change.T / weights.sum(axis=1, keepdims=True),
        budget=lambda weights: weights @ budget.T / weights.sum(axis=1, keepdims=True),
    )


def test_factors_are_compared_at_equal_budget():
    made = shared(0, effect=3.0)
    found = factors_at_equal_budget(made, "distinct_chair_i", n_resamples=500).set_index("factor")
    assert found.loc[0.25, "low"] < 3 < found.loc[0.25, "high"]
    assert found.loc[0.25, "low"] > 2
    assert found.loc[0.95, "low"] < 0 < found.loc[0.95, "high"]
    even = np.ones((1, 30))
    frame = pd.DataFrame({"y": made.change("distinct_chair_i")(even)[0], "b": made.budget(even)[0]})
    frame["factor"] = ["usual" if each.policy.factor is None else str(each.policy.factor) for each in made.experiments]
    fit = smf.ols("y ~ C(factor, Treatment('usual')) + b + I(b ** 2)", frame).fit()
    assert found["difference"].tolist() == pytest.approx(
        [fit.params[f"C(factor, Treatment('usual'))[T.{f}]"] for f in (0.25, 0.95)]
    )


@pytest.mark.parametrize("factors", [[None], [0.5]])
def test_factors_without_the_square_root_or_without_others_are_refused(factors):
    made = SimpleNamespace(experiments=[Experiment(policy=PruneHal(factor=factor)) for factor in factors])
    with pytest.raises(ValueError, match=r"factors \[.*expected None, which is sqrt\(r\), and others"):
        factors_at_equal_budget(made, "distinct_chair_i")
