"""Judge two captions of an image against each other: correctness and detailedness, from 1 to 10 for each assistant.

Source: the prompt is GPT_JUDGE_PROMPT of gpt4v_eval.py in shikiw/OPERA (commit 2a0a234, MIT License), of Huang et al. 2024,
"OPERA", arXiv 2311.17911, word for word: two missing spaces ("hallucinationsshould", "countas") stand as published. It calls
the first criterion "Accuracy"; later papers say "Correctness", and both are read. No judge is called here.

Judges favour a position. Ask in both orders (``prompts(..., swap=True)``): `score` averages the two judgements of an image
and reports how far the first place was favoured.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from prunehal.benchmarks.chair.captions import image_number
from prunehal.benchmarks.replies import refuse_unreadable, reply, unreadable_counts
from prunehal.files.reading import convert, reading
from prunehal.files.records import BadInput, Report, read_records, some

__all__ = ["CRITERIA", "PROMPT", "Judgement", "parse", "prompts", "score", "score_file"]

CRITERIA = ("correctness", "detailedness")

PROMPT = (
    "\n"
    "You are required to score the performance of two AI assistants in describing a given image. You should pay extra "
    "attention to the hallucination, which refers to the part of descriptions that are inconsistent with the image content, "
    "such as claiming the existence of something not present in the image or describing incorrectly in terms of the counts, "
    "positions, or colors of objects in the image. Please rate the responses of the assistants on a scale of 1 to 10, where "
    "a higher score indicates better performance, according to the following criteria:\n"
    "1: Accuracy: whether the response is accurate with respect to the image content. Responses with fewer "
    "hallucinationsshould be given higher scores.\n"
    "2: Detailedness: whether the response is rich in necessary details. Note that hallucinated descriptions should not "
    "countas necessary details.\n"
    "Please output the scores for each criterion, containing only two values indicating the scores for Assistant 1 and 2, "
    "respectively. The two scores are separated by a space. Following the scores, please provide an explanation of your "
    "evaluation, avoiding any potential bias and ensuring that the order in which the responses were presented does not "
    "affect your judgment.\n"
    "\n"
    "[Assistant 1]\n"
    "{}\n"
    "[End of Assistant 1]\n"
    "\n"
    "[Assistant 2]\n"
    "{}\n"
    "[End of Assistant 2]\n"
    "\n"
    "Output format:\n"
    "Accuracy: <Scores of the two answers>\n"
    "Reason:\n"
    "\n"
    "Detailedness: <Scores of the two answers>\n"
    "Reason: \n"
)

_NAMES = {"correctness": "accuracy|correctness", "detailedness": "detailedness"}
_NUMBER = r"(\d+(?:\.\d+)?)"
# A line such as "Accuracy: 8 7", also numbered or in bold ("**1: Correctness:** 8, 7"), and nothing more on it. No run of
# blanks and stars gives back what it took (`*+`), so that a reply costs no more than its length.
_LINE = r"^[ \t*#]*+(?:\d[ \t]*+[:.)][ \t*]*+)?(?:{names})[ \t*]*+:[\s*]*+{n}(?:[ \t]*,[ \t]*|[ \t]+){n}[ \t\r*]*+$"
_LINES = {name: re.compile(_LINE.format(names=names, n=_NUMBER), re.I | re.M) for name, names in _NAMES.items()}


def prompts(captions_a: Mapping[Hashable, str], captions_b: Mapping[Hashable, str], swap: bool = False) -> list[dict[str, Any]]:
    """Return ``{"image_id", "order", "prompt"}`` for each image, to be sent to a judge together with the image.

    Order "ab" shows caption a as Assistant 1, order "ba" caption b.

    Args:
        captions_a: image_id -> caption of the one method.
        captions_b: image_id -> caption of the other method, for the same images.
        swap: ask in both orders, two prompts for each image.

    Raises:
        BadInput: images with a caption of only one method, a caption that is no text, or no image.

    >>> asked = prompts({1: "A dog."}, {1: "A cat."}, swap=True)
    >>> [(prompt["order"], prompt["prompt"].split("[Assistant 1]")[1][:8].strip()) for prompt in asked]
    [('ab', 'A dog.'), ('ba', 'A cat.')]
    """
    problems = [
        f"{len(alone)} image(s) have a caption of {name} only: {some(alone)}"
        for name, mine, other in (("a", captions_a, captions_b), ("b", captions_b, captions_a))
        if (alone := [image for image in mine if image not in other])
    ]
    problems += [
        f"image {image!r}: the caption of {name} is {text!r}; expected text"
        for name, captions in (("a", captions_a), ("b", captions_b))
        for image, text in captions.items()
        if not isinstance(text, str)
    ]
    if not captions_a and not captions_b:
        problems.append("there are no captions; expected at least one image")
    if problems:
        raise BadInput("the captions", problems, "Give a caption of both methods for each image.")
    asked = []
    for image, a in captions_a.items():
        b = captions_b[image]
        pairs = {"ab": (a, b), "ba": (b, a)} if swap else {"ab": (a, b)}
        asked += [{"image_id": image, "order": order, "prompt": PROMPT.format(*pair)} for order, pair in pairs.items()]
    return asked


def parse(text: str) -> dict[str, tuple[float, float]] | None:
    """Return the two scores of each criterion, of Assistant 1 and 2, or None when the reply does not give all four.

    The last line of each criterion counts, as in the official script. Scores are numbers from 0 to 10 (the prompt asks for
    1 to 10), separated by spaces or a comma.

    >>> parse("Accuracy: 8 6\\nReason: the dog is real.\\n\\nDetailedness: 7, 7.5\\nReason: ...")
    {'correctness': (8.0, 6.0), 'detailedness': (7.0, 7.5)}
    >>> parse("Both are good.") is None
    True
    """
    found = {}
    for name in CRITERIA:
        lines = _LINES[name].findall(text)
        if not lines:
            return None
        first, second = map(float, lines[-1])
        if not (0 <= first <= 10 and 0 <= second <= 10):
            return None
        found[name] = (first, second)
    return found


def score_file(path: Path | str, judgement_key: str | None = None) -> Report:
    """Score a file of judgements as `score` does.

    Raises:
        BadInput: see `score`, and lines that cannot be read; the file is named, and the line.
        OSError: the file cannot be read.
    """
    records, problems = read_records(path)
    with reading(path):
        return _scored([(record.where, record.value) for record in records], judgement_key, problems)


def score(judgements: Sequence[Mapping[str, Any]], judgement_key: str | None = None) -> Report:
    """Compare method a with method b over all images.

    The judgements of both orders of an image are averaged first. Where only one order can be read, that one stands alone;
    ``n_both`` says how many images have both.

    Args:
        judgements: objects with image_id (a number, or a file name: of a name with COCO's number the number counts), order
            ("ab" or "ba"; "ab" when absent) and the reply under judgement, text or as a chat completion (choices).
        judgement_key: the key that holds the reply; None takes the one that is there.

    Returns:
        A report; metrics: for each criterion ``a`` and ``b`` (mean scores), ``difference`` (mean of a - b), ``wins``,
        ``ties``, ``losses`` (images, seen from a) and ``position_bias`` (mean of first - second place over the images with
        both orders, None without such images); ``n`` (images), ``n_both``, ``unreadable`` (judgements, which are left out),
        ``unreadable_share`` and ``n_empty``. Items: image_id, orders, and the scores (a, b) of each criterion.

    Raises:
        BadInput: a judgement without image_id or text, an unknown order, or an image twice in the same order; none at all, or
            not one that can be read.

    >>> said = [{"image_id": 1, "order": "ab", "judgement": "Correctness: 8 6\\nDetailedness: 5 5"},
    ...         {"image_id": 1, "order": "ba", "judgement": "Correctness: 7 7\\nDetailedness: 6 5"}]
    >>> score(said).metrics["correctness"]
    {'a': 7.5, 'b': 6.5, 'difference': 1.0, 'wins': 1, 'ties': 0, 'losses': 0, 'position_bias': 1.0}
    """
    return _scored([(f"judgement {place}", judgement) for place, judgement in enumerate(judgements)], judgement_key, [])


def _scored(given: Sequence[tuple[str, Any]], judgement_key: str | None, problems: list[str]) -> Report:
    by_image = _by_image(given, judgement_key, problems)
    read = {image: {order: parse(text) for order, text in orders.items()} for image, orders in by_image.items()}
    texts = [text for orders in by_image.values() for text in orders.values()]
    is_readable = [scores is not None for orders in read.values() for scores in orders.values()]
    refuse_unreadable("the judgements", texts, is_readable, "lines such as 'Accuracy: 8 6' and 'Detailedness: 7 7'")
    items = []
    for image, orders in read.items():
        readable = {order: scores for order, scores in orders.items() if scores is not None}
        if not readable:
            continue
        item: dict[str, Any] = {"image_id": image, "orders": list(readable)}
        for name in CRITERIA:
            pairs = [scores[name] if order == "ab" else scores[name][::-1] for order, scores in readable.items()]
            item[name] = tuple(sum(pair[place] for pair in pairs) / len(pairs) for place in (0, 1))
        items.append(item)
    both = [read[item["image_id"]] for item in items if len(item["orders"]) == 2]
    metrics: dict[str, Any] = {}
    for name in CRITERIA:
        pairs = [item[name] for item in items]
        favoured = [scores[name][0] - scores[name][1] for orders in both for scores in orders.values()]
        metrics[name] = {
            "a": _mean([a for a, _ in pairs]),
            "b": _mean([b for _, b in pairs]),
            "difference": _mean([a - b for a, b in pairs]),
            "wins": sum(a > b for a, b in pairs),
            "ties": sum(a == b for a, b in pairs),
            "losses": sum(a < b for a, b in pairs),
            "position_bias": _mean(favoured),
        }
    metrics |= {"n": len(items), "n_both": len(both), **unreadable_counts(texts, is_readable)}
    return Report(metrics, items, {"benchmark": "pairwise", "prompt": "OPERA gpt4v_eval.py"})


class Judgement(msgspec.Struct):
    """What names the prompt that a row answers."""

    image_id: float | str
    order: str = "ab"


def _by_image(given: Sequence[tuple[str, Any]], judgement_key: str | None, problems: list[str]) -> dict[Hashable, dict[str, str]]:
    """Return the reply of each order of each image."""
    by_image: dict[Hashable, dict[str, str]] = {}
    for where, judgement in given:
        try:
            named = convert(judgement, Judgement)
            if named.order not in ("ab", "ba"):
                raise ValueError(f"order {named.order!r}; expected 'ab' or 'ba'")
            image = _image(judgement["image_id"])
            text = reply(judgement, judgement_key, parse)
            if named.order in by_image.get(image, {}):
                raise ValueError(f"image {image!r} is judged twice in order {named.order!r}")
            by_image.setdefault(image, {})[named.order] = text
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if not given:
        problems.append("there are none; expected at least one")
    if problems:
        raise BadInput("the judgements", problems, "Give one judgement for each prompt, with its image_id and order.")
    return by_image


def _image(given: int | float | str) -> int | str:
    """Return what an image is called here: its number, also where that stands in a text or a file name; else the name."""
    if isinstance(given, str):
        number = image_number(given)
        return given if number is None else number
    if not float(given).is_integer():
        raise ValueError(f"image_id {given!r}; expected a whole number or a file name")
    return int(given)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
