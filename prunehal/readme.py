"""Write the sections that code computes into the README, between two markers each."""

from __future__ import annotations

from pathlib import Path

from prunehal import measured, summary
from prunehal.resources import written

__all__ = ["SECTIONS", "markers", "update_readme", "write_between"]

SECTIONS = {
    "findings": summary.findings,
    "decoders": summary.decoders,
    "causal": summary.causal,
    "cost": measured.cost,
    "redundant": summary.redundant,
    "seeds": summary.training_seeds,
    "beyond": summary.beyond_the_paper,
    "answers": summary.answers,
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
    """Write all sections into a README, in place; as :func:`write_between` does."""
    for section, text in SECTIONS.items():
        write_between(path, *markers(section), text())


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Write text between two markers of a file, in place; the rest of the file stays as it is.

    Raises:
        ValueError: the file lacks a marker.
    """
    old = path.read_text(encoding="utf-8")
    if begin not in old or end not in old:
        raise ValueError(f"{path} lacks the marker {begin!r} or {end!r}; expected both, each on a line of its own; put them back")
    head, tail = old.split(begin)[0], old.split(end)[1]
    with written(path) as part:
        part.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")
