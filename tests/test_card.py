"""The model card: what it says is what was evaluated, of these weights, and of other seeds beside them."""

import json
import shutil

import numpy as np
import pytest

from prunehal import load
from prunehal.benchmarks import BadInput, score
from prunehal.experiments.captioning import caption_scenes
from prunehal.files.paths import data_path
from prunehal.measuring import model_card as card
from prunehal.testbed.world.scenes import scene


@pytest.fixture(scope="module")
def written_card(tmp_path_factory):
    """Return a copy of the embedded model with a card on three images."""
    folder = tmp_path_factory.mktemp("card") / "model"
    shutil.copytree(data_path("embedded"), folder)
    for name in ("README.md", "figures.json", "seeds.json"):
        (folder / name).unlink(missing_ok=True)
    return card.write_card(folder, 3).parent


def test_figures_are_those_of_captions_scored_one_by_one(written_card):
    found = json.loads((written_card / "figures.json").read_text())
    for split in ("validation", "test"):
        hallucinated = mentions = recalled = true = absent = distinct = repeats = 0
        for i in range(3):
            shown = scene(split, i)
            text = caption_scenes(*load(), [shown]).texts[shown.image_id]
            line = score({0: text}, {0: set(shown.names)}).items.iloc[0]
            hallucinated, mentions = hallucinated + line["n_hallucinated"], mentions + line["n_mentions"]
            recalled, true = recalled + line["n_recalled"], true + line["n_truth"]
            seen = set()
            for name in line["nodes"]:
                repeats += name in seen
                distinct += name not in seen
                absent += name not in seen and name not in shown.names
                seen.add(name)
        assert found["captions"][split]["chair_i"] == pytest.approx(hallucinated / mentions)
        assert found["captions"][split]["recall"] == pytest.approx(recalled / true)
        assert found["captions"][split]["distinct_chair_i"] == pytest.approx(absent / distinct)
        assert found["captions"][split]["absent"] == pytest.approx(absent / 3)
        assert found["captions"][split]["repeats"] == pytest.approx(repeats / mentions)
        assert found["captions"][split]["unfinished"] == 0
        assert 0 <= found["questions"][split]["accuracy"] <= 1
    assert found["images"] == 3
    text = (written_card / "README.md").read_text()
    row = found["captions"]["test"]
    start = [f"{100 * row[name]:.1f}" for name in ("chair_i", "chair_s", "distinct_chair_i")]
    rest = [f"{row['absent']:.2f}", f"{100 * row['recall']:.1f}", f"{100 * row['repeats']:.1f}", "0.0"]
    assert f"| test | {' | '.join(start + rest)} | 100.0 |" in text
    assert f"{100 * found['attention']['whole']:.0f}% of the masses" in text
    assert "multiple of 1/4 (a layer has 4 heads)" in text.replace("\n  ", " ")
    assert "3.30 million parameters" in text
    assert "seed 1" not in text


def test_what_was_evaluated_is_not_evaluated_again_unless_weights_or_images_differ(written_card, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("evaluated")

    monkeypatch.setattr(card, "evaluate", refuse)
    before = card.figures(written_card, 3)
    assert before["captions"].keys() >= {"validation", "test"}
    with pytest.raises(RuntimeError, match="evaluated"):
        card.figures(written_card, 4)
    monkeypatch.setattr(card, "weights_mark", lambda folder: "other")
    with pytest.raises(RuntimeError, match="evaluated"):
        card.figures(written_card, 3)
    assert json.loads((written_card / "figures.json").read_text()) == before


def test_figures_of_other_seeds_stand_beside(written_card, tmp_path):
    other = tmp_path / "model"
    shutil.copytree(written_card, other)
    told = json.loads((other / "figures.json").read_text())
    told["captions"]["test"]["recall"] = 0.123
    (other / "figures.json").write_text(json.dumps(told))
    mine = tmp_path / "mine"
    shutil.copytree(written_card, mine)
    text = card.write_card(mine, 3, [other]).read_text()
    assert "Trained from 2 seeds" in text
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| test, seed")]
    assert [line[0] for line in lines] == ["| test, seed 0", "| test, seed 1"]
    header = next(line.split(" | ") for line in text.splitlines() if line.startswith("| split"))
    assert lines[1][header.index("recall")] == "12.3"
    assert "–" not in text
    recalls = [each["captions"]["test"]["recall"] for each in json.loads((mine / "seeds.json").read_text())]
    assert recalls[1] == 0.123
    assert np.isfinite(recalls).all()


def test_a_caption_that_was_cut_after_a_sentence_is_unfinished(monkeypatch):
    shown = scene("test", 0)
    whole = caption_scenes(*load(), [shown]).captions.iloc[0]
    limit = whole["starts"].index(whole["caption"].index(".")) + 1  # tokens of the first sentence
    monkeypatch.setattr(card, "caption_scenes", lambda *args, **options: caption_scenes(*args, **options, max_new_tokens=limit))
    assert caption_scenes(*load(), [shown], max_new_tokens=limit).texts[shown.image_id].endswith(".")
    assert card.evaluate(*load(), [shown])["unfinished"] == 1


def test_figures_of_other_seeds_stay_where_their_models_are_not_at_hand(written_card, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(written_card, mine)
    (own,) = json.loads((mine / "seeds.json").read_text())
    other = json.loads(json.dumps(own))
    other.pop("attention")
    other["weights"] = "elsewhere"
    other["captions"]["test"] |= {"recall": 0.123, "unfinished": None}
    (mine / "seeds.json").write_text(json.dumps([own, other]))
    text = card.write_card(mine, 3).read_text()
    assert json.loads((mine / "seeds.json").read_text()) == [own, other]
    header = next(line.split(" | ") for line in text.splitlines() if line.startswith("| split"))
    row = next(line.split(" | ") for line in text.splitlines() if line.startswith("| test, seed 1"))
    assert row[header.index("recall")] == "12.3"
    assert [name for name, value in zip(header, row, strict=True) if value == "–"] == ["unfinished"]
    assert text.count("is not known") == 1
    with pytest.raises(ValueError, match=r"^n_images=2, and .*seeds\.json holds figures of other seeds on 3"):
        card.write_card(mine, 2)


@pytest.mark.parametrize("change", ["column", "attention"])
def test_figures_of_other_columns_are_evaluated_again(written_card, tmp_path, monkeypatch, change):
    monkeypatch.setattr(card, "evaluate", lambda *arguments, **options: pytest.fail("evaluated"))
    mine = tmp_path / "mine"
    shutil.copytree(written_card, mine)
    card.figures(mine, 3)
    old = json.loads((mine / "figures.json").read_text())
    if change == "column":
        old["captions"]["test"]["duplicates"] = old["captions"]["test"].pop("repeats")
    else:
        old.pop("attention")
    (mine / "figures.json").write_text(json.dumps(old))
    with pytest.raises(pytest.fail.Exception, match="evaluated"):
        card.figures(mine, 3)


def test_the_card_beside_the_embedded_model_is_written_from_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "evaluate", lambda *arguments, **options: pytest.fail("evaluated"))
    mine = tmp_path / "mine"
    shutil.copytree(data_path("embedded"), mine)
    images = json.loads((mine / "figures.json").read_text())["images"]
    before = (mine / "README.md").read_text()
    assert card.write_card(mine, images).read_text() == before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "figures.json",
            '{"images": "3", "weights": "a", "captions": {}, "questions": {}}',
            "images is '3'; expected a whole number",
        ),
        ("figures.json", "[]", r"it is \[\]; expected an object in braces"),
        ("seeds.json", '[{}, {"images": 3, "weights": "a", "captions": [], "questions": {}}]', r"captions is \[\]; expected"),
        ("seeds.json", "[{}, 7]", "is 7; expected an object"),
        ("seeds.json", "{}", r"it is \{\}; expected a list"),
        ("figures.json", '{\n"images": }', "line 2: no JSON"),
        ("training_curve.json", '[{"stage": "tower", "samples": 20, "loss": "low"}]', "loss is 'low'; expected a number"),
        ("training_curve.json", "{}", r"it is \{\}; expected a list"),
        ("training_curve.json", "[]", "length >= 1"),
    ],
)
def test_a_file_of_another_shape_beside_the_weights_is_named(written_card, tmp_path, monkeypatch, name, content, said):
    monkeypatch.setattr(card, "evaluate", lambda *arguments, **options: pytest.fail("evaluated first"))
    shutil.copytree(written_card, tmp_path / "model")
    (tmp_path / "model" / name).write_text(content)
    with pytest.raises(BadInput, match=rf"(?s){name}: 1 problem.*{said}"):
        card.write_card(tmp_path / "model", 3)


def test_a_model_that_is_not_there_is_refused_before_any_is_evaluated(written_card, tmp_path, monkeypatch):
    monkeypatch.setattr(card, "evaluate", lambda *arguments, **options: pytest.fail("evaluated first"))
    shutil.copytree(written_card, tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with pytest.raises(OSError, match=r"model folder .*typo holds no config\.json"):
        card.write_card(tmp_path / "model", 4, [tmp_path / "typo"])
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert not (tmp_path / "typo").exists()


def test_an_absurd_number_of_images_is_refused_at_once(written_card):
    with pytest.raises(ValueError, match=r"n_images=1000000000000: expected 1 to 1,000,000 scenes"):
        card.figures(written_card, 10**12)
