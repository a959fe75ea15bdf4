"""Name every way of decoding alike for runs, experiments and the command line: ``"greedy"``, or a `Decoder` with its values."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from prunehal.decoding.base import Decoder
from prunehal.decoding.deco import DeCo
from prunehal.decoding.dola import DoLa
from prunehal.decoding.fastv import FastV
from prunehal.decoding.kvsmooth import KVSmooth
from prunehal.decoding.opera.opera import OPERA
from prunehal.decoding.pai import PAI
from prunehal.decoding.vcd import VCD

__all__ = ["BEAMS", "DECODERS", "NAMES", "STOCK", "Decoding", "described", "name_of", "named_decoding", "read_options"]

Decoding = str | Decoder

BEAMS = 5
STOCK = ("greedy", "beam", "nucleus")  # 5 beams; top_p = 0.9 at temperature 1
DECODERS: dict[str, type[Decoder]] = {kind.__name__.lower(): kind for kind in (VCD, DoLa, OPERA, DeCo, PAI, KVSmooth, FastV)}
NAMES = (*STOCK, *DECODERS)


def named_decoding(decoding: Decoding, options: Mapping[str, Any] | None = None) -> Decoding:
    """Return the way of decoding of a name, or what already is one. A decoder searches greedily, OPERA by its beams.

    Args:
        decoding: a name of `NAMES` in any case, or a `Decoder`.
        options: of the decoder; what is left out has its default, which is the published value.

    Raises:
        ValueError: no such name or option, or a value that cannot be.

    >>> named_decoding("beam"), named_decoding("vcd", {"alpha": 0.5}).alpha
    ('beam', 0.5)
    >>> named_decoding("beams")
    Traceback (most recent call last):
    ValueError: decoding='beams': expected one of greedy, beam, nucleus, vcd, dola, opera, deco, pai, kvsmooth, fastv
    """
    options = dict(options or {})
    if isinstance(decoding, Decoder) and not options:
        return decoding
    name = decoding.lower() if isinstance(decoding, str) else decoding
    if name not in NAMES:
        raise ValueError(f"decoding={decoding!r}: expected one of {', '.join(NAMES)}")
    known = [f.name for f in fields(DECODERS[name])] if name in DECODERS else []
    if unknown := [option for option in options if option not in known]:
        raise ValueError(
            f"{name} has no option {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}"
            if known
            else f"decoding={name!r}: takes no options, got {', '.join(map(repr, options))}; expected none; leave them out"
        )
    if name in STOCK:
        return name
    lists = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    return DECODERS[name](**lists)


def name_of(decoding: Decoding) -> str:
    """Return the name of a way of decoding without its values.

    >>> name_of(VCD(alpha=0.5)), name_of("beam")
    ('vcd', 'beam')
    """
    return decoding if isinstance(decoding, str) else type(decoding).__name__.lower()


def described(decoding: Decoding) -> str | dict[str, Any]:
    """Return a way of decoding as JSON: its name, or a table with the decoder's name and all of its values.

    >>> described("greedy"), described(FastV())
    ('greedy', {'name': 'fastv', 'block': 2, 'ratio': 0.5})
    """
    return decoding if isinstance(decoding, str) else {"name": name_of(decoding)} | asdict(decoding)


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """Return the options that texts such as ``alpha=0.5`` set: values of TOML, none, or else words.

    Raises:
        ValueError: a text is no such setting.

    >>> read_options(["alpha=0.5", "layers=[2, 3]", "divergence=text", "k=none"])
    {'alpha': 0.5, 'layers': [2, 3], 'divergence': 'text', 'k': None}
    """
    options: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not name.isidentifier() or not value:
            raise ValueError(f"option {text!r}: expected name=value, such as alpha=0.5 or layers=[2,3]")
        try:
            options[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[name] = None if value == "none" else value
    return options
