"""AMBER: which of an image's annotated things a caption names, and what it names that is not there.

Source: Wang et al. 2023, "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation", arXiv
2311.07397; the rule is that of ``inference.py`` in junyangwang0410/AMBER. All numbers are pooled, in percent: CHAIR =
hallucinated nouns / nouns, Cover = truth words named / truth words, Hal = captions with a hallucinated noun / captions, Cog =
words named of those that people tend to imagine in the image (hallu) / such words. Yes-or-no questions are scored by
`score_discriminative`. CHAIR counts a noun as often as a caption names it, so that here, too, a caption that repeats a true noun
has a lower one; Cover, Hal and Cog count each word or caption once. Nothing is added beside these four: they are AMBER's own.

Quirks of the official script, kept because the numbers of papers hold them: only nouns of the 418 listed words count, in
exactly the listed case ("Dog" is none); a safe word counts as a noun but is never judged; a word that stands for several truth
words covers the first alone, and a truth word that is listed twice can be covered once only; a noun that is hallu and similar
to a truth word is no hallucination but counts for Cog; every denominator begins at 0.001.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from prunehal.benchmarks.amber.answers import score_answers, score_discriminative
from prunehal.benchmarks.amber.files import (
    annotations,
    associations,
    check_responses,
    initial_counters,
    queries,
    safe_words,
    write_responses,
)
from prunehal.benchmarks.amber.responses import read_responses
from prunehal.benchmarks.amber.similarity import Similarity, load_similarity
from prunehal.benchmarks.chair.english import lemma, tags, tokenize
from prunehal.files.reading import reading
from prunehal.files.records import Report

__all__ = ["nouns", "queries", "score_answers", "score_captions", "score_discriminative", "score_generative", "write_responses"]


def nouns(response: str) -> list[str]:
    """Return the nouns of a response that are listed words, as lemmas, in order, repeats kept.

    >>> nouns("Two dogs and a dog run to the lake. A man swims.")
    ['dog', 'dog', 'lake', 'man']
    """
    tokens = tokenize(response)
    listed = {index: word for index, token in enumerate(tokens) if (word := lemma(token, "n")) in _listed()}
    found = tags(tokens, listed)
    return [word for index, word in listed.items() if found[index].startswith("NN")]


def score_captions(responses: Mapping[int, str], similarity: str | Path | Similarity = "exact", threshold: float = 0.8) -> Report:
    """Score captions by generative id.

    Args:
        responses: id -> caption.
        similarity: ``exact``, ``spacy`` (the official one), a JSON table of vectors, or a function; see `load_similarity`.
        threshold: two words are similar above it.

    Returns:
        A report; metrics: chair, cover, hal and cog in percent, rounded to one decimal as published; the same unrounded as
        chair_exact, ...; and the counts n (captions), n_empty (empty ones, scored as captions without nouns), n_hal (captions
        with a hallucinated noun), n_nouns, n_hallucinated, n_truth, n_covered, n_hallu, n_named. Items: id, nouns, hallucinated
        (nouns), covered (truth words), named (hallu words). Settings: benchmark, similarity, threshold.

    Raises:
        ValueError: no caption, an unknown or discriminative id, a caption that is no text, an unknown similarity, a
            threshold that is not from -1 to 1; captions that are all empty.

    >>> report = score_captions({1: "A person and two dogs by a lake. A car."})
    >>> report.items[0]["hallucinated"], report.items[0]["covered"], report.items[0]["named"]
    (['dog', 'car'], ['person', 'lake'], ['dog'])
    >>> report.metrics["chair"], report.metrics["cover"], report.metrics["cog"]
    (50.0, 28.6, 20.0)
    """
    check_responses(responses, "generative")
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: expected a number from -1 to 1; the official one is 0.8")
    n_empty = sum(not response.strip() for response in responses.values())
    if n_empty == len(responses):
        raise ValueError(f"all {n_empty} captions are empty; expected a word in at least one; Fix: check the model's prompt")
    name, similar = load_similarity(similarity)
    counters = initial_counters()
    items = []
    for number, response in responses.items():
        truth, hallu, kept = annotations()[number]["truth"], annotations()[number]["hallu"], nouns(response)
        hallucinated, covered, named = _judge(kept, truth, hallu, lambda noun, word: similar(noun, word) > threshold)
        counters["chair_score"] += len(hallucinated)
        counters["chair_num"] += len(kept)
        counters["safe_cover_score"] += len(covered)
        counters["safe_cover_num"] += len(truth)
        counters["hallu_cover_score"] += len(named)
        counters["hallu_cover_num"] += len(hallu)
        counters["non_hallu_score"] += not hallucinated
        counters["non_hallu_num"] += 1
        items.append({
            "id": number,
            "nouns": kept,
            "hallucinated": hallucinated,
            "covered": [truth[index] for index in sorted(covered)],
            "named": [hallu[index] for index in sorted(named)],
        })  # fmt: skip
    exact = {
        "chair": counters["chair_score"] / counters["chair_num"] * 100,
        "cover": counters["safe_cover_score"] / counters["safe_cover_num"] * 100,
        "hal": 100 - counters["non_hallu_score"] / counters["non_hallu_num"] * 100,
        "cog": counters["hallu_cover_score"] / counters["hallu_cover_num"] * 100,
    }
    metrics = {key: round(value, 1) for key, value in exact.items()}
    metrics |= {f"{key}_exact": value for key, value in exact.items()}
    metrics |= {
        "n": len(items),
        "n_empty": n_empty,
        "n_hal": len(items) - counters["non_hallu_score"],
        "n_nouns": sum(len(item["nouns"]) for item in items),
        "n_hallucinated": counters["chair_score"],
        "n_truth": sum(len(annotations()[number]["truth"]) for number in responses),
        "n_covered": counters["safe_cover_score"],
        "n_hallu": sum(len(annotations()[number]["hallu"]) for number in responses),
        "n_named": counters["hallu_cover_score"],
    }
    return Report(metrics, items, {"benchmark": "AMBER generative", "similarity": name, "threshold": threshold})


def score_generative(
    responses_path: Path | str,
    similarity: str | Path | Similarity = "exact",
    threshold: float = 0.8,
    skip_bad: bool = False,
    answer_key: str | None = None,
) -> Report:
    """Score a response file: a JSON list of objects with id and response, or another layout of `read_responses`.

    Args:
        responses_path: the file.
        similarity: see `score_captions`.
        threshold: two words are similar above it.
        skip_bad: go on without the bad lines, and count them under ``settings["n_bad"]``.
        answer_key: the key that holds the captions, where several could.

    Returns:
        A report as `score_captions` gives it; settings also hold responses, answer_key, n_bad, n_missing (generative
        queries without a response), n_other (answers to discriminative queries, which are left out), compared,
        n_distinct_captions, and n_without_noun (captions in which no annotated word was found).

    Raises:
        BadInput: see `read_responses`; or captions that are all empty, or hold no annotated word at all.
        ValueError: an unknown similarity, or a threshold that is not from -1 to 1.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_responses(f"{folder}/responses.json", {1: "A person by a lake.", 2: "A man on a bridge. A bird."})
    ...     report = score_generative(f"{folder}/responses.json")
    >>> report.metrics["chair"], report.metrics["hal"], report.settings["similarity"]
    (20.0, 50.0, 'exact')
    """
    responses, counts = read_responses(responses_path, "generative", skip_bad, answer_key)
    with reading(responses_path):
        report = score_captions(responses, similarity, threshold)
        if not report.metrics["n_nouns"]:
            raise ValueError(
                f"no annotated word in any of {len(responses)} captions, the first is {next(iter(responses.values()))[:60]!r}; "
                "expected English captions; Fix: check the model's prompt, or name the key of the captions by --answer-key"
            )
    settings = {
        **report.settings, "responses": str(responses_path), "answer_key": answer_key, **counts,
        "n_distinct_captions": len(set(responses.values())),
        "n_without_noun": sum(not item["nouns"] for item in report.items),
    }  # fmt: skip
    return Report(report.metrics, report.items, settings)


@cache
def _listed() -> frozenset[str]:
    return frozenset(associations()).union(*associations().values())


def _judge(
    kept: Sequence[str], truth: Sequence[str], hallu: Sequence[str], similar: Similarity
) -> tuple[list[str], set[int], set[int]]:
    """Return the hallucinated nouns, and which truth words and hallu words (by place) the nouns stand for."""
    safe, imagined = _stand_ins(truth), _stand_ins(hallu)
    hallucinated, covered, named = [], set(), set()
    for noun in kept:
        if noun in safe_words():
            continue
        if noun in safe:
            covered.add(safe[noun])
            continue
        if noun in imagined:
            named.add(imagined[noun])
        # Not an alternative to the line above: an earlier word may be similar to the noun.
        if (word := next((word for word in imagined if similar(noun, word)), None)) is not None:
            named.add(imagined[word])
        if (word := next((word for word in safe if similar(noun, word)), None)) is not None:
            covered.add(safe[word])
        else:
            hallucinated.append(noun)
    return hallucinated, covered, named


def _stand_ins(words: Sequence[str]) -> dict[str, int]:
    """Return every word that stands for one of the words, and the place of the first one it stands for, in official order:
    the associations of each word, then the words themselves."""
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        for other in associations()[word]:
            places.setdefault(other, place)
    for place, word in enumerate(words):
        places.setdefault(word, place)
    return places
