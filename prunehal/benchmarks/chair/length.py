"""Length, the confound of caption benchmarks: hallucination by place in the caption, by a cap on words, and at equal length.

Equal length means that both captions of an image name equally many distinct objects: each is cut after its k-th, where k is the
number of the one that names fewer. A cut at equal words would compare text that repeats itself with text that does not; it stays
for published captions, whose authors compare lengths in words.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from prunehal.benchmarks.chair.mentions import ChairScorer
from prunehal.benchmarks.chair.score import ChairResult, score, truncate, truncate_to_mean
from prunehal.files.records import some
from prunehal.stats.bootstrap import Interval
from prunehal.stats.intervals import bootstrap_interval, paired_bootstrap

__all__ = [
    "COMPARED",
    "EQUAL",
    "difference",
    "early_and_late",
    "equal_objects",
    "equal_words",
    "first_objects",
    "rate_by_position",
    "truncation_curve",
]

COMPARED = ("chair_i", "chair_s", "distinct_chair_i", "absent", "recall", "repeats", "words")  # metrics of :func:`difference`
EQUAL = ("objects", "words")  # what may be made equal first


def rate_by_position(result: ChairResult, edges: Sequence[int], n_resamples: int = 1000) -> pd.DataFrame:
    """Return the share of hallucinated mentions, and of absent objects, by their place in the caption, counted in words.

    An object's place is that of its first mention, so that each object of a caption counts once: over all places the two shares
    are CHAIR_i and distinct CHAIR_i.

    Args:
        result: scored captions.
        edges: bounds of the bins, rising: bin k holds word indices from edges[k] up to, not including, edges[k + 1].
        n_resamples: of the bootstrap over images.

    Returns:
        One row for each bin with at least two captions: start, stop; n_mentions, rate, low, high (hallucinated mentions, with a
        95% interval); n_distinct, distinct_rate, distinct_low, distinct_high (the same of objects).

    >>> result = score({1: "A dog, a dog by a cat.", 2: "A dog by a bus."}, {1: {"dog"}, 2: {"dog"}})
    >>> rate_by_position(result, [0, 4, 9])[["n_mentions", "rate", "n_distinct", "distinct_rate"]].values.tolist()
    [[3.0, 0.0, 2.0, 0.0], [2.0, 1.0, 2.0, 1.0]]
    """
    mentions, rows = result.mentions, []
    first = ~mentions.duplicated(["image_id", "node"])
    counted = mentions.assign(n_distinct=first, n_absent=first & mentions["hallucinated"])
    for start, stop in pairwise(edges):
        inside = counted[(counted["word_index"] >= start) & (counted["word_index"] < stop)].groupby("image_id")
        items = (
            inside[["n_distinct", "n_absent"]].sum().assign(n_mentions=inside.size(), n_hallucinated=inside["hallucinated"].sum())
        )
        if len(items) < 2:
            continue
        row = {"start": start, "stop": stop}
        for before, metric, n in (("", "chair_i", "n_mentions"), ("distinct_", "distinct_chair_i", "n_distinct")):
            found = bootstrap_interval(items.reset_index(), metric, n_resamples)
            row |= {n: items[n].sum(), f"{before}rate": found.estimate, f"{before}low": found.low, f"{before}high": found.high}
        rows.append(row)
    rates = ("rate", "low", "high")
    columns = ["start", "stop", "n_mentions", *rates, "n_distinct", *(f"distinct_{name}" for name in rates)]
    return pd.DataFrame(rows, columns=columns)


def early_and_late(rates: pd.DataFrame, fewest: int = 30) -> pd.DataFrame:
    """Return the share that is not in the image at the first and at the last place of captions, and whether the last is higher.

    Args:
        rates: what :func:`rate_by_position` returned.
        fewest: mentions, or objects, that a place must hold.

    Returns:
        Indexed by "mentions" and "objects": early, late (shares), early_words, late_words (their places), apart (whether the
        interval of the late one lies above that of the early one).

    Raises:
        ValueError: no place holds so many.

    >>> result = score({1: "A dog by a cat.", 2: "A dog by a bus."}, {1: {"dog"}, 2: {"dog"}})
    >>> early_and_late(rate_by_position(result, [0, 2, 6]), fewest=2).loc["objects", ["early", "late"]].tolist()
    [0.0, 1.0]
    """
    rows = {}
    for kind, before in {"mentions": "", "objects": "distinct_"}.items():
        shown = rates[rates["n_mentions" if kind == "mentions" else "n_distinct"] >= fewest]
        if shown.empty:
            raise ValueError(f"no place holds {fewest} {kind}; expected one that does; add captions, or ask for fewer")
        first, last = shown.iloc[0], shown.iloc[-1]
        words = {f"{when}_words": f"{x['start']:.0f}-{x['stop'] - 1:.0f}" for when, x in (("early", first), ("late", last))}
        shares = {"early": first[f"{before}rate"], "late": last[f"{before}rate"]}
        rows[kind] = shares | words | {"apart": bool(last[f"{before}low"] > first[f"{before}high"])}
    return pd.DataFrame.from_dict(rows, orient="index")


def truncation_curve(
    captions: Mapping[Hashable, str],
    ground_truth: Mapping[Hashable, Iterable[str]],
    scorer: str | ChairScorer,
    caps: Sequence[int],
) -> pd.DataFrame:
    """Return CHAIR and recall of captions that are cut after so many words: what shorter text alone gives.

    Returns:
        One row for each cap: n_words (the cap), words (mean length), chair_i, chair_s, distinct_chair_i, absent, recall, repeats.

    >>> curve = truncation_curve({1: "A dog by a cat."}, {1: {"dog"}}, "fixed", [3, 9])
    >>> curve[["n_words", "chair_i", "recall"]].values.tolist()
    [[3.0, 0.0, 1.0], [9.0, 0.5, 1.0]]
    """
    rows = []
    shown = ("words", "chair_i", "chair_s", "distinct_chair_i", "absent", "recall", "repeats")
    for cap in caps:
        metrics = score({image: truncate(text, cap) for image, text in captions.items()}, ground_truth, scorer).metrics
        rows.append({"n_words": cap} | {name: metrics[name] for name in shown})
    return pd.DataFrame(rows)


def first_objects(result: ChairResult, most: Mapping[Hashable, int]) -> pd.DataFrame:
    """Return the counts of captions that are cut after the first mention of their k-th distinct object.

    Args:
        result: scored captions.
        most: image_id -> k, of all images; a caption that names at most k objects stays whole.

    Returns:
        One row for each caption: image_id, words (up to the end of that mention), n_mentions, n_hallucinated, n_truth,
        n_recalled, n_distinct, n_absent, n_repeats, hallucinated; as `prunehal.stats.intervals.paired_bootstrap` takes them.

    >>> result = score({1: "A dog, a dog and a bus by a cat."}, {1: {"dog"}})
    >>> first_objects(result, {1: 2})[["n_mentions", "n_distinct", "n_absent", "words"]].values.tolist()
    [[3, 2, 1, 7]]
    """
    mentions = result.mentions
    new = ~mentions.duplicated(["image_id", "node"])
    rank, k = new.groupby(mentions["image_id"]).cumsum(), mentions["image_id"].map(most)
    cut = (mentions["image_id"].map(new.groupby(mentions["image_id"]).sum()) > k).astype(bool)
    kept = mentions[~cut | (rank < k) | (new & (rank == k))]
    new, absent = new.loc[kept.index], kept["hallucinated"]
    by_image = pd.DataFrame(
        {
            "n_mentions": 1,
            "n_hallucinated": absent.astype(int),
            "n_distinct": new.astype(int),
            "n_absent": (new & absent).astype(int),
            "n_recalled": (new & ~absent).astype(int),
        },
        index=kept.index,
    )
    images = result.items["image_id"]
    counted = by_image.groupby(kept["image_id"]).sum().reindex(images, fill_value=0).reset_index()
    ends = (kept["word_index"] + kept["word"].str.split().str.len()).groupby(kept["image_id"]).max()
    shorter = images.isin(mentions.loc[cut, "image_id"]).to_numpy()
    return counted.assign(
        n_truth=result.items["n_truth"].to_numpy(),
        n_repeats=counted["n_mentions"] - counted["n_distinct"],
        hallucinated=counted["n_absent"] > 0,
        words=np.where(shorter, ends.reindex(images, fill_value=0).to_numpy(), result.items["words"].to_numpy()),
    )


def equal_objects(a: ChairResult, b: ChairResult) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the counts of two sets of captions, cut so that both captions of an image name equally many distinct objects.

    Args:
        a, b: captions of the same images.

    Returns:
        Two frames as :func:`first_objects` returns them, for k the smaller number of the two captions of each image.

    Raises:
        ValueError: the images are not the same.

    >>> pair = (score({1: text}, {1: {"dog"}}) for text in ("A dog.", "A dog by a bus."))
    >>> [each["n_distinct"].tolist() for each in equal_objects(*pair)]
    [[1], [1]]
    """
    named = [each.items.set_index("image_id")["n_distinct"] for each in (a, b)]
    if odd := set(named[0].index) ^ set(named[1].index):
        raise ValueError(f"the images of the two differ in {len(odd)}: {some(odd)}; expected the same; keep those that both have")
    fewest = named[0].clip(upper=named[1].loc[named[0].index]).to_dict()
    return first_objects(a, fewest), first_objects(b, fewest)


def equal_words(a: Mapping[Hashable, str], b: Mapping[Hashable, str]) -> tuple[dict[Hashable, str], dict[Hashable, str]]:
    """Return two sets of captions of the same images, both cut to the mean number of words of the shorter set.

    >>> equal_words({1: "A dog."}, {1: "A dog by a bus."})
    ({1: 'A dog.'}, {1: 'A dog'})
    """
    target = min(sum(len(text.split()) for text in texts.values()) / len(texts) for texts in (a, b))
    first, second = (truncate_to_mean(texts, target).captions for texts in (a, b))
    return first, second


def difference(
    base: Mapping[Hashable, str],
    other: Mapping[Hashable, str],
    ground_truth: Mapping[Hashable, Iterable[str]],
    scorer: str | ChairScorer,
    *,
    equal: str | None = None,
    n_resamples: int = 2000,
) -> dict[str, Interval]:
    """Return the paired differences, other minus base, of the metrics of COMPARED, on the images of both.

    Args:
        base, other: captions of two methods.
        ground_truth: of the images.
        scorer: of CHAIR.
        equal: what is made equal first: "objects" (both captions of an image are cut to the smaller of their numbers of distinct
            objects), "words" (both sets are cut to the mean number of words of the shorter), or nothing.
        n_resamples: of the bootstrap over images (BCa).

    Raises:
        ValueError: `equal` is none of these.

    >>> texts = {1: "A dog.", 2: "A cat by a bus."}
    >>> found = difference(texts, texts, {1: {"dog"}, 2: {"cat"}}, "fixed", equal="objects", n_resamples=100)
    >>> found["distinct_chair_i"].estimate, found["recall"].estimate
    (0.0, 0.0)
    """
    if equal not in (None, *EQUAL):
        raise ValueError(f"equal={equal!r}: expected one of {', '.join(map(repr, EQUAL))}, or None; name what is made equal")
    shared = [image for image in base if image in other]
    pair = [{image: texts[image] for image in shared} for texts in (base, other)]
    if equal == "words":
        pair = equal_words(*pair)
    scored = [score(texts, ground_truth, scorer) for texts in pair]
    a, b = equal_objects(*scored) if equal == "objects" else (each.items for each in scored)
    return {metric: paired_bootstrap(a, b, metric, n_resamples=n_resamples) for metric in COMPARED}
