"""The rooms of the package: few modules in its root, imports that run downwards only, and no circle of files."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "prunehal"
# From the ground up: a room imports from those before it. CONTRIBUTING.md says what each is for.
ROOMS = [
    "files", "stats", "core", "testbed", "models", "decoding", "benchmarks", "experiments", "running", "figures", "measuring",
    "studies", "commands",
]  # fmt: skip


def modules(package: Path) -> dict[str, Path]:
    """Return name -> file of every module of a package."""
    names = {path: ".".join((package.name, *path.relative_to(package).with_suffix("").parts)) for path in package.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a file imports, also inside functions; those for type checkers only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known.keys()


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def upward(package: Path, rooms: list[str]) -> list[str]:
    """Return the imports that do not run downwards, as "importing module -> imported module"."""
    known = modules(package)
    place = {name: number for number, name in enumerate(rooms)}
    return [
        f"{module} -> {other}"
        for module, path in known.items()
        if path.parent != package
        for other in sorted(imports(path, known) - {package.name})
        if place[room(other)] > place[room(module)]
    ]


def circle(package: Path) -> list[str]:
    """Return the modules of one circle of imports, or nothing; the root, which resolves its names lazily, is left out."""
    known = modules(package)
    graph = {module: imports(path, known) - {package.name, module} for module, path in known.items() if module != package.name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_the_root_holds_few_modules():
    assert {path.name for path in PACKAGE.glob("*.py")} <= {"__init__.py", "__main__.py"}


def test_every_room_has_its_place():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


def test_imports_run_downwards():
    assert upward(PACKAGE, ROOMS) == []


def test_no_files_import_each_other_in_a_circle():
    assert circle(PACKAGE) == []


@pytest.fixture
def small(tmp_path):
    """A package of two rooms, whose upper one imports from the lower one."""
    for name, text in {"low/__init__.py": "", "low/a.py": "", "high/__init__.py": "", "high/b.py": "import house.low.a"}.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "house" / "__init__.py").write_text("")
    return tmp_path / "house"


def test_an_import_inside_a_function_counts(small):
    assert upward(small, ["low", "high"]) == []
    assert circle(small) == []
    (small / "low" / "a.py").write_text("def late():\n    from house.high import b\n")
    assert upward(small, ["low", "high"]) == ["house.low.a -> house.high.b"]
    assert {"house.low.a", "house.high.b"} <= set(circle(small))


def test_an_import_for_type_checkers_does_not_count(small):
    guard = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from house.high import b\n"
    (small / "low" / "a.py").write_text(guard)
    assert upward(small, ["low", "high"]) == []
    assert circle(small) == []
