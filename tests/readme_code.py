"""The Python blocks of a Markdown file, run in order in a namespace that starts empty: ``python tests/readme_code.py FILE``."""

import argparse
import re
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run_blocks(path):
    """Run the Python blocks of a Markdown file as a reader would who pastes them one after the other.

    Args:
        path: the file. Errors carry its name and its line numbers.

    Returns:
        A dictionary of the names that the blocks left behind.

    Raises:
        ValueError: the file has no such block.
    """
    text = Path(path).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    if not blocks:
        raise ValueError(f"{path} has no block that begins with ```python; expected at least one")
    names = {"__name__": "readme"}
    for block in blocks:
        lines_above = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_above + block[1], str(path), "exec"), names)
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    run_blocks(parser.parse_args().path)
