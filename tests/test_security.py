"""SECURITY.md holds: what is read is never run, and code of others only where the user permits it."""

import ast
import inspect
from pathlib import Path

import pytest

import prunehal as ph

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "prunehal").rglob("*.py"))


def unsafe(code):
    """The calls and imports of some code that run what a file holds, as SECURITY.md says that none does."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            yield from ({"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "read_pickle"} & set(names))
        elif isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in {"eval", "exec", "os.system"} or called.endswith((".read_pickle", "yaml.load", "yaml.unsafe_load")):
                yield called
            if called == "torch.load" and given.get("weights_only") != "True":
                yield "torch.load"
            if "True" in (given.get("allow_pickle"), given.get("shell"), given.get("trust_remote_code")):
                yield called


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
    assert list(unsafe(path.read_text())) == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import pickle", ["pickle"]),
        ("from pandas import read_pickle", ["read_pickle"]),
        ("pd.read_pickle(path)", ["pd.read_pickle"]),
        ("torch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=False)", ["torch.load"]),
        ("torch.load(path, weights_only=True)", []),
        ("np.load(path, allow_pickle=True)", ["np.load"]),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", ["AutoModel.from_pretrained"]),
        ("model.eval()", []),
        ("eval(text)", ["eval"]),
    ],
)
def test_code_that_runs_what_it_reads_would_be_found(code, expected):
    assert list(unsafe(code)) == expected


def test_code_of_a_hub_repository_is_run_only_where_it_is_asked_for():
    assert inspect.signature(ph.load).parameters["trust_remote_code"].default is False
