"""Rows of interventions whose answer is known."""

import itertools

import numpy as np
import pandas as pd

from prunehal.studies.nb09_causal.intervene import MOVES, SCALES, WITHHELD
from prunehal.testbed.world.scenes import scene
from prunehal.testbed.world.world import NAMES


def made_up():
    """Rows of 40 scenes of 3 mentions, one of them hallucinated.

    A hallucinated word loses 0.05 nats a doubling and 0.2 when a quarter of the rest moves, 0.05 of them whichever way it goes;
    faithful ones lose half of it. Every scene differs from that by 1%, up or down. An object of the scene takes over then in
    every second scene. A faithful word gives way to an absent one in each fifth scene when a quarter of the image's goes to the
    text. Hiding the object most alike costs a hallucinated word 1.5 nats, background 0.1.
    """
    rng, lines = np.random.default_rng(0), []
    for number, index in itertools.product(range(40), range(3)):
        of, bad = scene("test", number), index == number % 3
        absent = sorted(set(NAMES) - of.names)
        node = absent[rng.integers(len(absent))] if bad else sorted(of.names)[index % len(of.names)]
        line = {"image_id": of.image_id, "index": index, "node": node, "hallucinated": bad, "ambiguous": bad and number == 0}
        wobble = 1 + 0.01 * (-1) ** number * (
            0 < number < 39
        )  # 1 in the mean, without the ambiguous mention of the first scene, too
        base, by = rng.normal(-1, 0.3), wobble if bad else 0.5 * wobble
        line |= {"mass": 0.5, "patches": 0, "part": "all", "likeliest": "itself"}
        for c in SCALES:
            loss = 0.05 * by * np.log2(c) if c else 3.0
            lines.append(line | {"what": "scale", "dose": c, "log_prob": base - loss})
        for share in MOVES:
            over = ("new" if number % 4 == 1 else "again") if share == 0.25 and number % 2 else "itself"
            over = "absent" if share == -0.25 and not bad and number % 5 == 2 else over
            lost = 0.6 * share + 0.2 * abs(share)
            lines.append(line | {"what": "move", "dose": share, "log_prob": base - by * lost, "likeliest": over})
        for share in WITHHELD:
            lines.append(line | {"what": "withhold", "dose": share, "log_prob": base - 0.2 * by * share})
        for part in ("early", "late"):
            lines.append(line | {"what": "move", "part": part, "dose": 0.25, "log_prob": base - wobble * (part == "late")})
        costs = {"most alike": 1.5, "another": 0, "background": 0.1} if bad else {"itself": 2, "another": 0}
        for part, cost in costs.items():
            lines.append(line | {"what": "remove", "part": part, "dose": np.nan, "log_prob": base - cost * wobble})
    return pd.DataFrame(lines)
