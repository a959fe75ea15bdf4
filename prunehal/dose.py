"""Dose and response: how the probability of a word changes with the attention on the image, from the rows of interventions.

Changes are of the log-probability, in nats, from the same mention left as it was; images are the units of every interval. Greedy
decoding chose each word as the likeliest one, so that any disturbance lowers it on average, of whatever sign (regression to the
mean): :func:`signed` splits off what follows the sign. `prunehal.dose_reading` says in words what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from prunehal.causal import REMOVED
from prunehal.clustered import estimate, gap, matched_gap, mean
from prunehal.inference import holm
from prunehal.kinds import KINDS, kinds_of

__all__ = [
    "DOUBLED",
    "FEWEST",
    "LIKELIEST",
    "MOVED",
    "NEW_OR_AGAIN",
    "SIGNED",
    "SIGN_FREE",
    "TO_IMAGE",
    "WITHHELD",
    "balance",
    "comparisons",
    "curves",
    "matched",
    "responses",
    "signed",
    "slopes",
    "strata",
]

FEWEST = 10  # mentions that an estimate needs
DOUBLED = "odds of visual attention doubled"
MOVED = "a quarter of the attention on text moved to the image"
WITHHELD = "the same given to the start token"
TO_IMAGE = "to the image rather than to the start token"
SIGNED = "a quarter moved, signed part: half of (to the image - to the text)"
SIGN_FREE = "a quarter moved, sign-free part: half of (to the image + to the text)"
_MOVE = 0.25
LIKELIEST = {
    "new": "likeliest is an object of the scene not named before",
    "again": "likeliest is an object of the scene named before",
}
NEW_OR_AGAIN = "hallucinated: not named before - named before"
_KEYS = ["image_id", "index"]
_BINS, _LAST = 10, 5  # bins of the baseline; place in the caption from which on all count as one


def responses(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of interventions with what each changed.

    Left out are ambiguous mentions, whose first token says nothing of which object is meant. The two doses that both ways of
    changing attention share (as it was, and blind) stand under both.

    Args:
        rows: what `prunehal.interventions.interventions` returns.

    Returns:
        The rows, with baseline (log-probability of the mention as it was), change (of it) and the columns of
        `prunehal.kinds.kinds_of`.

    >>> from prunehal.interventions import interventions
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
    """Return for each mention the least-squares slope of its log-probability on log2 of the odds, blindness left out.

    Args:
        found: what :func:`responses` returns.

    Returns:
        One line for each mention, as the rows have them at c = 1, with change: nats per doubling of the odds of visual attention.
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

    >>> from prunehal.interventions import interventions
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


def strata(found: pd.DataFrame) -> np.ndarray:
    """Return the stratum of each mention: its baseline, in tenths of those of hallucinated ones, and its place.

    The likelier a word is, the less it can gain, and attention falls along a caption: mentions of a stratum are alike in both.

    Args:
        found: one line for each mention: hallucinated, baseline, index.
    """
    edges = np.quantile(found.loc[found["hallucinated"], "baseline"], np.linspace(0, 1, _BINS + 1))
    inside = np.searchsorted(edges[1:-1], found["baseline"], side="right") + 1
    # Below and above all hallucinated mentions are bins of their own, which hold none of them.
    inside = np.select([found["baseline"] < edges[0], found["baseline"] > edges[-1]], [0, _BINS + 1], inside)
    return inside * (_LAST + 1) + found["index"].clip(upper=_LAST).to_numpy()


def matched(found: pd.DataFrame) -> pd.DataFrame:
    """Return the mentions of those strata that hold hallucinated and faithful ones, with a weight.

    Args:
        found: one line for each mention: hallucinated, baseline, index.

    Returns:
        The lines, with stratum and weight: 1 for a hallucinated mention; a faithful one weighs as many hallucinated mentions as
        its stratum has for each faithful one.
    """
    found = found.assign(stratum=strata(found))
    counts = found.groupby("stratum")["hallucinated"].agg(bad="sum", all="size")
    counts = counts[(counts["bad"] > 0) & (counts["bad"] < counts["all"])]
    found = found.join(counts, on="stratum", how="inner")
    return found.assign(weight=np.where(found["hallucinated"], 1.0, found["bad"] / (found["all"] - found["bad"]))).drop(
        columns=["bad", "all"]
    )


def balance(found: pd.DataFrame) -> pd.DataFrame:
    """Return what matching makes alike: numbers of mentions and means, before and after.

    Args:
        found: one line for each mention: hallucinated, baseline, index.

    Returns:
        Lines: hallucinated and faithful mentions, all and matched; columns n, baseline, index (weighted by :func:`matched`).
    """
    pairs, lines = matched(found), {}
    for name, bad in (("hallucinated", True), ("faithful", False)):
        for label, part in ((name, found.assign(weight=1.0)), (f"{name}, matched", pairs)):
            part = part[part["hallucinated"] == bad]
            means = {column: np.average(part[column], weights=part["weight"]) for column in ("baseline", "index")}
            lines[label] = {"n": len(part)} | means
    return pd.DataFrame(lines).T.astype({"n": int})


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
    moved = _at(found, "move", "all", _MOVE)
    lines = []
    for intervention, unit, part in ((DOUBLED, "nats a doubling", slopes(found)), (MOVED, "nats", moved)):
        pairs, bad = matched(part), part[part["hallucinated"]]
        kinds = bad[bad["kind"].isin(KINDS[:2])]
        lines += [
            (intervention, "hallucinated", unit, bad),
            (intervention, "faithful", unit, part[~part["hallucinated"]]),
            (intervention, "hallucinated - faithful", unit, part, part["hallucinated"]),
            (intervention, "hallucinated - faithful, matched", unit, pairs, pairs["hallucinated"], pairs["stratum"]),
            *((intervention, kind, unit, kinds[kinds["kind"] == kind]) for kind in KINDS[:2]),
            (intervention, " - ".join(KINDS[:2]), unit, kinds, kinds["kind"] == KINDS[0]),
        ]
    bad = moved[moved["hallucinated"]]
    for word, label in LIKELIEST.items():
        switched = bad.assign(change=(bad["likeliest"] == word) * 1.0)
        lines.append((MOVED, f"hallucinated: {label}", "share", switched))
    taken = bad.assign(change=(bad["likeliest"] == "new") * 1.0 - (bad["likeliest"] == "again"))
    lines.append((MOVED, NEW_OR_AGAIN, "difference of shares", taken))
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
    both = moved.merge(withheld[[*_KEYS, "change"]], on=_KEYS, suffixes=("", "_withheld"))
    both["change"] -= both.pop("change_withheld")
    for name, part in ((WITHHELD, withheld), (TO_IMAGE, both)):
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
    for removed in REMOVED:
        part = _at(found, "remove", removed)
        for bad in of_whom[removed]:
            group = "hallucinated" if bad else "faithful"
            lines.append((f"{removed} removed", group, "nats", part[part["hallucinated"] == bad]))
    most = _at(found, "remove", "most alike")
    lines += [("most alike removed", kind, "nats", most[most["kind"] == kind]) for kind in KINDS[:2]]
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
