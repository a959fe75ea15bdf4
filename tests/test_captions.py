"""The caption grammar: all that it writes parses, tokenizes and decodes back; the absent objects come from its habits.

And the questions: they are answered as the scene is.
"""

import re

import numpy as np
import pytest

from prunehal.benchmarks import load_scorer
from prunehal.testbed.training.model import build_processor, build_prompt, name_token_ids
from prunehal.testbed.world.captions import (
    ADJECTIVES,
    BRIEF,
    LONGEST,
    PLACES,
    PROMPT,
    in_order,
    noun_phrase,
    parses,
    place_phrase,
    vocabulary,
    write_brief,
    write_caption,
)  # fmt: skip
from prunehal.testbed.world.questions import is_there, known_words, presence, what_is, where_is
from prunehal.testbed.world.scenes import scene
from prunehal.testbed.world.world import COMPANIONS, NAMES, SCENES

SCENES_WRITTEN = [scene("validation", 40_000 + i) for i in range(500)]
CAPTIONS = [write_caption(s, np.random.default_rng([i, 5])) for i, s in enumerate(SCENES_WRITTEN)]


@pytest.fixture(scope="module")
def tokenizer():
    return build_processor().tokenizer


def named(caption):
    """The objects that a caption names after its opening, which names the place and no object."""
    return [mention.node for mention in load_scorer().mentions(caption[caption.index(".") + 1 :])]


NAMED = [named(caption) for caption in CAPTIONS]


BRIEFS = [write_brief(s) for s in SCENES_WRITTEN]


def test_every_written_caption_parses():
    assert [caption for caption in CAPTIONS + BRIEFS if not parses(caption)] == []


def test_a_brief_caption_names_all_that_is_there_in_order_and_nothing_else():
    for s, brief in zip(SCENES_WRITTEN, BRIEFS, strict=True):
        assert [mention.node for mention in load_scorer().mentions(brief)] == [o.name for o in in_order(s)]
        assert brief.lower().startswith(f"{s.type.phrase} with ")


def test_the_round_goes_row_by_row_and_comes_before_what_was_kept_for_the_end():
    # The places of what is there, in a caption in detail: row by row, but for those after the first late sentence.
    late = ("also", "In addition", "Further back", "has been left", "Somewhere", "Besides")
    places = {place: i for i, place in enumerate(place for row in PLACES for place in row)}
    spelled = "|".join(sorted(places, key=len, reverse=True))
    for s in SCENES_WRITTEN[:50]:
        stand = [places[place_phrase(o)] for o in in_order(s)]
        assert stand == sorted(stand)
    for caption in CAPTIONS:
        body = re.split(r"(?<=\.) ", caption)[1:]
        end = next((i for i, sentence in enumerate(body) if any(word in sentence for word in late)), len(body))
        said = [places[found.lower()] for found in re.findall(spelled, " ".join(body[:end]), flags=re.IGNORECASE)]
        assert said == sorted(said)
        assert all(any(word in sentence for word in (*late, "mood", "moment", "feels")) for sentence in body[end:])


def test_sizes_and_places_said_of_what_is_there_are_true():
    # "At the top left, there is a small faint dog."
    said, spelled = 0, "|".join(place[0].upper() + place[1:] for row in PLACES for place in row)
    for s, caption in zip(SCENES_WRITTEN, CAPTIONS, strict=True):
        things = {o.name: o for o in s.objects}
        for place, phrase in re.findall(rf"({spelled}), (?:there is|we can see) an? ([a-z ]+?)(?:\.|,| and | beside )", caption):
            words = phrase.removeprefix("pair of ").split()
            size, faint, name = words[0], words[1], " ".join(words[2:]).removeprefix("pair of ")
            if name in things and size in ADJECTIVES[0]:
                said += 1
                o = things[name]
                assert place.lower() == place_phrase(o)
                assert size == {16: "small", 40: "large"}.get(o.size, "medium")
                assert (faint == "faint") == (o.opacity < 0.5)
    assert said > 500


def test_every_written_caption_is_short_enough_and_comes_back_from_its_tokens(tokenizer):
    lengths = []
    for caption in CAPTIONS:
        ids = tokenizer(caption, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == caption
        lengths.append(len(ids))
    assert max(lengths) <= LONGEST
    assert 80 < np.mean(lengths) < 105
    assert 75 < np.mean([len(caption.split()) for caption in CAPTIONS]) < 90
    assert np.mean([len(brief.split()) for brief in BRIEFS]) < 25
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
    assert 0.05 < share[16] < 0.15
    assert share[16] > 2 * share[24]
    assert max(share[32], share[40]) < 0.04
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
    assert 0.6 < share < 0.8
    assert absent > 400


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


@pytest.mark.parametrize("count", [4, 6])
def test_questions_whether_a_thing_is_there_are_balanced_and_answered_right(count):
    usual = []
    for i, s in enumerate(SCENES_WRITTEN[:200]):
        asked = presence(s, count, np.random.default_rng(i))
        assert [answer for _, answer in asked] == ["Yes.", "No."] * (count // 2)
        by_question = {is_there(name): name for name in NAMES}
        for question, answer in asked:
            assert (by_question[question] in s.names) == (answer == "Yes.")
        usual += [by_question[question] in s.type.objects for question, answer in asked if answer == "No."]
    assert 0.35 < np.mean(usual) < 0.75


def test_questions_where_a_thing_is_and_what_is_at_a_place_are_answered_right():
    nothing = []
    for i, s in enumerate(SCENES_WRITTEN[:200]):
        rng = np.random.default_rng(i)
        question, answer = where_is(s, rng)
        (o,) = (o for o in s.objects if question == f"Where is the {noun_phrase(o.name).partition(' ')[2]}?")
        assert answer.lower() == f"{place_phrase(o)}."
        question, answer = what_is(s, rng)
        there = [o.name for o in in_order(s) if question == f"What is {place_phrase(o)}?"]
        assert [mention.node for mention in load_scorer().mentions(answer)] == there
        nothing.append(answer == "Nothing.")
        assert nothing[-1] == (not there)
    assert 0.01 < np.mean(nothing) < 0.2


GOOD = "The image shows a farm. There is a cow on the left. It looks like a quiet moment."
GOOD_BRIEF = "A farm with a cow, a dog and an orange."


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
        GOOD.replace("a cow", "a faint small cow"),
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
        GOOD + " " + GOOD_BRIEF,
        GOOD_BRIEF.replace(" and", ""),
        GOOD_BRIEF.replace(" and an orange", ""),
        GOOD_BRIEF.replace("an orange", "a orange"),
        "A farm with.",
    ],
)
def test_other_text_does_not_parse(caption):
    assert parses(GOOD)
    assert parses(GOOD_BRIEF)
    assert parses(GOOD.replace("a cow", "a small faint cow"))
    assert not parses(caption)


def test_shuffled_captions_do_not_parse():
    rng = np.random.default_rng(0)
    for caption in CAPTIONS[:100]:
        words = caption.split()
        rng.shuffle(words)
        assert not parses(" ".join(words))


def test_the_vocabulary_is_complete_and_holds_nothing_else():
    more = [write_caption(scene("train", i), np.random.default_rng(i)) for i in range(1500)]
    briefs = [write_brief(scene("train", i)) for i in range(300)]
    written = {word for text in [PROMPT, BRIEF, *CAPTIONS, *more, *briefs] for word in re.findall(r"[A-Za-z]+|[.,]", text)}
    assert set(vocabulary()) == written
    assert list(vocabulary()) == sorted(set(vocabulary()))


def test_the_words_of_questions_are_known_and_there_are_no_others():
    rng = np.random.default_rng(0)
    asked = [pair for s in SCENES_WRITTEN for pair in (*presence(s, 6, rng), where_is(s, rng), what_is(s, rng))]
    written = {word for pair in asked for text in pair for word in re.findall(r"[A-Za-z]+|[.,?]", text)}
    assert written | set(vocabulary()) == set(known_words())
    assert list(known_words()) == sorted(known_words())


def test_the_tokenizer_knows_the_vocabulary_and_every_name(tokenizer):
    assert len(tokenizer) == len(known_words()) + 5  # padding, start, end, unknown, image
    ids = [tokenizer.convert_tokens_to_ids(word if word in ".,?" else f"▁{word}") for word in known_words()]
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
    ("name", "adjective", "phrase"),
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
def test_noun_phrases(name, adjective, phrase):
    assert noun_phrase(name, adjective) == phrase


def test_the_scorer_finds_every_noun_phrase():
    for name in NAMES:
        for adjective in ("", "small clear", "large faint"):
            assert [m.node for m in load_scorer().mentions(f"There is {noun_phrase(name, adjective)} nearby.")] == [name]
