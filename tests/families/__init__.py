"""The model table: one small random model for each family that the engine is tested on.

``plain``: one position for each token. ``mrope``: positions of three axes. ``masks``: sliding windows, attention to the
whole image, shared K and V, attention sinks. ``qformer``: a Q-Former's queries stand for the image. The table in the README
is written from FAMILIES, and every test of ``test_families.py`` runs over it.
"""

from families.base import END, IMAGE, PAD, START, VIDEO, VOCAB, Family
from families.mrope import MROPE
from families.plain import PLAIN

__all__ = ["END", "FAMILIES", "IMAGE", "PAD", "START", "VIDEO", "VOCAB", "Family"]

FAMILIES: dict[str, Family] = {family.key: family for family in (*PLAIN, *MROPE)}
