"""The model table: one small random model for each family that the engine is tested on.

``plain``: one position for each token. ``tiled``: the same, for pictures cut into tiles. ``mrope``: positions of three axes.
``masks``: sliding windows, attention to the whole image, shared K and V, attention sinks. ``qformer``: a Q-Former's queries
stand for the image. The table in the README is written from FAMILIES, and every test of ``test_families.py`` runs over it.
"""

from families.base import END, IMAGE, PAD, START, VIDEO, VOCAB, Family
from families.masks import MASKS
from families.mrope import MROPE
from families.plain import PLAIN
from families.qformer import QFORMER
from families.tiled import TILED

__all__ = ["END", "FAMILIES", "IMAGE", "PAD", "START", "VIDEO", "VOCAB", "Family"]

FAMILIES: dict[str, Family] = {family.key: family for family in (*PLAIN, *TILED, *MROPE, *MASKS, *QFORMER)}
