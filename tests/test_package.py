"""The package as a whole: light to import, one list of dependencies, documented, and whole in its wheel."""

import ast
import configparser
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import readme_code
import yaml

import prunehal as ph

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "prunehal").rglob("*.py"))
PUBLIC = [path for path in MODULES if path.name == "__init__.py" or not path.name.startswith("_")]
# What git does not hold, and what it holds that is no text.
PASSED_OVER = {
    ".git",
    ".venv",
    "build",
    "dist",
    "runs",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    ".ipynb_checkpoints",
}
BINARY = {".png", ".jpg", ".safetensors", ".gz", ".zip", ".pdf"}


def of(path):
    return str(path.relative_to(ROOT))


def python(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **kwargs).stdout


def test_import_waits_for_neither_torch_nor_transformers():
    heavy = ("torch", "transformers", "pandas", "numpy", "matplotlib", "scipy", "inflect", "nltk")
    assert python(f"import sys, prunehal; print([name for name in {heavy} if name in sys.modules])").strip() == "[]"


def test_every_promised_name_is_there():
    assert {"load", "attach", "PruneHal", "NoPruning", "TopK", "AttentionTrace", "PrunableCache"} <= set(ph.__all__)
    for name in ph.__all__:
        assert getattr(ph, name).__name__ == name
        assert name in dir(ph)
    with pytest.raises(AttributeError, match=r"no attribute 'Prunehal'; it offers .*load, .*PruneHal"):
        _ = ph.Prunehal


def test_version_is_written_once_and_cited():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == declared
    assert re.search(rf"^## (\[)?{re.escape(declared)}", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_environment_yml_names_no_second_list():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    nested = [entry for entry in dependencies if isinstance(entry, dict)]
    assert {re.split(r"[=<>]", entry)[0] for entry in dependencies if isinstance(entry, str)} == {"python", "pip"}
    assert [list(entry) for entry in nested] == [["pip"]]
    (line,) = nested[0]["pip"]
    assert re.fullmatch(r"-e \.(\[\w+\])?", line)


def test_nothing_else_lists_dependencies():
    assert [of(path) for name in ("requirements*.txt", "setup.py", "setup.cfg", "Pipfile") for path in ROOT.glob(name)] == []


@pytest.mark.parametrize("path", MODULES, ids=of)
def test_a_file_holds_one_idea(path):
    assert len(path.read_text().splitlines()) <= 400


def is_public(node):
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")


@pytest.mark.parametrize("path", PUBLIC, ids=of)
def test_a_public_module_says_what_it_is_and_what_it_offers(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has no docstring"
    offered = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    here = {node.name: node for node in tree.body if is_public(node)}
    if here or path.name != "__init__.py":
        assert len(offered) == 1, "a public module has one __all__"
    if path.parent != ROOT / "prunehal" or path.name != "__init__.py":  # that one computes its list
        assert set(here) <= {name for value in offered for name in ast.literal_eval(value)}
    nodes = list(here.items())
    for name, node in list(nodes):
        nodes += [
            (f"{name}.{part.name}", part)
            for part in getattr(node, "body", [])
            if isinstance(node, ast.ClassDef) and is_public(part)
        ]
    assert [name for name, node in nodes if not ast.get_docstring(node)] == []


def text_files():
    for path in sorted(ROOT.rglob("*")):
        if path.is_file() and not PASSED_OVER & set(path.relative_to(ROOT).parts) and path.suffix not in BINARY:
            yield path


# Image data in a notebook is one long word; a path begins one.
HOME = re.compile(r"(?<![\w./+:=\-])(?:/(?:home|Users|root|work|tmp|mnt)/[\w.]|[A-Z]:\\Users)")


def test_no_file_holds_a_path_of_one_machine():
    found = [
        f"{of(path)}:{number}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if HOME.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("text", ['"' + "/ho" + 'me/ann/x"', "(/Us" + "ers/ann/x", " /ro" + "ot/x", "C:" + "\\Users\\ann"])
def test_such_paths_would_be_found(text):
    assert HOME.search(text)


def test_git_attributes_and_ignores_leave_the_data_alone():
    # The shipped rows must not fall under a pattern that is meant for the results of a run.
    ignored = [
        line.strip() for line in (ROOT / ".gitignore").read_text().splitlines() if line.strip() and not line.startswith("#")
    ]
    names = {part for path in (ROOT / "data").rglob("*") for part in path.relative_to(ROOT).parts} | {
        "data",
        "embedded",
        "results",
    }
    assert [pattern for pattern in ignored if pattern.strip("/") in names and not pattern.startswith("/")] == []


def test_the_makefile_offers_what_the_readme_promises():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w./]+):", text, re.MULTILINE)) - {".PHONY"}
    assert {"notebooks", "test", "lab", "rows", "clean", ".venv/installed"} <= targets
    described = set(re.findall(r"^# make (\w+) ", text, re.MULTILINE))
    assert described == targets - {".venv/installed"}
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    assert set(phony) == described | {"compat-lowest", "compat-newest"}
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"(?:`|^    |&& )make (\w+)", readme, re.MULTILINE)) <= targets
    assert {"make notebooks", "make test"} <= set(re.findall(r"make \w+", readme))


def test_the_readmes_python_runs_as_it_stands(tmp_path, monkeypatch):
    # Nothing is given: the names that a block uses are made by a block above it. Files land in the folder that it runs in.
    monkeypatch.chdir(tmp_path)
    names = readme_code.run_blocks(ROOT / "README.md")
    assert names["cache"].events["reason"].iloc[0] == "forced"
    assert isinstance(names["cache"].trace.frame(), pd.DataFrame)
    assert len(names["run"].caches) == 1
    assert names["answers"][0]["generated_text"].startswith("<image>Describe")


def test_a_block_gets_no_names_and_an_error_carries_its_line(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("text\n```python\na = 1\n```\n\n```sh\nb = 2\n```\n```python\nc = a + 1\nd = image\n```\n", encoding="utf-8")
    with pytest.raises(NameError, match="'image'") as caught:
        readme_code.run_blocks(path)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (path, 11)
    path.write_text("```python\na = 1\n```\n```python\nb = a + 1\n```\n", encoding="utf-8")
    assert readme_code.run_blocks(path)["b"] == 2
    path.write_text("```sh\nmake test\n```\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.md has no block"):
        readme_code.run_blocks(path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel with the backend that is installed, so that nothing is fetched."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_all_modules_and_all_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {path for path in (ROOT / "data").rglob("*") if path.is_file()}
    for part in ("embedded/model.safetensors", "embedded/tokenizer.json", "sprites/sprites.png", "chair/synonyms.txt"):
        assert ROOT / "data" / part in shipped
    assert {f"prunehal/{path.relative_to(ROOT)}" for path in shipped} <= names
    assert {of(path) for path in MODULES} <= names
    others = {name.split("/")[0] for name in names}
    assert others == {"prunehal", f"prunehal-{ph.__version__}.dist-info"}
    assert not any("__pycache__" in name for name in names)


def test_an_installed_wheel_finds_its_data(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "from prunehal.files.paths import data_path; print(data_path('embedded', 'model.safetensors'), data_path('chair'))"
    found = python(code, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}).split()
    assert [Path(path) for path in found] == [
        tmp_path / "prunehal/data/embedded/model.safetensors",
        tmp_path / "prunehal/data/chair",
    ]


def test_the_wheel_says_how_it_may_be_used(wheel):
    archive = zipfile.ZipFile(wheel)
    info = f"prunehal-{ph.__version__}.dist-info"
    metadata = archive.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in archive.namelist()
    scripts = configparser.ConfigParser()
    scripts.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert scripts["console_scripts"]["prunehal"] == "prunehal.__main__:app"
    assert "prunehal/data/sprites/OFL.txt" in archive.namelist()  # the sprites come under a licence of their own
