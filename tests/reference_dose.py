"""Slow twins of `prunehal.studies.nb09_causal.comparisons` and `prunehal.stats.clustered`: one mention after the other."""

import math

import numpy as np


def slope(log_probs):
    """Least-squares slope of ``{c: log-probability}`` on log2 c, for c > 0."""
    points = [(math.log2(c), y) for c, y in log_probs.items() if c > 0]
    return np.polyfit(*zip(*points, strict=True), 1)[0]


def mean(values, images, weights):
    """Mean of mentions whose images count so many times."""
    top = bottom = 0.0
    for value, image in zip(values, images, strict=True):
        top += weights[image] * value
        bottom += weights[image]
    return top / bottom


def matched_gap(values, images, first, strata, weights):
    """Difference of two groups within each stratum, averaged over the mentions of the first group."""
    top = bottom = 0.0
    for stratum in sorted(set(strata)):
        groups = {True: [], False: []}
        for value, image, member, code in zip(values, images, first, strata, strict=True):
            if code == stratum:
                groups[bool(member)] += [value] * int(weights[image])
        if groups[True] and groups[False]:
            difference = sum(groups[True]) / len(groups[True]) - sum(groups[False]) / len(groups[False])
            top += len(groups[True]) * difference
            bottom += len(groups[True])
    return top / bottom if bottom else math.nan


def jackknife_error(statistic, n_images):
    """Standard error of ``statistic(weights)`` from leaving one image out."""
    left = []
    for image in range(n_images):
        weights = np.ones(n_images)
        weights[image] = 0
        left.append(statistic(weights))
    middle = sum(left) / n_images
    return math.sqrt((n_images - 1) / n_images * sum((each - middle) ** 2 for each in left))


def moved(row, visual, share):
    """Attention row after a share of the weight on text went to the image (negative: the other way), as its logarithm.

    Args:
        row: scores of one head at one query.
        visual: positions of the visual tokens.
    """
    sides = {True: [], False: []}  # the weights within image and text, each on its own
    for place, score in enumerate(row):
        sides[place in visual].append(score)
    total = {side: max(scores) + math.log(sum(math.exp(x - max(scores)) for x in scores)) for side, scores in sides.items()}
    on_image = 1 / (1 + math.exp(total[False] - total[True]))
    on_text = 1 / (1 + math.exp(total[True] - total[False]))
    wanted = {True: on_image + share * on_text, False: on_text * (1 - share)}
    if share < 0:
        wanted = {True: on_image * (1 + share), False: on_text - share * on_image}
    logs = {side: math.log(weight) if weight > 0 else -math.inf for side, weight in wanted.items()}
    return [score - total[place in visual] + logs[place in visual] for place, score in enumerate(row)]
