"""Captioning many scenes: the batch changes nothing, every token has its place, every mention has its step."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

import prunehal as ph
from prunehal.benchmarks import score
from prunehal.experiments.captioning import Captioned, _token_starts, caption_scenes, mention_attention
from prunehal.testbed.training.model import build_processor, build_prompt
from prunehal.testbed.world.captions import write_caption
from prunehal.testbed.world.scenes import scene

SCENES = [scene("test", index) for index in range(5)]


@pytest.fixture(scope="module")
def loaded():
    return ph.load()


@pytest.fixture(scope="module")
def together(loaded):
    return caption_scenes(*loaded, SCENES, ph.PruneHal(r=0.5, t=3), batch_size=5, max_new_tokens=24, trace=True)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_batch_size_changes_nothing(loaded, together, batch_size):
    some = SCENES[:3]
    done = caption_scenes(*loaded, some, ph.PruneHal(r=0.5, t=3), batch_size=batch_size, max_new_tokens=24, trace=True)
    ids = [s.image_id for s in some]
    pd.testing.assert_frame_equal(done.captions, together.captions.head(3))
    events = together.events[together.events["image_id"].isin(ids)].sort_values(["image_id", "step"], ignore_index=True)
    pd.testing.assert_frame_equal(done.events.sort_values(["image_id", "step"], ignore_index=True), events)
    steps = together.steps[together.steps["image_id"].isin(ids)].reset_index(drop=True)
    pd.testing.assert_frame_equal(done.steps, steps, atol=1e-5, rtol=1e-4)


def test_without_pruning_the_captions_are_those_of_stock_generate(loaded):
    model, processor = loaded
    done = caption_scenes(model, processor, SCENES[:2], max_new_tokens=30)
    assert list(done.texts) == [s.image_id for s in SCENES[:2]]
    for s, line in zip(SCENES, done.captions.itertuples(), strict=False):
        inputs = processor(images=s.image(), text=build_prompt(), return_tensors="pt")
        with torch.inference_mode():
            written = model.generate(**inputs, max_new_tokens=30)[0, inputs["input_ids"].shape[1] :]
        assert line.caption == processor.decode(written, skip_special_tokens=True) == done.texts[s.image_id]
        assert line.tokens == int((written != processor.tokenizer.eos_token_id).sum())
        assert line.prunes == 0
    assert done.events.empty
    assert done.steps.empty


def test_what_is_kept_beside_each_caption(together):
    assert list(together.captions.columns) == ["image_id", "caption", "tokens", "prunes", "finished", "starts"]
    assert together.captions["image_id"].tolist() == [s.image_id for s in SCENES]
    counted = together.events["image_id"].value_counts()
    for line in together.captions.itertuples():
        assert len(line.starts) == line.tokens
        assert line.prunes == counted[line.image_id] >= 1  # the one at step 2 at least
        steps = together.steps[together.steps["image_id"] == line.image_id]
        # One step for each token, and one for the end if it was written.
        assert steps["step"].max() in (line.tokens, line.tokens + 1)
        assert (steps[steps["step"] == 1]["n_visual"] == 144).all()
        assert (steps[steps["step"] == 3]["n_visual"] == 72).all()


@pytest.mark.parametrize("clutter", [False, True])
def test_background_tiles_add_visual_tokens(loaded, clutter):
    done = caption_scenes(*loaded, SCENES[:2], k=1, clutter=clutter, max_new_tokens=3, trace=True)
    assert set(done.steps["n_visual"]) == {288}
    other = caption_scenes(*loaded, SCENES[:2], k=1, clutter=not clutter, max_new_tokens=3, trace=True)
    assert not np.allclose(done.steps["mass"], other.steps["mass"], atol=1e-9, rtol=1e-6)


def test_sampling_follows_its_seed(loaded):
    one, same, other = (
        caption_scenes(*loaded, SCENES[:2], max_new_tokens=25, sample_seed=seed).captions["caption"].tolist()
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("scenes", "size", "said"), [([], 50, "got 0 scenes"), (SCENES, 0, "batch_size=0"), (SCENES, -1, "batch_size=-1")]
)
def test_nothing_to_caption_is_refused(loaded, scenes, size, said):
    with pytest.raises(ValueError, match=rf"{said}.*expected at least one scene and a batch size >= 1"):
        caption_scenes(*loaded, scenes, batch_size=size)


def test_every_token_begins_a_word_or_a_mark():
    tokenizer = build_processor().tokenizer
    for index in range(50):
        caption = write_caption(scene("validation", index), np.random.default_rng(index))
        text, starts = _token_starts(tokenizer, tokenizer(caption, add_special_tokens=False).input_ids)
        assert text == caption
        assert starts == [match.start() for match in re.finditer(r"\w+|[.,]", caption)]
    assert _token_starts(tokenizer, []) == ("", [])


def test_starts_point_into_the_models_own_captions(loaded, together):
    known = set(loaded[1].tokenizer.get_vocab())
    for line in together.captions.itertuples():
        ends = [*line.starts[1:], len(line.caption)]
        for begin, end in zip(line.starts, ends, strict=True):
            word = line.caption[begin:end].rstrip()
            assert f"▁{word}" in known or word in (".", ",")


def by_hand():
    """Two captions whose attention is small round numbers: mass = image * (step + 10 * layer)."""
    captions = pd.DataFrame(
        {
            "image_id": [7, 8],
            "caption": ["A hot dog and a cat.", "A dog."],
            "tokens": [7, 3],
            "prunes": [0, 0],
            "starts": [[0, 2, 6, 10, 14, 16, 19], [0, 2, 5]],
        }
    )
    steps = pd.DataFrame(
        [
            (image, step, layer, (image - 6) * (step + 10.0 * layer), 0.1 * step)
            for image, count in ((7, 7), (8, 3))
            for step in range(1, count + 1)
            for layer in (0, 1)
        ],
        columns=["image_id", "step", "layer", "mass", "entropy"],
    )
    return Captioned(captions, pd.DataFrame(), steps)


def test_a_mention_meets_the_step_of_its_first_token():
    done = by_hand()
    result = score(done.texts, {7: {"cat"}, 8: {"dog"}})
    joined = mention_attention(done, result).sort_values(["image_id", "index", "layer"], ignore_index=True)
    assert joined["node"].tolist() == ["hot dog"] * 2 + ["cat"] * 2 + ["dog"] * 2
    assert joined["hallucinated"].tolist() == [True] * 2 + [False] * 4
    assert joined["step"].tolist() == [2, 2, 6, 6, 2, 2]  # the first token of "hot dog"
    assert joined["steps"].tolist() == [7] * 4 + [3] * 2
    assert joined["layer"].tolist() == [0, 1] * 3
    assert joined["mass"].tolist() == [2, 12, 6, 16, 4, 24]
    assert joined["entropy"].tolist() == pytest.approx([0.2, 0.2, 0.6, 0.6, 0.2, 0.2])
    # Means over the steps: 4 and 14 for the first caption, 2 * 2 and 2 * 12 for the second; over its mentions: 4 and 14.
    assert joined["step_ratio"].tolist() == pytest.approx([2 / 4, 12 / 14, 6 / 4, 16 / 14, 4 / 4, 24 / 24])
    assert joined["mention_ratio"].tolist() == pytest.approx([2 / 4, 12 / 14, 6 / 4, 16 / 14, 1, 1])


def test_captions_without_a_mention_leave_no_line():
    done = by_hand()
    done.captions["caption"] = ["A big red toy on a mat.", "A dog."]
    joined = mention_attention(done, score(done.texts, {7: {"cat"}, 8: {"dog"}}))
    assert joined["image_id"].tolist() == [8, 8]


def test_mention_attention_needs_a_trace(loaded):
    done = caption_scenes(*loaded, SCENES[:1], max_new_tokens=3)
    with pytest.raises(ValueError, match=r"hold no trace; expected caption_scenes\(\.\.\., trace=True\)"):
        mention_attention(done, score(done.texts, {SCENES[0].image_id: SCENES[0].names}))
