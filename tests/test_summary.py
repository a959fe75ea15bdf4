"""What the README says is what the stored rows give, and what it shows runs."""

import re
from pathlib import Path

import pandas as pd
import pytest

from prunehal.ablation import N_STORED, N_TRACED, grid, ground_truth, make_mentions, read_rows
from prunehal.summary import BEGIN, END, findings, update_readme
from prunehal.testbed.model import build_prompt
from prunehal.testbed.scenes import scene

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_findings_in_the_readme_are_those_of_the_stored_rows():
    assert README.split(BEGIN)[1].split(END)[0].strip() == findings().strip()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_setting_of_the_grid_is_stored_whole(split):
    images = set(ground_truth(split))
    for setting in grid(split):
        rows = read_rows(setting)
        assert len(rows) == N_STORED, setting.name
        assert set(rows["image_id"]) == images, setting.name
        assert rows["caption"].str.len().gt(0).all(), setting.name


def test_stored_mentions_cover_the_test_split():
    rows = make_mentions("test")
    assert set(rows["image_id"]) <= set(ground_truth("test", N_TRACED))
    assert rows["layer"].nunique() == 6
    assert rows["mass"].between(0, 1).all()


def test_the_readme_drop_in_runs():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    shown = {"image": scene("test", 0).image(), "prompt": build_prompt()}
    exec(compile(code, "README.md", "exec"), shown)
    assert shown["cache"].events["reason"].iloc[0] == "forced"
    assert isinstance(shown["cache"].trace.frame(), pd.DataFrame)


def test_figures_and_files_that_the_readme_links_to_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_a_readme_without_markers_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks the marker"):
        update_readme(path)
    assert path.read_text(encoding="utf-8") == "no markers"
