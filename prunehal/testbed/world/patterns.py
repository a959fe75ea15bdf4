"""The sentence that holds a mention, by its template in the caption grammar: late ones held most absent objects in training."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import pandas as pd

from prunehal.testbed.world.captions import TEMPLATES, compiled

if TYPE_CHECKING:
    from prunehal.benchmarks.chair.score import ChairResult

__all__ = ["GROUPS", "mention_patterns", "sentence_pattern"]

OTHER = "other"  # text that no template gives

# Template -> where in a caption its sentences stand: opening, round, late, closing or brief.
GROUPS = {template: group for group, templates in TEMPLATES.items() for template in templates} | {OTHER: OTHER}

_SENTENCE = re.compile(r"[^.]+\.?")


@cache
def sentence_pattern(sentence: str) -> str:
    """Return the template of the caption grammar that gives a sentence, or "other".

    >>> sentence_pattern("There is also a small faint dog on the left."), sentence_pattern("A dog barks.")
    ('There is also {a} {p}.', 'other')
    """
    found = (template for templates in TEMPLATES.values() for template in templates if compiled(template).fullmatch(sentence))
    return next(found, OTHER)


def mention_patterns(captions: Mapping[int, str], result: ChairResult) -> pd.DataFrame:
    """Return the template of the sentence that holds each mention.

    Args:
        captions: image_id -> caption.
        result: the CHAIR scores of the same captions; their mentions say where in the text they begin.

    Returns:
        One line for each mention: image_id, index (of the mention in its caption, as in a stored experiment's mentions), pattern
        (the template, or "other"), group (a value of GROUPS) and late (whether it is of the group "late").

    >>> from prunehal.benchmarks import score
    >>> text = {1: "The image shows a farm. There is a cow on the left. There is also a dog on the right."}
    >>> mention_patterns(text, score(text, {1: {"cow"}}))[["index", "group", "late"]].values.tolist()
    [[0, 'round', False], [1, 'late', True]]
    """
    sentences = {image: list(_SENTENCE.finditer(text)) for image, text in captions.items()}
    begins = {image: [sentence.start() for sentence in found] for image, found in sentences.items()}
    lines = []
    for mention in result.mentions.itertuples():
        sentence = sentences[mention.image_id][bisect_right(begins[mention.image_id], mention.start) - 1]
        lines.append((mention.image_id, mention.index, sentence_pattern(sentence[0].strip())))
    frame = pd.DataFrame(lines, columns=["image_id", "index", "pattern"])
    frame["group"] = frame["pattern"].map(GROUPS)
    return frame.assign(late=frame["group"] == "late")
