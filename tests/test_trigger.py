"""Trigger: times to a prune against a loop of Kaplan and Meier, votes and saturation by hand, on rows that are made up."""

import numpy as np
import pytest

from prunehal.core import NoPruning, PruneHal, TopK
from prunehal.experiments import Experiment, Store
from prunehal.experiments.pictures import image_keys
from prunehal.trigger import saturation, time_to_prune, vote_rate

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
