"""Real captions: what OPERA's authors released, and the numbers that they published for them.

Source: shikiw/OPERA (MIT licence), ``log/chair_eval_results``: 500 images of COCO val2014 each, prompt "Please describe this
image in detail.", at most 512 new tokens; greedy decoding, beam search with 5 beams, and OPERA ("ours").
"""

from __future__ import annotations

from collections.abc import Hashable

from prunehal.benchmarks.captions import read_captions
from prunehal.benchmarks.files import read_shipped
from prunehal.resources import data_path

__all__ = ["DECODINGS", "MODELS", "published_scores", "released_captions"]

MODELS = {"llava-1.5": "LLaVA-1.5", "instructblip": "InstructBLIP", "minigpt4": "MiniGPT-4", "shikra": "Shikra"}
DECODINGS = {"greedy": "greedy", "beam5": "beam 5", "ours": "OPERA"}


def released_captions() -> dict[tuple[str, str], dict[Hashable, str]]:
    """Return ``{(model, decoding): {image_id: caption}}``, keys as in MODELS and DECODINGS.

    >>> captions = released_captions()
    >>> len(captions), len(captions["llava-1.5", "greedy"])
    (12, 500)
    """
    files = {(model, decoding): f"{decoding}.jsonl.gz" for model in MODELS for decoding in DECODINGS}
    return {key: read_captions(data_path("captions", "opera", key[0], name))[0] for key, name in files.items()}


def published_scores() -> dict[tuple[str, str], tuple[float, float]]:
    """Return the published CHAIR_s and CHAIR_i of each, in percent (OPERA, arXiv 2311.17911, its table of CHAIR results).

    >>> published_scores()["llava-1.5", "beam5"]
    (48.8, 13.9)
    """
    scores = read_shipped("captions", "opera", "published.json")["scores"]
    return {(model, decoding): tuple(scores[model][decoding]) for model in MODELS for decoding in DECODINGS}
