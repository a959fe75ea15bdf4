"""Find the objects that a caption names: word lists, joining rules and singulars of CHAIR.

A scorer is named, because scorers in use give different numbers. `pattern` and `wordnet` equal the official scripts, with
their quirks (see `official`). `fixed` keeps the official word lists and joining rules, and drops the faults of string
handling that the official scripts have: "bus" stays "bus", "men" is "man", "motor bike", "cheesecake", "iPhone", "sports
ball" and "stove top oven" match, and a word is found beside any punctuation ("dog/cat", "dog.The", "hot-dog"). It knows
no word senses: an orange ball counts as an orange, as in the official scripts, and "baby X" is joined for the twelve
listed animals only.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from prunehal.benchmarks.chair.english import spans as token_spans
from prunehal.benchmarks.chair.english import tokenize
from prunehal.benchmarks.chair.official import double_words, listed_nodes, pattern_words, wordnet_words
from prunehal.files.paths import data_path

__all__ = ["ChairScorer", "Mention", "load_scorer"]

Span = tuple[int, int]  # first character, one past the last character

# A possessive 's is no part of its word; each punctuation mark is a token, so that no phrase is joined across one.
_TOKEN = re.compile(r"[^\W_]+(?:(?:-|['’](?!s\b))[^\W_]+)*|[^\w\s]|_", re.IGNORECASE)
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Mention:
    """One object named in a caption; `caption[start:end]` is the text that names it.

    Attributes:
        word: the text as written, in lower case ("hot dogs").
        term: the singular word or double word that was looked up ("hot dog"); what the official scripts print.
        node: the COCO category it stands for ("hot dog").
        start, end: character span in the caption.
        word_index: 0-based index of its first word among the caption's words.
        index: 0-based order among the caption's mentions.
    """

    word: str
    term: str
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
        read: caption -> its tokens as normalised (singular, lower-case) words, and their character spans.
        phrases: first word -> ((further words, the word that stands for the whole), ...); the first fit is taken.
        nodes: word or phrase -> COCO category.
    """

    name: str
    read: Callable[[str], tuple[list[str], list[Span]]]
    phrases: Mapping[str, tuple[tuple[list[str], str], ...]]
    nodes: Mapping[str, str]

    def mentions(self, caption: str) -> list[Mention]:
        """List the objects named in a caption, in order, repeats kept.

        >>> [(m.word, m.node) for m in load_scorer().mentions("Two men eat hot dogs by a passenger train.")]
        [('men', 'person'), ('hot dogs', 'hot dog'), ('passenger train', 'train')]
        """
        return self.scan(caption)[0]

    def scan(self, caption: str) -> tuple[list[Mention], int]:
        """Return the mentions, and the number of words once double words are joined: the length that OPERA's script prints."""
        words, spans = self.read(caption)
        found: list[tuple[str, int, int]] = []
        i = length = 0
        while i < len(words):
            term, last = words[i], i
            for further, joined in self.phrases.get(term, ()):
                if words[i + 1 : i + 1 + len(further)] == further:
                    term, last = joined, i + len(further)
                    break
            if term in self.nodes:
                found.append((term, spans[i][0], spans[last][1]))
            i = last + 1
            length += 1
        terms = {term for term, _, _ in found}
        if {"toilet", "seat"} <= terms:  # the official rule: the seat of a toilet is no chair
            found = [mention for mention in found if mention[0] != "seat"]
        if not found:
            return [], length
        starts = [word.start() for word in _WORD.finditer(caption)]
        mentions = [
            Mention(
                " ".join(caption[start:end].lower().split()),
                term,
                self.nodes[term],
                start,
                end,
                bisect_right(starts, start) - 1,
                index,
            )
            for index, (term, start, end) in enumerate(found)
        ]
        return mentions, length


def _fixed() -> ChairScorer:
    rows = data_path("chair", "synonyms.txt").read_text(encoding="utf-8").lower().splitlines()
    names = [[name.strip() for name in row.split(",")] for row in rows if row.strip()]
    nodes = {name: row[0] for row in names for name in row}  # a row starts with its COCO category
    joined = {phrase: phrase for phrase in nodes if " " in phrase} | double_words()
    del joined["wine glas"]  # a singular of `pattern` that is no word here
    listed = {word for name in [*nodes, *joined] for word in name.split()}

    @lru_cache(maxsize=1)
    def inflection():
        import inflect  # takes a second or more to import, and only scoring needs it

        return inflect.engine()

    @lru_cache(maxsize=1 << 17)
    def singular(word: str) -> str:
        # A listed word is never taken for a plural: inflect would make "bu" of "bus" and "tenni" of "tennis".
        return word if word in listed else inflection().singular_noun(word) or word

    def read(caption: str) -> tuple[list[str], list[Span]]:
        words, spans = [], []
        for match in _TOKEN.finditer(caption):
            word, start = singular(match.group().lower()), match.start()
            if "-" in word and word.replace("-", " ") in joined:
                for part in re.finditer(r"[^-]+", match.group()):
                    words.append(singular(part.group().lower()))
                    spans.append((start + part.start(), start + part.end()))
            else:
                words.append(word)
                spans.append(match.span())
        return words, spans

    return ChairScorer("fixed", read, _by_first_word(joined), nodes)


def _official(name: str, words: Callable[[], Callable[[list[str]], list[str]]]) -> ChairScorer:
    normalised = words()
    # The scripts look at two words at a time, so that "stove top oven" is never joined.
    pairs = {phrase: meaning for phrase, meaning in double_words().items() if phrase.count(" ") == 1}

    def read(caption: str) -> tuple[list[str], list[Span]]:
        lowered = caption.lower()
        tokens = tokenize(lowered)
        found = token_spans(lowered, tokens)
        if len(lowered) != len(caption):  # a letter can become two when it is put in lower case
            origin = [i for i, letter in enumerate(caption) for _ in letter.lower()] + [len(caption)]
            found = [(origin[start], origin[end - 1] + 1) for start, end in found]
        return normalised(tokens), found

    return ChairScorer(name, read, _by_first_word(pairs), listed_nodes())


def _by_first_word(joined: Mapping[str, str]) -> dict[str, tuple[tuple[list[str], str], ...]]:
    phrases: dict[str, tuple[tuple[list[str], str], ...]] = {}
    for phrase, meaning in joined.items():
        first, *further = phrase.split()
        phrases[first] = (*phrases.get(first, ()), (further, meaning))
    return phrases


_SCORERS: dict[str, Callable[[], ChairScorer]] = {
    "fixed": _fixed,
    "pattern": lambda: _official("pattern", pattern_words),
    "wordnet": lambda: _official("wordnet", wordnet_words),
}


@lru_cache(maxsize=len(_SCORERS))
def load_scorer(name: str = "fixed") -> ChairScorer:
    """Load a scorer by name, `fixed`, `pattern` or `wordnet`, from the shipped word lists; loaded once per process.

    Raises:
        ValueError: no scorer has this name.

    >>> load_scorer("fixed").nodes["sofa"]
    'couch'
    """
    if name not in _SCORERS:
        raise ValueError(f"unknown CHAIR scorer {name!r}; expected one of {sorted(_SCORERS)}; pass one of these names")
    return _SCORERS[name]()
