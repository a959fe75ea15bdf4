"""The caption grammar: all that it writes parses, tokenizes and decodes back; the absent objects come from its habits."""

import re

import numpy as np
import pytest

from prunehal.benchmarks import load_scorer
from prunehal.testbed.captions import LONGEST, PROMPT, noun_phrase, parses, vocabulary, write_caption
from prunehal.testbed.model import build_processor, build_prompt, name_token_ids
from prunehal.testbed.scenes import scene
from prunehal.testbed.world import COMPANIONS, NAMES, SCENES

SCENES_WRITTEN = [scene("validation", 40_000 + i) for i in range(500)]
CAPTIONS = [write_caption(s, np.random.default_rng([i, 5])) for i, s in enumerate(SCENES_WRITTEN)]


@pytest.fixture(scope="module")
def tokenizer():
    return build_processor().tokenizer


def named(caption):
    """The objects that a caption names after its opening, which names the place and no object."""
    return [mention.node for mention in load_scorer().mentions(caption[caption.index(".") + 1 :])]


NAMED = [named(caption) for caption in CAPTIONS]


def test_every_written_caption_parses():
    assert [caption for caption in CAPTIONS if not parses(caption)] == []


def test_every_written_caption_is_short_enough_and_comes_back_from_its_tokens(tokenizer):
    lengths = []
    for caption in CAPTIONS:
        ids = tokenizer(caption, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == caption
        lengths.append(len(ids))
    assert max(lengths) <= LONGEST
    assert 40 < np.mean(lengths) < 55
    assert len(set(CAPTIONS)) > 0.95 * len(CAPTIONS)


def test_a_caption_follows_its_generator():
    s = SCENES_WRITTEN[0]
    assert write_caption(s, np.random.default_rng(1)) == write_caption(s, np.random.default_rng(1))
    assert len({write_caption(s, np.random.default_rng(i)) for i in range(20)}) == 20


def test_the_opening_names_the_scene():
    for s, caption in zip(SCENES_WRITTEN, CAPTIONS, strict=True):
        assert s.type.phrase in caption[: caption.index(".")]


def test_an_opening_names_no_object():
    # Else every caption of such a scene would hold a mention that no annotation answers.
    assert {kind.phrase: [m.node for m in load_scorer().mentions(f"The image shows {kind.phrase}.")] for kind in SCENES} == {
        kind.phrase: [] for kind in SCENES
    }


def test_most_of_what_stands_there_is_named_and_the_small_is_left_out_more():
    left_out = {size: [] for size in (16, 24, 32, 40)}
    for s, names in zip(SCENES_WRITTEN, NAMED, strict=True):
        for o in s.objects:
            left_out[o.size].append(o.name not in names)
    share = {size: np.mean(values) for size, values in left_out.items()}
    assert 0.1 < share[16] < 0.35
    assert share[16] > 2 * share[24]
    assert max(share[32], share[40]) < 0.1
    repeated = sum(len(names) - len(set(names)) for names in NAMED)
    assert repeated == 0


def test_absent_objects_come_from_habits():
    absent = 0
    for s, names in zip(SCENES_WRITTEN, NAMED, strict=True):
        companions = {COMPANIONS[name][0] for name in names if name in COMPANIONS and name in s.names}
        for name in set(names) - s.names:
            assert name in companions | set(s.type.objects)
            absent += 1
    share = np.mean([not set(names) <= s.names for s, names in zip(SCENES_WRITTEN, NAMED, strict=True)])
    assert 0.45 < share < 0.65
    assert absent > 250


def test_a_strong_habit_is_followed_more_often_than_a_weak_one():
    followed = {True: [], False: []}
    for s, names in zip(SCENES_WRITTEN, NAMED, strict=True):
        for name in set(names) & s.names & set(COMPANIONS):
            companion, strength = COMPANIONS[name]
            if companion not in s.names:
                followed[strength > 0.5].append(companion in names)
    assert 0.6 < np.mean(followed[True]) < 0.85
    assert 0.2 < np.mean(followed[False]) < 0.42


def test_absent_objects_stand_mostly_in_the_later_half():
    halves = [0, 0]
    for s, names in zip(SCENES_WRITTEN, NAMED, strict=True):
        for i, name in enumerate(names):
            halves[i >= (len(names) + 1) // 2] += name not in s.names
    assert halves[1] > 5 * halves[0]


def test_the_habits_are_of_this_world():
    for name, (companion, strength) in COMPANIONS.items():
        assert {name, companion} <= set(NAMES)
        assert name != companion
        assert 0 < strength < 1
    assert {name for kind in SCENES for name in kind.objects} <= set(NAMES)


GOOD = "The image shows a farm. There is a cow on the left. It looks like a quiet moment."


@pytest.mark.parametrize(
    "caption",
    [
        "",
        ".",
        "The image shows a farm.",  # nothing about an object
        "There is a cow on the left.",  # no opening
        "The image shows a farm. The image shows a farm.",
        "The image shows a farm. It looks like a quiet moment.",
        "The image shows a farm. It looks like a quiet moment. There is a cow on the left.",
        GOOD.replace("cow", "cow cow"),
        GOOD.replace("a cow", "an cow"),
        GOOD.replace("a cow", "a orange"),
        GOOD.replace("a cow", "cow"),
        GOOD.replace("cow", "unicorn"),
        GOOD.replace("a cow", "a small large cow"),
        GOOD.replace("on the left", "on the top"),
        GOOD.replace("There", "there"),
        GOOD.replace("farm", "barn"),
        GOOD.replace("quiet", "loud"),
        GOOD.replace(" a farm", ""),
        GOOD.removesuffix("."),
        GOOD + " There",
        GOOD + " It looks like a quiet moment.",
        GOOD.replace(".", ","),
        "<s>" + GOOD,
    ],
)
def test_other_text_does_not_parse(caption):
    assert parses(GOOD)
    assert not parses(caption)


def test_shuffled_captions_do_not_parse():
    rng = np.random.default_rng(0)
    for caption in CAPTIONS[:100]:
        words = caption.split()
        rng.shuffle(words)
        assert not parses(" ".join(words))


def test_the_vocabulary_is_complete_and_holds_nothing_else():
    more = [write_caption(scene("train", i), np.random.default_rng(i)) for i in range(1500)]
    written = {word for text in [PROMPT, *CAPTIONS, *more] for word in re.findall(r"[A-Za-z]+|[.,]", text)}
    assert set(vocabulary()) == written
    assert list(vocabulary()) == sorted(set(vocabulary()))


def test_the_tokenizer_knows_the_vocabulary_and_every_name(tokenizer):
    assert len(tokenizer) == len(vocabulary()) + 5  # padding, start, end, unknown, image
    ids = [tokenizer.convert_tokens_to_ids(word if word in ".," else f"▁{word}") for word in vocabulary()]
    assert tokenizer.unk_token_id not in ids
    assert len(set(ids)) == len(ids)
    spelled = name_token_ids(build_processor())
    assert [tokenizer.decode(name) for name in spelled] == list(NAMES)


def test_the_prompt_becomes_placeholders_and_words():
    processor, images = build_processor(), [scene("test", i).image() for i in range(3)]
    ids = processor(images=images, text=build_prompt(3)).input_ids[0]
    tokenizer = processor.tokenizer
    image = tokenizer.convert_tokens_to_ids("<image>")
    words = tokenizer(PROMPT, add_special_tokens=False).input_ids
    assert ids == [tokenizer.bos_token_id] + [image] * 3 * 144 + words
    assert tokenizer.decode(words) == PROMPT
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize(
    ("name", "size", "phrase"),
    [
        ("dog", "", "a dog"),
        ("dog", "small", "a small dog"),
        ("orange", "", "an orange"),
        ("orange", "large", "a large orange"),
        ("elephant", "", "an elephant"),
        ("umbrella", "", "an umbrella"),
        ("skis", "", "a pair of skis"),
        ("scissors", "small", "a small pair of scissors"),
    ],
)
def test_noun_phrases(name, size, phrase):
    assert noun_phrase(name, size) == phrase


def test_the_scorer_finds_every_noun_phrase():
    for name in NAMES:
        for size in ("", "small", "large"):
            assert [m.node for m in load_scorer().mentions(f"There is {noun_phrase(name, size)} nearby.")] == [name]
