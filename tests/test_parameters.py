"""Parameters of a notebook: unknown, missing, hiding and wrongly typed ones are named; what is valid passes."""

import pytest

from prunehal.experiments import check_parameters, note_names

EXPECTED = {"r": float, "t": int, "factor": (float, None), "response": str}
GOOD = {"r": 0.4, "t": 3, "factor": None, "response": "chair_i"}


def run(cell, earlier="import json as pd", before_too=()):
    """Run cells as a notebook does: imports and note_names, the cell of parameters, injected ones, the check."""
    namespace = {"note_names": note_names, "check_parameters": check_parameters, **dict(before_too)}
    exec(f"{earlier}\nbefore = note_names(globals())", namespace)
    exec("\n".join(f"{name} = {value!r}" for name, value in GOOD.items()), namespace)
    exec(cell, namespace)
    check_parameters(namespace, namespace["before"], EXPECTED)


@pytest.mark.parametrize("cell", ["", "r = 1", "r = 0.9", "factor = 0.5", "factor = 1", "t = 8", "_note = 3", "pd = pd"])
def test_what_is_valid_passes(cell):
    run(cell)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("rr = 0.9", r"unknown parameter\(s\) 'rr'; expected some of r, t, factor, response; check the spelling"),
        ("R = 1\nresponce = 'a'", r"unknown parameter\(s\) 'R', 'responce'"),
        ("pd = 3", r"parameter\(s\) 'pd' overwrite what the notebook has under the same name; expected some of r, t"),
        ("check_parameters = None", r"parameter\(s\) 'check_parameters' overwrite"),
        ("before = {}", r"unknown parameter\(s\)"),
        ("del r", r"parameter 'r' is not set; expected all of r, t, factor, response"),
        ("r = '0.4'", r"r='0.4': expected float; change it in the cell of parameters"),
        ("r = True", r"r=True: expected float"),
        ("r = None", r"r=None: expected float"),
        ("t = 3.0", r"t=3.0: expected int"),
        ("t = True", r"t=True: expected int"),
        ("factor = 'none'", r"factor='none': expected float or None"),
        ("response = 1", r"response=1: expected str"),
    ],
)
def test_what_is_wrong_is_named(cell, said):
    with pytest.raises(ValueError, match=said):
        run(cell)


def test_a_notebook_may_be_run_again_in_the_same_kernel():
    """The parameters and what later cells made are there before the first cell then."""
    run("r = 0.7", before_too={**GOOD, "table": [1], "before": {}}.items())


def test_names_of_the_shell_are_left_alone():
    assert note_names({"_": 1, "__name__": "a", "In": [], "r": 2}) == {"In": [], "r": 2}
    namespace = {"In": ["a"]}
    before = note_names(namespace)
    namespace["In"].append("b")
    check_parameters(namespace | {"r": 1.0, "_i2": "r = 1.0"}, before, {"r": float})
