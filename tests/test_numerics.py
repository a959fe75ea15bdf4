"""What half precision changes, measured on two images: the rows, and what must hold whatever the processor."""

import pandas as pd
from typer.testing import CliRunner

from prunehal.commands.app import app
from prunehal.measuring.half_precision import as_table


def test_rows_and_table(tmp_path):
    out = tmp_path / "deep" / "numerics.csv"
    done = CliRunner().invoke(app, ["numerics", "--images", "2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert [each.name for each in out.parent.iterdir()] == ["numerics.csv"]
    rows = pd.read_csv(out).set_index("dtype")
    assert list(rows.index) == ["float32", "bfloat16", "float16"]
    assert rows["exact"].max() == 0, "exact=True leaves stock's output as it is, in every dtype"
    full = rows.loc["float32"]
    assert full["stock"] == 0
    assert full["observe"] < 1e-4
    assert full[["steps", "kept", "captions", "captions_stock"]].tolist() == [1.0] * 4
    half = rows.loc[["bfloat16", "float16"]]
    assert (half["stock"] > 10 * full["observe"]).all(), "half precision is far from float32 by itself"
    assert (half["observe"] < 4 * half["stock"]).all()
    assert half["kept"].between(0.5, 1).all()
    table = as_table(pd.read_csv(out)).splitlines()
    assert len(table) == 5
    assert table[2].startswith("| float32 | 0 |")
