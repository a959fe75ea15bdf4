"""Mitigation decoders, one file each, on stock generate() and a pruning cache: see `base.Decoder`.

Contrast with a second run (``branch``): ``vcd``, ``pai``. Early layers (``layers``): ``dola``, ``deco``. The cache: ``kvsmooth``,
``fastv``. Beam search that looks ahead and turns back: ``opera`` (``overtrust``, ``lookahead``, ``beams``, ``rewinding``,
``retrospection``). ``plausibility`` cuts what the model itself holds for unlikely, ``forwards`` tells a model's runs apart and
changes logits, ``values`` checks hyper-parameters. ``named`` gives each its name.
"""

from prunehal.decoding.base import Decoder
from prunehal.decoding.deco import DeCo
from prunehal.decoding.dola import DoLa
from prunehal.decoding.fastv import FastV
from prunehal.decoding.kvsmooth import KVSmooth
from prunehal.decoding.named import named_decoding
from prunehal.decoding.opera.opera import OPERA
from prunehal.decoding.pai import PAI
from prunehal.decoding.vcd import VCD

__all__ = ["OPERA", "PAI", "VCD", "DeCo", "Decoder", "DoLa", "FastV", "KVSmooth", "named_decoding"]
