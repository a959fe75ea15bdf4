"""Read English as the official scorers do: tokens, part-of-speech tags and lemmas that equal nltk's, fast and offline.

Tokens are those of ``nltk.word_tokenize``, tags those of ``nltk.pos_tag``, lemmas those of ``WordNetLemmatizer``. The
shipped models (``data/nltk``) are read directly, so that an nltk data folder of the user is neither needed nor hidden.
Two short cuts make scoring of whole corpora quick: a sentence of plain words is split without nltk's thirty regular
expressions, and a tag is computed only where it is asked for, back to the nearest words whose tag is fixed. The tests
compare both with nltk itself.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from functools import cache, lru_cache

from prunehal.files.paths import data_path

__all__ = ["inflections", "lemma", "spans", "tags", "tokenize"]

# Words of letters and digits, inner hyphens, a comma after a word, one full stop at the end: nltk's rules then do nothing but
# part the commas and the stop. Words that nltk cuts in two ("cannot") are left to it.
_PLAIN = re.compile(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:,?[ \n\t]+[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)*\.?")
_CUT = re.compile(r"(?i)cannot|gimme|gonna|gotta|lemme|wanna")

# The rules of WordNet's morphy: endings and what replaces them, for each part of speech.
_ENDINGS = {
    "n": {"s": "", "ses": "s", "ves": "f", "xes": "x", "zes": "z", "ches": "ch", "shes": "sh", "men": "man", "ies": "y"}.items(),
    "v": [("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")],
    "a": [("er", ""), ("est", ""), ("er", "e"), ("est", "e")],
    "r": [],
}
_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}


def tokenize(text: str) -> list[str]:
    """Split a text into the tokens of ``nltk.word_tokenize``.

    >>> tokenize("Two dogs, a cat. The man's hat.")
    ['Two', 'dogs', ',', 'a', 'cat', '.', 'The', 'man', "'s", 'hat', '.']
    """
    sentences, words = _tokenizers()
    tokens: list[str] = []
    for sentence in sentences.tokenize(text):
        if _PLAIN.fullmatch(sentence) and not _CUT.search(sentence):
            if "," in sentence:
                sentence = sentence.replace(",", " ,")
            if sentence.endswith("."):
                tokens += sentence[:-1].split()
                tokens.append(".")
            else:
                tokens += sentence.split()
        else:
            tokens += words.tokenize(sentence)
    return tokens


def spans(text: str, tokens: list[str]) -> list[tuple[int, int]]:
    """Return where each token of ``tokenize(text)`` stands in the text: its first character and one past its last.

    >>> spans('A "dog".', tokenize('A "dog".'))
    [(0, 1), (2, 3), (3, 6), (6, 7), (7, 8)]
    """
    found, at = [], 0
    quoted = '"' in text or "''" in text
    for token in tokens:
        start = text.find(token, at)
        if quoted and token in ("``", "''"):  # what nltk writes for a double quote
            quote = text.find('"', at)
            if quote >= 0 and (start < 0 or quote < start):
                start, token = quote, '"'
            elif start < 0:  # or for two single quotes that open
                start = text.find("''", at)
        found.append((start, start + len(token)))
        at = start + len(token)
    return found


def tags(tokens: list[str], wanted: Iterable[int]) -> dict[int, str]:
    """Return the tags that ``nltk.pos_tag(tokens)`` gives at the wanted indices.

    >>> tags(["Two", "dogs", "run", "."], [1, 2])
    {1: 'NNS', 2: 'VBP'}
    """
    _, fixed, _ = _tagger()
    known: dict[int, str] = {-1: "-START-", -2: "-START2-"}

    def tag(index: int) -> str | None:
        if index not in known and (sure := fixed.get(tokens[index])):
            known[index] = sure
        return known.get(index)

    found = {}
    for index in wanted:
        if tag(index) is None:
            # A tag depends on the two before it, so the chain starts where two in a row are known.
            start = index
            while start > 0 and (tag(start - 1) is None or tag(start - 2) is None):
                start -= 1
            for i in range(start, index + 1):
                if tag(i) is None:
                    around = [_normal(tokens[k]) if k < len(tokens) else "-END-" for k in range(max(i - 2, 0), i + 3)]
                    if i < 2:
                        around = ["-START-", "-START2-"][i:] + around
                    if i + 2 == len(tokens) + 1:
                        around[-1] = "-END2-"
                    known[i] = _predicted(tokens[i], *around, known[i - 1], known[i - 2])
        found[index] = known[index]
    return found


@lru_cache(maxsize=1 << 16)
def lemma(word: str, pos: str) -> str:
    """Return what ``WordNetLemmatizer().lemmatize(word, pos)`` returns; pos is n, v, a or r.

    >>> lemma("knives", "n"), lemma("skis", "n"), lemma("skis", "a"), lemma("men", "n")
    ('knife', 'ski', 'skis', 'men')
    """
    words, exceptions = _wordnet()[pos]
    forms = exceptions.get(word)
    if forms is None:
        forms = [word[: -len(ending)] + new for ending, new in _ENDINGS[pos] if word.endswith(ending)]
    return min((form for form in [word, *forms] if form in words), key=len, default=word)


def inflections(words: Iterable[str]) -> set[str]:
    """Return every word, of any length, that ``lemma`` can turn into one of the words, and the words themselves.

    >>> sorted(inflections(["calf"]))
    ['calf', 'calfed', 'calfer', 'calfes', 'calfest', 'calfing', 'calfs', 'calves']
    """
    wanted = set(words)
    found = set(wanted)
    for pos, endings in _ENDINGS.items():
        for ending, new in endings:
            found |= {word[: len(word) - len(new)] + ending for word in wanted if word.endswith(new)}
        found |= {form for form, forms in _wordnet()[pos][1].items() if not wanted.isdisjoint(forms)}
    return found


@lru_cache(maxsize=1 << 16)
def _normal(word: str) -> str:
    if "-" in word and word[0] != "-":
        return "!HYPHEN"
    if word.isdigit() and len(word) == 4:
        return "!YEAR"
    return "!DIGITS" if word[0].isdigit() else word.lower()


@lru_cache(maxsize=1 << 16)
def _predicted(word: str, last2: str, last: str, here: str, after: str, after2: str, before: str, before2: str) -> str:
    """Tag one token by the averaged perceptron; features and their order are nltk's, so that sums round alike."""
    weights, _, classes = _tagger()
    scores: dict[str, float] = defaultdict(float)
    for feature in (
        "bias", f"i suffix {word[-3:]}", f"i pref1 {word[0]}", f"i-1 tag {before}", f"i-2 tag {before2}",
        f"i tag+i-2 tag {before} {before2}", f"i word {here}", f"i-1 tag+i word {before} {here}", f"i-1 word {last}",
        f"i-1 suffix {last[-3:]}", f"i-2 word {last2}", f"i+1 word {after}", f"i+1 suffix {after[-3:]}", f"i+2 word {after2}",
    ):  # fmt: skip
        for label, weight in weights.get(feature, ()):
            scores[label] += weight
    return max(classes, key=lambda label: (scores[label], label))


@cache
def _tagger() -> tuple[dict[str, list[tuple[str, float]]], dict[str, str], list[str]]:
    """Load the perceptron: weights by feature and tag, the words whose tag is fixed, and all tags."""
    name = "averaged_perceptron_tagger_eng"
    with zipfile.ZipFile(data_path("nltk", "taggers", f"{name}.zip")) as archive:
        weights, fixed, classes = (
            json.loads(archive.read(f"{name}/{name}.{part}.json")) for part in ("weights", "tagdict", "classes")
        )
    return {feature: list(labels.items()) for feature, labels in weights.items()}, fixed, classes


@cache
def _wordnet() -> dict[str, tuple[frozenset[str], dict[str, list[str]]]]:
    """Load for each part of speech the words that WordNet holds, and its exceptional forms."""
    loaded = {}
    with zipfile.ZipFile(data_path("nltk", "corpora", "wordnet.zip")) as archive:
        for pos, name in _FILES.items():
            lines, exceptions = (
                archive.read(f"wordnet/{part}").decode().splitlines() for part in (f"index.{name}", f"{name}.exc")
            )
            words = frozenset(line.split(" ", 1)[0] for line in lines if not line.startswith(" "))
            loaded[pos] = words, {form: forms for form, *forms in map(str.split, exceptions)}
    return loaded


@cache
def _tokenizers():
    """Load nltk's sentence splitter, which remembers its decisions, and its word tokenizer."""
    from nltk.tokenize.destructive import NLTKWordTokenizer  # importing nltk takes half a second
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    class Sentences(PunktSentenceTokenizer):
        """The decision at a full stop depends on the words beside it alone, and these come again and again."""

        @lru_cache(maxsize=1 << 16)  # noqa: B019 - it lives as long as the process
        def text_contains_sentbreak(self, text: str) -> bool:
            return super().text_contains_sentbreak(text)

    parameters = PunktParameters()
    with zipfile.ZipFile(data_path("nltk", "tokenizers", "punkt_tab.zip")) as archive:
        lines = {
            name: [line.split("\t") for line in archive.read(f"punkt_tab/english/{name}").decode().splitlines()]
            for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")
        }
    parameters.collocations = {tuple(line) for line in lines["collocations.tab"]}
    parameters.sent_starters = {line[0] for line in lines["sent_starters.txt"]}
    parameters.abbrev_types = {line[0] for line in lines["abbrev_types.txt"]}
    parameters.ortho_context = defaultdict(int, {word: int(context) for word, context in lines["ortho_context.tab"]})
    return Sentences(parameters), NLTKWordTokenizer()
