"""Run a model on a benchmark, and write the result file that the benchmark's own scorer reads.

    run(Run(model="llava-hf/llava-1.5-7b-hf", benchmark="chair", images="val2014", out="runs/chair", policy=PruneHal(r=0.4, t=3)))

Items are asked in batches of like length, the longest first. Each batch's rows are on the disk before the next begins, so that a
run can be killed at any time; the same call goes on where it stopped. Without a policy (or with ``NoPruning()``, which only
observes) generate() is the stock one, on the cache that it makes itself.

Greedy and beam search give each item the same text in every batch, up to rounding of the data type (the tests compare in
float32). Sampling is seeded by the seed and the keys of the batch: equal calls give equal texts, other batch sizes others.
Decoding sets how tokens are chosen; all else (a repetition penalty, say) stays as the checkpoint's generation_config has it,
which ``settings.json`` records.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from prunehal.benchmarks.chair.images import Item, images_of, left_out
from prunehal.files.locking import locked
from prunehal.files.rows import RowFile, keep_free, keep_settings, refuse_other_settings
from prunehal.models.load import EMBEDDED, is_out_of_memory, weights_mark
from prunehal.running.engine import Engine, Row
from prunehal.running.settings import Run
from prunehal.running.tasks import BENCHMARKS, items_of, write_result
from prunehal.testbed.world.captions import PROMPT

__all__ = ["run"]


def run(settings: Run) -> Path:
    """Ask a model all items of a benchmark, or those that are left of an earlier call, and write the result file.

    In ``settings.out``: ``settings.json``; ``rows.jsonl``, one row for each item with key, image, prompt, text, tokens (the
    end token not counted), finished (whether it came), prunes (step, reason, kept in each layer) and seconds (of its batch);
    at the end the benchmark's result file.

    Returns:
        The path of the result file.

    Raises:
        ValueError: settings that differ from those of the rows there, questions or images that cannot be used, a model whose
            visual tokens cannot be pruned, no chat template. Nothing is loaded before images and settings are seen to be right.
        OSError: another run holds the folder, or a file cannot be read or written.
        RuntimeError: memory does not suffice for one item alone.

    >>> import tempfile
    >>> from prunehal.testbed.world.scenes import scene
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scene("test", 0).image().save(f"{folder}/42.png")
    ...     settings = Run(model="embedded", benchmark="chair", images=folder, out=f"{folder}/out", max_new_tokens=4)
    ...     run(settings).read_text()
    '{"image_id": 42, "caption": "The photo was taken", "finished": false}\\n'
    """
    path = settings.out / "settings.json"
    prompt = PROMPT if settings.model == EMBEDDED and settings.prompt is None else settings.prompt
    items = items_of(settings.benchmark, settings.images, settings.questions, prompt)
    chosen = items if settings.skip_missing else items[: settings.limit]
    chosen, images = images_of(chosen, settings.images, settings.skip_missing)
    chosen = chosen[: settings.limit]
    images = {item.image: images[item.image] for item in chosen}
    counts = {
        "items": len(chosen),
        "left_out": left_out(settings.images, settings.questions) if BENCHMARKS[settings.benchmark].prompted else {},
    }
    with locked(settings.out):
        file = RowFile(settings.out / "rows.jsonl", Row)
        mark = weights_mark(settings.model)  # so that weights trained anew are not taken for the old; the hub has commits
        shared = settings.shared() | ({} if mark is None else {"weights": mark})
        if file.rows:
            refuse_other_settings(path, shared)
            _refuse_other_items(file, chosen, settings.prompt_suffix)
        left = [item for item in chosen if item.key not in file.rows]
        if left:
            engine = Engine(settings, images, chosen)
            keep_settings(path, shared | engine.shared(), engine.free() | counts, has_rows=bool(file.rows))
            (settings.out / BENCHMARKS[settings.benchmark].result).unlink(missing_ok=True)  # it is of fewer items
            _say(file.repair())
            try:
                _ask(engine, file, left, len(chosen))
            except BaseException:
                if not file.rows:  # settings that made no row
                    path.unlink()
                raise
        else:
            keep_free(path, counts)
            _say(file.repair())
        texts = {item.key: file.rows[item.key]["text"] for item in chosen}
        result = write_result(settings.benchmark, settings.out, chosen, file.rows)
    n_pruned = sum(bool(file.rows[item.key]["prunes"]) for item in chosen) if settings.prunes else None
    for problem in _remarks(counts["left_out"], len(items) - len(chosen), texts, n_pruned):
        _say(f"{result}: {problem}")
    return result


def _remarks(files: Mapping[str, int], others: int, texts: Mapping[int | str, str], n_pruned: int | None) -> Iterator[str]:
    """Yield remarks on a result: files and items that were left out, empty texts, and how many texts have a prune."""
    if files:
        counted = ", ".join(f"{count} {suffix}" for suffix, count in files.items())
        yield f"the image folder holds files of other formats, which were left out: {counted}; expected .jpg, .jpeg or .png"
    if others:
        yield f"{len(texts)} items, {others} left out"
    if empty := sum(not text for text in texts.values()):
        yield f"{empty} of {len(texts)} texts are empty; check that the prompt suits the model"
    if n_pruned is not None:
        never = "; the policy never acted: check its options, such as r, t or k, and the length of the texts"
        yield f"{n_pruned} of {len(texts)} texts have a prune{'' if n_pruned else never}"


def _ask(engine: Engine, file: RowFile, left: Sequence[Item], total: int) -> None:
    """Ask what is left, the longest prompts first, and append the rows of each batch."""
    waiting = sorted(left, key=lambda item: -engine.length[item.key])
    size = engine.settings.batch_size
    bar = tqdm(
        desc=engine.settings.benchmark, total=total, initial=total - len(left), unit="image", smoothing=0,
        disable=not engine.settings.progress,
    )  # fmt: skip
    try:
        with bar:
            while waiting:
                batch, full = waiting[:size], ""
                try:
                    rows = engine.answer(batch)
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    full = str(error).partition("\n")[0] or type(error).__name__
                if full:  # here the error, which holds the tensors of its frames, is gone
                    size = _smaller(engine, batch, full)
                    continue
                file.append(rows)
                waiting = waiting[len(batch) :]
                bar.update(len(batch))
    except BaseException:
        if file.rows:  # without rows the folder is removed
            n_left = len(waiting)
            _say(f"{file.path}: {total - n_left} of {total} items are done, {n_left} are left; the same call goes on there")
        raise


def _smaller(engine: Engine, batch: Sequence[Item], full: str) -> int:
    """Free what memory can be, and return half the batch size; a single item that does not fit is an error."""
    if len(batch) == 1:
        raise RuntimeError(
            f"item {batch[0].key!r} ({batch[0].image}): memory does not suffice for it alone ({full}); expected room for one "
            "item; choose a smaller max_new_tokens or dtype, another device, or a device_map over several"
        )
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    size = len(batch) // 2
    _say(f"memory does not suffice for {len(batch)} items at once ({full}); going on with {size}")
    return size


def _refuse_other_items(file: RowFile, items: Sequence[Item], suffix: str) -> None:
    """Raise a ValueError if a row answers another question than the item of its key asks."""
    for item in items:
        if (row := file.rows.get(item.key)) is None:
            continue
        now = {"image": item.image, "prompt": item.text + suffix}
        for name, value in now.items():
            if row.get(name) != value:
                raise ValueError(
                    f"{file.path}: the row of {item.key!r} has {name} {row.get(name)!r}, now it is {value!r}; expected the same "
                    "questions and images for all rows of a folder; choose another folder"
                )


def _say(message: str) -> None:
    if message:
        tqdm.write(message, file=sys.stderr)
