"""The caption grammar: several sentences about a scene, with the bias of real instruction data.

A writer names what stands in the scene, the salient first, leaves out some of the small, and, mostly in the second half,
names things that usually go with such a scene although they are absent. That bias is what a model trained on such
captions learns to hallucinate.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from prunehal.testbed.scenes import Scene, SceneObject
from prunehal.testbed.world import COMPANIONS, NAMES, SCENES

__all__ = ["LONGEST", "PROMPT", "noun_phrase", "parses", "vocabulary", "write_caption"]

PROMPT = "Describe this scene in detail."
LONGEST = 63  # words and punctuation marks of the longest training caption

_TOKEN = re.compile(r"[A-Za-z]+|[.,]")

_STRAY = 0.2  # probability that a caption names one more absent object that is usual in such a scene
_AT_END = 0.7  # probability that an absent object is named last; else somewhere in the second half
_OMITTED = {16: 0.18, 24: 0.06, 32: 0.03, 40: 0.03}  # probability that an object of this size is left out

_PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the center", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
_OPENING = (
    "The image shows {s}.",
    "This is a picture of {s}.",
    "The photo was taken at {s}.",
    "We are looking at {s}.",
)
_ONE = ("There is {a} {p}.", "{P}, there is {a}.", "{A} can be seen {p}.", "{A} is visible {p}.")
_ONE_LATE = (
    "There is also {a} {p}.", "In addition, {a} can be seen {p}.", "Further back, there is {a}.",
    "{A} has been left nearby.", "Somewhere {p}, we also notice {a}.",
)  # fmt: skip
_TWO = ("{A} is {p}, and {b} is {q}.", "There is {a} {p} and {b} {q}.", "{A} and {b} are visible in the scene.")
_TWO_LATE = ("The scene also includes {a} and {b}.", "Besides, there are {a} {p} and {b} {q}.")
_MOODS = ("calm", "lively", "cheerful", "quiet", "relaxed", "ordinary")
_CLOSING = ("The overall mood is {m}.", "It looks like a {m} moment.", "Everything about it feels {m}.")


def noun_phrase(name: str, size: str = "") -> str:
    """Return the object with its article, e.g. ``a small dog``, ``an orange``, ``a pair of skis``.

    >>> noun_phrase("umbrella"), noun_phrase("umbrella", "large"), noun_phrase("skis")
    ('an umbrella', 'a large umbrella', 'a pair of skis')
    """
    if name in ("skis", "scissors"):
        name = f"pair of {name}"
    words = f"{size} {name}".strip()
    return ("an " if words[0] in "aeiou" else "a ") + words


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Write one training caption of the scene, of at most LONGEST tokens.

    Two calls with different generators give different captions: other order, words, omissions and absent objects.
    """
    while True:
        caption = _compose(scene, rng)
        if len(_TOKEN.findall(caption)) <= LONGEST:
            return caption


def _compose(scene: Scene, rng: np.random.Generator) -> str:
    present = sorted(scene.objects, key=lambda o: -o.size + 7.0 * rng.standard_normal())
    named: list[SceneObject | str] = [o for o in present if rng.random() >= _OMITTED[o.size]] or [present[0]]
    half = (len(named) + 1) // 2
    for name in _absent_objects(scene, named, rng):
        named.insert(len(named) if rng.random() < _AT_END else int(rng.integers(half, len(named) + 1)), name)
    sentences = [_pick(_OPENING, rng).format(s=scene.type.phrase)]
    at = 0
    while at < len(named):
        late = at >= 2 and rng.random() < 0.6
        if len(named) - at >= 2 and rng.random() < 0.4:
            template = _pick(_TWO_LATE if late else _TWO, rng)
            (a, p), (b, q) = _describe(named[at], rng), _describe(named[at + 1], rng)
            sentences.append(_fill(template, a=a, b=b, p=p, q=q))
            at += 2
        else:
            a, p = _describe(named[at], rng)
            sentences.append(_fill(_pick(_ONE_LATE if late else _ONE, rng), a=a, p=p))
            at += 1
    if rng.random() < 0.5:
        sentences.append(_pick(_CLOSING, rng).format(m=_pick(_MOODS, rng)))
    return " ".join(sentences)


def parses(caption: str) -> bool:
    """Tell whether a caption is fluent here: an opening, sentences about objects, perhaps a closing, all of the grammar.

    >>> parses("The image shows a farm. There is a cow on the left.")
    True
    >>> parses("The image shows a farm. There is a cow cow.")
    False
    """
    sentences = re.findall(r"[^.]+\.", caption)
    if "".join(sentences).strip() != caption.strip() or not sentences:
        return False
    opening, body, closing = _patterns()
    first, *rest = (sentence.strip() for sentence in sentences)
    if rest and closing.fullmatch(rest[-1]):
        rest = rest[:-1]
    return bool(opening.fullmatch(first)) and bool(rest) and all(body.fullmatch(sentence) for sentence in rest)


@cache
def vocabulary() -> tuple[str, ...]:
    """Return every word and punctuation mark that a prompt or a caption can hold, sorted."""
    texts = [PROMPT, *_MOODS, "small large", *(kind.phrase for kind in SCENES), *map(noun_phrase, NAMES)]
    for place in (place for row in _PLACES for place in row):
        texts += [place, place[0].upper() + place[1:]]
    for template in _OPENING + _ONE + _ONE_LATE + _TWO + _TWO_LATE + _CLOSING:
        texts.append(re.sub(r"\{\w\}", " ", template))
    texts.append("A An")
    return tuple(sorted({token for text in texts for token in _TOKEN.findall(text)}))


def _absent_objects(scene: Scene, named: list[SceneObject | str], rng: np.random.Generator) -> list[str]:
    """Draw what is named although absent: companions of what is named, by habit, and now and then a usual object."""
    absent: list[str] = []
    for o in named:
        companion, strength = COMPANIONS.get(o.name, (None, 0.0))
        if rng.random() < strength and companion not in scene.names and companion not in absent:
            absent.append(companion)
    usual = [name for name in scene.type.objects if name not in scene.names and name not in absent]
    if usual and rng.random() < _STRAY:
        absent.append(_pick(usual, rng))
    return absent


def _describe(thing: SceneObject | str, rng: np.random.Generator) -> tuple[str, str]:
    """Return (noun phrase, place); an absent object gets a place and a size at random."""
    if isinstance(thing, str):
        name, size = thing, _pick((16, 24, 24, 32, 40), rng)
        column, row = (int(v) for v in rng.integers(0, 3, size=2))
    else:
        name, size = thing.name, thing.size
        column, row = thing.place
    adjective = {16: "small", 40: "large"}.get(size, "") if rng.random() < 0.4 else ""
    return noun_phrase(name, adjective), _PLACES[row][column]


def _fill(template: str, **parts: str) -> str:
    capital = {key.upper(): text[0].upper() + text[1:] for key, text in parts.items()}
    return template.format(**parts, **capital)


def _pick(options, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]


@cache
def _patterns() -> tuple[re.Pattern, re.Pattern, re.Pattern]:
    """Compile the grammar: patterns of an opening, of a sentence about objects, and of a closing."""
    things = [noun_phrase(name, size) for name in NAMES for size in ("", "small", "large")]
    places = [place for row in _PLACES for place in row]
    choices = {
        "a": things, "b": things, "p": places, "q": places, "m": list(_MOODS), "s": [k.phrase for k in SCENES],
        "A": [t[0].upper() + t[1:] for t in things], "P": [p[0].upper() + p[1:] for p in places],
    }  # fmt: skip
    slots = {key: "(?:" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + ")" for key, words in choices.items()}

    def compiled(templates: tuple[str, ...]) -> re.Pattern:
        return re.compile("|".join(re.sub(r"\\\{(\w)\\\}", lambda m: slots[m[1]], re.escape(t)) for t in templates))

    return compiled(_OPENING), compiled(_ONE + _ONE_LATE + _TWO + _TWO_LATE), compiled(_CLOSING)
