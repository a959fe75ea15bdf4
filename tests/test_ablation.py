"""Stored rows: each setting has a name and a file of its own, made once, resumed, and refused for other weights."""

import dataclasses
import re

import pandas as pd
import pytest

import prunehal as ph
from prunehal import ablation
from prunehal.ablation import Setting, grid, ground_truth, make_mentions, make_rows, read_rows, weights_id
from prunehal.benchmarks import score
from prunehal.captioning import Captioned, caption_scenes, mention_attention
from prunehal.core import NoPruning, PruneHal, TopK
from prunehal.testbed.scenes import scene

SETTINGS = [Setting("test", NoPruning()), Setting("test", PruneHal(0.4, 1)), Setting("validation", PruneHal(0.4, 1))]
MODEL = PROCESSOR = object()  # captions are made by a stand-in


class Interrupted(Exception):
    pass


@pytest.fixture
def captioned(monkeypatch):
    """Replace the model by a stand-in that says which scene and which policy it was asked for, and keeps the calls."""
    calls = []

    def stand_in(model, processor, scenes, policy, k=0, clutter=False):
        assert (model, processor) == (MODEL, PROCESSOR)
        if len(calls) == stand_in.fail_at:
            raise Interrupted
        calls.append((scenes[0].split, policy, k))
        lines = [(s.image_id, f"A caption, of {s.index}.", 4, s.index % 3, [0]) for s in scenes]
        frame = pd.DataFrame(lines, columns=["image_id", "caption", "tokens", "prunes", "starts"])
        return Captioned(frame, pd.DataFrame(), pd.DataFrame())

    stand_in.fail_at = None
    stand_in.calls = calls
    monkeypatch.setattr(ablation, "caption_scenes", stand_in)
    monkeypatch.setattr(ablation, "weights_id", lambda: "0123456789abcdef")
    monkeypatch.setattr(ablation, "N_STORED", 6)
    return stand_in


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def stored(setting):
    return f"{setting.split}/{setting.name}.csv.gz"


def test_every_setting_of_the_grid_has_a_name_of_its_own():
    for split in ("validation", "test"):
        settings = grid(split)
        assert {setting.split for setting in settings} == {split}
        assert len({setting.name for setting in settings}) == len(settings) == len(set(settings))
        assert all(re.fullmatch(r"[a-z0-9_.\-]+", setting.name) for setting in settings)
    assert {setting.policy for setting in grid("validation")} <= {setting.policy for setting in grid("test")}
    assert {setting.policy.selection for setting in grid("test")} == {"top", "random", "lowest"}
    assert {setting.k for setting in grid("test")} == {0, 3}


def other_values(policy):
    """The policy once more for each of its options, with another value."""
    others = {
        "r": 0.9,
        "t": 7,
        "k": 5,
        "seed": 1,
        "factor": 0.5,
        "majority": 0.25,
        "decay": 0.5,
        "step": 3,
        "forced_first": False,
    }
    others |= {"selection": "lowest", "kept": "shared", "beam_state": "shared", "statistic": "sum", "first": "decode"}
    others |= {"reference": "previous", "after_prune": "restart", "rounding": "ceil"}
    # An option that is new here is a KeyError: it needs another value, and a look at the name.
    return [dataclasses.replace(policy, **{field.name: others[field.name]}) for field in dataclasses.fields(policy) if field.init]


@pytest.mark.parametrize("policy", [NoPruning(), PruneHal(0.5, 2), TopK(9)], ids=["none", "prunehal", "topk"])
def test_every_option_of_a_policy_is_part_of_the_name(policy):
    names = [Setting("test", variant).name for variant in (policy, *other_values(policy))]
    assert len(set(names)) == len(names), names
    with_tiles = [Setting("test", policy, k, clutter).name for k in (0, 1, 3) for clutter in ((False, True) if k else (False,))]
    assert len(set(with_tiles)) == 5


def test_rows_are_made_stored_and_read_again(captioned, tmp_path):
    rows = make_rows(SETTINGS, MODEL, PROCESSOR, n_images=6, folder=tmp_path)
    assert list(rows) == SETTINGS
    assert captioned.calls == [(s.split, s.policy, s.k) for s in SETTINGS]
    assert files(tmp_path) == sorted(map(stored, SETTINGS))
    again = make_rows(SETTINGS, MODEL, PROCESSOR, n_images=6, folder=tmp_path)
    assert len(captioned.calls) == 3  # read, not made
    for setting in SETTINGS:
        assert list(rows[setting].columns) == ["image_id", "caption", "tokens", "prunes"]
        assert rows[setting]["image_id"].tolist() == [scene(setting.split, i).image_id for i in range(6)]
        pd.testing.assert_frame_equal(again[setting], rows[setting])
        pd.testing.assert_frame_equal(read_rows(setting, tmp_path), rows[setting])
        fewer = make_rows([setting], n_images=2, folder=tmp_path)[setting]
        pd.testing.assert_frame_equal(fewer, rows[setting].head(2))


def test_an_empty_caption_is_read_back_as_text(captioned, tmp_path, monkeypatch):
    # Heavy pruning can make a model stop at once; a scorer wants text.
    def silent(model, processor, scenes, policy, **_):
        texts = ["", "NA", "null", "None", '"', "a, b"]
        frame = pd.DataFrame({"image_id": [s.image_id for s in scenes], "caption": texts, "tokens": 0, "prunes": 0, "starts": 0})
        return Captioned(frame, pd.DataFrame(), pd.DataFrame())

    monkeypatch.setattr(ablation, "caption_scenes", silent)
    rows = make_rows(SETTINGS[:1], MODEL, PROCESSOR, n_images=6, folder=tmp_path)[SETTINGS[0]]
    assert read_rows(SETTINGS[0], tmp_path)["caption"].tolist() == rows["caption"].tolist()


def test_a_part_of_the_images_is_not_stored(captioned, tmp_path):
    rows = make_rows(SETTINGS[:1], MODEL, PROCESSOR, n_images=5, folder=tmp_path)
    assert len(rows[SETTINGS[0]]) == 5
    assert files(tmp_path) == []


def test_an_interrupted_run_goes_on_with_the_next_setting(captioned, tmp_path):
    captioned.fail_at = 2
    with pytest.raises(Interrupted):
        make_rows(SETTINGS, MODEL, PROCESSOR, n_images=6, folder=tmp_path)
    assert files(tmp_path) == sorted(map(stored, SETTINGS[:2]))
    captioned.fail_at = None
    rows = make_rows(SETTINGS, MODEL, PROCESSOR, n_images=6, folder=tmp_path)
    assert captioned.calls == [(s.split, s.policy, s.k) for s in SETTINGS]  # none of them twice
    assert all(len(frame) == 6 for frame in rows.values())


def test_a_torn_write_leaves_no_rows(captioned, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:

        def torn(self, path, **kwargs):
            path.write_bytes(b"half a f")
            raise Interrupted

        patch.setattr(pd.DataFrame, "to_csv", torn)
        with pytest.raises(Interrupted):
            make_rows(SETTINGS[:1], MODEL, PROCESSOR, n_images=6, folder=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nopruning\.csv\.gz"):
        read_rows(SETTINGS[0], tmp_path)
    rows = make_rows(SETTINGS[:1], MODEL, PROCESSOR, n_images=6, folder=tmp_path)
    assert len(rows[SETTINGS[0]]) == 6
    assert files(tmp_path) == [stored(SETTINGS[0])]


def test_the_same_rows_are_the_same_file(captioned, tmp_path):
    for name in ("a", "b"):
        make_rows(SETTINGS[:1], MODEL, PROCESSOR, n_images=6, folder=tmp_path / name)
    assert (tmp_path / "a" / stored(SETTINGS[0])).read_bytes() == (tmp_path / "b" / stored(SETTINGS[0])).read_bytes()


def test_rows_of_other_weights_are_refused(captioned, tmp_path, monkeypatch):
    make_rows(SETTINGS[:1], MODEL, PROCESSOR, n_images=6, folder=tmp_path)
    monkeypatch.setattr(ablation, "weights_id", lambda: "fedcba9876543210")
    for ask in (read_rows, lambda setting, folder: make_rows([setting], MODEL, PROCESSOR, n_images=3, folder=folder)):
        with pytest.raises(ValueError, match=r"nopruning\.csv\.gz was made by other weights .*fedcba9876543210.*remove the file"):
            ask(SETTINGS[0], tmp_path)
    assert len(captioned.calls) == 1


@pytest.mark.parametrize("n_images", [0, -1, 7])
def test_the_number_of_images_is_checked(captioned, tmp_path, n_images):
    with pytest.raises(ValueError, match=rf"n_images={n_images}: expected a number of images in 1\.\.6"):
        make_rows(SETTINGS, MODEL, PROCESSOR, n_images=n_images, folder=tmp_path)
    assert captioned.calls == []


def test_rows_that_were_not_stored_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no stored rows.*test.prunehal_r0\.4_t1\.csv\.gz.*make them with"):
        read_rows(SETTINGS[1], tmp_path)


def test_weights_have_an_id():
    assert re.fullmatch(r"[0-9a-f]{16}", weights_id())


def test_rows_of_the_embedded_model_are_its_captions(tmp_path):
    model, processor = ph.load()
    setting = Setting("validation", PruneHal(0.4, 2), k=1)
    rows = make_rows([setting], model, processor, n_images=1, folder=tmp_path)[setting]
    done = caption_scenes(model, processor, [scene("validation", 0)], PruneHal(0.4, 2), k=1)
    pd.testing.assert_frame_equal(rows, done.captions[["image_id", "caption", "tokens", "prunes"]])


def test_mentions_are_made_stored_and_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "N_TRACED", 2)
    rows = make_mentions("test", 2, folder=tmp_path)
    assert files(tmp_path) == ["test/mentions.csv.gz"]
    scenes = [scene("test", i) for i in range(2)]
    assert ground_truth("test", 2) == {s.image_id: set(s.names) for s in scenes}
    done = caption_scenes(*ph.load(), scenes, trace=True)
    fresh = mention_attention(done, score(done.texts, ground_truth("test", 2)))
    pd.testing.assert_frame_equal(rows, fresh, atol=1e-5)
    monkeypatch.setattr(ablation, "caption_scenes", None)  # from here on they are read
    pd.testing.assert_frame_equal(make_mentions("test", 2, folder=tmp_path), rows, check_dtype=False)
    first = rows[rows["image_id"] == scenes[0].image_id]
    pd.testing.assert_frame_equal(make_mentions("test", 1, folder=tmp_path), first, check_dtype=False)
    monkeypatch.setattr(ablation, "weights_id", lambda: "fedcba9876543210")
    with pytest.raises(ValueError, match="other weights"):
        make_mentions("test", 2, folder=tmp_path)
