"""Images that a family's generate() takes under a name of its own, and hands on with every token."""

import models
import pytest
import torch
from decode import TOLERANCE, difference, run
from models import IMAGE
from transformers import DynamicCache

from prunehal.core import NoPruning, TopK, attach
from prunehal.core.keyword import as_option
from prunehal.core.visual import visual_token_ids

FAMILY = "phi4_multimodal"


def longer(inputs, first, words):
    """Return a second turn: all that the processor returned, images included, and new words behind the conversation."""
    ids = torch.cat([first.sequences, torch.tensor([words]).expand(len(first.sequences), -1)], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, ids.shape[1] - inputs["input_ids"].shape[1]), value=1)
    return inputs | {"input_ids": ids, "attention_mask": mask}


def test_the_placeholder_is_named_by_the_towers_configuration():
    config = models.build(FAMILY).config
    assert not hasattr(config, "image_token_id")
    assert visual_token_ids(config) == [IMAGE]


def test_a_second_turn_may_bring_the_same_images_again():
    model, inputs = models.build(FAMILY), models.inputs_for(FAMILY, (3, 6), (5, 4))
    stock_cache = DynamicCache(config=model.config)
    first, _ = run(model, inputs, steps=5, **as_option(stock_cache))
    stock, _ = run(model, longer(inputs, first, (5, 6, 7)), steps=5, **as_option(stock_cache))
    first, cache = run(model, inputs, NoPruning(), steps=5)
    ours, _ = run(model, longer(inputs, first, (5, 6, 7)), steps=5, **cache.options)
    assert torch.equal(stock.sequences, ours.sequences)
    assert difference(stock, ours) <= TOLERANCE


def test_new_images_in_a_second_turn_are_refused():
    model, inputs = models.build(FAMILY), models.inputs_for(FAMILY, (3, 6), (5, 4))
    first, cache = run(model, inputs, TopK(5), steps=5)
    picture = models.FAMILIES[FAMILY].image
    with pytest.raises(ValueError, match=r"a later prompt brings images, which this cache does not know"):
        run(model, longer(inputs, first, (5, *picture, 7)), steps=5, **cache.options)


def test_a_prompt_without_its_images_is_refused():
    model, inputs = models.build(FAMILY), models.inputs_for(FAMILY)
    cache = attach(model, inputs, TopK(5))
    bare = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="the prompt arrives without its images"):
        model.generate(**bare, **cache.options, max_new_tokens=2)
