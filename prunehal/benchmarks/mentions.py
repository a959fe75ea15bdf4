"""Find the objects that a caption names: word lists, joining rules and singulars of CHAIR.

A scorer is named, because scorers in use give different numbers. `fixed` keeps the official word lists and joining
rules, and drops the faults of string handling that the official scripts have: "bus" stays "bus", "men" is "man",
"motor bike", "cheesecake", "iPhone", "sports ball" and "stove top oven" match, and a word is found beside any
punctuation ("dog/cat", "dog.The", "hot-dog"). It knows no word senses: an orange ball counts as an orange, as in the
official scripts, and "baby X" is joined for the twelve listed animals only.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from prunehal.resources import data_path

__all__ = ["ChairScorer", "Mention", "load_scorer"]

Token = tuple[str, int, int]  # normalised word, first character, one past the last character

# A possessive 's is no part of its word; each punctuation mark is a token, so that no phrase is joined across one.
_TOKEN = re.compile(r"[^\W_]+(?:(?:-|['’](?!s\b))[^\W_]+)*|[^\w\s]|_", re.IGNORECASE)
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Mention:
    """One object named in a caption; `caption[start:end]` is the text that names it.

    Attributes:
        word: the text as written, in lower case ("hot dogs").
        node: the COCO category it stands for ("hot dog").
        start, end: character span in the caption.
        word_index: 0-based index of its first word among the caption's words.
        index: 0-based order among the caption's mentions.
    """

    word: str
    node: str
    start: int
    end: int
    word_index: int
    index: int


@dataclass(frozen=True)
class ChairScorer:
    """Find the objects that a caption names; `load_scorer` builds one.

    Attributes:
        name: shown in every table, because scorers differ.
        read: caption -> its tokens, each a normalised (singular, lower-case) word with its character span.
        phrases: first word -> ((further words, the word that stands for the whole), ...); the first fit is taken.
        nodes: word or phrase -> COCO category.
    """

    name: str
    read: Callable[[str], list[Token]]
    phrases: Mapping[str, tuple[tuple[list[str], str], ...]]
    nodes: Mapping[str, str]

    def mentions(self, caption: str) -> list[Mention]:
        """List the objects named in a caption, in order, repeats kept.

        >>> [(m.word, m.node) for m in load_scorer().mentions("Two men eat hot dogs by a passenger train.")]
        [('men', 'person'), ('hot dogs', 'hot dog'), ('passenger train', 'train')]
        """
        tokens = self.read(caption)
        words = [token[0] for token in tokens]
        found: list[Token] = []
        i = 0
        while i < len(words):
            unit, last = words[i], i
            for further, joined in self.phrases.get(unit, ()):
                if words[i + 1 : i + 1 + len(further)] == further:
                    unit, last = joined, i + len(further)
                    break
            if unit in self.nodes:
                found.append((unit, tokens[i][1], tokens[last][2]))
            i = last + 1
        named = {unit for unit, _, _ in found}
        if {"toilet", "seat"} <= named:  # the official rule: the seat of a toilet is no chair
            found = [token for token in found if token[0] != "seat"]
        if not found:
            return []
        starts = [word.start() for word in _WORD.finditer(caption)]
        return [
            Mention(
                " ".join(caption[start:end].lower().split()),
                self.nodes[unit],
                start,
                end,
                bisect_right(starts, start) - 1,
                index,
            )
            for index, (unit, start, end) in enumerate(found)
        ]


def _fixed() -> ChairScorer:
    rows = data_path("chair", "synonyms.txt").read_text(encoding="utf-8").lower().splitlines()
    names = [[name.strip() for name in row.split(",")] for row in rows if row.strip()]
    nodes = {name: row[0] for row in names for name in row}  # a row starts with its COCO category
    lists = json.loads(data_path("chair", "double_words.json").read_text(encoding="utf-8"))
    joined = {phrase: phrase for phrase in [*lists["double_words"], *nodes] if " " in phrase}
    for first in ("baby", "adult"):
        joined |= {f"{first} {animal}": animal for animal in lists["baby_or_adult_becomes_the_animal"]}
    joined |= {f"passenger {vehicle}": vehicle for vehicle in lists["passenger_becomes_the_vehicle"]}
    joined |= {"bow tie": "tie", "toilet seat": "toilet"}
    phrases: dict[str, list[tuple[list[str], str]]] = {}
    for phrase, meaning in joined.items():
        first, *further = phrase.split()
        phrases.setdefault(first, []).append((further, meaning))
    listed = {word for name in [*nodes, *joined] for word in name.split()}

    @lru_cache(maxsize=1)
    def inflection():
        import inflect  # takes a second or more to import, and only scoring needs it

        return inflect.engine()

    @lru_cache(maxsize=1 << 17)
    def singular(word: str) -> str:
        # A listed word is never taken for a plural: inflect would make "bu" of "bus" and "tenni" of "tennis".
        return word if word in listed else inflection().singular_noun(word) or word

    def read(caption: str) -> list[Token]:
        tokens: list[Token] = []
        for match in _TOKEN.finditer(caption):
            word, start = singular(match.group().lower()), match.start()
            if "-" in word and word.replace("-", " ") in joined:
                for part in re.finditer(r"[^-]+", match.group()):
                    tokens.append((singular(part.group().lower()), start + part.start(), start + part.end()))
            else:
                tokens.append((word, start, match.end()))
        return tokens

    return ChairScorer("fixed", read, {first: tuple(rest) for first, rest in phrases.items()}, nodes)


_SCORERS: dict[str, Callable[[], ChairScorer]] = {"fixed": _fixed}


@lru_cache(maxsize=len(_SCORERS))
def load_scorer(name: str = "fixed") -> ChairScorer:
    """Load a scorer by name from the shipped word lists; loaded once per process.

    Raises:
        ValueError: no scorer has this name.

    >>> load_scorer("fixed").nodes["sofa"]
    'couch'
    """
    if name not in _SCORERS:
        raise ValueError(f"unknown CHAIR scorer {name!r}; expected one of {sorted(_SCORERS)}; pass one of these names")
    return _SCORERS[name]()
