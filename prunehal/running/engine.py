"""Load a model once, and answer batches of items: render, encode, generate, decode, and say what was pruned."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from prunehal.benchmarks.chair.images import Item
from prunehal.core import NoPruning, attach
from prunehal.core.visual import generating
from prunehal.decoding.named import BEAMS
from prunehal.files.images import load_image
from prunehal.files.rows import Keyed
from prunehal.models.chat import encode, new_tokens, render, to_model
from prunehal.models.load import load
from prunehal.running.tasks import BENCHMARKS

if TYPE_CHECKING:
    from prunehal.running.settings import Run

__all__ = ["SEARCHES", "Engine", "Prune", "Row"]

# What generate() gets; what a checkpoint may set otherwise is named. Decoders search greedily, but for what they set themselves.
_GREEDY = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": _GREEDY,
    "beam": _GREEDY | {"num_beams": BEAMS},
    "nucleus": _GREEDY | {"do_sample": True, "top_p": 0.9, "top_k": 0},
}


class Prune(msgspec.Struct):
    """What one prune left of a text's visual tokens."""

    step: int
    reason: str
    kept: list[Any]


class Row(Keyed):
    """The row that is stored for one item."""

    image: str
    prompt: str
    text: str
    tokens: int
    finished: bool
    prunes: list[Prune]
    seconds: float


class Engine:
    """The loaded model, and how it is asked.

    Args:
        settings: of the run.
        images: path and pixels of each image, by its file name.
        items: all that will be asked, also in earlier or later calls.
    """

    def __init__(self, settings: Run, images: Mapping[str, tuple[Path, int]], items: Sequence[Item]) -> None:
        self.settings, self.images = settings, images
        names = ("attn_implementation", "device_map")
        options = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
        self.model, self.processor = load(settings.model, revision=settings.revision, dtype=settings.dtype, **options)
        if settings.device_map is None:
            self.model.to(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        config = generating(self.model).generation_config
        ends = config.eos_token_id
        self.ends = {ends} if isinstance(ends, int) else set(ends or ())
        self.pad = config.pad_token_id if config.pad_token_id is not None else self.processor.tokenizer.pad_token_id
        self.pad = self.pad if self.pad is not None else next(iter(sorted(self.ends)), 0)
        self.prompts = {item.key: self._rendered(item.text) for item in items}
        ids = self.processor.tokenizer(list(self.prompts.values()))["input_ids"]
        slope = self._tokens_of_a_pixel(items)
        self.length = {item.key: len(row) + slope * images[item.image][1] for item, row in zip(items, ids, strict=True)}

    def _rendered(self, text: str) -> str:
        text += self.settings.prompt_suffix
        return render(self.processor, text, self.settings.template, self.model.config.model_type)

    def _tokens_of_a_pixel(self, items: Sequence[Item]) -> float:
        """Return by how many tokens a prompt grows with each pixel of its image, seen on the smallest and the largest."""
        pixels = sorted({(pixels, path) for path, pixels in self.images.values()})
        (small, smallest), (large, largest) = pixels[0], pixels[-1]
        if small == large:
            return 0.0
        prompt = self.prompts[items[0].key]
        few, many = (encode(self.processor, [load_image(path)], [prompt])["input_ids"].shape[1] for path in (smallest, largest))
        return max(0, many - few) / (large - small)

    def shared(self) -> dict[str, Any]:
        """Return the settings of all rows that only the loaded model tells."""
        task = BENCHMARKS[self.settings.benchmark]
        config = generating(self.model).generation_config.to_diff_dict()
        config.pop("transformers_version", None)
        text = next(iter(self.prompts.values())) if task.prompted else self._rendered("{prompt}")
        commit = getattr(self.model.config, "_commit_hash", None)
        return {"rendered_prompt": text, "commit": commit, "generation_config": json.loads(json.dumps(config, default=str))}

    def free(self) -> dict[str, Any]:
        """Return what may differ from call to call: it should not change a text, but may explain one."""
        names = ("images", "out", "batch_size", "limit", "skip_missing", "device_map")
        return {name: _plain(getattr(self.settings, name)) for name in names} | {
            "device": str(self.model.device), "dtype_loaded": str(self.model.dtype), "torch": torch.__version__,
            "attention": self.model.config.get_text_config()._attn_implementation,
        }  # fmt: skip

    def answer(self, batch: Sequence[Item]) -> list[dict[str, Any]]:
        """Ask one batch, and return its rows."""
        decoding = self.settings.decoding
        decoder = None if isinstance(decoding, str) else decoding
        if decoder is not None and decoder.one_input and len(batch) > 1:
            return [row for item in batch for row in self.answer([item])]
        started = time.perf_counter()
        pictures = [load_image(self.images[item.image][0]) for item in batch]
        inputs = to_model(encode(self.processor, pictures, [self.prompts[item.key] for item in batch]), self.model)
        options = dict(_GREEDY if decoder else SEARCHES[decoding])
        options |= {"max_new_tokens": self.settings.max_new_tokens, "num_return_sequences": 1, "pad_token_id": self.pad}
        cache = None
        if self.settings.prunes or decoder:
            seeds = [_number(item.key) for item in batch]
            cache = attach(self.model, inputs, self.settings.policy or NoPruning(), seeds=seeds, end_ids=[self.pad])
            options |= cache.options
        cards = sorted({part.device.index for part in self.model.parameters() if part.device.type == "cuda"})
        method = decoder.on(self.model, inputs, cache) if decoder else nullcontext({})
        with method as own, torch.random.fork_rng(devices=cards):
            torch.manual_seed(_number(self.settings.seed, *(item.key for item in batch)))
            made = self.model.generate(**inputs, **options | own, return_dict_in_generate=True)
        written = new_tokens(made.sequences, inputs["input_ids"]).tolist()
        # Which row of the cache each token came from: with beam search a text moves between rows.
        beams = getattr(made, "beam_indices", None)
        came_from = [[row] * len(ids) for row, ids in enumerate(written)] if beams is None else beams.tolist()
        events = [] if cache is None else cache.events.to_dict("records")
        seconds = round(time.perf_counter() - started, 3)
        rows = []
        for item, ids, places in zip(batch, written, came_from, strict=True):
            end = next((place for place, token in enumerate(ids) if token in self.ends), None)
            text = self.processor.tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
            row = {"key": item.key, "image": item.image, "prompt": item.text + self.settings.prompt_suffix, "text": text}
            row |= {"tokens": len(ids) if end is None else end, "finished": end is not None}
            rows.append(row | {"prunes": _prunes(events, places, row["tokens"] + row["finished"]), "seconds": seconds})
        return rows


def _prunes(events: Sequence[Mapping[str, Any]], came_from: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """Return the prunes of one text: step, reason, kept.

    Args:
        events: of the whole batch, as the cache records them.
        came_from: which row of the cache each token of the text came from.
        steps: of the text. A prune after its last step, which happens only while other texts go on, changed nothing in it.
    """
    return [
        {name: event[name] for name in ("step", "reason", "kept")}
        for event in events
        if event["step"] < steps and came_from[event["step"] - 1] == event["row"]
    ]


def _number(*values: int | str) -> int:
    """Return a seed that depends on all values, and on nothing else."""
    return int.from_bytes(hashlib.sha256(json.dumps(values).encode()).digest()[:7])


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
