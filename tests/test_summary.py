"""What the README says is what the stored rows give, and what it shows runs."""

import re
from pathlib import Path

import model_table
import pandas as pd
import pytest

from prunehal.ablation import N_STORED, N_TRACED, grid, ground_truth, make_mentions, read_rows
from prunehal.summary import SECTIONS, markers, update_readme
from prunehal.testbed.model import build_prompt
from prunehal.testbed.scenes import scene

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("section", SECTIONS)
def test_numbers_in_the_readme_are_those_of_the_stored_rows(section):
    begin, end = markers(section)
    assert README.split(begin)[1].split(end)[0].strip() == SECTIONS[section]().strip()


def test_models_in_the_readme_are_those_that_the_tests_run():
    assert README.split(model_table.BEGIN)[1].split(model_table.END)[0].strip() == model_table.models_section()


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


def test_the_code_in_the_readme_runs():
    shown = {"image": scene("test", 0).image(), "prompt": build_prompt()}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(code, "README.md", "exec"), shown)
    assert shown["cache"].events["reason"].iloc[0] == "forced"
    assert isinstance(shown["cache"].trace.frame(), pd.DataFrame)
    assert len(shown["run"].caches) == 1
    assert shown["answers"][0]["generated_text"].startswith("<image>Describe")


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
