"""Execute notebooks and leave a readable report: ``python notebooks/report.py --out build notebooks/*.ipynb``.

Each notebook runs in its own folder, from its source, which is never overwritten. The report folder then holds for each
``<name>.ipynb`` (executed), ``<name>.html``, ``figures/<name>-<n>.png``, and for all of them ``index.html``. A notebook
that fails is named with the cell and its error, the others still run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import base64
import html
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode

from prunehal import __version__

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>prunehal: notebooks</title>
<style>
body {{ max-width: 46rem; margin: 2.5rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #222; }}
li {{ margin-bottom: 1.2rem; }} p {{ margin: 0.2rem 0; }}
.time {{ color: #666; }} .failed {{ color: #a00; white-space: pre-wrap; }}
</style></head>
<body>
<h1>prunehal: notebooks</h1>
<p>Executed with prunehal {version} in {seconds:.0f} s. Their figures are in <a href="figures">figures</a>.</p>
<ol start="0">
{items}
</ol>
</body></html>
"""


@dataclass(frozen=True)
class Run:
    """What one notebook gave: its name, the executed notebook, the seconds it took, and its error if it failed."""

    name: str
    notebook: NotebookNode
    seconds: float
    error: str | None

    @property
    def item(self) -> str:
        """Return its entry on the index page."""
        title, text = _introduction(self.notebook, self.name)
        failed = f'<p class="failed">{html.escape(self.error)}</p>' if self.error else ""
        link = f'<a href="{self.name}.html">{html.escape(title)}</a> <span class="time">{self.seconds:.0f} s</span>'
        return f"<li>{link}\n{markdown2html(text)}\n{failed}</li>"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, or 1 when a notebook failed."""
    parser = argparse.ArgumentParser(description="Execute notebooks and write an HTML report.")
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NB", help="notebooks to execute, in this order")
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder of the report (default: build)")
    parser.add_argument("--timeout", type=int, default=600, help="longest time for one cell, in seconds (default: 600)")
    options = parser.parse_args(arguments)
    for path in options.notebooks:
        if path.suffix != ".ipynb" or not path.is_file():
            parser.error(f"{path} is no notebook; expected the path of an .ipynb file")
        if path.parent.resolve() == options.out.resolve():
            parser.error(f"--out {options.out} holds {path.name} itself; expected another folder, so that it is not overwritten")
    runs = []
    for number, path in enumerate(options.notebooks, 1):
        print(f"[{number}/{len(options.notebooks)}] {path.stem} ...", end=" ", flush=True)
        run = execute(path, options.timeout)
        runs.append(run)
        print(f"{run.seconds:.0f} s" if run.error is None else f"FAILED after {run.seconds:.0f} s\n    {run.error}", flush=True)
        write(run, options.out, path.parent)
    page = _PAGE.format(version=__version__, seconds=sum(run.seconds for run in runs), items="\n".join(run.item for run in runs))
    (options.out / "index.html").write_text(page, encoding="utf-8")
    print(f"report: {options.out / 'index.html'}")
    return int(any(run.error for run in runs))


def execute(path: Path, timeout: int) -> Run:
    """Execute a notebook in its own folder; an error of a cell is part of what is returned."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # else a cell that is not reached would show the outputs of an earlier run
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(path.parent)}}
    # Times in the metadata would make two executions of one notebook differ.
    # The kernel's warnings would tear the progress line; its errors still show.
    quiet = ["--IPKernelApp.log_level=40"]
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources=resources, record_timing=False, extra_arguments=quiet
    )
    error, start = None, time.perf_counter()
    try:
        client.execute()
    # A cell's error, a cell that takes too long, a kernel that died (out of memory, as a rule).
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
        error = _say(notebook, failure)
    return Run(path.stem, notebook, time.perf_counter() - start, error)


def write(run: Run, out: Path, folder: Path) -> None:
    """Write the executed notebook, its HTML page and its PNG figures; ``folder`` is where its source stands."""
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    nbformat.write(run.notebook, out / f"{run.name}.ipynb")
    exporter = HTMLExporter(embed_images=True)
    page, _ = exporter.from_notebook_node(run.notebook, {"metadata": {"name": run.name, "path": str(folder)}})
    (out / f"{run.name}.html").write_text(page, encoding="utf-8")
    for old in figures.glob(f"{run.name}-*.png"):
        old.unlink()
    outputs = [output for cell in run.notebook.cells for output in cell.get("outputs", ())]
    images = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    for number, image in enumerate(images, 1):
        (figures / f"{run.name}-{number}.png").write_bytes(base64.b64decode(image))


def _say(notebook: NotebookNode, failure: Exception) -> str:
    """Name the cell that was started last, and the error, in one line."""
    number = max((cell.execution_count or 1 for cell in notebook.cells if cell.cell_type == "code"), default=1)
    if isinstance(failure, CellExecutionError):
        return _COLOURS.sub("", f"code cell {number}: {failure.ename}: {failure.evalue}")
    return f"code cell {number}: {type(failure).__name__}: {str(failure).strip().splitlines()[0]}"


def _introduction(notebook: NotebookNode, name: str) -> tuple[str, str]:
    """Return the first markdown heading and the first paragraph of text after it."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^#+\s+(.+)$", text, re.MULTILINE)
    blocks = [block.strip() for block in text[heading.end() if heading else 0 :].split("\n\n")]
    return heading[1] if heading else name, next((block for block in blocks if block and not block.startswith("#")), "")


if __name__ == "__main__":
    sys.exit(main())
