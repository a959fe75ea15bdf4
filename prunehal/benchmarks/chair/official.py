"""The words of the two official CHAIR scorers, with their quirks: what each makes of the words of a caption.

`pattern` (Rohrbach et al.'s script; Maxlinn's standalone version; the POPE paper) takes the singular that the package
`pattern.en` gives each token. `wordnet` (OPERA, less-is-more, PAI, lmms-eval) takes the lemma that WordNet gives for the
token's part of speech. Both then join double words and look them up in the same list. Only words that can lead to a
listed word matter, so both are tables: shipped for `pattern`, whose package need not be installed, and made from WordNet's
own rules and lists for `wordnet`.

Quirks that both keep, because the numbers of papers hold them:
- the list is split at ", ", so that " motor bike" and " cheesecake" keep a leading space and never match; "iPhone" has a
  capital and "stove top oven" three words, and never match either;
- double words are sought two at a time, from left to right;
- when "toilet" and "seat" both occur anywhere, every "seat" is dropped;
- a hyphened word ("hot-dog"), and words that a full stop joins ("dog.the"), are one token and match nothing.
Of `pattern` alone: "bus" becomes "bu" and is never counted, "buses" is; "ties" becomes "ty", "skis" "ski".
Of `wordnet` alone: "men" stays "men"; a plural that is tagged as an adjective keeps its ending; "skiing" is "ski" where it
is tagged as a verb.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

from prunehal.benchmarks.chair.english import inflections, lemma, tags
from prunehal.files.paths import data_path
from prunehal.files.records import read_shipped

__all__ = ["double_words", "listed_nodes", "pattern_words", "wordnet_words"]

_WORDNET_POS = {"J": "a", "V": "v", "N": "n", "R": "r"}  # first letter of a tag; all others count as nouns


@cache
def listed_nodes() -> dict[str, str]:
    """Return the listed words and the COCO category of each, split as the scripts split them.

    >>> nodes = listed_nodes()
    >>> nodes["sofa"], nodes[" motor bike"], "motor bike" in nodes
    ('couch', 'motorcycle', False)
    """
    rows = data_path("chair", "synonyms.txt").read_text(encoding="utf-8").splitlines()
    names = [row.strip().split(", ") for row in rows if row.strip()]
    return {name: row[0] for row in names for name in row}


@cache
def double_words() -> dict[str, str]:
    """Return the double words and the word that stands for each.

    >>> double_words()["baby zebra"], double_words()["wine glas"], double_words()["hot dog"]
    ('zebra', 'wine glass', 'hot dog')
    """
    lists = read_shipped("chair", "double_words.json")
    joined = {phrase: phrase for phrase in lists["double_words"]}
    for first in ("baby", "adult"):
        joined |= {f"{first} {animal}": animal for animal in lists["baby_or_adult_becomes_the_animal"]}
    joined |= {f"passenger {vehicle}": vehicle for vehicle in lists["passenger_becomes_the_vehicle"]}
    return joined | lists["rewritten"]


@cache
def pattern_words() -> Callable[[list[str]], list[str]]:
    """Return the function from tokens to the singulars of ``pattern.en``, exact for every word that matters.

    >>> pattern_words()(["two", "buses", "and", "a", "bus"])
    ['two', 'bus', 'and', 'a', 'bu']
    """
    singulars = read_shipped("chair", "pattern_singulars.json")

    def words(tokens: list[str]) -> list[str]:
        return [singulars.get(token, token) for token in tokens]

    return words


@cache
def wordnet_words() -> Callable[[list[str]], list[str]]:
    """Return the function from tokens to WordNet's lemmas for their parts of speech, exact for every word that matters.

    >>> wordnet_words()(["two", "buses", "and", "men", "skiing"])
    ['two', 'bus', 'and', 'men', 'ski']
    """
    table = {word: {pos: lemma(word, pos) for pos in "nvar"} for word in inflections(_words_that_matter())}
    plain = {word: forms["n"] for word, forms in table.items() if len(set(forms.values())) == 1}
    tagged = {word: forms for word, forms in table.items() if word not in plain}

    def words(tokens: list[str]) -> list[str]:
        found = [plain.get(token, token) for token in tokens]
        unsure = [i for i, token in enumerate(tokens) if token in tagged]
        for i, tag in tags(tokens, unsure).items():
            found[i] = tagged[tokens[i]][_WORDNET_POS.get(tag[0], "n")]
        return found

    return words


def _words_that_matter() -> Iterable[str]:
    return {word for name in [*listed_nodes(), *double_words()] for word in name.split()}
