"""The model table: one small random model for each family that the engine is tested on.

``plain``: one position for each token. ``tiled``: the same, for pictures cut into tiles. ``mrope``: positions of three axes.
``masks``: sliding windows, attention to the whole image, shared K and V, attention sinks. ``qformer``: a Q-Former's queries
stand for the image. ``experts``: a mixture of experts. ``states``: a running state beside K and V. ``injected``: features enter
otherwise than in the place of an embedding. ``video``: frames are pooled, merged or taken whole. ``documents``: towers for charts
and dense pictures. ``decoders``: LLaVA on decoders for text only. ``omni``: sound is read too. The table in the README is written
from LISTED, and every test of ``test_families.py`` runs over it: over all of it where PRUNEHAL_ALL_CASES=1 is set, as ``make
compat`` does; else families marked ``newer`` run four cases only, equal to stock generate(), equal to the masked twin, in a
batch, and with beams. FAMILIES leaves out what the installed transformers lacks or cannot run.
"""

import os

from families.base import END, IMAGE, PAD, START, VIDEO, VOCAB, Family
from families.codebooks import CODEBOOKS
from families.decoders import DECODERS
from families.documents import DOCUMENTS
from families.experts import EXPERTS
from families.grids import GRIDS
from families.injected import INJECTED
from families.masks import MASKS
from families.mrope import MROPE
from families.omni import OMNI
from families.plain import PLAIN
from families.qformer import QFORMER
from families.states import STATES
from families.tiled import TILED
from families.video import FILMS

__all__ = ["END", "FAMILIES", "IMAGE", "IN_FULL", "LISTED", "PAD", "START", "VIDEO", "VOCAB", "Family"]

GROUPS = (PLAIN, TILED, MROPE, MASKS, QFORMER, EXPERTS, GRIDS, CODEBOOKS, STATES, INJECTED, FILMS, DOCUMENTS, DECODERS, OMNI)
LISTED = [family for group in GROUPS for family in group]
FAMILIES: dict[str, Family] = {of.key: of for of in LISTED if not of.missing()}
ALL_CASES = os.environ.get("PRUNEHAL_ALL_CASES") == "1"
IN_FULL: dict[str, Family] = {key: family for key, family in FAMILIES.items() if ALL_CASES or not family.newer}
