"""Grids: products of experiments, from Python or from a TOML file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunehal.core.checks import as_count
from prunehal.decoding.named import named_decoding
from prunehal.experiments.experiment import Experiment, policy_from
from prunehal.files.reading import read_text

__all__ = ["MOST_POINTS", "grid", "read_grid"]

MOST_POINTS = 1_000_000  # of a product, or of a sample of it: more than anybody waits for
_MOST_DRAWN_FROM = 2**62  # the points that a sample may be drawn from are counted in 64 bits


def grid(base: Experiment, axes: Mapping[str, Sequence[Any]], *, sample: int | None = None, seed: int = 0) -> list[Experiment]:
    """Return the product of some axes around an experiment, the last axis fastest; what comes out twice is left out.

    Args:
        base: what all have in common.
        axes: name -> values; a name is a field of `Experiment`, or an option of its policy such as ``"policy.r"``.
        sample: draw so many points of the product instead of all, without replacement.
        seed: of the draw.

    Raises:
        ValueError: no such name, an axis without values, a value that cannot be, a sample larger than the product, or more than
            1,000,000 points; nothing is made before they are counted.

    >>> from prunehal.core import PruneHal
    >>> [e.name for e in grid(Experiment(policy=PruneHal()), {"policy.r": [0.4, 0.9], "policy.t": [1, 2]})][1:3]
    ['validation_prunehal_r0.4_t2', 'validation_prunehal_r0.9_t1']
    """
    for name, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"axis {name!r}: got {values!r}; expected a list of at least one value")
    sizes = [len(values) for values in axes.values()]
    n_points = math.prod(sizes)
    _refuse_seed("seed", seed)
    shown = f"{n_points:,}" if n_points <= _MOST_DRAWN_FROM else f"about 1e{int(math.log10(n_points))}"
    if n_points > (MOST_POINTS if sample is None else _MOST_DRAWN_FROM):
        expected = f"at most {MOST_POINTS:,}; draw some by sample = ..." if sample is None else "at most 2**62 to draw from"
        raise ValueError(f"the product has {shown} points; expected {expected}; Fix: shorten an axis")
    if sample is None:
        chosen: Iterable[int] = range(n_points)
    else:
        most = min(n_points, MOST_POINTS)
        if as_count(sample) is None or not 1 <= sample <= most:
            raise ValueError(f"sample={sample!r}: expected a number in 1..{most}; the product has {shown} points")
        chosen = sorted(np.random.default_rng(seed).choice(n_points, sample, replace=False).tolist())
    experiments: dict[Experiment, None] = {}
    for point in chosen:
        places = np.unravel_index(point, sizes) if sizes else ()
        values = (of_axis[place] for of_axis, place in zip(axes.values(), places, strict=True))
        experiments[base.with_options(dict(zip(axes, values, strict=True)))] = None
    return list(experiments)


def _refuse_seed(name: str, seed: Any) -> None:
    if as_count(seed) is None or seed < 0:
        raise ValueError(f"{name}={seed!r}: expected an integer of at least 0; leave it out for 0")


def read_grid(path: str | Path) -> list[Experiment]:
    """Read a grid from a TOML file.

        [experiment]            # what all have in common: fields of Experiment
        split = "validation"
        n_images = 300
        policy = {name = "PruneHal"}

        [[grid]]                # one product for each [[grid]]; a field may be set anew for one product
        policy = {name = "NoPruning"}

        [[grid]]
        "policy.r" = [0.4, 0.7, 0.9]
        "policy.t" = [1, 2, 3]

    A mitigation decoder is ``decoding = "vcd"`` or ``decoding = {name = "vcd", alpha = 0.5}``, and its options are axes such as
    ``"decoding.alpha" = [0.5, 1]``. Lists are axes, all else is set for the whole product. ``sample = 100`` and
    ``sample_seed = 0`` in a [[grid]] draw so many of its points. TOML knows no None: write "none", as in
    ``"policy.factor" = ["none", 0.5]``.

    Raises:
        ValueError: the file is no such grid; the message names file, place and fix.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "grid.toml"
    ...     _ = path.write_text('[[grid]]\\npolicy = {name = "PruneHal", t = 1}\\n"policy.r" = [0.4, 0.7]')
    ...     [experiment.policy.r for experiment in read_grid(path)]
    [0.4, 0.7]
    """
    path = Path(path)
    try:
        content = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path}: is no TOML file ({error}); expected [experiment] and [[grid]]; mend that place; an option "
            'of policy or decoding that is an axis has quotes, as in "policy.r" = [0.4, 0.7]'
        ) from error
    if unknown := [name for name in content if name not in ("experiment", "grid")]:
        raise ValueError(f"{path}: unknown part(s) {', '.join(map(repr, unknown))}; expected [experiment] and [[grid]]")
    products = content.get("grid", [])
    if not isinstance(products, list) or not products:
        raise ValueError(f"{path}: holds no [[grid]]; expected at least one, with lists as axes; write [[grid]], not [grid]")
    common = content.get("experiment", {})
    if not isinstance(common, dict) or not all(isinstance(product, dict) for product in products):
        raise ValueError(f"{path}: expected [experiment] once, and tables with the head [[grid]]; write these two heads so")
    experiments: dict[Experiment, None] = {}
    for number, product in enumerate(products, start=1):
        try:
            base = _described(Experiment(), common)
            sample, seed = product.pop("sample", None), product.pop("sample_seed", 0)
            _refuse_seed("sample_seed", seed)
            fixed = {name: value for name, value in product.items() if not isinstance(value, list)}
            axes = {name: [_value(name, v) for v in values] for name, values in product.items() if isinstance(values, list)}
            experiments |= dict.fromkeys(grid(_described(base, fixed), axes, sample=sample, seed=seed))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, [[grid]] number {number}: {error}") from error
    return list(experiments)


def _value(name: str, value: Any) -> Any:
    """Return what a value of TOML stands for: "none" for None, a table with a name for a policy or a decoder."""
    if isinstance(value, Mapping):
        if "name" not in value:
            option, given = next(iter(value.items()), ("r", "..."))
            raise ValueError(
                f"{name}={dict(value)!r}: is a table without a name; expected {name} = {{name = ...}}, or, for an axis, an "
                f'option in quotes; if {name}.{option} was meant, write "{name}.{option}" = {given}'
            )
        options = {option: _value(option, given) for option, given in value.items()}
        return named_decoding(options.pop("name"), options) if name == "decoding" else policy_from(options)
    return None if value == "none" else value


def _described(base: Experiment, options: Mapping[str, Any]) -> Experiment:
    return base.with_options({name: _value(name, value) for name, value in options.items()})
