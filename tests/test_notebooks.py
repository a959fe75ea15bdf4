"""Static rules of the notebooks: read in order, executed in order, and clean enough to compare and to publish."""

import base64
import itertools
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 2**20  # bytes
ABSOLUTE = re.compile(r"(?<![\w./:])(?:/(?:home|Users|root|work|tmp|mnt|usr|opt|var)/[\w.]|[A-Z]:\\\w)")
WIDGETS = "application/vnd.jupyter.widget-view+json"


def texts_of(output):
    """All text of an output, images left out."""
    shown = [value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")]
    return [str(text) for text in (*shown, output.get("text", ""), *output.get("traceback", ()))]


def faults(notebook):
    """List what breaks the rules in a notebook."""
    cells = notebook.cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    found = []
    if not cells or cells[0].cell_type != "markdown" or not cells[0].source.startswith("# "):
        found.append("the first cell is no title")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append(f"cells were not executed in order: {[cell.execution_count for cell in code]}")
    if any(not cell.source.strip() for cell in cells):
        found.append("a cell is empty")
    if any(output.output_type == "error" for output in outputs):
        found.append("an output is an error")
    if not outputs:
        found.append("nothing was executed")
    if any(output.get("name") == "stderr" for output in outputs):
        found.append("an output holds warnings or a progress bar")
    if "widgets" in notebook.metadata or any(WIDGETS in output.get("data", {}) for output in outputs):
        found.append("widget state is stored")
    if any(ABSOLUTE.search(text) for output in outputs for text in texts_of(output)):
        found.append("an output names a path of one machine")
    if any(ABSOLUTE.search(cell.source) for cell in cells):
        found.append("a cell names a path of one machine")
    if len(nbformat.writes(notebook).encode()) > LARGEST:
        found.append("it is larger than 1 MB")
    if 2 * (len(cells) - len(code)) < len(code):
        found.append("there are more than two code cells for a text cell")
    if any("execution" in cell.metadata for cell in code):
        found.append("times of day are stored")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("its kernel is not python3")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_keeps_the_rules(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert faults(notebook) == []


@pytest.mark.parametrize("picture", sorted((FOLDER / "figures").glob("*.png")), ids=lambda path: path.name)
def test_a_picture_of_the_readme_is_a_figure_of_its_notebook(picture):
    """README shows copies: export them again when their notebook was executed."""
    (path,) = FOLDER.glob(f"{picture.name[:3]}*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    drawn = picture.read_bytes()
    assert any(base64.b64decode(each.get("image/png", "")) == drawn for each in data), "export it again"
    assert f"(notebooks/figures/{picture.name})" in (FOLDER.parent / "README.md").read_text()


def test_the_notebooks_are_numbered_without_gaps():
    assert len(NOTEBOOKS) >= 4
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{number:02}_" for number in range(len(NOTEBOOKS))]


def tagged(cells):
    """Numbers of the cells of parameters."""
    return [number for number, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]


# Notebook -> the parameters that it has, and values that it must refuse at once, by name.
PARAMETERS = {
    "03": (
        {"r", "t", "factor", "n_images"},
        ["r = 1.5", "r = '0.4'", "t = -1", "t = 2.0", "factor = -0.5", "n_images = 1", "n_images = 401"],
    ),
    "04": (
        {"scorer", "ground_truth", "n_resamples"},
        ["scorer = 'nltk'", "scorer = None", "ground_truth = 'coco'", "n_resamples = 99", "n_resamples = 500.0"],
    ),
    "05": ({"r", "response", "margin"}, ["r = 0.8", "response = 'chair_i'", "margin = 0.0", "margin = -1.0"]),
    "06": ({"r", "n_images"}, ["r = 0.8", "n_images = 1", "n_images = 201"]),
    "07": ({"n_images", "cost_of"}, ["n_images = 1", "n_images = 201", "cost_of = 'llava'"]),
    "08": ({"n_images", "n_resamples"}, ["n_images = 49", "n_images = 101", "n_images = 99.5", "n_resamples = 99"]),
    "09": ({"n_images"}, ["n_images = 99", "n_images = 401", "n_images = 100.0"]),
    "10": ({"n_images", "r", "n_followed"}, ["n_images = 1", "n_images = 301", "r = 0.8", "n_followed = 1", "n_followed = 401"]),
    "11": ({"n_resamples"}, ["n_resamples = 99", "n_resamples = 200.0"]),
}


def cells_to_the_check(number):
    """Sources of a notebook up to the cell after that of parameters, which checks them; and where that of parameters is."""
    (path,) = FOLDER.glob(f"{number}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    (at,) = tagged(cells)
    return [cell.source if cell.cell_type == "code" else "" for cell in cells[: at + 2]], at


def run_with(number, injected):
    """Run the first cells of a notebook with a cell after that of parameters, as papermill does."""
    sources, at = cells_to_the_check(number)
    namespace = {"__name__": "__main__"}
    for source in (*sources[: at + 1], injected, *sources[at + 1 :]):
        exec(source, namespace)


def test_these_notebooks_check_their_parameters():
    checking = [path.name[:2] for path in NOTEBOOKS if "check_parameters(" in path.read_text()]
    assert checking == list(PARAMETERS)


@pytest.mark.parametrize("number", PARAMETERS)
def test_a_notebook_has_one_cell_of_parameters_and_checks_it_in_the_next(number):
    sources, at = cells_to_the_check(number)
    assert set(re.findall(r"^(\w+)(?=\s*[:=])", sources[at], re.MULTILINE)) == PARAMETERS[number][0]
    assert "check_parameters(" in sources[at + 1]
    assert any("note_names(globals())" in source for source in sources[:at])
    run_with(number, "")


@pytest.mark.parametrize("number", PARAMETERS)
def test_an_unknown_parameter_stops_a_notebook(number):
    with pytest.raises(ValueError, match="unknown parameter\\(s\\) 'n_image', 'rr'"):
        run_with(number, "rr = 0.9\nn_image = 20")


@pytest.mark.parametrize(("number", "injected"), [(number, each) for number, (_, bad) in PARAMETERS.items() for each in bad])
def test_a_value_that_a_notebook_cannot_use_stops_it_by_name(number, injected):
    name, value = injected.split(" = ")
    with pytest.raises(ValueError, match=rf"^{name}={re.escape(value)}: expected|^{name} is {re.escape(value)}"):
        run_with(number, injected)


def good():
    """A notebook that keeps the rules; every call makes a new one."""
    cells = [
        new_markdown_cell("# Title\n\nA question."),
        new_code_cell("1 + 1", execution_count=1, outputs=[new_output("execute_result", {"text/plain": "2"}, execution_count=1)]),
        new_code_cell("x = 2", execution_count=2),
    ]
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def output(notebook, kind, *args, **kwargs):
    notebook.cells[2].outputs.append(new_output(kind, *args, **kwargs))


BREAKS = {
    "the first cell is no title": lambda n: n.cells.insert(0, n.cells.pop(1)),
    "cells were not executed in order: [1, 3]": lambda n: n.cells[2].update(execution_count=3),
    "cells were not executed in order: [1, None]": lambda n: n.cells[2].update(execution_count=None),
    "a cell is empty": lambda n: n.cells.append(new_markdown_cell(" ")),
    "an output is an error": lambda n: output(n, "error", ename="ValueError", evalue="r", traceback=[]),
    "nothing was executed": lambda n: n.cells[1].outputs.clear(),
    "an output holds warnings or a progress bar": lambda n: output(n, "stream", name="stderr", text="100%"),
    "widget state is stored": lambda n: output(n, "display_data", {WIDGETS: {"model_id": "1"}}),
    "an output names a path of one machine": lambda n: output(n, "stream", text="in /ho" + "me/ann/data"),
    "a cell names a path of one machine": lambda n: n.cells[2].update(source="open('/t" + "mp/rows')"),
    "it is larger than 1 MB": lambda n: output(n, "display_data", {"image/png": "A" * LARGEST}),
    "there are more than two code cells for a text cell": lambda n: n.cells.append(new_code_cell("y = 1", execution_count=3)),
    "times of day are stored": lambda n: n.cells[1].metadata.update(execution={"iopub.execute_input": "now"}),
    "its kernel is not python3": lambda n: n.metadata.kernelspec.update(name="my-venv"),
}


@pytest.mark.parametrize(("fault", "spoil"), BREAKS.items(), ids=BREAKS)
def test_each_rule_finds_its_fault(fault, spoil):
    notebook = good()
    assert faults(notebook) == []
    spoil(notebook)
    assert fault in faults(notebook)


def sanitized(text):
    patterns = get_sanitize_patterns((FOLDER / "sanitize.cfg").read_text())
    for pattern, replacement in patterns:
        text = re.sub(pattern, replacement, text)
    return text


def test_sanitizing_makes_executions_alike():
    pairs = [
        ("<Figure at 0x7f254d537010>", "<Figure at 0x7f0000aa0b58>"),
        ("captioned 20 scenes in 12.3 s", "captioned 20 scenes in 9.87 s"),
        ("85 ms and 2 min", "7 ms and 14 min"),
        (
            "captions: 100%|██████████| 7/7 [00:14<00:00,  2.13s/it]",
            "captions: 100%|██████████| 7/7 [00:09<00:00,  1.20it/s]",
        ),
    ]
    for one, other in pairs:
        assert one != other
        assert sanitized(one) == sanitized(other)


def test_sanitizing_hides_no_result():
    results = ["r = 0.4, t = 3", "CHAIR_i 12.3 %", "0.25 steps", "72 of 144 tokens", "12.3 since", "p = 1e-05", "0x1f"]
    assert [sanitized(text) for text in results] == results
    assert all(sanitized(one) != sanitized(other) for one, other in itertools.pairwise(["mass 0.31", "mass 0.32"]))
    assert "--nbval-sanitize-with=notebooks/sanitize.cfg" in (FOLDER.parent / "Makefile").read_text()
