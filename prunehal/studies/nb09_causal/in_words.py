"""What the interventions on attention say, in sentences whose words and numbers follow the comparisons of
`prunehal.studies.nb09_causal.comparisons`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from prunehal.studies.nb09_causal.comparisons import (
    ABSENT_NOW,
    BACK,
    BACK_OR_TO,
    LIKELIEST,
    MOVED,
    NEW_OR_ABSENT,
    NEW_OR_AGAIN,
    SIGN_FREE,
    SIGNED,
    TO_IMAGE,
    WITHHELD,
)
from prunehal.studies.nb09_causal.kinds_of_words import KINDS

__all__ = ["answer", "reading"]

_VERBS = {-1: "lowers", 1: "raises", 0: "is not shown to change"}
_MATCHED, _KINDS = "hallucinated - faithful, matched", " - ".join(KINDS[:2])
_TAKES = "the control that takes the same from the text"
_UNKNOWN = "which of the two changes in both acts (the text loses, another place gains) this design does not tell"
_YES = {True: "Yes", False: "No, that is not shown"}
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
        table: what `prunehal.studies.nb09_causal.comparisons.comparisons` returns.
    """
    new, again, absent = _shares(table, "new", "again", "absent")
    more = {-1: "more often it says again what it has said", 1: "more often it names what it had left out"}.get(
        _sign(table, (MOVED, NEW_OR_AGAIN)), "neither is shown to be more frequent"
    )
    bad, back, lost = (
        _says(table, key) for key in ((MOVED, "hallucinated"), (BACK, "hallucinated"), ("itself removed", "faithful"))
    )
    alike, withheld, odd, even = (
        _says(table, (name, "hallucinated")) for name in ("most alike removed", WITHHELD, SIGNED, SIGN_FREE)
    )
    control = _CONTROL[tuple(bool(table.loc[(name, "hallucinated"), "rejected"]) for name in (WITHHELD, TO_IMAGE))]
    look = _says(table, ("most alike removed", KINDS[1]))[1]
    controls = [_differs(table, (f"{other} removed", KINDS[1])) for other in ("another", "background")]
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
        f"{new:.0%} of the hallucinated mentions, and one that was named before in {again:.0%}: {more}. In {absent:.0%} it is "
        "another absent object.",
        f"With {BACK} a hallucinated word changes by {back[0]}: that {back[1]} it.",
        f"{sizes[0].upper()}{sizes[1:]} words: {_both(table, _KINDS)}.",
        f"A quarter moved to the image, by kind: {_by_kind(table, MOVED)}.",
        f"Hiding the patches of a word's own object {lost[1]} a faithful word: {lost[0]}. Hiding those of the object most alike "
        f"{alike[1]} a hallucinated one: {alike[0]}; by kind: {_by_kind(table, 'most alike removed')}.",
        f"Hiding the object most alike {look} {KINDS[1]} words: their probability changes by "
        f"{_percent(table, ('most alike removed', KINDS[1]))}. Hiding another object changes these words by {controls[0]}, and "
        f"hiding as much background by {controls[1]}.",
    ]


def answer(table: pd.DataFrame) -> list[str]:
    """Return the plain answers to the two questions of notebook 09, whose yes or no follows the corrected p-values.

    Attention changes the word where a quarter moved to the image changes hallucinated words. A lack of attention makes the model
    hallucinate where three things are found together: what the image gains lowers a hallucinated word more than a faithful one
    as likely and at the same place, beyond the control; a true object takes over more often than another absent one; and an
    absent one takes over from a faithful word more often with attention taken away than with attention given.

    Args:
        table: what `prunehal.studies.nb09_causal.comparisons.comparisons` returns.
    """
    kept, new, absent = _shares(table, "itself", "new", "absent")
    taken, given = (table.loc[(name, ABSENT_NOW), "estimate"] for name in (BACK, MOVED))
    keys = ((TO_IMAGE, _MATCHED), (MOVED, NEW_OR_ABSENT), (BACK_OR_TO, ABSENT_NOW))
    wanted = [_sign(table, key) == sign for key, sign in zip(keys, (-1, 1, 1), strict=True)]
    changes = bool(table.loc[(MOVED, "hallucinated"), "rejected"])
    return [
        f"Does attention on the image, changed at the very step that chooses a word, change the word? {_YES[changes]}: {MOVED} "
        f"changes the probability of a hallucinated word by {_percent(table, (MOVED, 'hallucinated'))}, and it stays the "
        f"likeliest word in {kept:.0%} of the mentions; beyond {WITHHELD} the change is "
        f"{_percent(table, (TO_IMAGE, 'hallucinated'))}, and as the control's opposite direction is not measured, a larger "
        "disturbance is not excluded as its reason.",
        f"Does a lack of attention on the image make the model hallucinate? {_YES[all(wanted)]}, with {sum(wanted)} of the "
        f"{len(wanted)} signs looked for: the quarter changes hallucinated words against faithful ones as likely and at the same "
        f"place by {_percent(table, (MOVED, _MATCHED))}, but what counts is the part beyond that control, "
        f"{_percent(table, keys[0])}; a new true object takes over in {new:.0%} of the hallucinated mentions and another absent "
        f"one in {absent:.0%}, a difference that is {_doubt(table, keys[1])}; and an absent object takes over from a faithful "
        f"word in {taken:.1%} with a quarter of the image's attention taken away and in {given:.1%} with a quarter of the text's "
        f"added, {_doubt(table, keys[2])}.",
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


def _shares(table: pd.DataFrame, *words: str) -> list[float]:
    """Return the shares of the hallucinated mentions with these likeliest words, a quarter moved to the image."""
    return [table.loc[(MOVED, f"hallucinated: {LIKELIEST[word]}"), "estimate"] for word in words]


def _by_kind(table: pd.DataFrame, name: str) -> str:
    """Return what an intervention does to each kind of hallucinated words."""
    return "; ".join(f"{kind} (n = {table.loc[(name, kind), 'n']}) {_differs(table, (name, kind))}" for kind in KINDS)


def _percent(table: pd.DataFrame, key: tuple[str, str]) -> str:
    """Return a change of the log-probability as one of the probability, in percent, and the doubt about it."""
    line = table.loc[key]
    if not np.isfinite(line["estimate"]):
        return f"(too few mentions, {line['n']})"
    middle, low, high = (100 * np.expm1(float(line[name])) for name in ("estimate", "low", "high"))
    return f"{middle:+.0f}% [{low:.0f}, {high:.0f}], {_doubt(table, key)}"


def _doubt(table: pd.DataFrame, key: tuple[str, str]) -> str:
    """Return whether a comparison is significant, with its corrected p-value."""
    p = table.loc[key, "p_holm"]
    if not np.isfinite(p):
        return "not tested"
    said = "significant" if table.loc[key, "rejected"] else "not significant"
    return f"{said} (p = {p:.2g})" if p >= 1e-10 else f"{said} (p < 1e-10)"
