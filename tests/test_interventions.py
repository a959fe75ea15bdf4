"""The stored rows of interventions: they belong to the shipped model, and rows of another one are refused."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from prunehal.experiments import Experiment, Store
from prunehal.files.paths import data_path
from prunehal.files.records import BadInput
from prunehal.studies.nb08_redundancy import evidence
from prunehal.studies.nb09_causal.intervene import HALF_MOVES, MOVES, SCALES, WITHHELD
from prunehal.studies.nb09_causal.rows import CAPTIONED, FILE, interventions, measure

KEYS = ["image_id", "index", "what", "part", "dose"]
N = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / FILE
    return path, measure(path, n_images=N, batch_size=5, progress=False)


def test_what_is_read_is_what_was_made(made):
    path, frame = made
    read = interventions(N, path)
    assert not read.duplicated(KEYS).any()
    pd.testing.assert_frame_equal(*(each.sort_values(KEYS, ignore_index=True)[read.columns] for each in (read, frame)))
    assert set(read["image_id"]) == set(interventions(2, path)["image_id"]) | set(read["image_id"].unique()[2:])


def test_the_shipped_rows_are_those_of_the_shipped_model_and_captions(made):
    """They are made again here for some scenes."""
    stored, made_again = (each.sort_values(KEYS, ignore_index=True) for each in (interventions(N), made[1]))
    keys = [*KEYS, "node", "hallucinated", "ambiguous", "patches"]
    pd.testing.assert_frame_equal(stored[keys], made_again[keys])
    np.testing.assert_allclose(stored["log_prob"], made_again["log_prob"], atol=5e-4)
    np.testing.assert_allclose(stored["mass"], made_again["mass"], atol=2e-3)


def test_every_first_mention_of_the_shipped_captions_has_all_its_rows():
    rows = interventions()
    mentions = Store.shipped().mentions(CAPTIONED).drop_duplicates(["image_id", "node"])
    of_rows = rows.drop_duplicates(["image_id", "index"])
    keys = ["image_id", "index", "node", "hallucinated"]
    pd.testing.assert_frame_equal(*(x.sort_values(keys, ignore_index=True)[keys] for x in (of_rows, mentions)))
    doses = rows[rows["what"] != "remove"].groupby(["what", "part"])["dose"].agg(lambda x: tuple(sorted(set(x))))
    expected = {("scale", "all"): SCALES, ("move", "all"): MOVES, ("move", "early"): HALF_MOVES, ("move", "late"): HALF_MOVES}
    expected |= {("withhold", "all"): WITHHELD}
    assert doses.to_dict() == {key: tuple(sorted(value)) for key, value in expected.items()}
    assert (rows[rows["what"] != "remove"].groupby(["what", "part", "dose"]).size() == len(of_rows)).all()
    assert data_path("results", FILE).stat().st_size <= 400_000


def test_rows_that_another_model_made_are_refused_by_name(made, tmp_path):
    text = gzip.decompress(made[0].read_bytes()).decode()
    first, rest = text.split("\n", 1)
    header = json.loads(first[2:])
    assert header["experiment"]["n_images"] == N
    for name, value in {"weights": "0" * 16, "code": 0, "pictures": "0" * 16}.items():
        other = header | {"made_by": header["made_by"] | {name: value}}
        path = tmp_path / f"{name}.csv.gz"
        path.write_bytes(gzip.compress(f"# {json.dumps(other)}\n{rest}".encode()))
        with pytest.raises(ValueError, match=f"{path.name}: holds rows of other {name}: it was {value}"):
            interventions(N, path)


def test_what_cannot_be_read_is_named(made, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.csv\.gz: there is no such table; make it by:.*causal"):
        interventions(path=tmp_path / "missing.csv.gz")
    torn, bare = tmp_path / "torn.csv.gz", tmp_path / "bare.csv.gz"
    torn.write_bytes(made[0].read_bytes()[:-40])
    with pytest.raises(BadInput, match="it cannot be unpacked"):
        interventions(N, torn)
    bare.write_bytes(gzip.compress(b"image_id,index\n1,0\n"))
    with pytest.raises(BadInput, match=r"line 1: 'image_id,index.*expected '# ' and what made the rows"):
        interventions(N, bare)
    for n_images in (1, N + 1):
        with pytest.raises(ValueError, match=rf"n_images={n_images}: expected 2 to {N}"):
            interventions(n_images, made[0])


def test_make_rows_makes_them_where_they_are_missing():
    assert Experiment(split="test", n_images=400) == CAPTIONED
    makefile = (data_path().parent / "Makefile").read_text()
    rows = makefile.split("\nrows: $(VENV)/installed")[1].split("\n\n")[0]
    assert f"test -e data/results/{FILE} || $(BIN)/python -m prunehal causal" in rows
    assert f"test -e data/results/{evidence.FILE} || $(BIN)/python -m prunehal evidence" in rows
