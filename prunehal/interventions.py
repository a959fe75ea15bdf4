"""The rows of interventions on attention: made once, and kept in one compressed file that says what made it.

The file is CSV below a first line, ``# `` and JSON, that holds the experiment whose captions were taken and the versions that
made the rows (`prunehal.experiments.versions`). A line of the CSV is a mention, a column one quantity under one intervention:
that takes two thirds of the room of one line for each intervention.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from prunehal.benchmarks.files import BadInput
from prunehal.causal import intervene, mentions_of
from prunehal.experiments import Experiment, Store
from prunehal.experiments.pictures import image_keys
from prunehal.experiments.versions import made_by, refuse_other_versions
from prunehal.loading import load
from prunehal.resources import data_path, written

__all__ = ["CAPTIONED", "FILE", "interventions", "measure"]

CAPTIONED = Experiment(split="test", n_images=1000)  # whose stored captions are written again
FILE = "interventions.csv.gz"  # among the shipped results
_MENTION = ["image_id", "index", "node", "hallucinated", "ambiguous"]
_CASE = ["what", "part", "dose"]
_VALUES = ["patches", "mass", "log_prob", "likeliest"]
_DECIMALS = {"mass": 3, "log_prob": 4}


def interventions(n_images: int = CAPTIONED.n_images, path: Path | None = None) -> pd.DataFrame:
    """Read the rows of the first images, with the columns that `prunehal.causal.intervene` gives.

    Args:
        n_images: of the test split.
        path: file that :func:`measure` wrote; by default the shipped one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: other code, weights or scenes made the rows, or they are of fewer images.
        BadInput: the file is broken, or does not say what made its rows.

    >>> frame = interventions(n_images=20)
    >>> frame["image_id"].nunique() <= 20, sorted(frame["what"].unique())
    (True, ['move', 'remove', 'scale', 'withhold'])
    """
    path = data_path("results", FILE, must_exist=False) if path is None else path
    if not path.exists():
        raise FileNotFoundError(f"{path}: there are no rows of interventions; make them by: python -m prunehal causal")
    fix = "Restore the file, or remove it and make it again by: python -m prunehal causal"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            first, rest = file.readline(), file.read()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadInput(path, [f"it cannot be unpacked ({error})"], fix) from error
    try:
        header = json.loads(first.removeprefix("# "))
        stored, before = header["experiment"]["n_images"], header["made_by"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(path, [f"line 1: {first[:40]!r}; expected '# ' and what made the rows, as JSON"], fix) from error
    refuse_other_versions(path, before, made_by(CAPTIONED))
    if not 2 <= n_images <= stored:
        raise ValueError(f"n_images={n_images}: expected 2 to {stored}, of which {path.name} has rows; ask for fewer")
    wide = pd.read_csv(io.StringIO(rest), header=[0, 1], index_col=[*range(len(_MENTION))], keep_default_na=False, na_values=[""])
    asked = image_keys(replace(CAPTIONED, n_images=n_images))
    return _long(wide[wide.index.get_level_values("image_id").isin(asked)])


def measure(out: Path, n_images: int = CAPTIONED.n_images, batch_size: int = 50, progress: bool = True) -> pd.DataFrame:
    """Intervene at the first mention of each object in the stored captions of the test split, and write the rows.

    Args:
        out: compressed file to write.
        n_images: captions of so many scenes.
        batch_size: mentions at once; mentions of like length together.
        progress: show a bar with the time left.

    Raises:
        FileNotFoundError: the captions are not stored.
    """
    experiment = replace(CAPTIONED, n_images=n_images)
    model, processor = load()
    mentions = mentions_of(Store.shipped(), experiment, processor)
    mentions.sort(key=lambda mention: len(mention.before))
    parts = [mentions[start : start + batch_size] for start in range(0, len(mentions), batch_size)]
    bar = tqdm(parts, desc="interventions", unit="batch", disable=not progress)
    frame = pd.concat([intervene(model, processor, part) for part in bar], ignore_index=True).round(_DECIMALS)
    header = json.dumps({"experiment": {"n_images": n_images} | experiment.description, "made_by": made_by(experiment)})
    with written(out) as part:
        part.write_bytes(gzip.compress(f"# {header}\n{_wide(frame).to_csv()}".encode(), mtime=0))
    return frame


def _wide(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each mention; columns (value, "what|part|dose")."""
    doses = frame["dose"].map(lambda dose: "" if math.isnan(dose) else repr(float(dose)))
    case = frame["what"] + "|" + frame["part"] + "|" + doses
    return frame.assign(case=case).pivot(index=_MENTION, columns="case", values=_VALUES)  # noqa: PD010


def _long(wide: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each mention and intervention: what :func:`_wide` was given, sorted by mention."""
    named = wide.rename_axis(columns=[None, "case"])
    frame = named.stack("case", future_stack=True).dropna(subset="log_prob").reset_index()  # noqa: PD013
    frame[_CASE] = frame.pop("case").str.split("|", expand=True)
    frame["dose"] = pd.to_numeric(frame["dose"])
    return frame.astype({"patches": int, "mass": float, "log_prob": float})[[*_MENTION, *_CASE, *_VALUES]]
