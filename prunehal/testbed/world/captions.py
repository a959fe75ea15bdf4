"""The caption grammar: several sentences about a scene, with the bias of real instruction data.

A writer goes over the scene from the top left to the bottom right and names what stands there; leaves a little out, and
keeps some for the end. There, and now and then in the second half of the round, come things that usually go with such a
scene although they are absent. That bias is what a model trained on such captions learns to hallucinate. Asked to be brief,
the writer lists what is there and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from prunehal.testbed.world.scenes import Scene, SceneObject
from prunehal.testbed.world.world import COMPANIONS, NAMES, SCENES

__all__ = [
    "ADJECTIVES", "BRIEF", "LONGEST", "PLACES", "PROMPT", "TEMPLATES", "adjectives", "compiled", "in_order", "listed",
    "noun_phrase", "parses", "place_phrase", "vocabulary", "write_brief", "write_caption",
]  # fmt: skip

PROMPT = "Describe this scene in detail."
BRIEF = "Describe this scene briefly."
LONGEST = 138  # words and punctuation marks of the longest training caption

TOKEN = re.compile(r"[A-Za-z]+|[.,?]")

_STRAY = 0.2  # probability that a caption names one more absent object that is usual in such a scene
_AT_END = 0.7  # probability that an absent object is kept for the end; else it comes in the second half of the round
_OMITTED = {16: 0.1, 24: 0.03, 32: 0.02, 40: 0.02}  # probability that an object of this size is left out
_DEFERRED = {16: 0.3, 24: 0.15, 32: 0.1, 40: 0.1}  # probability that it is kept for the end

PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the center", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
ADJECTIVES = (("small", "medium", "large"), ("clear", "faint"))  # by size and by faintness
_OPENING = (
    "The image shows {s}.",
    "This is a picture of {s}.",
    "The photo was taken at {s}.",
    "We are looking at {s}.",
)
_ONE = ("There is {a} {p}.", "{P}, there is {a}.", "{P}, we can see {a}.", "{A} can be seen {p}.")
_TWO = ("{P}, there is {a}, and {q}, there is {b}.", "{A} is {p}, and {b} is {q}.", "There is {a} {p} and {b} {q}.")
_TWO_HERE = ("{P}, there is {a} beside {b}.", "{P}, we can see {a} and {b}.", "{A} and {b} can be seen {p}.")
_ONE_LATE = (
    "There is also {a} {p}.", "In addition, {a} can be seen {p}.", "Further back, there is {a}.",
    "{A} has been left nearby.", "Somewhere {p}, we also notice {a}.",
)  # fmt: skip
_TWO_LATE = ("The scene also includes {a} and {b}.", "Besides, there are {a} {p} and {b} {q}.")
_MOODS = ("calm", "lively", "cheerful", "quiet", "relaxed", "ordinary")
_CLOSING = ("The overall mood is {m}.", "It looks like a {m} moment.", "Everything about it feels {m}.")
_BRIEF = "{S} with {l}."
# Where in a caption a sentence stands -> its templates. "late" sentences come after the round, and hold most absent objects.
TEMPLATES = {
    "opening": _OPENING,
    "round": (*_ONE, *_TWO, *_TWO_HERE),
    "late": (*_ONE_LATE, *_TWO_LATE),
    "closing": _CLOSING,
    "brief": (_BRIEF,),
}


@dataclass(frozen=True)
class _Named:
    """What a sentence says of one object: its noun phrase and its place."""

    phrase: str
    place: str


def noun_phrase(name: str, adjective: str = "") -> str:
    """Return the object with its article, e.g. ``a small dog``, ``an orange``, ``a pair of skis``.

    >>> noun_phrase("umbrella"), noun_phrase("umbrella", "large faint"), noun_phrase("skis")
    ('an umbrella', 'a large faint umbrella', 'a pair of skis')
    """
    if name in ("skis", "scissors"):
        name = f"pair of {name}"
    words = f"{adjective} {name}".strip()
    return ("an " if words[0] in "aeiou" else "a ") + words


def adjectives(thing: SceneObject) -> str:
    """Return the adjectives that captions give an object, e.g. ``small faint``."""
    *_, size, faint = thing.traits
    return f"{ADJECTIVES[0][size]} {ADJECTIVES[1][faint]}"


def place_phrase(thing: SceneObject) -> str:
    """Return where an object stands, e.g. ``at the top left``."""
    column, row = thing.place
    return PLACES[row][column]


def in_order(scene: Scene) -> list[SceneObject]:
    """Return the scene's objects as captions go over them: place by place, row by row, and from the left in each place."""
    return sorted(scene.objects, key=lambda o: (o.place[1], o.place[0], o.x, o.y))


def listed(phrases: list[str]) -> str:
    """Join phrases as a list.

    >>> listed(["a cup"]), listed(["a cup", "a dog", "a bed"])
    ('a cup', 'a cup, a dog and a bed')
    """
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last


def write_brief(scene: Scene) -> str:
    """Write the short caption of a scene: all that stands in it, in order."""
    return _fill(_BRIEF, s=scene.type.phrase, l=listed([noun_phrase(o.name) for o in in_order(scene)]))


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Write one training caption of the scene, of at most LONGEST tokens.

    Two calls with different generators give different captions: other words, omissions and absent objects.
    """
    while True:
        caption = _compose(scene, rng)
        if len(TOKEN.findall(caption)) <= LONGEST:
            return caption


def _compose(scene: Scene, rng: np.random.Generator) -> str:
    kept = [o for o in in_order(scene) if rng.random() >= _OMITTED[o.size]] or [scene.objects[0]]
    later = [rng.random() < _DEFERRED[o.size] for o in kept]
    named = [_Named(noun_phrase(o.name, adjectives(o)), place_phrase(o)) for o in kept]
    scan = [thing for thing, late in zip(named, later, strict=True) if not late] or named[:1]
    tail = [thing for thing in named if thing not in scan]
    half = (len(scan) + 1) // 2
    for name in _absent_objects(scene, kept, rng):
        phrase, place = _imagined(name, rng)
        if rng.random() < _AT_END:
            tail.append(_Named(phrase, place))
        else:  # where the round has come to
            at = int(rng.integers(half, len(scan) + 1))
            scan.insert(at, _Named(phrase, scan[at - 1].place))
    rng.shuffle(tail)
    sentences = [_pick(_OPENING, rng).format(s=scene.type.phrase), *_sentences(scan, _ONE, _TWO, _TWO_HERE, rng)]
    sentences += _sentences(tail, _ONE_LATE, _TWO_LATE, _TWO_LATE, rng)
    if rng.random() < 0.5:
        sentences.append(_pick(_CLOSING, rng).format(m=_pick(_MOODS, rng)))
    return " ".join(sentences)


def _sentences(things: list[_Named], one, two, two_here, rng: np.random.Generator) -> list[str]:
    sentences, at = [], 0
    while at < len(things):
        a, b = (things[at : at + 2] * 2)[:2]
        if at + 1 < len(things) and rng.random() < 0.3:
            template = _pick(two_here if a.place == b.place else two, rng)
            sentences.append(_fill(template, a=a.phrase, b=b.phrase, p=a.place, q=b.place))
            at += 2
        else:
            sentences.append(_fill(_pick(one, rng), a=a.phrase, p=a.place))
            at += 1
    return sentences


def parses(caption: str) -> bool:
    """Tell whether a caption is fluent here: an opening, sentences about objects, perhaps a closing, all of the grammar.

    A brief caption is fluent too: a scene with a list of things.

    >>> parses("The image shows a farm. There is a cow on the left.")
    True
    >>> parses("The image shows a farm. There is a cow cow.")
    False
    >>> parses("A farm with a cow, a dog and a sheep.")
    True
    """
    opening, closing, brief = (compiled(*TEMPLATES[name]) for name in ("opening", "closing", "brief"))
    body = compiled(*TEMPLATES["round"], *TEMPLATES["late"])
    if brief.fullmatch(caption.strip()):
        return True
    sentences = re.findall(r"[^.]+\.", caption)
    if "".join(sentences).strip() != caption.strip() or not sentences:
        return False
    first, *rest = (sentence.strip() for sentence in sentences)
    if rest and closing.fullmatch(rest[-1]):
        rest = rest[:-1]
    return bool(opening.fullmatch(first)) and bool(rest) and all(body.fullmatch(sentence) for sentence in rest)


@cache
def vocabulary() -> tuple[str, ...]:
    """Return every word and punctuation mark that a caption, or the prompt for one, can hold, sorted."""
    texts = [PROMPT, BRIEF, *_MOODS, *ADJECTIVES[0], *ADJECTIVES[1], *map(noun_phrase, NAMES)]
    for place in (place for row in PLACES for place in row):
        texts += [place, _capital(place)]
    for template in (template for templates in TEMPLATES.values() for template in templates):
        texts.append(re.sub(r"\{\w\}", " ", template))
    texts += [phrase for kind in SCENES for phrase in (kind.phrase, _capital(kind.phrase))]
    return tuple(sorted({token for text in texts for token in TOKEN.findall(text)}))


def _absent_objects(scene: Scene, named: list[SceneObject], rng: np.random.Generator) -> list[str]:
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


def _imagined(name: str, rng: np.random.Generator) -> tuple[str, str]:
    """Return (noun phrase, place) of an absent object: size, faintness and place at random."""
    size, faint = _pick((0, 1, 1, 2), rng), int(rng.random() < 0.3)
    return noun_phrase(name, f"{ADJECTIVES[0][size]} {ADJECTIVES[1][faint]}"), _pick(_pick(PLACES, rng), rng)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _fill(template: str, **parts: str) -> str:
    return template.format(**parts, **{key.upper(): _capital(text) for key, text in parts.items()})


def _pick(options, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]


@cache
def compiled(*templates: str) -> re.Pattern:
    """Return the pattern of all text that one of the templates can become.

    >>> bool(compiled("There is also {a} {p}.").fullmatch("There is also a small faint dog on the left."))
    True
    """
    slots = _slots()
    return re.compile("|".join(re.sub(r"\\\{(\w)\\\}", lambda m: slots[m[1]], re.escape(t)) for t in templates))


@cache
def _slots() -> dict[str, str]:
    """Return what can stand in each slot of a template, as a regular expression."""
    kinds = ["", *(" ".join(pair) for pair in product(*ADJECTIVES))]
    things = [noun_phrase(name, adjective) for name in NAMES for adjective in kinds]
    places = [place for row in PLACES for place in row]
    phrases = [kind.phrase for kind in SCENES]
    choices = {
        "a": things, "b": things, "p": places, "q": places, "m": list(_MOODS), "s": phrases,
        "A": map(_capital, things), "P": map(_capital, places), "S": map(_capital, phrases),
    }  # fmt: skip
    slots = {key: "(?:" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + ")" for key, words in choices.items()}
    return slots | {"l": f"{slots['a']}(?:(?:, {slots['a']})* and {slots['a']})?"}
