"""The report of ``make notebooks``: pages, figures and an index; a notebook that fails is named and the others still run."""

import base64
import importlib.util
import io
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import prunehal as ph

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("report", ROOT / "notebooks" / "report.py")
report = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
spec.loader.exec_module(report)

TITLE = "# Dots & <lines>\n\nWhat *one* dot shows,\nin two lines.\n\nA second paragraph."
DRAW = """from pathlib import Path
from IPython.display import Image
words = Path("beside.txt").read_text()
Image(data=bytes.fromhex("{png}"))"""


def save(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Run the report once, over a notebook that works, one that fails, and one that hangs."""
    root = tmp_path_factory.mktemp("report")
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    (root / "src").mkdir()
    (root / "src" / "beside.txt").write_text("found beside the notebook")
    stale = new_output("stream", text="from an earlier run")
    notebooks = [
        save(
            root / "src" / "00_dots.ipynb",
            new_markdown_cell(TITLE),
            new_code_cell(DRAW.format(png=buffer.getvalue().hex()), outputs=[stale]),
            new_code_cell("print(words.upper())"),
        ),
        save(
            root / "src" / "01_broken.ipynb",
            new_markdown_cell("# Broken"),
            new_code_cell("print('reached')"),
            new_code_cell("raise ValueError('r=2 is <too> large')"),
            new_code_cell("print('not ' + 'reached')", outputs=[stale]),
        ),
        save(root / "src" / "02_slow.ipynb", new_code_cell("import time"), new_code_cell("time.sleep(60)")),
    ]
    (root / "out" / "figures").mkdir(parents=True)
    (root / "out" / "figures" / "00_dots-7.png").write_bytes(b"of an earlier run")
    before = [path.read_bytes() for path in notebooks]
    log = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", log)
        code = report.main(["--out", str(root / "out"), "--timeout", "4", *map(str, notebooks)])
    assert [path.read_bytes() for path in notebooks] == before
    return code, log.getvalue(), root / "out", buffer.getvalue()


def test_each_notebook_has_a_progress_line_and_a_failure_is_named(built):
    code, log, _, _ = built
    assert code == 1
    lines = log.splitlines()
    assert re.fullmatch(r"\[1/3\] 00_dots \.\.\. \d+ s", lines[0])
    assert re.fullmatch(r"\[2/3\] 01_broken \.\.\. FAILED after \d+ s", lines[1])
    assert lines[2].strip() == "code cell 2: ValueError: r=2 is <too> large"
    assert re.fullmatch(r"\[3/3\] 02_slow \.\.\. FAILED after \d+ s", lines[3])
    assert re.match(r"code cell 2: CellTimeoutError: .*4 seconds", lines[4].strip())


def test_pages_show_fresh_outputs_and_hold_their_images(built):
    _, _, out, png = built
    page = (out / "00_dots.html").read_text()
    assert "FOUND BESIDE THE NOTEBOOK" in page
    assert base64.b64encode(png).decode() in page.replace("\n", "")
    broken = (out / "01_broken.html").read_text()
    assert "ValueError" in broken
    assert "from an earlier run" not in page + broken
    executed = nbformat.read(out / "00_dots.ipynb", as_version=4)
    assert [cell.get("execution_count") for cell in executed.cells] == [None, 1, 2]
    assert "execution" not in executed.cells[1].metadata  # times of day would make two executions differ


def test_figures_are_files_and_old_ones_go(built):
    _, _, out, png = built
    assert {path.name: path.read_bytes() for path in (out / "figures").iterdir()} == {"00_dots-1.png": png}


def test_the_index_introduces_and_links_every_notebook(built):
    _, _, out, _ = built
    page = (out / "index.html").read_text()
    links = re.findall(r'<a href="([^"]+)">([^<]+)</a> <span class="time">\d+ s</span>', page)
    assert links == [("00_dots.html", "Dots &amp; &lt;lines&gt;"), ("01_broken.html", "Broken"), ("02_slow.html", "02_slow")]
    assert all((out / target).is_file() for target, _ in links)
    assert "What <em>one</em> dot shows,\nin two lines." in page
    assert "second paragraph" not in page
    assert "code cell 2: ValueError: r=2 is &lt;too&gt; large" in page
    assert f"prunehal {ph.__version__}" in page


def test_all_well_is_exit_code_0(tmp_path, capsys):
    path = save(tmp_path / "a.ipynb", new_code_cell("1 + 1"))
    assert report.main(["--out", str(tmp_path / "out"), str(path)]) == 0
    assert "FAILED" not in capsys.readouterr().out


@pytest.mark.parametrize("which", ["missing.ipynb", "notes.txt"])
def test_what_is_no_notebook_is_refused(which, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SystemExit) as stopped:
        report.main(["--out", str(tmp_path / "out"), str(tmp_path / which)])
    assert stopped.value.code == 2
    assert f"{which} is no notebook; expected the path of an .ipynb file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_report_does_not_go_where_the_sources_are(tmp_path, capsys):
    path = save(tmp_path / "a.ipynb", new_code_cell("1 + 1"))
    with pytest.raises(SystemExit):
        report.main(["--out", str(tmp_path), str(path)])
    assert "expected another folder, so that it is not overwritten" in capsys.readouterr().err


def test_without_notebooks_there_is_nothing_to_report(capsys):
    with pytest.raises(SystemExit) as stopped:
        report.main(["--out", "build"])
    assert stopped.value.code == 2
    assert "NB" in capsys.readouterr().err
