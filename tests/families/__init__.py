"""The model table: one small random model for each family that the engine is tested on.

``plain``: one position for each token. ``tiled``: the same, for pictures cut into tiles. ``mrope``: positions of three axes.
``masks``: sliding windows, attention to the whole image, shared K and V, attention sinks. ``qformer``: a Q-Former's queries
stand for the image. The table in the README is written from FAMILIES, and every test of ``test_families.py`` runs over it:
over all of it where PRUNEHAL_ALL_CASES=1 is set, as ``make compat`` does; else families marked ``newer`` run four cases only,
equal to stock generate(), equal to the masked twin, in a batch, and with beams.
"""

import os

from families.base import END, IMAGE, PAD, START, VIDEO, VOCAB, Family
from families.masks import MASKS
from families.mrope import MROPE
from families.plain import PLAIN
from families.qformer import QFORMER
from families.tiled import TILED

__all__ = ["END", "FAMILIES", "IMAGE", "IN_FULL", "PAD", "START", "VIDEO", "VOCAB", "Family"]

FAMILIES: dict[str, Family] = {family.key: family for family in (*PLAIN, *TILED, *MROPE, *MASKS, *QFORMER)}
ALL_CASES = os.environ.get("PRUNEHAL_ALL_CASES") == "1"
IN_FULL: dict[str, Family] = {key: family for key, family in FAMILIES.items() if ALL_CASES or not family.newer}
