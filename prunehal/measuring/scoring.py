"""Measure how fast captions are scored, and in how much memory: every scorer on 500 and on 100,000 captions.

The captions are the released ones of OPERA's authors, and the ground truth is the shipped one for every scorer: which of COCO's
two it is changes neither time nor memory. For more than there are, their sentences are drawn anew into captions of
as many sentences, so that no caption comes twice. Each case runs in a process of its own, on one thread.
"""

from __future__ import annotations

import json
import platform
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from prunehal.benchmarks import ground_truth_coco, load_scorer, score
from prunehal.benchmarks.chair.released import released_captions
from prunehal.files.paths import written

__all__ = ["as_table", "captions", "case", "measure"]

SCORERS = ("pattern", "wordnet", "fixed")
SIZES = (500, 100_000)


def captions(n: int, seed: int = 0) -> dict[int, tuple[str, int]]:
    """Return n captions by a running number, each with the COCO image that it stands for.

    >>> drawn = captions(6_500)
    >>> len(drawn), len({text for text, _ in drawn.values()}) > 6_400
    (6500, True)
    """
    real = [(text, image) for captions_of in released_captions().values() for image, text in captions_of.items()]
    draw = random.Random(seed)
    draw.shuffle(real)
    sentences = [sentence for text, _ in real for sentence in text.split(". ") if sentence]
    given = len(real)
    while len(real) < n:
        text, image = real[len(real) % given]
        real.append((". ".join(draw.choices(sentences, k=text.count(". ") + 1)), image))
    return dict(enumerate(real[:n]))


def case(scorer: str, n: int) -> dict[str, float | int | str]:
    """Score n captions once in this process; return the seconds and the largest memory in MB.

    >>> case("fixed", 5)["captions"]
    5
    """
    start = time.perf_counter()
    loaded, coco = load_scorer(scorer), ground_truth_coco("pattern")
    loaded.mentions("The first caption loads what is loaded late.")
    loading = time.perf_counter() - start
    drawn = captions(n)
    texts = {number: text for number, (text, _) in drawn.items()}
    truth = {number: coco[image] for number, (_, image) in drawn.items()}
    start = time.perf_counter()
    score(texts, truth, loaded)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    return {"scorer": scorer, "captions": n, "loading_s": loading, "scoring_s": seconds, "peak_mb": peak}


def measure(path: Path, sizes: tuple[int, ...] = SIZES) -> pd.DataFrame:
    """Measure every scorer at every size, write the rows, and return them."""
    rows = []
    for scorer, n in tqdm([(scorer, n) for scorer in SCORERS for n in sizes], desc="scoring", unit="case"):
        code = f"import json; from prunehal.measuring.scoring import case; print(json.dumps(case({scorer!r}, {n})))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout) | {"machine": _machine()})
    frame = pd.DataFrame(rows)
    with written(path) as part:
        frame.to_csv(part, index=False, float_format="%.3f")
    return frame


def as_table(frame: pd.DataFrame) -> str:
    """Return the rows as a markdown table."""
    lines = ["| scorer | captions | loading, s | scoring, s | largest memory, MB |", "|---|---|---|---|---|"]
    for row in frame.itertuples():
        lines.append(f"| {row.scorer} | {row.captions:,} | {row.loading_s:.1f} | {row.scoring_s:.1f} | {row.peak_mb:.0f} |")
    return "\n".join([f"One thread of {frame['machine'].iloc[0]}:", "", *lines])


def _machine() -> str:
    from prunehal.measuring.engine import cpu_name

    return f"{cpu_name()}; Python {platform.python_version()}"
