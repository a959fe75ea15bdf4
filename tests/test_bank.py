"""Tokens that return from the bank: the cache equals a full one in which they were only masked for the steps in between."""

import copy
import functools
from dataclasses import replace

import models
import pytest
import reference
import reference_beyond
import torch
from decode import SEED, TOLERANCE, compare, difference, forcing, masked, paddings, run, second_turn

import prunehal as ph
from prunehal.core import Accumulated, Bank, Draft, NoPruning, PruneHal, SharedPrefill, TopK, attach
from prunehal.core.bank_table import BankTable
from prunehal.core.vault import decoded, encoded
from prunehal.decoding import OPERA, PAI, VCD, FastV, KVSmooth
from prunehal.testbed.scenes import scene

THREE = {"before": (3, 6, 1), "after": (5, 4, 9), "seed": SEED}  # rows that prune and return at different steps
ROUNDING = 3e-5
FAMILIES = ["llava", "qwen2_5_vl"]
VOTING = {"r": 0.6, "t": 2, "factor": 1.0}
FALLS = [
    Bank(**VOTING),
    Bank(**VOTING, kept="head", forced_first=False),
    Bank(**VOTING, kept="shared", after_prune="restart"),
    Bank(**VOTING, window=None, wait=4, content=True),
    Bank(**VOTING, window=3, wait=3, grid=4, kept="head"),
    Bank(**VOTING, selection="lowest"),
]
KEYS = [
    Bank(**VOTING, back="key"),
    Bank(**VOTING, back="key", kept="head", every=3),
    Bank(**VOTING, back="key", kept="shared", forced_first=False),
    Bank(r=0.3, t=1, back="key", every=2, window=None, wait=3),
]


def slow(model, layers, single, policy, steps=14, placeholders=(models.IMAGE, models.VIDEO), per_image=False):
    visual = [position for position, token in enumerate(single["input_ids"][0].tolist()) if token in placeholders]
    joint = {}
    decide = reference_beyond.decider(policy, visual, joint=joint)
    with reference_beyond.unhidden(layers, joint):
        return reference.generate(model, layers, single, policy, placeholders, steps, per_image, decide=decide)


@functools.cache
def twin(family, policy, row, per_image=False, **prompt):
    model, single = models.build(family, "eager"), models.rows_of(models.inputs_for(family, **prompt))[row]
    return slow(model, models.FAMILIES[family].decoder(model), single, policy, per_image=per_image)


def reasons(runs):
    return {reason for alone in runs for pool in alone.pools for _, reason, _ in pool.events}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", FALLS + KEYS, ids=repr)
def test_a_batch_equals_the_masked_full_cache(family, policy):
    model, inputs = models.build(family), models.inputs_for(family, **THREE)
    runs = [twin(family, policy, row, **THREE) for row in range(3)]
    for store in ("device", "cpu"):
        ours, cache = run(model, inputs, replace(policy, store=store))
        for row, (alone, padding) in enumerate(zip(runs, paddings(inputs), strict=True)):
            compare(alone, ours, cache, row, padding, ROUNDING)
    assert ("returned" if policy.back == "fall" else "swapped") in reasons(runs)
