"""Questions about a scene and their answers: is a thing there, where is it, what stands at a place.

They teach a model to look; the questions of the first kind are those of POPE.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from prunehal.testbed.world.captions import (
    BRIEF,
    PLACES,
    PROMPT,
    adjectives,
    in_order,
    listed,
    noun_phrase,
    place_phrase,
    vocabulary,
)
from prunehal.testbed.world.scenes import Scene
from prunehal.testbed.world.world import COMPANIONS, NAMES

__all__ = ["is_there", "known_prompts", "known_words", "presence", "what_is", "where_is"]

_NOTHING = "Nothing."


def is_there(name: str) -> str:
    """Return the question whether an object is in the image.

    >>> is_there("dog")
    'Is there a dog in the image?'
    """
    return f"Is there {noun_phrase(name)} in the image?"


def presence(scene: Scene, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Draw questions whether a thing is there: half about things that are, half about things that are not.

    Half of the absent things are usual here: companions of what is there, or other usual objects of such a scene.
    """
    usual = {name for name in scene.type.objects} | {COMPANIONS[name][0] for name in scene.names if name in COMPANIONS}
    asked = []
    for number in range(count):
        if number % 2 == 0:
            asked.append((is_there(_pick(sorted(scene.names), rng)), "Yes."))
        else:
            pool = usual if rng.random() < 0.5 else set(NAMES)
            asked.append((is_there(_pick(sorted(pool - scene.names) or sorted(set(NAMES) - scene.names), rng)), "No."))
    return asked


def where_is(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Ask where one of the objects stands."""
    thing = _pick(scene.objects, rng)
    place = place_phrase(thing)
    return _where(thing.name), f"{place[0].upper()}{place[1:]}."


def what_is(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Ask what stands at a place: mostly one where something does."""
    occupied = {place_phrase(o) for o in scene.objects}
    every = [place for row in PLACES for place in row]
    place = _pick(sorted(occupied) if rng.random() < 0.8 else every, rng)
    things = [noun_phrase(o.name, adjectives(o)) for o in in_order(scene) if place_phrase(o) == place]
    answer = f"{listed(things)}." if things else _NOTHING
    return f"What is {place}?", answer[0].upper() + answer[1:]


@cache
def known_prompts() -> tuple[str, ...]:
    """Return every prompt of the training: the two that ask for a caption, and the questions of each kind.

    >>> known_prompts()[:2], "Where is the dog?" in known_prompts()
    (('Describe this scene in detail.', 'Describe this scene briefly.'), True)
    """
    places = [f"What is {place}?" for row in PLACES for place in row]
    return (PROMPT, BRIEF, *map(is_there, NAMES), *map(_where, NAMES), *places)


def known_words() -> tuple[str, ...]:
    """Return every word and punctuation mark of captions, questions and answers, sorted."""
    asked = f"{is_there('cup')} Yes. No. Where is the cup? What is there? {_NOTHING}"
    return tuple(sorted({*vocabulary(), *re.findall(r"[A-Za-z]+|[.,?]", asked)}))


def _where(name: str) -> str:
    return f"Where is the {noun_phrase(name).split(maxsplit=1)[1]}?"


def _pick(options, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]
