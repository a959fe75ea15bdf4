"""Dose and response: how the probability of a word changes with the attention on the image, from the rows of interventions.

Changes are of the log-probability, in nats, from the same mention left as it was; images are the units of every interval. Greedy
decoding chose each word as the likeliest one, so that any disturbance lowers it on average, of whatever sign (regression to the
mean): :func:`signed` splits off what follows the sign. `prunehal.studies.nb09_causal.in_words` says in words what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from prunehal.stats.clustered import estimate, gap, matched_gap, mean
from prunehal.stats.matching import matched
from prunehal.stats.testing import holm
from prunehal.studies.nb09_causal.intervene import REMOVED, SCALES
from prunehal.studies.nb09_causal.kinds_of_words import KINDS, kinds_of

__all__ = [
    "ABSENT_NOW",
    "BACK",
    "BACK_OR_TO",
    "FEWEST",
    "LIKELIEST",
    "MOVED",
    "NEW_OR_ABSENT",
    "NEW_OR_AGAIN",
    "RATHER",
    "SIGNED",
    "SIGN_FREE",
    "SLOPE",
    "TO_IMAGE",
    "WITHHELD",
    "comparisons",
    "curves",
    "responses",
    "signed",
    "slopes",
]

FEWEST = 10  # mentions that an estimate needs
SLOPE = f"slope fitted to c = 1/{1 / SCALES[1]:g} to {SCALES[-1]:g}, per doubling of the odds"  # no dose doubles them
MOVED = "a quarter of the attention on text moved to the image"
BACK = "a quarter of the attention on the image moved to the text"
BACK_OR_TO = "a quarter moved: to the text - to the image"
WITHHELD = "the same given to the start token"
TO_IMAGE = "to the image rather than to the start token"
SIGNED = "a quarter moved, signed part: half of (to the image - to the text)"
SIGN_FREE = "a quarter moved, sign-free part: half of (to the image + to the text)"
RATHER = "most alike rather than as much background removed"
_MOVE = 0.25
LIKELIEST = {
    "itself": "likeliest is still the word itself",
    "new": "likeliest is an object of the scene not named before",
    "again": "likeliest is an object of the scene named before",
    "absent": "likeliest is another absent object",
}
NEW_OR_AGAIN = "hallucinated: not named before - named before"
NEW_OR_ABSENT = "hallucinated: not named before - another absent"
ABSENT_NOW = "faithful: likeliest is an absent object"
_KEYS = ["image_id", "index"]


def responses(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of interventions with what each changed.

    Left out are ambiguous mentions, whose first token says nothing of which object is meant. The two doses that both ways of
    changing attention share (as it was, and blind) stand under both.

    Args:
        rows: what `prunehal.studies.nb09_causal.rows.interventions` returns.

    Returns:
        The rows, with baseline (log-probability of the mention as it was), change (of it) and the columns of
        `prunehal.studies.nb09_causal.kinds_of_words.kinds_of`.

    >>> from prunehal.studies.nb09_causal.rows import interventions
    >>> found = responses(interventions(n_images=20))
    >>> float(found.query("what == 'scale' and dose == 1")["change"].abs().max())
    0.0
    """
    plain = rows[(rows["what"] == "scale") & (rows["dose"] == 1)]
    plain = plain.join(kinds_of(plain)).rename(columns={"log_prob": "baseline"})
    shared = [rows[(rows["what"] == "scale") & (rows["dose"] == c)].assign(what="move", dose=c - 1.0) for c in (0.0, 1.0)]
    rows = pd.concat([rows[~rows["ambiguous"]], *(part[~part["ambiguous"]] for part in shared)], ignore_index=True)
    rows = rows.merge(plain[[*_KEYS, "baseline", "likeness", "usual", "habit", "kind"]], on=_KEYS, validate="many_to_one")
    return rows.assign(change=rows["log_prob"] - rows["baseline"])


def slopes(found: pd.DataFrame) -> pd.DataFrame:
    """Return for each mention the least-squares slope of its log-probability on log2 of c, blindness left out.

    Args:
        found: what :func:`responses` returns.

    Returns:
        One line for each mention, as the rows have them at c = 1, with change: nats per doubling of the odds of image against
        text, fitted to all of SCALES but 0; none of them doubles the odds.
    """
    scaled = found[(found["what"] == "scale") & (found["dose"] > 0)]
    table = scaled.pivot_table(index=_KEYS, columns="dose", values="change")
    x = np.log2(table.columns.to_numpy(dtype=float))
    x -= x.mean()
    slope = (table @ x / (x @ x)).rename("change").reset_index()
    return scaled[scaled["dose"] == 1].drop(columns="change").merge(slope, on=_KEYS)


def signed(found: pd.DataFrame, share: float, part: str = "all") -> pd.DataFrame:
    """Return for each mention what of its change follows the sign of a move, and what does not.

    The change f(d) is the sum of an odd part, (f(d) - f(-d)) / 2, and an even one, (f(d) + f(-d)) / 2. A disturbance that
    lowers the likeliest word whichever way it goes is in the even part. The slopes of :func:`slopes` are odd as they are: their
    doses lie evenly about 1.

    Args:
        found: what :func:`responses` returns.
        share: d, of the attention on text that goes to the image; its negative, of that on the image to the text.
        part: layers.

    Returns:
        One line for each mention, as the rows have them at d, with odd and even, in nats.

    >>> from prunehal.studies.nb09_causal.rows import interventions
    >>> parts = signed(responses(interventions(n_images=20)), 0.25)
    >>> np.allclose(parts["odd"] + parts["even"], parts["change"])
    True
    """
    both = _at(found, "move", part, share).merge(
        _at(found, "move", part, -share)[[*_KEYS, "change"]], on=_KEYS, suffixes=("", "_back"), validate="one_to_one"
    )
    back = both.pop("change_back")
    return both.assign(odd=(both["change"] - back) / 2, even=(both["change"] + back) / 2)


def curves(found: pd.DataFrame, groups: Mapping[str, pd.Series], n_resamples: int = 2000) -> pd.DataFrame:
    """Return the response to each dose of each group of mentions, all layers at once.

    Args:
        found: what :func:`responses` returns.
        groups: name -> which rows of it, booleans; those of fewer than FEWEST mentions are left out.
        n_resamples: of the bootstrap over images.

    Returns:
        Columns: what ("scale", "move" or "withhold"), dose, group, n, mass (mean attention on visual tokens), change, low,
        high; new, again and absent (shares of the mentions whose likeliest word becomes an object of the scene that was not named
        before, one that was, or an object that is not there).
    """
    lines = []
    for (what, dose), at in found[(found["part"] == "all") & (found["what"] != "remove")].groupby(["what", "dose"]):
        for name, members in groups.items():
            part = at[members.loc[at.index]]
            if len(part) < FEWEST:
                continue
            line = {"what": what, "dose": dose, "group": name, "n": len(part), "mass": part["mass"].mean()}
            middle = _estimate(part, n_resamples=n_resamples)
            line |= {"change": middle["estimate"], "low": middle["low"], "high": middle["high"]}
            lines.append(line | {word: (part["likeliest"] == word).mean() for word in ("new", "again", "absent")})
    return pd.DataFrame(lines)


def comparisons(found: pd.DataFrame, n_resamples: int = 5000) -> pd.DataFrame:
    """Return every comparison that is made of the responses, corrected together (Holm).

    Args:
        found: what :func:`responses` returns.
        n_resamples: of the bootstrap.

    Returns:
        Indexed by intervention and group ("a - b" is a difference, "matched" one within strata): unit, n, images, estimate, low,
        high, p, p_holm, rejected. A comparison of fewer than FEWEST mentions is not made, and a share, or changes without any
        spread, are not tested: their numbers or p-values are nan, and they are no part of the family.
    """
    moved, back = (_at(found, "move", "all", share) for share in (_MOVE, -_MOVE))
    lines = []
    for intervention, unit, part in ((SLOPE, "nats per doubling", slopes(found)), (MOVED, "nats", moved)):
        pairs, bad = matched(part), part[part["hallucinated"]]
        kinds = bad[bad["kind"].isin(KINDS[:2])]
        lines += [
            (intervention, "hallucinated", unit, bad),
            (intervention, "faithful", unit, part[~part["hallucinated"]]),
            (intervention, "hallucinated - faithful", unit, part, part["hallucinated"]),
            (intervention, "hallucinated - faithful, matched", unit, pairs, pairs["hallucinated"], pairs["stratum"]),
            *_by_kind(intervention, unit, part),
            (intervention, " - ".join(KINDS[:2]), unit, kinds, kinds["kind"] == KINDS[0]),
        ]
    bad = moved[moved["hallucinated"]]
    lines += [(MOVED, f"hallucinated: {label}", "share", _becomes(bad, word)) for word, label in LIKELIEST.items()]
    for group, other in ((NEW_OR_AGAIN, "again"), (NEW_OR_ABSENT, "absent")):
        lines.append((MOVED, group, "difference of shares", _minus(_becomes(bad, "new"), _becomes(bad, other))))
    to, away = (_becomes(part[~part["hallucinated"]], "absent") for part in (moved, back))
    lines += [
        (MOVED, ABSENT_NOW, "share", to),
        (BACK, "hallucinated", "nats", back[back["hallucinated"]]),
        (BACK, "faithful", "nats", back[~back["hallucinated"]]),
        (BACK, ABSENT_NOW, "share", away),
        (BACK_OR_TO, ABSENT_NOW, "difference of shares", _minus(away, to)),
    ]
    parts = signed(found, _MOVE)
    odd, even = (parts.assign(change=parts[side]) for side in ("odd", "even"))
    pairs, kinds = matched(odd), odd[odd["hallucinated"] & odd["kind"].isin(KINDS[:2])]
    lines += [
        (SIGNED, "hallucinated", "nats", odd[odd["hallucinated"]]),
        (SIGNED, "faithful", "nats", odd[~odd["hallucinated"]]),
        (SIGNED, "hallucinated - faithful, matched", "nats", pairs, pairs["hallucinated"], pairs["stratum"]),
        (SIGNED, " - ".join(KINDS[:2]), "nats", kinds, kinds["kind"] == KINDS[0]),
        (SIGN_FREE, "hallucinated", "nats", even[even["hallucinated"]]),
        (SIGN_FREE, "faithful", "nats", even[~even["hallucinated"]]),
    ]
    withheld = _at(found, "withhold", "all", _MOVE)
    for name, part in ((WITHHELD, withheld), (TO_IMAGE, _minus(moved, withheld))):
        lines += [
            (name, "hallucinated", "nats", part[part["hallucinated"]]),
            (name, "faithful", "nats", part[~part["hallucinated"]]),
        ]
        pairs = matched(part)
        lines.append((name, "hallucinated - faithful, matched", "nats", pairs, pairs["hallucinated"], pairs["stratum"]))
    for layers in ("early", "late"):
        part = _at(found, "move", layers, _MOVE)
        lines.append((f"{MOVED}, {layers} layers", "hallucinated", "nats", part[part["hallucinated"]]))
    of_whom = {"itself": (False,), "most alike": (True,), "another": (False, True), "background": (False, True)}
    hidden = {removed: _at(found, "remove", removed) for removed in REMOVED}
    for removed, part in hidden.items():
        for bad in of_whom[removed]:
            group = "hallucinated" if bad else "faithful"
            lines.append((f"{removed} removed", group, "nats", part[part["hallucinated"] == bad]))
        if True in of_whom[removed]:
            lines += _by_kind(f"{removed} removed", "nats", part)
    rather = _minus(hidden["most alike"], hidden["background"])
    lines += [(RATHER, "hallucinated", "nats", rather[rather["hallucinated"]]), *_by_kind(RATHER, "nats", rather)]
    table = pd.DataFrame(
        [
            {"intervention": name, "group": group, "unit": unit} | _estimate(part, *more, n_resamples=n_resamples)
            for name, group, unit, part, *more in lines
        ]
    ).set_index(["intervention", "group"])
    table.loc[table["unit"] == "share", "p"] = np.nan
    table = table.join(holm(table[table["p"].notna()], "p")[["p_holm", "rejected"]])
    return table.assign(rejected=table["rejected"].eq(True))


def _at(found: pd.DataFrame, what: str, part: str, dose: float | None = None) -> pd.DataFrame:
    """Return the lines of one intervention: one for each mention."""
    return found[(found["what"] == what) & (found["part"] == part) & (dose is None or found["dose"] == dose)]


def _by_kind(name: str, unit: str, part: pd.DataFrame) -> list[tuple[str, str, str, pd.DataFrame]]:
    """Return the comparison of an intervention for each kind of hallucinated words."""
    return [(name, kind, unit, part[part["hallucinated"] & (part["kind"] == kind)]) for kind in KINDS]


def _becomes(part: pd.DataFrame, word: str) -> pd.DataFrame:
    """Return the lines with 1 for change where that word is the likeliest, else 0."""
    return part.assign(change=(part["likeliest"] == word) * 1.0)


def _minus(part: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return the lines of the mentions that both have, with the difference of their changes."""
    both = part.merge(other[[*_KEYS, "change"]], on=_KEYS, suffixes=("", "_other"), validate="one_to_one")
    return both.assign(change=both["change"] - both.pop("change_other"))


def _estimate(
    part: pd.DataFrame, first: pd.Series | None = None, stratum: pd.Series | None = None, *, n_resamples: int
) -> dict[str, float]:
    """Estimate the mean change, or the difference between two groups, or that within strata."""
    sizes = [len(part)] if first is None else [int(first.sum()), int((~first).sum())]
    if min(sizes) < FEWEST:
        return {"n": len(part)}
    images, labels = pd.factorize(part["image_id"])
    values = part["change"].to_numpy(dtype=float)
    if first is None:
        statistic = mean(values, images)
    elif stratum is None:
        statistic = gap(values, images, first.to_numpy())
    else:
        statistic = matched_gap(values, images, first.to_numpy(), stratum.to_numpy())
    smaller = None if first is None else min(part.loc[group, "image_id"].nunique() for group in (first, ~first))
    return estimate(statistic, len(labels), len(part), n_resamples, smaller)
