"""The numbers in the README are those of the stored rows."""

import re
from pathlib import Path

import model_table
import pytest
from families import FAMILIES, LISTED

from prunehal.experiments import Store, graded, read_grid
from prunehal.experiments.choosing import report
from prunehal.files.paths import data_path
from prunehal.studies import claims
from prunehal.studies.headline import chosen_on_validation, thresholds
from prunehal.studies.nb08_redundancy import evidence
from prunehal.studies.nb09_causal import rows as interventions
from prunehal.studies.nb11_seeds import rows as seeds
from prunehal.studies.readme import SECTIONS, markers, update_readme

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("section", SECTIONS)
def test_numbers_in_the_readme_are_those_of_the_stored_rows(section):
    begin, end = markers(section)
    assert README.split(begin)[1].split(end)[0].strip() == SECTIONS[section]().strip()


@pytest.mark.skipif(len(LISTED) > len(FAMILIES), reason="the installed transformers lacks some of the families")
def test_models_in_the_readme_are_those_that_the_tests_run():
    assert README.split(model_table.BEGIN)[1].split(model_table.END)[0].strip() == model_table.models_section()


GRIDS = sorted(data_path("grids").glob("*.toml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_experiment_of_the_shipped_grids_is_stored_whole(path):
    store = Store.shipped()
    for experiment in read_grid(path):
        captions = store.captions(experiment)
        assert len(captions) == experiment.n_images, experiment.name
        assert captions["caption"].str.len().gt(0).all(), experiment.name
        assert store.mentions(experiment)["mass"].between(0, 1).all(), experiment.name


def test_nothing_is_stored_that_no_grid_asks_for():
    store = Store.shipped()
    asked = {store.path(experiment).name for path in GRIDS for experiment in read_grid(path)}
    assert {path.name for path in store.folder.iterdir()} - {"run.lock"} == asked | {
        evidence.FILE,
        claims.FILE,
        interventions.FILE,
        seeds.FILE,
    }


def test_the_choice_that_the_readme_reports_has_not_seen_the_test_split():
    chosen = chosen_on_validation()
    assert (chosen.split, chosen.n_candidates, chosen.selected_on_test) == ("validation", 9, False)
    assert not report(chosen, graded(Store.shipped(), thresholds("test")), n_resamples=100).selected_on_test


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


@pytest.mark.parametrize("fault", ["a later marker", "a later section"])
def test_a_readme_that_cannot_be_written_whole_is_left_alone(fault, tmp_path, monkeypatch):
    def absent():
        raise FileNotFoundError("rows are missing")

    computed = []
    second = absent if fault == "a later section" else lambda: "new second"
    monkeypatch.setattr("prunehal.studies.readme.SECTIONS", {"one": lambda: computed.append(1) or "new first", "two": second})
    lines = ["Title", *markers("one"), "between", *markers("two"), "end"]
    if fault == "a later marker":
        lines.remove(markers("two")[1])
    path = tmp_path / "README.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    error, said = (ValueError, "lacks the marker '<!-- two: end") if fault == "a later marker" else (FileNotFoundError, "rows")
    with pytest.raises(error, match=said):
        update_readme(path)
    assert path.read_text(encoding="utf-8") == "\n".join(lines)
    assert [each.name for each in tmp_path.iterdir()] == ["README.md"]
    assert computed == ([] if fault == "a later marker" else [1]), "markers are looked for before anything is computed"


def test_sections_stand_between_their_markers_and_the_rest_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("prunehal.studies.readme.SECTIONS", {"one": lambda: "new first", "two": lambda: "new second"})
    (begin_1, end_1), (begin_2, end_2) = markers("one"), markers("two")
    path = tmp_path / "README.md"
    path.write_text(f"Title\n{begin_1}\nold\n{end_1}\nbetween\n{begin_2}\n{end_2}\nend\n", encoding="utf-8")
    update_readme(path)
    expected = f"Title\n{begin_1}\nnew first\n{end_1}\nbetween\n{begin_2}\nnew second\n{end_2}\nend\n"
    assert path.read_text(encoding="utf-8") == expected
