"""The rows of interventions on attention: made once, and kept in one compressed file that says what made it
(`prunehal.experiments.tables`).

A line of the CSV is a mention, a column one quantity under one intervention: that takes two thirds of the room of one line for
each intervention.
"""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from prunehal.experiments import Experiment, Store
from prunehal.experiments.images import image_keys
from prunehal.experiments.tables import read_marked, write_marked
from prunehal.files.paths import data_path
from prunehal.models.load import load
from prunehal.studies.nb09_causal.intervene import intervene, mentions_of

__all__ = ["CAPTIONED", "FILE", "interventions", "measure"]

CAPTIONED = Experiment(split="test", n_images=400)  # whose stored captions are written again
FILE = "interventions.csv.gz"  # among the shipped results
_MENTION = ["image_id", "index", "node", "hallucinated", "ambiguous"]
_CASE = ["what", "part", "dose"]
_VALUES = ["patches", "mass", "log_prob", "likeliest"]
_DECIMALS = {"mass": 3, "log_prob": 4}


def interventions(n_images: int = CAPTIONED.n_images, path: Path | None = None) -> pd.DataFrame:
    """Read the rows of the first images, with the columns that `prunehal.studies.nb09_causal.intervene.intervene` gives.

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
    described, table = read_marked(path, CAPTIONED, "python -m prunehal causal")
    stored = described["n_images"]
    if not 2 <= n_images <= stored:
        raise ValueError(f"n_images={n_images}: expected 2 to {stored}, of which {path.name} has rows; ask for fewer")
    wide = pd.read_csv(
        io.StringIO(table), header=[0, 1], index_col=[*range(len(_MENTION))], keep_default_na=False, na_values=[""]
    )
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
    write_marked(out, _wide(frame).to_csv(), experiment)
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
