"""Interventions on attention: against stock attention written out, and the patches that are taken away."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import reference_dose
import torch
from transformers import AttentionInterface

import prunehal as ph
from prunehal.experiments import Experiment, Store
from prunehal.studies.nb09_causal import intervene as causal
from prunehal.studies.nb09_causal.intervene import (
    HALF_MOVES,
    MOVES,
    REMOVED,
    SCALES,
    WITHHELD,
    Mention,
    intervene,
    likeness,
    mentions_of,
)
from prunehal.testbed.training.model import build_prompt
from prunehal.testbed.world.scenes import scene_of
from prunehal.testbed.world.world import NAMES

PREFIX = 1  # the start token stands before the visual tokens
VISUAL = range(PREFIX, PREFIX + 144)


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
    """Return log-probabilities and visual attention by attention written out; ``change(row, layer)`` edits the last query."""
    model, processor = embedded
    seen = []

    def attention(module, query, key, value, attention_mask, scaling, **kwargs):
        if module.__class__.__name__ != "LlamaAttention":
            return eager(module, query, key, value, None, scaling)
        size = query.shape[2]
        scores = query @ key.transpose(2, 3) * scaling
        scores = scores.masked_fill(~torch.ones(size, size, dtype=torch.bool).tril(), -math.inf)
        for head in range(scores.shape[1]):
            change(scores[0, head, -1], module.layer_idx)
        weights = scores.softmax(-1)
        seen.append(weights[0, :, -1, list(VISUAL)].sum(-1).mean().item())
        return (weights @ value).transpose(1, 2), None

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
    return logits.log_softmax(-1), sum(seen) / len(seen)


def test_a_dose_scales_the_odds_of_the_image_at_one_query(embedded, mentions, frame):
    scaled = frame[frame["what"] == "scale"].set_index(["image_id", "index", "dose"])
    for mention in mentions[::3]:
        for dose in SCALES:

            def change(row, layer, dose=dose):
                for place in VISUAL:
                    row[place] += math.log(dose) if dose else -math.inf

            log_probs, mass = alone(embedded, mention, change)
            line = scaled.loc[(mention.image_id, mention.index, dose)]
            assert line["log_prob"] == pytest.approx(log_probs[mention.token].item(), abs=1e-4)
            assert line["mass"] == pytest.approx(mass, abs=1e-4)
    moved = frame[frame["what"] == "scale"].groupby("dose")["log_prob"].sum()
    assert moved.nunique() == len(SCALES)  # every dose does something


def test_a_move_gives_the_image_a_share_of_the_attention_on_text(embedded, mentions, frame):
    moved = frame[frame["what"] == "move"].set_index(["image_id", "index", "part", "dose"])
    n_layers = embedded[0].config.get_text_config().num_hidden_layers
    cases = [("all", dose) for dose in MOVES] + [(half, dose) for half in ("early", "late") for dose in HALF_MOVES]
    for mention in mentions[::3]:
        for part, dose in cases:

            def change(row, layer, part=part, dose=dose):
                if part == "all" or (part == "early") == (layer < n_layers // 2):
                    row.copy_(torch.tensor(reference_dose.moved(row.tolist(), VISUAL, dose)))

            log_probs, mass = alone(embedded, mention, change)
            line = moved.loc[(mention.image_id, mention.index, part, dose)]
            assert line["log_prob"] == pytest.approx(log_probs[mention.token].item(), abs=1e-3)
            assert line["mass"] == pytest.approx(mass, abs=1e-4)
    whole = moved.xs(("all", 1.0), level=["part", "dose"])
    assert np.allclose(whole["mass"], 1)


def test_what_is_withheld_goes_to_the_start_token(embedded, mentions, frame):
    withheld = frame[frame["what"] == "withhold"].set_index(["image_id", "index", "dose"])
    for mention in mentions[::3]:
        for dose in WITHHELD:

            def change(row, layer, dose=dose):
                weights = row.double().softmax(-1)
                text = [place for place in range(len(weights)) if place not in VISUAL and place >= PREFIX]
                weights[0] += dose * weights[text].sum()
                weights[text] *= 1 - dose
                row.copy_(weights.log().float())

            log_probs, mass = alone(embedded, mention, change)
            line = withheld.loc[(mention.image_id, mention.index, dose)]
            assert line["log_prob"] == pytest.approx(log_probs[mention.token].item(), abs=1e-3)
            assert line["mass"] == pytest.approx(mass, abs=1e-4)


def test_to_move_all_attention_away_from_the_image_is_blindness(embedded, mentions):
    frame = intervene(*embedded, mentions[:3], scales=(0.0, 1.0), moves=(-1.0, 0.0), half_moves=(), withheld=())
    table = frame[frame["what"] != "remove"].pivot_table(index=["image_id", "index"], columns=["what", "dose"], values="log_prob")
    np.testing.assert_allclose(table["move"], table["scale"], atol=1e-5)


def test_the_likeliest_word_is_named(embedded, mentions, frame):
    lines = frame[(frame["what"] == "move") & (frame["part"] == "all")].set_index(["image_id", "index", "dose"])
    first = embedded[1].tokenizer
    begins = {name: first(name, add_special_tokens=False).input_ids[0] for name in NAMES}
    captions = Store.shipped().captions(Experiment(split="test", n_images=40)).set_index("image_id")["caption"]
    found = set()
    for mention in mentions:
        said = first.decode(mention.before)
        assert captions[mention.image_id].startswith(said.strip())
        shown = {begins[name]: name for name in scene_of(mention.image_id).names}
        for dose in MOVES[-3:]:

            def change(row, layer, dose=dose):
                row.copy_(torch.tensor(reference_dose.moved(row.tolist(), VISUAL, dose)))

            token = alone(embedded, mention, change)[0].argmax().item()
            expected = "absent" if token in begins.values() else "none"
            if token in shown:
                expected = "again" if re.search(rf"\b{shown[token]}s?\b", said) else "new"
            if token == mention.token:
                expected = "itself"
            assert lines.loc[(mention.image_id, mention.index, dose), "likeliest"] == expected
            found.add(expected)
    assert len(found) > 2


def test_an_object_of_the_scene_is_new_until_it_was_named():
    starts, scene = {1: ["cat"], 2: ["dog"], 3: ["baseball bat", "baseball glove"], 4: ["bed"]}, frozenset({"cat", "dog"})
    mention = Mention(0, 1, "bed", True, ("dog", "baseball bat"), (), 4)
    assert [causal._named(token, mention, scene, starts) for token in range(5)] == ["none", "new", "again", "absent", "itself"]
    both = scene | {"baseball bat", "baseball glove"}
    assert causal._named(3, mention, both, starts) == "new"  # the glove was not named
    assert causal._named(3, mention, both - {"baseball glove"}, starts) == "again"


def test_a_mention_knows_what_was_named_before(embedded):
    found = mentions_of(Store.shipped(), Experiment(split="test", n_images=5), embedded[1])
    for mention in found:
        earlier = [other.node for other in found if other.image_id == mention.image_id and other.index < mention.index]
        assert list(mention.named) == earlier


def test_a_word_that_also_begins_an_object_of_the_scene_is_ambiguous(embedded):
    found = mentions_of(Store.shipped(), Experiment(split="test", n_images=300), embedded[1])
    begins = {name: embedded[1].tokenizer(name, add_special_tokens=False).input_ids[0] for name in NAMES}

    def shared(mention):
        return mention.hallucinated and mention.token in {begins[name] for name in scene_of(mention.image_id).names}

    some = [*[m for m in found if shared(m)][:2], *[m for m in found if not shared(m)][:2]]
    frame = intervene(*embedded, some, scales=(1.0,), moves=(), half_moves=(), withheld=())
    flagged = frame[frame["what"] == "scale"].set_index(["image_id", "index"])["ambiguous"]
    assert [bool(flagged[m.image_id, m.index]) for m in some] == [shared(m) for m in some]
    assert flagged.nunique() == 2


def test_removed_patches_are_hidden_from_that_query(embedded, mentions, frame):
    gone = frame[frame["what"] == "remove"].set_index(["image_id", "index", "part"])
    seen = set()
    for mention in mentions[::3]:
        for kind in REMOVED:
            marks = causal._patches(mention, kind, 0)
            if marks is None:
                assert (mention.image_id, mention.index, kind) not in gone.index
                continue
            seen.add(kind)

            def change(row, layer, marks=marks):
                for patch in np.flatnonzero(marks):
                    row[PREFIX + patch] = -math.inf

            log_probs, mass = alone(embedded, mention, change)
            line = gone.loc[(mention.image_id, mention.index, kind)]
            assert line["log_prob"] == pytest.approx(log_probs[mention.token].item(), abs=1e-4)
            assert line["mass"] == pytest.approx(mass, abs=1e-4)
            assert line["patches"] == marks.sum()
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
    keys = ["image_id", "index", "what", "part", "dose"]
    both = single.merge(frame, on=keys, suffixes=("", "_batch"))
    assert len(both) == len(single)
    for column in ("log_prob", "mass"):
        np.testing.assert_allclose(both[column], both[f"{column}_batch"], atol=1e-4)
    assert (both["likeliest"] == both["likeliest_batch"]).all()
