"""CHAIR: which objects a caption names, and which of them the image does not hold.

Source: Rohrbach et al. 2018, "Object Hallucination in Image Captioning", arXiv 1809.02156. Pooled over a corpus:
CHAIR_i = hallucinated object mentions / object mentions (repeats count), CHAIR_s = captions with at least one /
captions, recall = distinct ground-truth objects mentioned / ground-truth objects.

CHAIR_i alone can be fooled: a caption that says a true sentence again has a lower one. So each object of a caption is counted
once, too: distinct CHAIR_i = distinct absent objects / distinct objects named, both summed over captions; beside it stand the
share of mentions that repeat, and the share of captions that were cut before they ended.

"Word" means whitespace-separated word wherever it is counted: in lengths, in `word_index` and in truncation.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pandas as pd

from prunehal.benchmarks.chair.mentions import ChairScorer, load_scorer
from prunehal.files.records import Report, some

__all__ = ["ChairResult", "Truncation", "is_finished", "score", "truncate", "truncate_to_mean", "unmatched"]

_COUNTS = [
    "words", "length", "n_mentions", "n_hallucinated", "n_truth", "n_recalled", "n_distinct", "n_absent", "n_repeats",
    "hallucinated", "unfinished",
]  # fmt: skip
_MENTION_TYPES = {
    "image_id": None,  # as given: COCO ids are numbers, others may be names
    "index": "int64",
    "node": None,
    "word": None,
    "term": None,
    "start": "int64",
    "end": "int64",
    "word_index": "int64",
    "hallucinated": "bool",
}

_OF_MENTION = [name for name in _MENTION_TYPES if name not in ("image_id", "hallucinated")]

_WORD = re.compile(r"\S+")
_ENDED = re.compile(r"[.!?…][\"'”’)\]]*\s*$")


@dataclass(frozen=True, eq=False)
class ChairResult:
    """The scores of a set of captions.

    Attributes:
        scorer: name of the scorer used.
        metrics: fractions in [0, 1]: chair_i, chair_s, distinct_chair_i, recall, f1 (harmonic mean of 1 - distinct_chair_i and
            recall), repeats (share of the mentions that name an object once more) and unfinished (share of the captions that
            were cut); absent (distinct absent objects of a caption, mean); words (mean caption length), length (the same in
            the scorer's own words, marks included, double words joined: OPERA's "Len"); the counts n (captions), n_empty
            (those without a word), n_mentions, n_hallucinated, n_distinct (objects named, each once a caption), n_absent
            (those of them that the image does not hold) and n_captions_hallucinated.
        items: one row per caption: image_id, words, length, n_mentions, n_hallucinated, n_truth, n_recalled, n_distinct,
            n_absent, n_repeats, hallucinated, unfinished, nodes (categories in order of mention, repeats kept),
            hallucinated_words ([word, node] pairs).
        mentions: one row per mention: image_id, index, node, word, term, start, end, word_index, hallucinated.
        unfinished_by: how it is known that a caption was cut: by "finished", a column of the captions, or by its "text", which
            ends in no mark that ends a sentence.
    """

    scorer: str
    metrics: dict[str, float | int]
    items: pd.DataFrame
    mentions: pd.DataFrame
    unfinished_by: str = "text"

    def report(self, settings: dict[str, Any]) -> Report:
        """Return metrics and items in the layout that the command line writes.

        Each item holds image_id, nodes, hallucinated ([word, node] pairs), and of the one caption chair_i, chair_s,
        distinct_chair_i, absent (distinct absent objects), recall, repeats (share of its mentions), unfinished (0 or 1), words.
        """
        items = [
            {
                "image_id": row.image_id,
                "nodes": row.nodes,
                "hallucinated": row.hallucinated_words,
                "chair_i": row.n_hallucinated / max(row.n_mentions, 1),
                "chair_s": int(row.hallucinated),
                "distinct_chair_i": row.n_absent / max(row.n_distinct, 1),
                "absent": row.n_absent,
                "recall": row.n_recalled / max(row.n_truth, 1),
                "repeats": row.n_repeats / max(row.n_mentions, 1),
                "unfinished": int(row.unfinished),
                "words": row.words,
            }
            for row in self.items.itertuples()
        ]
        by = {"benchmark": "chair", "scorer": self.scorer, "unfinished_by": self.unfinished_by}
        return Report(self.metrics, items, {**by, **settings})


@dataclass(frozen=True)
class Truncation:
    """Captions cut to at most `n_words` words each, with the mean length (in words) that this gives."""

    n_words: int
    mean_words: float
    captions: dict[Hashable, str]


def score(
    captions: pd.DataFrame | Mapping[Hashable, str],
    ground_truth: Mapping[Hashable, Iterable[str]],
    scorer: str | ChairScorer = "fixed",
) -> ChairResult:
    """Score captions against the objects that their images hold.

    Where nothing can be divided the answer is 0.0: chair_i, distinct_chair_i and repeats without a mention, recall without a
    ground-truth object. An empty caption counts as the official scripts count it: it has no mention, and stands among the
    captions of chair_s and its image's objects among those of recall.

    Args:
        captions: image_id -> caption, or a frame with the columns image_id and caption, and, where it is known, finished (whether
            the caption ended by itself, and not at the limit of tokens).
        ground_truth: image_id -> COCO categories in the image; it may hold further images.
        scorer: name or loaded scorer.

    Raises:
        ValueError: no captions, a missing column, an image_id twice, an image_id without ground truth (the official
            scripts count each of its mentions as hallucinated), a caption that is no text, an unknown category.

    >>> result = score({1: "A dog and two cats on a sofa.", 2: "A bus."}, {1: {"dog", "couch"}, 2: {"bus", "car"}})
    >>> result.metrics["chair_i"], result.metrics["chair_s"], result.metrics["recall"]
    (0.25, 0.5, 0.75)
    """
    scorer = load_scorer(scorer) if isinstance(scorer, str) else scorer
    texts = _texts(captions)
    if missing := [image for image in texts if image not in ground_truth]:
        known = f"ids such as {some(ground_truth)}" if ground_truth else "ids that it knows"  # the testbed's lists none
        raise ValueError(
            f"no ground truth for {len(missing)} image_id(s): {some(missing)}; expected {known}; check the id type (int or str) "
            "and the split"
        )
    truths = {image: set(ground_truth[image]) for image in texts}
    if unknown := set().union(*truths.values()) - set(scorer.nodes.values()):
        raise ValueError(f"the ground truth names {some(sorted(unknown))}; expected COCO category names; map these names first")
    ended = _ended(captions, texts)
    items = []
    columns: dict[str, list] = {name: [] for name in _MENTION_TYPES}
    for image, text in texts.items():
        truth, (mentions, length) = truths[image], scorer.scan(text)
        nodes = [mention.node for mention in mentions]
        wrong = [[m.term, m.node] for m in mentions if m.node not in truth]
        named, n_words = set(nodes), len(text.split())
        counts = (n_words, length, len(nodes), len(wrong), len(truth), len(truth & named), len(named), len(named - truth))
        items.append((image, *counts, len(nodes) - len(named), bool(wrong), not ended[image], nodes, wrong))
        columns["image_id"] += [image] * len(mentions)
        columns["hallucinated"] += [node not in truth for node in nodes]
        for name in _OF_MENTION:
            columns[name] += [getattr(mention, name) for mention in mentions]
    frame = pd.DataFrame(items, columns=["image_id", *_COUNTS, "nodes", "hallucinated_words"])
    total = {column: int(frame[column].sum()) for column in _COUNTS}
    metrics = {
        "chair_i": total["n_hallucinated"] / max(total["n_mentions"], 1),
        "chair_s": total["hallucinated"] / len(frame),
        "distinct_chair_i": total["n_absent"] / max(total["n_distinct"], 1),
        "absent": total["n_absent"] / len(frame),
        "recall": total["n_recalled"] / max(total["n_truth"], 1),
        "f1": 2 * total["n_recalled"] / max(total["n_distinct"] + total["n_truth"], 1),
        "repeats": total["n_repeats"] / max(total["n_mentions"], 1),
        "unfinished": total["unfinished"] / len(frame),
        "n": len(frame),
        "n_empty": int((frame["words"] == 0).sum()),
        "n_mentions": total["n_mentions"],
        "n_hallucinated": total["n_hallucinated"],
        "n_distinct": total["n_distinct"],
        "n_absent": total["n_absent"],
        "n_captions_hallucinated": total["hallucinated"],
        "words": total["words"] / len(frame),
        "length": total["length"] / len(frame),
    }
    # Types are set, because a frame without rows would otherwise hold objects where callers expect numbers.
    mentions_frame = pd.DataFrame({name: pd.Series(values, dtype=_MENTION_TYPES[name]) for name, values in columns.items()})
    by = "finished" if isinstance(captions, pd.DataFrame) and "finished" in captions else "text"
    return ChairResult(scorer.name, metrics, frame, mentions_frame, by)


def unmatched(a: ChairResult, b: ChairResult) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the mentions that only one of two scorings of the same captions finds.

    Two mentions are the same where they name the same object in overlapping text: "tennis racket" and its "racket" are one.

    Args:
        a, b: scores of the same captions, such as by two scorers.

    Returns:
        The rows of `a.mentions`, and those of `b.mentions`, that have no counterpart; indices as they were.

    Raises:
        ValueError: the captions are not the same (other image_ids or numbers of words).

    >>> texts, truth = {1: "Two tennis rackets in a bus."}, {1: {"bus"}}
    >>> [only["word"].tolist() for only in unmatched(score(texts, truth, "pattern"), score(texts, truth, "wordnet"))]
    [[], ['bus']]
    """
    told = [set(zip(each.items["image_id"], each.items["words"], strict=True)) for each in (a, b)]
    if odd := {image for image, _ in told[0] ^ told[1]}:
        raise ValueError(
            f"the captions of {len(odd)} image_id(s) differ or are in one result only: {some(sorted(odd, key=str))}; expected "
            "two scores of the same captions; score those again"
        )
    ours, theirs = (each.mentions.rename_axis("row").reset_index() for each in (a, b))
    pairs = ours.merge(theirs, on=["image_id", "node"], suffixes=("_a", "_b"))
    pairs = pairs[(pairs["start_a"] < pairs["end_b"]) & (pairs["start_b"] < pairs["end_a"])]
    return a.mentions.drop(index=pairs["row_a"]), b.mentions.drop(index=pairs["row_b"])


def is_finished(caption: str) -> bool:
    """Return whether a caption ends in a mark that ends a sentence (quotes and brackets may follow); an empty one was not cut.

    >>> [is_finished(text) for text in ("A dog runs.", 'A sign says "stop!"', "A dog. It is chas", "")]
    [True, True, False, True]
    """
    return not caption.strip() or bool(_ENDED.search(caption))


def truncate(caption: str, n_words: int) -> str:
    """Cut a caption after `n_words` words; a shorter caption is returned as it is.

    Raises:
        ValueError: n_words is negative.

    >>> truncate("A dog sits on a sofa.", 3)
    'A dog sits'
    """
    if n_words < 0:
        raise ValueError(f"n_words is {n_words}, expected 0 or more; pass the number of words to keep")
    ends = [word.end() for word in _WORD.finditer(caption)]
    if len(ends) <= n_words:
        return caption
    return caption[: ends[n_words - 1]] if n_words else ""


def truncate_to_mean(captions: pd.DataFrame | Mapping[Hashable, str], target_mean_words: float) -> Truncation:
    """Cut all captions at the one word cap that brings their mean length to the target, or nearest below it.

    This is the null baseline of a method that shortens captions. The mean length never falls as the cap rises, so the
    largest cap that does not exceed the target is found exactly. A target above the mean length cuts nothing.

    Args:
        captions: image_id -> caption, or a frame with the columns image_id and caption.
        target_mean_words: words per caption.

    Raises:
        ValueError: the target is negative or no number, or the captions are unusable (see `score`).

    >>> truncate_to_mean({1: "one two three four", 2: "one"}, 2).captions
    {1: 'one two three', 2: 'one'}
    """
    if not target_mean_words >= 0:
        raise ValueError(f"target_mean_words is {target_mean_words}, expected 0 or more; pass a mean length in words")
    texts = _texts(captions)
    lengths = sorted(len(text.split()) for text in texts.values())
    # Raising the cap from c to c + 1 words keeps one more word of each caption longer than c.
    totals = list(accumulate((len(lengths) - bisect_right(lengths, c) for c in range(lengths[-1])), initial=0))
    # The tolerance takes back the rounding of a target that was itself computed as a mean.
    cap = bisect_right(totals, target_mean_words * len(lengths) * (1 + 1e-12)) - 1
    return Truncation(cap, totals[cap] / len(lengths), {image: truncate(text, cap) for image, text in texts.items()})


def _ended(captions: pd.DataFrame | Mapping[Hashable, str], texts: Mapping[Hashable, str]) -> dict[Hashable, bool]:
    """Return whether each caption ended by itself: as the column finished says, or by :func:`is_finished`."""
    if not (isinstance(captions, pd.DataFrame) and "finished" in captions):
        return {image: is_finished(text) for image, text in texts.items()}
    if bad := [value for value in captions["finished"].tolist() if not pd.api.types.is_bool(value)]:
        raise ValueError(f"finished holds {some(bad)}; expected True or False for each caption; leave the column out")
    return dict(zip(captions["image_id"].tolist(), captions["finished"].tolist(), strict=True))


def _texts(captions: pd.DataFrame | Mapping[Hashable, str]) -> dict[Hashable, str]:
    if isinstance(captions, pd.DataFrame):
        if absent := {"image_id", "caption"} - set(captions.columns):
            raise ValueError(f"the captions lack the column(s) {sorted(absent)}; expected image_id and caption; add or rename")
        if (twice := captions["image_id"].duplicated()).any():
            raise ValueError(
                f"image_id(s) with more than one caption: {some(captions.loc[twice, 'image_id'].unique().tolist())}; "
                "expected one caption per image; drop the others"
            )
        captions = dict(zip(captions["image_id"].tolist(), captions["caption"].tolist(), strict=True))
    if not captions:
        raise ValueError("there are no captions; expected at least one; check that the file or the frame has rows")
    for image, text in captions.items():
        if not isinstance(text, str):
            raise ValueError(f"the caption of image_id {image!r} is {text!r}, expected text; drop it or set it to ''")
    return dict(captions)
