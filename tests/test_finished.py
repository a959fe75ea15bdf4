"""Runs that have ended are exported whole; those that have not are refused, or marked as partial."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

import prunehal as ph
from prunehal.commands.app import app
from prunehal.files.records import BadInput
from prunehal.running import Run, run
from prunehal.running.engine import Engine
from prunehal.running.finished import finished
from prunehal.testbed.world.scenes import scene


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index in range(4):
        scene("test", index).image().save(folder / f"{index + 1}.png")
    return folder


def asked(images, out, **options):
    options = {"model": "embedded", "benchmark": "chair", "max_new_tokens": 3, "batch_size": 1, "progress": False} | options
    return run(Run(images=images, out=out, **options))


def exported(folder, *options):
    done = CliRunner().invoke(app, ["lmms-eval", str(folder), str(folder / "export"), *options])
    samples = [json.loads(line) for path in (folder / "export").glob("*.jsonl") for line in path.read_text().splitlines()]
    return done, samples


@pytest.fixture
def interrupted(images, tmp_path, monkeypatch):
    """A run whose third batch failed, with half a row at its end."""
    answer = Engine.answer
    with monkeypatch.context() as patch:
        calls = iter(range(2))
        patch.setattr(Engine, "answer", lambda self, batch: answer(self, batch) if next(calls, None) is not None else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            asked(images, tmp_path)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"key": 3, "im')
    return tmp_path


def test_a_whole_run_is_exported(images, tmp_path):
    asked(images, tmp_path)
    done, samples = exported(tmp_path)
    assert (done.exit_code, "partial" in done.output) == (0, False)
    assert sorted(sample["filtered_resps"] for sample in samples) == sorted(row["text"] for row in finished(tmp_path).rows)
    assert len(samples) == 4


@pytest.mark.parametrize("n_tokens", [20, 160])  # too few for any caption, though some end in a full stop; and enough for all
@pytest.mark.parametrize("cut", [(), ("--truncate-words", "17")])
def test_captions_of_a_run_say_which_were_cut_at_the_limit(images, tmp_path, n_tokens, cut):
    truth, out = tmp_path / "truth.json", tmp_path / "out.json"
    truth.write_text(json.dumps({str(index + 1): sorted(scene("test", index).names) for index in range(4)}))
    path = asked(images, tmp_path / "run", max_new_tokens=n_tokens, batch_size=4)
    assert any(json.loads(line)["caption"].endswith(".") for line in path.read_text().splitlines())
    words = ["score", "chair", str(path), "--scorer", "fixed", "--ground-truth", str(truth), "--json", str(out), *cut]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert report["settings"]["unfinished_by"] == "finished"
    assert [item["unfinished"] for item in report["items"]] == [int(n_tokens == 20)] * 4
    assert report["metrics"]["unfinished"] == (n_tokens == 20)


def test_a_run_that_has_not_ended_is_refused_and_taken_as_partial(interrupted):
    before = {path: path.read_bytes() for path in interrupted.iterdir()}
    done, samples = exported(interrupted)
    assert (done.exit_code, samples) == (2, [])
    assert "has rows of 2 of 4 items, for the run has not ended; expected all; run the same call again, or pass --partial" in (
        done.stderr
    )
    assert {path: path.read_bytes() for path in interrupted.iterdir()} == before  # another process may be writing
    done, samples = exported(interrupted, "--partial")
    assert done.exit_code == 0
    assert done.output.strip().endswith("; partial: 2 of 4 items")
    assert len(samples) == 2


def test_rows_beyond_the_items_of_the_latest_call_are_refused_or_marked(images, tmp_path):
    asked(images, tmp_path)
    asked(images, tmp_path, limit=2)
    done, samples = exported(tmp_path)
    assert (done.exit_code, samples) == (2, [])
    assert "has 4 rows, of which the latest call asked for 2 items; expected rows and result of the same items" in done.stderr
    done, samples = exported(tmp_path, "--partial")
    assert (done.exit_code, len(samples)) == (0, 4)
    assert "partial: 4 rows, of which the latest call asked for 2 items" in done.output
    asked(images, tmp_path)
    assert exported(tmp_path)[0].exit_code == 0


def test_a_refused_call_does_not_cut_a_torn_line(interrupted, images):
    before = (interrupted / "rows.jsonl").read_bytes()
    assert before.endswith(b'{"key": 3, "im')
    for options in ({"seed": 1}, {"prompt": "What?"}):
        with pytest.raises(ValueError, match="expected the same"):
            asked(images, interrupted, **options)
        assert (interrupted / "rows.jsonl").read_bytes() == before


def test_what_a_policy_did_is_counted(images, tmp_path, capsys):
    for name, policy, said in (
        ("never", ph.TopK(k=100_000), "0 of 4 texts have a prune; the policy never acted: check its options"),
        ("t0", ph.PruneHal(t=0), "0 of 4 texts have a prune; the policy never acted: check its options"),
        ("all", ph.TopK(k=5), "4 of 4 texts have a prune\n"),
    ):
        asked(images, tmp_path / name, policy=policy)
        assert said in capsys.readouterr().err
    asked(images, tmp_path / "none")
    assert "have a prune" not in capsys.readouterr().err


def test_a_prompt_with_the_placeholder_of_the_image_is_refused(images, tmp_path):
    done = CliRunner().invoke(
        app,
        ["run", "--model", "embedded", "--benchmark", "chair", "--images", str(images), "--out", str(tmp_path / "out"),
         "--prompt", "<image>Describe"],
    )  # fmt: skip
    assert (done.exit_code, (tmp_path / "out").exists()) == (2, False)
    assert done.stderr.startswith("Error: prompt='<image>Describe': holds <image>, the image's placeholder")
    assert "leave <image> out: it is added by the template" in done.stderr
    with pytest.raises(ValueError, match="leave <image> out"):
        asked(images, tmp_path / "out", template="{image}{prompt}", prompt="<image>")
    asked(images, tmp_path / "out", template="{prompt}", prompt="<image>Describe this scene in detail.")  # the user's own place
    assert json.loads((tmp_path / "out/rows.jsonl").read_text().splitlines()[0])["tokens"] > 0


def test_a_run_that_went_on_is_whole_again(interrupted, images):
    asked(images, interrupted)
    assert (finished(interrupted).lacking, len(finished(interrupted).rows)) == ("", 4)


def test_the_result_of_fewer_items_does_not_stand_for_more(images, tmp_path, monkeypatch):
    path = asked(images, tmp_path, limit=2)
    assert finished(tmp_path).lacking == ""
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "answer", lambda self, batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            asked(images, tmp_path)
    assert not path.exists()
    with pytest.raises(ValueError, match="has rows of 2 of 4 items"):
        finished(tmp_path)
    monkeypatch.setattr("prunehal.running.loop.Engine", None)  # no text is generated
    assert asked(images, tmp_path, limit=2).read_text().count("\n") == 2
    assert finished(tmp_path).lacking == ""
    assert json.loads((tmp_path / "settings.json").read_text())["free"]["items"] == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("settings.json", '{"settings": {"benchmark": "chairs"}}', "names no benchmark: it is 'chairs'; expected one of 'chair'"),
        ("settings.json", '{"settings": {"benchmark": ["chair"]}}', "names no benchmark"),
        ("settings.json", '{"settings": {}}', "names no benchmark: it is None"),
        (
            "settings.json",
            '{"settings": {"benchmark": "chair"}, "free": {"items": "4"}}',
            "items is '4'; expected a whole number",
        ),
        ("settings.json", "{", "line 1: no JSON"),
        ("rows.jsonl", '{"key": 1, "text": 3}\n', "line 1: text is 3; expected text"),
        ("rows.jsonl", "[]\n", "line 1: b'[]'; expected a row"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(images, tmp_path, name, content, said):
    asked(images, tmp_path)
    (tmp_path / name).write_text(content)
    done, samples = exported(tmp_path)
    assert (done.exit_code, samples) == (2, [])
    assert str(tmp_path / name) in done.stderr
    assert said in done.stderr


def test_a_folder_without_a_run_is_named(tmp_path):
    done, _ = exported(tmp_path)
    assert done.exit_code == 2
    assert "settings.json cannot be read (No such file or directory)" in done.stderr


# What a run that is refused leaves.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "typo"}, "model 'typo' is no folder here and no hub name"),
        ({"model": "./typo"}, "model './typo' is no folder here"),
        ({"images": "nothing"}, "is no folder"),
        ({"questions": "nothing.txt"}, "nothing.txt cannot be read"),
        ({"attn_implementation": "no such"}, "no such"),
        ({"device": "cuda:77"}, "cuda"),
    ],
)
def test_a_refused_run_leaves_neither_folder_nor_lock(images, tmp_path, options, said):
    settings = {"model": "embedded", "benchmark": "chair", "images": images, "out": tmp_path / "runs/one"} | options
    arguments = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    done = CliRunner().invoke(app, ["run", *arguments])
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_refused_at_its_first_batch_leaves_nothing(images, tmp_path, monkeypatch):
    def refuse(self, batch):
        raise ValueError("these tokens cannot be pruned")

    monkeypatch.setattr(Engine, "answer", refuse)
    with pytest.raises(ValueError, match="cannot be pruned"):
        asked(images, tmp_path / "runs/one", policy=ph.PruneHal())
    assert list(tmp_path.iterdir()) == []


def test_what_a_result_does_not_hold_is_counted(tmp_path, capsys):
    for name in ("1.png", "2.png", "3.webp", "4.tif", "5.tif", "notes"):
        Image.new("RGB", (96, 96)).save(tmp_path / name, format="png")
    path = asked(tmp_path, tmp_path / "out", limit=1, prompt="cat dog", max_new_tokens=1)
    said = capsys.readouterr().err
    assert (
        f"{path}: the image folder holds files of other formats, which were left out: 2 .tif, 1 .webp, 1 without suffix" in said
    )
    assert f"{path}: 1 items, 1 left out" in said
    kept = json.loads((tmp_path / "out/settings.json").read_text())["free"]
    assert (kept["items"], kept["left_out"]) == (1, {".tif": 2, ".webp": 1, "without suffix": 1})


def test_empty_texts_are_counted(images, tmp_path, monkeypatch, capsys):
    answer = Engine.answer
    monkeypatch.setattr(Engine, "answer", lambda self, batch: [row | {"text": ""} for row in answer(self, batch)])
    asked(images, tmp_path)
    assert "4 of 4 texts are empty" in capsys.readouterr().err


def test_a_list_of_images_is_read_with_a_byte_order_mark(images, tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "list.txt").write_bytes("2\n4.png\n".encode(encoding))
        path = asked(images, tmp_path / encoding, questions=tmp_path / "list.txt")
        assert [json.loads(line)["image_id"] for line in path.read_text().splitlines()] == [2, 4]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2", "line 1: no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("", "it holds no image id"),
        ("[]", "it holds no image id"),
        ("[1, null]", "None is no image id"),
        ('{"image_id": 1, "image": "COCO_val2014_000000000002.jpg"}', "image_id is 1 and image 'COCO_val2014_000000000002.jpg'"),
    ],
)
def test_a_list_of_images_that_cannot_be_used_is_named(images, tmp_path, content, said):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(BadInput) as caught:
        asked(images, tmp_path / "out", questions=tmp_path / "list.json")
    assert caught.value.path == str(tmp_path / "list.json")
    assert said in caught.value.problems[0]
    assert not (tmp_path / "out").exists()
