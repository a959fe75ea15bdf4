"""The versions that an environment of ``make compat`` gets, as pip's constraints: ``python tests/compat.py lowest``.

``lowest`` has the lower bound of everything that pyproject.toml lists, so that a bound which is declared is a bound which is
tested. A Python newer than the lowest has no builds of most of them, and gets the lower bound of transformers alone. ``newest``
leaves pip free below the upper bounds. Both have the build of torch that constraints.txt pins.
"""

import argparse
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PINNED = ("torch",)


def declared():
    """The table ``project`` of pyproject.toml, as a dictionary."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements():
    """Everything that pyproject.toml lists, with its extras and without the package itself.

    Returns:
        A list of ``packaging.requirements.Requirement``, in the order of the file.
    """
    project = declared()
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    listed = [Requirement(line) for line in lines]
    return [requirement for requirement in listed if requirement.name != project["name"]]


def lower_bound(specifiers, name):
    """The version of the one ``>=`` of some specifiers.

    Args:
        specifiers: a ``packaging.specifiers.SpecifierSet``.
        name: what they bound, for the error.

    Returns:
        The version as it is written, ``"5.20"``.

    Raises:
        ValueError: there is no ``>=``, or several.
    """
    bounds = [specifier.version for specifier in specifiers if specifier.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{name} {specifiers} in pyproject.toml; expected one lower bound. Fix: write it as {name}>=VERSION")
    return bounds[0]


def pins():
    """The versions that constraints.txt pins: a dictionary from the normalised name to the version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def constraints(versions, python=sys.version_info[:2]):
    """The constraints of one environment, a line a package.

    Args:
        versions: ``"lowest"`` or ``"newest"``.
        python: the version of Python that the environment has, ``(3, 11)``.

    Returns:
        A list of lines ``name==version``.
    """
    pinned = pins()
    lines = [f"{name}=={pinned[name]}" for name in PINNED]
    if versions == "lowest":
        floor = lower_bound(SpecifierSet(declared()["requires-python"]), "Python")
        whole = ".".join(map(str, python)) == floor
        free = [requirement for requirement in requirements() if requirement.name not in PINNED]
        bounded = [requirement for requirement in free if whole or requirement.name == "transformers"]
        lines += [f"{requirement.name}=={lower_bound(requirement.specifier, requirement.name)}" for requirement in bounded]
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", choices=["lowest", "newest"])
    print(*constraints(parser.parse_args().versions), sep="\n")
