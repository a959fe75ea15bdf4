"""Interventions on attention: against stock attention written out, and the patches that are taken away."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AttentionInterface

import prunehal as ph
from prunehal import causal
from prunehal.causal import DOSES, REMOVED, intervene, likeness, mentions_of
from prunehal.experiments import Experiment, Store
from prunehal.testbed.model import build_prompt
from prunehal.testbed.scenes import scene_of
from prunehal.testbed.world import NAMES

PREFIX = 1  # the start token stands before the visual tokens


@pytest.fixture(scope="module")
def embedded():
    return ph.load()


@pytest.fixture(scope="module")
def mentions(embedded):
    found = mentions_of(Store.shipped(), Experiment(split="test", n_images=40), embedded[1])
    return [*[m for m in found if m.hallucinated][:4], *[m for m in found if not m.hallucinated][:4]]


@pytest.fixture(scope="module")
def frame(embedded, mentions):
    return intervene(*embedded, mentions)


def alone(embedded, mention, change):
    """Return the log-probability of a mention's token by attention written out; ``change(row)`` edits the last query's scores."""
    model, processor = embedded

    def attention(module, query, key, value, attention_mask, scaling, **kwargs):
        if module.__class__.__name__ != "LlamaAttention":
            return eager(module, query, key, value, None, scaling)
        size = query.shape[2]
        scores = query @ key.transpose(2, 3) * scaling
        scores = scores.masked_fill(~torch.ones(size, size, dtype=torch.bool).tril(), -math.inf)
        for head in range(scores.shape[1]):
            change(scores[0, head, -1])
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    def eager(module, query, key, value, mask, scaling):
        return ((query @ key.transpose(2, 3) * scaling).softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("written_out", attention)
    before = model.config._attn_implementation
    inputs = processor(images=scene_of(mention.image_id).image(), text=build_prompt(), return_tensors="pt")
    ids = torch.cat([inputs["input_ids"], torch.tensor([mention.before], dtype=torch.long)], dim=1)
    model.set_attn_implementation("written_out")
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1]
    finally:
        model.set_attn_implementation(before)
    return logits.log_softmax(-1)[mention.token].item()


def test_a_dose_scales_the_odds_of_the_image_at_one_query(embedded, mentions, frame):
    scaled = frame[frame["what"] == "scale"].set_index(["image_id", "index", "dose"])["log_prob"]
    for mention in mentions[::3]:
        for dose in DOSES:

            def change(row, dose=dose):
                for place in range(PREFIX, PREFIX + 144):
                    row[place] += math.log(dose) if dose else -math.inf

            assert scaled[mention.image_id, mention.index, dose] == pytest.approx(alone(embedded, mention, change), abs=1e-4)
    moved = frame[frame["what"] == "scale"].groupby("dose")["log_prob"].sum()
    assert moved.nunique() == len(DOSES)  # every dose does something


def test_removed_patches_are_hidden_from_that_query(embedded, mentions, frame):
    gone = frame[frame["what"] == "remove"].set_index(["image_id", "index", "object"])["log_prob"]
    seen = set()
    for mention in mentions[::3]:
        for kind in REMOVED:
            marks = causal._patches(mention, kind, 0)
            if marks is None:
                assert (mention.image_id, mention.index, kind) not in gone.index
                continue
            seen.add(kind)

            def change(row, marks=marks):
                for patch in np.flatnonzero(marks):
                    row[PREFIX + patch] = -math.inf

            expected = alone(embedded, mention, change)
            assert gone[mention.image_id, mention.index, kind] == pytest.approx(expected, abs=1e-4)
    assert seen == set(REMOVED)


def test_what_is_removed_is_what_its_name_says(mentions):
    for mention in mentions:
        labels, names = scene_of(mention.image_id).patch_labels(), scene_of(mention.image_id).names
        marks = {kind: causal._patches(mention, kind, 0) for kind in REMOVED}
        assert (marks["itself"] is None) == mention.hallucinated
        if not mention.hallucinated:
            assert marks["most alike"] is None
            assert set(labels[marks["itself"]]) == {NAMES.index(mention.node)}
        else:
            (most,) = set(labels[marks["most alike"]])
            shown = {NAMES[label] for label in set(labels) if label < len(NAMES)}
            assert likeness(mention.node, NAMES[most]) == max(likeness(mention.node, name) for name in shown)
        model = marks["most alike"] if mention.hallucinated else marks["itself"]
        assert (labels[marks["background"]] >= len(NAMES)).all()
        assert marks["background"].sum() == model.sum()
        if marks["another"] is not None:
            (other,) = set(labels[marks["another"]])
            assert NAMES[other] in names - {mention.node}
            assert not (marks["another"] & model).any()


def test_a_batch_says_what_each_mention_says_alone(embedded, mentions, frame):
    single = pd.concat([intervene(*embedded, [mention]) for mention in mentions[:2]], ignore_index=True)
    keys = ["image_id", "index", "what", "object", "dose"]
    both = single.merge(frame, on=keys, suffixes=("", "_batch"))
    assert len(both) == len(single)
    np.testing.assert_allclose(both["log_prob"], both["log_prob_batch"], atol=1e-4)
    assert (both["top"] == both["top_batch"]).all()


def test_rows_are_written_once_for_each_mention(tmp_path):
    found = causal.measure(tmp_path / "rows.csv.gz", n_images=3, batch_size=4, progress=False)
    stored = pd.read_csv(tmp_path / "rows.csv.gz", keep_default_na=False, na_values={"dose": "", "log_prob": ""})
    assert len(stored) == len(found)
    assert not found.duplicated(["image_id", "index", "what", "object", "dose"]).any()
    at_one = found[found["dose"] == 1.0]
    assert at_one.loc[~at_one["hallucinated"], "top_present"].mean() > 0.8  # the words that greedy decoding chose
