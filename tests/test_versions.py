"""What is declared is tested: lower bounds, pins, Pythons, and the workflow that runs them."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import compat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def test_constraints_pin_what_pyproject_asks_for():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.\-]+==[\w.]+", line) for line in lines)
    pinned = compat.pins()
    refused = {
        str(requirement): pinned.get(canonicalize_name(requirement.name))
        for requirement in compat.requirements()
        if not requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0"))
    }
    assert refused == {}, "constraints.txt pins no version that pyproject.toml admits"


def test_the_lowest_environment_has_the_lower_bound_of_everything_that_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = dict(line.split("==") for line in compat.constraints("lowest", python=(3, 11)))
    assert lowest["torch"] == compat.pins()["torch"], "the pinned build"
    for line in [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]:
        requirement = Requirement(line)
        if requirement.name != "prunehal":
            version = lowest[requirement.name]
            assert requirement.specifier.contains(version), line
            assert f">={version}" in line or requirement.name == "torch", line
    newest = compat.constraints("newest")
    assert newest == [f"torch=={lowest['torch']}"]


def test_the_wheel_is_built_by_what_the_tests_build_it_with():
    (backend,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert backend in {str(requirement) for requirement in compat.requirements()}


def test_torch_has_the_lower_bound_that_the_tests_run_with():
    bound = next(compat.lower_bound(item.specifier, "torch") for item in compat.requirements() if item.name == "torch")
    assert compat.pins()["torch"].startswith(f"{bound}.")


def imported(folder):
    """The distributions that the modules of a folder import: from the first part of a module's name to the names on the index."""
    installed = packages_distributions()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for module in {module.split(".")[0] for module in modules} - sys.stdlib_module_names:
                if module in installed:  # else it is a file of the tests, or a library that only the code that needs it imports
                    yield module, {canonicalize_name(name) for name in installed[module]}


OPTIONAL = {"adapters", "notebooks", "cluster"}


@pytest.mark.parametrize(("folder", "extras"), [("prunehal", OPTIONAL), ("tests", OPTIONAL | {"dev"})])
def test_what_is_imported_is_declared(folder, extras):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    declared = {canonicalize_name(Requirement(line).name) for line in lines} | {"prunehal", "ipython"}  # ipykernel brings IPython
    assert {module for module, names in imported(folder) if not names & declared} == set()


@pytest.mark.parametrize("written", ["numpy", "numpy<3", "numpy==2.0", "numpy>=2,>=2.1"])
def test_a_requirement_without_one_lower_bound_is_refused(written):
    with pytest.raises(ValueError, match=r"expected one lower bound. Fix: write it as numpy>=VERSION"):
        compat.lower_bound(Requirement(written).specifier, "numpy")


def test_a_python_with_no_builds_of_the_lower_bounds_gets_the_lowest_transformers_alone():
    whole, later = compat.constraints("lowest", python=(3, 11)), compat.constraints("lowest", python=(3, 12))
    assert set(later) < set(whole)
    assert [line.split("==")[0] for line in later] == ["torch", "transformers"]


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(workflow):
    """Every step of a workflow with the job it belongs to."""
    return [(job, step) for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_targets_of_the_makefile_and_nothing_else(path):
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^# make (\w+)", text, re.MULTILINE))
    run = [step["run"] for _, step in steps(yaml.safe_load(path.read_text())) if "run" in step]
    assert run, "a workflow that runs nothing"
    assert [line for line in run if not re.fullmatch(rf"make ({'|'.join(targets)})", line)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_and_uses_actions_by_the_tag_of_a_version(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert all("permissions" not in job and job["timeout-minutes"] <= 120 for job in workflow["jobs"].values())
    used = {step["uses"] for _, step in steps(workflow) if "uses" in step}
    assert used == {"actions/checkout@v6", "actions/setup-python@v6"}
    fetched = [step["with"] for _, step in steps(workflow) if step.get("uses", "").startswith("actions/checkout")]
    assert fetched == [{"persist-credentials": False}] * len(workflow["jobs"])


def test_the_two_commands_run_on_every_python_and_on_the_lowest_and_newest_versions():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["suite"]
    matrix, project = job["strategy"]["matrix"], tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test", "make notebooks"]
    assert matrix["versions"] == ["lowest", "newest"]
    assert job["env"]["VENV"] == "build/compat/${{ matrix.versions }}"
    admitted = SpecifierSet(project["requires-python"])
    assert matrix["python"][0] == compat.lower_bound(admitted, "Python")
    assert all(version in admitted for version in matrix["python"])
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert matrix["python"] == classified
    (setup,) = [step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/setup-python")]
    assert (setup["python-version"], setup["cache"]) == ("${{ matrix.python }}", "pip")
    assert setup["cache-dependency-path"].split() == ["pyproject.toml", "constraints.txt"]
