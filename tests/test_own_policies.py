"""Policies of the user's own: their rows have keys of their own, and rows of an edited class are refused."""

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import ClassVar

import pytest

from prunehal.core import PruneHal, TopK
from prunehal.experiments import Experiment, Store, read_grid, sweep
from prunehal.experiments.experiment import policy_from
from prunehal.experiments.own_policies import policy_name, source_mark
from prunehal.experiments.versions import made_by
from prunehal.running import Run, named_policy

SOURCE = """
from dataclasses import dataclass

from prunehal.core import TopK


@dataclass(frozen=True)
class Mine(TopK):
    share: float = 0.5

    def budget(self, n):
        return {budget}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes a module with a policy, and imports it anew."""
    monkeypatch.syspath_prepend(tmp_path)

    def written(name="my_policies", budget="int(n * self.share)"):
        (tmp_path / f"{name}.py").write_text(SOURCE.format(budget=budget))
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return importlib.import_module(name)

    return written


def short(policy):
    return Experiment(n_images=2, max_new_tokens=6, policy=policy)


def test_rows_name_the_module_and_those_of_the_package_do_not(module):
    assert Experiment(policy=PruneHal()).description["policy"]["name"] == "PruneHal"
    assert Experiment(policy=module().Mine(9)).description["policy"]["name"] == "my_policies:Mine"
    assert "policy" not in made_by(Experiment(policy=PruneHal()))


def test_an_edited_policy_is_refused_by_name(module, tmp_path):
    store = Store(tmp_path / "rows")
    sweep([short(module().Mine(9))], store, progress=False)
    again = short(module().Mine(9))
    sweep([again], store, progress=False)  # the same source: nothing is made anew
    assert store.missing(again) == []
    edited = short(module(budget="int(n * self.share) + 1").Mine(9))
    assert edited.key == again.key
    with pytest.raises(ValueError, match=r"holds rows of other policy: it was [0-9a-f]{16}, is now [0-9a-f]{16}; expected"):
        sweep([edited], store, progress=False)
    with pytest.raises(ValueError, match="other policy"):
        store.captions(edited)


def test_two_classes_of_one_name_do_not_share_rows(module):
    here, there = (short(module(name).Mine(9)) for name in ("my_policies", "their_policies"))
    assert asdict(here.policy) == asdict(there.policy)
    assert here.key != there.key


def test_a_base_outside_of_the_package_counts(module):
    @dataclass(frozen=True)
    class Derived(module().Mine):
        pass

    before = source_mark(Derived)

    @dataclass(frozen=True)
    class Derived(module(budget="n").Mine):
        pass

    assert source_mark(Derived) != before


def test_a_version_stands_for_the_source():
    @dataclass(frozen=True)
    class Mine(TopK):
        version: ClassVar[int] = 3

    @dataclass(frozen=True)
    class Child(Mine):
        pass

    assert source_mark(Mine) == "version 3"
    assert source_mark(Child) != "version 3"  # a version is of the class that states it


def test_a_class_without_a_source_needs_a_version():
    space = {"__name__": "nowhere", "TopK": TopK, "dataclass": dataclass}
    exec("@dataclass(frozen=True)\nclass Mine(TopK):\n    def budget(self, n):\n        return n\n", space)
    with pytest.raises(
        ValueError, match=r"policy nowhere:Mine: its source cannot be read, .* expected a class in a file, or one"
    ):
        source_mark(space["Mine"])


def test_grids_and_the_command_line_name_it(module, tmp_path):
    module()
    (tmp_path / "grid.toml").write_text('[[grid]]\npolicy = {name = "my_policies:Mine", k = 9}\n"policy.share" = [0.25, 0.5]\n')
    assert [each.policy.share for each in read_grid(tmp_path / "grid.toml")] == [0.25, 0.5]
    chosen = named_policy("my_policies:Mine", k=9)
    assert policy_name(type(chosen)) == "my_policies:Mine"
    shared = Run(model="embedded", benchmark="chair", images=tmp_path, out=tmp_path / "out", policy=chosen).shared()
    assert shared["policy"]["name"] == "my_policies:Mine"
    assert shared["policy"]["source"] == source_mark(type(chosen))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("my_policies:Theirs", "cannot be found .* expected module:Class, such as 'my_policies:MyPolicy'"),
        ("no_such_module:Mine", "cannot be found .*No module named 'no_such_module'"),
        ("my_policies:dataclass", "expected a class that derives from prunehal.core.Policy"),
        ("Mine", "expected one of 'NoPruning', .* or 'module:Class' for one of your own"),
    ],
)
def test_what_is_no_policy_is_named(module, name, fault):
    module()
    with pytest.raises(ValueError, match=fault):
        policy_from({"name": name, "k": 9})


def test_options_that_an_own_policy_lacks_are_named(module):
    module()
    with pytest.raises(ValueError, match=r"Mine has no option 'p'|my_policies:Mine has no option 'p'"):
        policy_from({"name": "my_policies:Mine", "k": 9, "p": 1})
    with pytest.raises(ValueError, match=r"r=0.4: given with policy='my_policies:Mine'"):
        named_policy("my_policies:Mine", r=0.4, k=9)
    with pytest.raises(ValueError, match=r"policy='my_policies:Mine': .*expected the options that it needs"):
        named_policy("my_policies:Mine")


def test_a_class_of_a_notebook_is_refused_for_other_processes(module, tmp_path):
    kind = module().Mine
    kind.__module__ = "__main__"
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(ValueError, match=r"which worker processes cannot import; .* move Mine to a file such as my_policies\.py"),
    ):
        sweep([short(kind(9))], tmp_path / "rows", executor, progress=False)
    assert not (tmp_path / "rows").exists()


def test_rows_of_several_own_policies_carry_the_mark_of_each(module, tmp_path):
    budgets = {"my_policies": "int(n * self.share)", "their_policies": "n // 2", "third_policies": "n // 4"}
    policies = [module(name, budget).Mine(9) for name, budget in budgets.items()]
    wanted = [short(policy) for policy in (*policies, PruneHal())]
    store = sweep(wanted, tmp_path / "rows", progress=False)  # the last two own ones are of one task
    assert [store.missing(each) for each in wanted] == [[]] * 4
    assert len({made_by(each)["policy"] for each in wanted[:3]}) == 3
    assert "policy" not in made_by(wanted[3])
