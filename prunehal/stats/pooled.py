"""The counts behind a pooled metric, one pair for each image, and the pairing of two conditions by image.

Pooled over a corpus, as CHAIR is: the sum of the numerators over the sum of the denominators, never a mean of ratios
(Rohrbach et al. 2018, arXiv 1809.02156). Every interval and test of two conditions starts from these two columns.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pandas as pd

from prunehal.stats.bootstrap import Statistic

__all__ = ["METRICS", "NUMBERS", "counts", "linearised", "paired_counts", "ratio"]

# metric -> columns of the items of `prunehal.benchmarks.score` that are added up to the numerator, and to the denominator; no
# column counts captions. F1 of precision n_recalled / n_distinct and recall n_recalled / n_truth is a ratio of sums, too.
METRICS = MappingProxyType(
    {
        "chair_i": (("n_hallucinated",), ("n_mentions",)),
        "chair_s": (("hallucinated",), ()),
        "distinct_chair_i": (("n_absent",), ("n_distinct",)),
        "absent": (("n_absent",), ()),
        "recall": (("n_recalled",), ("n_truth",)),
        "f1": (("n_recalled", "n_recalled"), ("n_distinct", "n_truth")),
        "repeats": (("n_repeats",), ("n_mentions",)),
        "unfinished": (("unfinished",), ()),
        "words": (("words",), ()),
    }
)
NUMBERS = ("absent", "words")  # of a caption; all others are fractions


def counts(items: pd.DataFrame, metric: str, name: str = "items") -> pd.DataFrame:
    """Return numerator (top) and denominator (bottom) of a metric for each image, indexed by image_id.

    Args:
        items: one row per caption, as in `ChairResult.items`.
        metric: a name of METRICS.
        name: what messages call the items.

    Raises:
        ValueError: an unknown metric, a missing column, an image_id twice.

    >>> counts(pd.DataFrame({"image_id": [7, 8], "words": [10, 12]}), "words").values.tolist()
    [[10.0, 1.0], [12.0, 1.0]]
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; expected one of {sorted(METRICS)}; pass one of these names")
    top, bottom = METRICS[metric]
    if absent := {"image_id", *top, *bottom} - set(items.columns):
        raise ValueError(f"{name} lacks the column(s) {sorted(absent)}; expected the items of a ChairResult; pass those")
    if (twice := items["image_id"].duplicated()).any():
        raise ValueError(
            f"{name} holds image_id {items.loc[twice, 'image_id'].iloc[0]} more than once; expected one row per image; "
            "keep one caption of each"
        )
    return pd.DataFrame(
        {
            "top": sum(items[column].to_numpy(dtype=float) for column in top),
            "bottom": sum(items[column].to_numpy(dtype=float) for column in bottom) if bottom else np.ones(len(items)),
        },
        index=pd.Index(items["image_id"]),
    )


def paired_counts(items_a: pd.DataFrame, items_b: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the counts of two conditions, those of b in the order of the images of a.

    Args:
        items_a, items_b: one row per caption, as in `ChairResult.items`, of the same images in any order.
        metric: a name of METRICS.

    Raises:
        ValueError: as in `counts`, or the two sets of images differ.

    >>> a = pd.DataFrame({"image_id": [1, 2], "words": [10, 20]})
    >>> [c["top"].tolist() for c in paired_counts(a, a.iloc[::-1].assign(words=[21, 11]), "words")]
    [[10.0, 20.0], [11.0, 21.0]]
    """
    a, b = counts(items_a, metric, "items_a"), counts(items_b, metric, "items_b")
    if len(odd := a.index.symmetric_difference(b.index)):
        raise ValueError(
            f"items_a and items_b differ in {len(odd)} image_id(s), such as {odd[:5].tolist()}; expected the same "
            "images; keep those that both have"
        )
    return a, b.loc[a.index]


def ratio(frame: pd.DataFrame) -> Statistic:
    """Return the function that pools counts into the metric under given weights of the images.

    >>> ratio(pd.DataFrame({"top": [1.0, 1.0], "bottom": [2.0, 6.0]}))(np.array([[1.0, 1.0], [2.0, 0.0]])).tolist()
    [0.25, 0.5]
    """
    columns = frame.to_numpy()  # (image, 2)

    def statistic(weights: np.ndarray) -> np.ndarray:
        top, bottom = (weights @ columns).T
        return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)  # no mention: 0.0, as the scorer says

    return statistic


def linearised(top: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pooled ratio and how far each image moves it (times n): (top - ratio * bottom) / mean bottom.

    The delta method for a ratio of sums: the spread of these numbers over the root of n is the ratio's standard error (Cochran
    1977, "Sampling Techniques", chapter 6). They sum to zero.

    Args:
        top, bottom: counts, (..., image).

    Returns:
        Ratios (...) and contributions (..., image); 0.0 where nothing is counted.

    >>> r, moved = linearised(np.array([1.0, 1.0]), np.array([2.0, 6.0]))
    >>> float(r), moved.tolist()
    (0.25, [0.125, -0.125])
    """
    mean = bottom.mean(axis=-1, keepdims=True)
    mean = np.where(mean > 0, mean, np.inf)
    pooled = top.mean(axis=-1, keepdims=True) / mean
    return pooled[..., 0], (top - pooled * bottom) / mean
