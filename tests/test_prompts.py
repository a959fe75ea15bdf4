"""Prompts of the embedded model: one without a placeholder is refused, one that it was not trained on is a warning."""

import re
import warnings

import numpy as np
import pytest
from transformers import AutoProcessor
from transformers import LlavaProcessor as Stock

import prunehal as ph
from prunehal.running import Run, run
from prunehal.testbed.training.samples import texts_of
from prunehal.testbed.world.questions import known_prompts, presence, what_is, where_is
from prunehal.testbed.world.scenes import scene


@pytest.fixture(scope="module")
def processor():
    return ph.load()[1]


def inputs(processor, text):
    images = [scene("test", 0).image()] * (1 if isinstance(text, str) else len(text))
    return processor(images=images, text=text, padding=True, return_tensors="pt")


WRITE = "<image>Describe this scene in detail."


@pytest.mark.parametrize("text", ["Describe this scene in detail.", [WRITE, "Where is the dog?"]])
def test_a_prompt_without_a_placeholder_is_an_error_with_the_fix(processor, text):
    with pytest.raises(ValueError, match=f"has no <image>; .*write '{re.escape(WRITE)}'"):
        inputs(processor, text)


@pytest.mark.parametrize("asked", ["Describe this image.", "What do you see?", "", "describe this scene in detail."])
def test_a_prompt_that_training_never_saw_is_warned_of_with_those_that_it_saw(processor, asked):
    with pytest.warns(UserWarning, match="the embedded model was trained on other prompts") as warned:
        inputs(processor, f"<image>{asked}")
    (message,) = (str(warning.message) for warning in warned)
    assert message.startswith(f"text='<image>{asked}': ")
    parts = (
        "Describe this scene in detail.",
        "Describe this scene briefly.",
        "Is there a dog in the image?",
        "Where is ",
        "What is ",
    )
    assert all(part in message for part in parts)


def test_every_prompt_of_the_training_is_known(processor):
    rng = np.random.default_rng(0)
    seen = set()
    for index in range(200):
        shown = scene("train", index)
        seen |= {question for question, _ in [*presence(shown, 6, rng), where_is(shown, rng), what_is(shown, rng)]}
        seen |= {prompt for prompt, _ in texts_of(shown, rng)}
    assert seen <= set(known_prompts())
    assert len(seen) > 150
    with warnings.catch_warnings(action="error"):
        for prompt in ("Where is the dog?", "Describe this scene briefly.", "Is there an apple in the image? No."):
            inputs(processor, f"<image>{prompt}")
            processor(images=[scene("test", 0).image()] * 2, text=f"<image><image>{prompt}", return_tensors="pt")


def test_what_the_processor_gives_and_saves_is_stock(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    stock = AutoProcessor.from_pretrained(tmp_path)
    assert type(stock) is Stock
    text = ["<image>Describe this scene in detail."]
    ours, theirs = inputs(processor, text), inputs(stock, text)
    assert list(ours) == list(theirs)
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_a_run_with_such_a_prompt_is_warned_of(tmp_path):
    (tmp_path / "images").mkdir()
    scene("test", 0).image().save(tmp_path / "images/1.png")
    settings = Run(
        model="embedded", benchmark="chair", images=tmp_path / "images", out=tmp_path / "out", prompt="Describe this image.",
        max_new_tokens=4, progress=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"Describe this image\..*trained on other prompts"):
        run(settings)
