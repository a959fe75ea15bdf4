"""Tables for readers show all that stands beside CHAIR_i; differences in words say lower, higher or unclear."""

import pandas as pd
import pytest

import prunehal as ph
from prunehal.experiments import changes
from prunehal.experiments.compare import LEVELS
from prunehal.experiments.readable import compared, differences, readable


def test_a_readable_table_has_every_level_and_both_changes_with_intervals():
    base = ph.Experiment(split="test", n_images=20)
    table = changes(ph.Store.shipped(), [ph.Experiment(split="test", n_images=20, policy=ph.PruneHal())], base, n_resamples=100)
    shown = readable(table, more=["visual"])
    changed = ["change of distinct CHAIR_i", "change of recall"]
    assert shown.columns.tolist() == [*LEVELS.values(), *changed, "visual"]
    (line,), (raw,) = shown.to_dict("records"), table.to_dict("records")
    for name, label in LEVELS.items():
        assert line[label] == pytest.approx(raw[name], abs=0.05)
    assert line["change of recall"] == f"{raw['d_recall']:+.1f} [{raw['d_recall_low']:.1f}, {raw['d_recall_high']:.1f}]"


def test_a_change_without_an_interval_is_shown_alone():
    line = dict.fromkeys(LEVELS, 1.0) | {"d_recall": -1.26}
    assert readable(pd.DataFrame([line]), ["recall"])["change of recall"].tolist() == ["-1.3"]


@pytest.mark.parametrize(
    ("low", "high", "word"), [(-2.0, -0.1, "lower"), (0.1, 2.0, "higher"), (-1.0, 1.0, "unclear"), (0.0, 1.0, "unclear")]
)
def test_a_difference_is_lower_higher_or_unclear(low, high, word):
    assert compared("recall", low, high, "x") == f"recall {word}, x"
    line = pd.Series({"d_recall": (low + high) / 2, "d_recall_low": low, "d_recall_high": high})
    assert differences(line, ["recall"]).startswith(f"recall {word}, ")
