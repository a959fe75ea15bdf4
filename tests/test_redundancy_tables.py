"""Tables of notebook 08: scores beside each other, verdicts after correction, and sentences that follow the numbers."""

import numpy as np
import pandas as pd
import pytest

from prunehal.core import Accumulated, Keep, PruneHal
from prunehal.experiments import Experiment, Store
from prunehal.experiments.compare import LEVELS
from prunehal.stats.testing import holm
from prunehal.studies.nb08_redundancy.rules import CELLS, ORACLE, PUBLISHED, all_rules, chosen_rules
from prunehal.studies.nb08_redundancy.tables import (
    NONE,
    STANDOUT,
    against_random,
    answer,
    by_patches,
    cell_name,
    lengths,
    scores,
    shares,
    verdicts,
)
from prunehal.studies.settings import Setting

BASE = Experiment(split="test", n_images=50)
RULES = {PUBLISHED: Setting(PruneHal(r=0.4, t=3)), ORACLE: Setting(Keep(), "first-token")}


@pytest.fixture(scope="module")
def store():
    return Store.shipped()


def test_scores_stand_beside_each_other_in_every_cell(store):
    found = scores(store, BASE, RULES, [(1, True), (3, False)])
    assert list(found.columns) == list(LEVELS.values())
    assert len(found) == 2 * (1 + len(RULES))
    cell = Experiment(split="test", n_images=50, tiles=1, clutter=True)
    for name, experiment in {NONE: cell, PUBLISHED: RULES[PUBLISHED].on(cell)}.items():
        metrics = store.score(experiment).metrics
        assert found.loc[("1 cluttered tile", name), "distinct CHAIR_i"] == pytest.approx(100 * metrics["distinct_chair_i"])
        assert found.loc[("1 cluttered tile", name), "absent objects"] == pytest.approx(metrics["absent"])


def table(**changed):
    """Return changes of two rules in all cells: nothing is shown, but for what is changed: "metric rule tiles" -> (d, p)."""
    lines = []
    for tiles, clutter in CELLS:
        for rule in (PUBLISHED, STANDOUT, ORACLE):
            line = {"tiles": tiles, "clutter": clutter, "rule": rule}
            for metric in ("distinct_chair_i", "recall"):
                d, p = changed.get(f"{metric}_{rule.split()[0].strip(':')}_{tiles}_{clutter}", (0.5, 0.9))
                line |= {f"d_{metric}": d, f"p_{metric}": p, f"d_{metric}_low": d - 1, f"d_{metric}_high": d + 1}
            lines.append(line)
    return pd.DataFrame(lines)


def test_verdicts_are_corrected_over_the_whole_table():
    n = 2 * 3 * len(CELLS)
    given = table(
        distinct_chair_i_standout_3_True=(-9.0, 0.04 / n),
        recall_published_0_False=(-9.0, 0.04),
    )
    found = verdicts(given)
    assert found.loc[("distinct CHAIR_i", STANDOUT), "3 cluttered tiles"] == "lower"
    assert (found.to_numpy() != "unclear").sum() == 1
    raised = verdicts(table(recall_oracle_7_True=(9.0, 0.04 / n)))
    assert raised.loc[("recall", ORACLE), "7 cluttered tiles"] == "higher"
    alone = holm(pd.DataFrame({"p": [0.04]}), "p")["rejected"].item()
    assert alone  # which the table's other looks take back


def test_the_answer_says_what_the_tables_say():
    n = 2 * 3 * len(CELLS)
    levels = pd.DataFrame(
        [{"tiles": 7, "kind": kind, "d_distinct_chair_i": d, "d_distinct_chair_i_low": d - 1, "d_distinct_chair_i_high": d + 1}
         for kind, d in (("clean", 2.0), ("cluttered", 30.0))]
    )  # fmt: skip
    given = table(distinct_chair_i_standout_1_True=(-9.0, 0.01 / n), distinct_chair_i_oracle_3_False=(-9.0, 0.01 / n))
    against = given[(given["tiles"] == 3) & (given["rule"] == STANDOUT)]
    won = given.assign(won=np.where(given["clutter"], 0.7, np.nan), won_low=0.6, won_high=0.8)
    said = answer(levels, given, against, won, 50, 4321)
    text = "\n".join(said)
    assert "clean +2.0 [1.0, 3.0], cluttered +30.0 [29.0, 31.0]" in said[0]
    assert "lower distinct CHAIR_i in a cell of clean tiles: no rule." in text  # the oracle knows labels
    assert f"lower distinct CHAIR_i in a cell of cluttered tiles: {STANDOUT}." in text
    assert "share of the oracle's gain in F1: 1 cluttered tile 0.70 [0.60, 0.80], 3 cluttered tiles 0.70" in text
    assert (
        "The oracle is not shown to gain F1, so that no rule could be seen to help: the scene alone, 1 clean tile, 3 clean tiles"
        in text
    )
    assert "50 scenes a cell" in said[-1]
    assert "4,321 scenes" in said[-1]


def test_rules_are_compared_with_random_tokens_at_their_own_time(store):
    chosen = chosen_rules(store)
    found = against_random(store, BASE, {"accumulated steps": chosen["accumulated steps"]}, n_resamples=100)
    assert found["clutter"].tolist() == [False, True]
    line = found.iloc[1]
    cell = Experiment(split="test", n_images=50, tiles=3, clutter=True)
    pair = [store.score(Setting(Accumulated(r=0.5, t=1, wait=16, selection=s)).on(cell)) for s in ("random", "top")]
    random, top = (each.metrics["distinct_chair_i"] for each in pair)
    assert line["d_distinct_chair_i"] == pytest.approx(100 * (top - random))


def test_shares_lengths_and_patches_are_of_every_rule(store):
    won = shares(store, BASE, RULES, [(0, False), (3, True)], n_resamples=100)
    assert won["rule"].tolist() == [PUBLISHED, PUBLISHED]
    assert won["won"].isna().tolist() == [True, False]  # on the scene alone the oracle gains nothing
    forms = lengths(store, BASE, RULES, n_resamples=100)
    assert len(forms) == 4 * 2 * len(RULES)
    words = forms.groupby("form")["base_words"].mean()
    assert words["brief"] < words["usual"] < words["100 tokens"] < words["140 tokens"]
    patches = by_patches(store, BASE, RULES, n_resamples=100)
    assert len(patches) == 2 * 2 * len(RULES)
    assert (patches["d_recall_low"] <= patches["d_recall"]).all()


def test_the_figures_know_every_rule(store):
    from prunehal.studies.nb08_redundancy.figures import STYLE

    assert list(STYLE) == list(all_rules(chosen_rules(store)))
    assert len({*STYLE.values()}) == len(STYLE)
    assert cell_name(7, False) == "7 clean tiles"
