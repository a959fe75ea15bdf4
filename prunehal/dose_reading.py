"""What the interventions on attention say, in sentences whose words and numbers follow the comparisons of `prunehal.dose`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from prunehal.dose import LIKELIEST, MOVED, NEW_OR_AGAIN, SIGN_FREE, SIGNED, TO_IMAGE, WITHHELD
from prunehal.kinds import KINDS

__all__ = ["reading"]

_VERBS = {-1: "lowers", 1: "raises", 0: "is not shown to change"}
_MATCHED, _KINDS = "hallucinated - faithful, matched", " - ".join(KINDS[:2])
_TAKES = "the control that takes the same from the text"
_UNKNOWN = "which of the two changes in both acts (the text loses, another place gains) this design does not tell"
_CONTROL = {  # is there an effect of the control, and a difference from it?
    (True, True): f"Where the attention goes matters to such a word: {_TAKES} has another effect; {_UNKNOWN}",
    (True, False): f"What the image gains is not shown to matter to such a word: {_TAKES} has the same effect, "
    f"within that interval; {_UNKNOWN}",
    (False, True): f"Where the attention goes matters to such a word: {_TAKES} is not shown to have an effect",
    (False, False): "Neither the control nor the difference from it is shown to have an effect",
}


def reading(table: pd.DataFrame) -> list[str]:
    """Return what the comparisons say, in sentences whose words follow the corrected p-values.

    Args:
        table: what `prunehal.dose.comparisons` returns.
    """
    new, again = (table.loc[(MOVED, f"hallucinated: {label}"), "estimate"] for label in LIKELIEST.values())
    more = {-1: "more often it says again what it has said", 1: "more often it names what it had left out"}.get(
        _sign(table, (MOVED, NEW_OR_AGAIN)), "neither is shown to be more frequent"
    )
    bad, lost = _says(table, (MOVED, "hallucinated")), _says(table, ("itself removed", "faithful"))
    alike, withheld, odd, even = (
        _says(table, (name, "hallucinated")) for name in ("most alike removed", WITHHELD, SIGNED, SIGN_FREE)
    )
    control = _CONTROL[tuple(bool(table.loc[(name, "hallucinated"), "rejected"]) for name in (WITHHELD, TO_IMAGE))]
    sizes = " minus ".join(f"{kind} (n = {table.loc[(MOVED, kind), 'n']})" for kind in KINDS[:2])
    return [
        f"With {MOVED}, the log-probability of a hallucinated word changes by {bad[0]}: that {bad[1]} it.",
        "Each word was chosen as the likeliest, so that any disturbance lowers it on average. The part of the change that turns "
        "with the sign of the move, half of what a quarter to the image does minus what a quarter to the text does, is "
        f"{odd[0]}: that {odd[1]} it; the part that does not turn is {even[0]}.",
        f"With {WITHHELD} it changes by {withheld[0]}; the difference, to the image rather than there, is "
        f"{_differs(table, (TO_IMAGE, 'hallucinated'))}.",
        f"{control}.",
        f"Hallucinated minus faithful words as likely and at the same place: {_both(table, _MATCHED)}.",
        f"With the quarter moved to the image the likeliest word is an object of the scene that was not named before in "
        f"{new:.0%} of the hallucinated mentions, and one that was named before in {again:.0%}: {more}.",
        f"{sizes[0].upper()}{sizes[1:]} words: {_both(table, _KINDS)}.",
        f"Hiding the patches of a word's own object {lost[1]} a faithful word: {lost[0]}. Hiding those of the object most alike "
        f"{alike[1]} a hallucinated one: {alike[0]}.",
    ]


def _sign(table: pd.DataFrame, key: tuple[str, str]) -> int:
    """Return the sign of an estimate that differs from 0, else 0."""
    return int(np.sign(table.loc[key, "estimate"])) if table.loc[key, "rejected"] else 0


def _says(table: pd.DataFrame, key: tuple[str, str]) -> tuple[str, str]:
    """Return an estimate with its interval, and the verb that it bears."""
    line = table.loc[key]
    if not np.isfinite(line["estimate"]):
        return f"(too few mentions, {line['n']})", _VERBS[0]
    return f"{line['estimate']:+.2f} nats [{line['low']:.2f}, {line['high']:.2f}]", _VERBS[_sign(table, key)]


def _differs(table: pd.DataFrame, key: tuple[str, str]) -> str:
    """Return an estimate with its interval, and the doubt about it."""
    return _says(table, key)[0] + ("" if table.loc[key, "rejected"] else ", not shown to differ from 0")


def _both(table: pd.DataFrame, group: str) -> str:
    """Return a difference of the whole change and of its signed part."""
    return f"{_differs(table, (MOVED, group))}; of the signed part alone {_differs(table, (SIGNED, group))}"
