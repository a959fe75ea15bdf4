"""How alike two words are, for AMBER: the official spaCy vectors, vectors of your own, or plain equality.

The official script takes a word for one of an image's words when the cosine of their ``en_core_web_lg`` vectors is above
0.8. That model is large and no dependency here, so equality is the default. Scores under different similarities are not
comparable: name the one used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from prunehal.files.reading import convert, read_json, reading

__all__ = ["Similarity", "load_similarity"]

Similarity = Callable[[str, str], float]

_SPACY_MODEL = "en_core_web_lg"
_LARGEST = 1e100  # so that the length of a vector stays finite


def load_similarity(similarity: str | Path | Similarity) -> tuple[str, Similarity]:
    """Return the name of a similarity, for reports, and its function, which remembers pairs.

    Args:
        similarity: ``exact`` (1 for equal words, otherwise 0); ``spacy`` (the official one); the path of a JSON table
            ``{word: [numbers]}``, whose cosine is taken (0 for a word that is missing or all zeros); or a function of two
            words: the noun of the response, then the word of the image.

    Raises:
        ValueError: an unknown name, no such file, or spaCy or its model is not installed.
        BadInput: the table's file cannot be read, or holds something else.

    >>> name, similar = load_similarity("exact")
    >>> name, similar("dog", "dog"), similar("dog", "puppy")
    ('exact', 1.0, 0.0)
    """
    if callable(similarity):
        return getattr(similarity, "__name__", repr(similarity)), cache(similarity)
    if similarity == "exact":
        return "exact", lambda word, other: float(word == other)
    if similarity == "spacy":
        return f"spacy/{_SPACY_MODEL}", cache(_spacy())
    if not Path(similarity).is_file():
        raise ValueError(f"unknown similarity {str(similarity)!r}; expected exact, spacy, or a JSON file {{word: [numbers]}}")
    return str(similarity), cache(_cosine(Path(similarity)))


def _cosine(path: Path) -> Similarity:
    value = read_json(path)
    with reading(path):
        table = convert(value, dict[str, list[float]])
        if not table:
            raise ValueError("it holds no word; expected a table {word: [numbers]} with at least one")
        units = _units(table)

    def cosine(word: str, other: str) -> float:
        return float(units[word] @ units[other]) if word in units and other in units else 0.0

    return cosine


def _units(table: dict[str, list[float]]) -> dict[str, np.ndarray]:
    """Return each vector divided by its length; one of zeros stays."""
    units = {}
    for word, numbers in table.items():
        if not numbers or not all(-_LARGEST < number < _LARGEST for number in numbers):
            raise ValueError(f"the vector of {word!r} is {repr(numbers)[:40]}; expected a list of finite numbers")
        vector = np.array(numbers, dtype=np.float64)
        units[word] = vector / (np.linalg.norm(vector) or 1.0)
    first = next(iter(units))
    if other := next((word for word in units if len(units[word]) != len(units[first])), None):
        raise ValueError(
            f"{first!r} has {len(units[first])} numbers and {other!r} {len(units[other])}; expected vectors of one length"
        )
    return units


def _spacy() -> Similarity:
    try:
        import spacy

        parse = cache(spacy.load(_SPACY_MODEL))
    except (ImportError, OSError) as error:
        raise ValueError(
            f"similarity='spacy' needs spaCy and its model {_SPACY_MODEL} ({error}); install both with `pip install spacy` and "
            f"`python -m spacy download {_SPACY_MODEL}`, or use similarity='exact' or a JSON file {{word: [numbers]}}"
        ) from error

    def similarity(word: str, other: str) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # spaCy warns of words without a vector; their similarity is 0
            return parse(word).similarity(parse(other))

    return similarity
