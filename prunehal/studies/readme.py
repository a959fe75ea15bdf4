"""Write the sections that code computes into the README, between two markers each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from prunehal.files.paths import written
from prunehal.measuring import tables as measured
from prunehal.studies import headline as summary

__all__ = ["SECTIONS", "markers", "update_readme", "write_between"]

SECTIONS = {
    "findings": summary.findings,
    "claims": summary.all_claims,
    "decoders": summary.decoders,
    "causal": summary.causal,
    "cost": measured.cost,
    "redundant": summary.redundant,
    "seeds": summary.training_seeds,
    "beyond": summary.beyond_the_paper,
    "released": summary.released,
    "scoring": measured.scoring,
    "sweeps": measured.sweeps,
    "speed": measured.speed,
    "numerics": measured.numerics,
}


def markers(section: str) -> tuple[str, str]:
    """Return the lines between which a section of the README stands."""
    return f"<!-- {section}: begin, written by `python -m prunehal readme` -->", f"<!-- {section}: end -->"


def update_readme(path: Path) -> None:
    """Write all sections into a README, in place and by one write; as :func:`write_between` does.

    Raises:
        ValueError: a section cannot be computed, or the file lacks a marker; it stays as it was.
    """
    _rewrite(path, {markers(section): text for section, text in SECTIONS.items()})


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Write text between two markers of a file, in place; the rest of the file stays as it is.

    Raises:
        ValueError: the file lacks a marker.
    """
    _rewrite(path, {(begin, end): lambda: text})


def _rewrite(path: Path, texts: Mapping[tuple[str, str], Callable[[], str]]) -> None:
    whole = path.read_text(encoding="utf-8")
    if lacking := [marker for pair in texts for marker in pair if marker not in whole]:
        raise ValueError(f"{path} lacks the marker {lacking[0]!r}; expected it on a line of its own; put it back")
    for (begin, end), text in texts.items():
        head, tail = whole.split(begin)[0], whole.split(end)[1]
        whole = f"{head}{begin}\n{text()}\n{end}{tail}"
    with written(path) as part:
        part.write_text(whole, encoding="utf-8")
