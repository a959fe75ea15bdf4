"""The store: tables worked out by hand from rows, rows of other code, weights and pictures refused, broken files named."""

import gzip
import importlib
import json
import multiprocessing
import os
from dataclasses import replace

import pandas as pd
import pytest
from PIL import Image

from prunehal.core import PruneHal
from prunehal.experiments import Experiment, Store, versions
from prunehal.experiments import images as pictures
from prunehal.experiments.images import image_keys, truth
from prunehal.files.records import BadInput

ONE = Experiment(split="test", n_images=2, policy=PruneHal())
FIRST, SECOND = image_keys(ONE)
ROWS = [
    {
        "key": SECOND,
        "caption": "A dog and a zebra.",
        "tokens": 5,
        "finished": False,
        "visual": 50.0,
        "events": [],
        "voted": [],
        "layers": [0, 3],
        "mass": [0.5, 0.25],
        "mentions": [["dog", True, 2, [0.25, 0.5], 1.5], ["zebra", True, 5, [0.75, 0.5], 0.5]],
    },
    {
        "key": FIRST,
        "caption": "A bed.",
        "tokens": 3,
        "finished": True,
        "visual": 10.0,
        "events": [[2, "forced", 57], [3, "vote", 22]],
        "voted": [3, 4],
        "layers": [0, 3],
        "mass": [0.2, 0.1],
        "mentions": [["bed", False, 2, [0.1, 0.3], 2.0]],
    },
]


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "rows")
    with store.writing():
        for row in ROWS:
            store.append(ONE, [row])
        yield store


def in_work(store, experiment=ONE):
    return store.path(experiment).with_suffix("")


@pytest.mark.parametrize("packed", [False, True])
def test_tables_hold_what_the_rows_say_in_the_order_of_the_images(store, packed):
    if packed:
        store.pack(ONE)
    assert store.rows(ONE) == {row["key"]: row for row in ROWS}
    captions = pd.DataFrame(
        [(FIRST, "A bed.", 3, True, 10.0, 2), (SECOND, "A dog and a zebra.", 5, False, 50.0, 0)],
        columns=["image_id", "caption", "tokens", "finished", "visual", "prunes"],
    )
    pd.testing.assert_frame_equal(store.captions(ONE), captions)
    assert store.events(ONE).to_numpy().tolist() == [[FIRST, 1, 2, "forced", 57], [FIRST, 2, 3, "vote", 22]]
    assert store.votes(ONE).to_numpy().tolist() == [[FIRST, 3, 3], [FIRST, 4, 3]]
    mentions = store.mentions(ONE)
    names = ["image_id", "index", "node", "hallucinated", "step", "steps", "layer", "mass", "entropy"]
    assert mentions[names].to_numpy().tolist() == [
        [FIRST, 0, "bed", False, 2, 3, 0, 0.1, 2.0],
        [FIRST, 0, "bed", False, 2, 3, 3, 0.3, 2.0],
        [SECOND, 0, "dog", True, 2, 5, 0, 0.25, 1.5],
        [SECOND, 0, "dog", True, 2, 5, 3, 0.5, 1.5],
        [SECOND, 1, "zebra", True, 5, 5, 0, 0.75, 0.5],
        [SECOND, 1, "zebra", True, 5, 5, 3, 0.5, 0.5],
    ]
    assert mentions["step_ratio"].tolist() == pytest.approx([0.1 / 0.2, 0.3 / 0.1, 0.5, 2, 1.5, 2])
    assert mentions["mention_ratio"].tolist() == pytest.approx([1, 1, 0.25 / 0.5, 1, 0.75 / 0.5, 1])
    shown = truth(ONE)
    wrong = ("bed" not in shown[FIRST]) + ("dog" not in shown[SECOND]) + ("zebra" not in shown[SECOND])
    assert store.score(ONE).metrics["chair_i"] == pytest.approx(wrong / 3)


def test_a_packed_file_is_sorted_and_equal_wherever_it_is_made(store, tmp_path):
    store.pack(ONE)
    other = Store(tmp_path / "other")
    with other.writing():
        other.append(ONE, ROWS[::-1])
        other.pack(ONE)
    raw = store.path(ONE).read_bytes()
    assert raw == other.path(ONE).read_bytes()
    header, *lines = map(json.loads, gzip.decompress(raw).decode().splitlines())
    assert header["experiment"] == ONE.description
    assert header["made_by"] == versions.made_by(ONE)
    assert [line["key"] for line in lines] == [FIRST, SECOND]
    store.pack(ONE)  # with nothing in work it stays
    assert store.path(ONE).read_bytes() == raw


def test_images_without_a_row_are_named(store):
    more = replace(ONE, n_images=4)
    assert store.missing(ONE) == []
    assert store.missing(more) == image_keys(more)[2:]
    for read in (store.captions, store.events, store.votes, store.mentions, store.score):
        with pytest.raises(
            FileNotFoundError, match=r"2 of 4 images of test_prunehal_r0\.4_t3 have no row.*python -m prunehal sweep"
        ):
            read(more)
    fewer = replace(ONE, n_images=1)
    assert store.captions(fewer)["caption"].tolist() == ["A bed."]


@pytest.mark.parametrize("packed", [False, True])
def test_a_second_row_of_an_image_is_refused(store, packed):
    if packed:
        store.pack(ONE)
    with pytest.raises(ValueError, match=rf"has rows of.*{FIRST}.*already; expected new ones"):
        store.append(ONE, ROWS[1:])
    assert len(store.rows(ONE)) == 2


def test_ratios_over_a_mean_that_was_rounded_to_zero_are_finite(tmp_path):
    store = Store(tmp_path)
    small = [["bed", False, 2, [0.0, 0.0], 2.0], ["dog", True, 3, [0.0, 0.0003], 2.0]]
    with store.writing():
        store.append(replace(ONE, n_images=1), [ROWS[1] | {"mass": [0.0, 0.0], "mentions": small}])
    mentions = store.mentions(replace(ONE, n_images=1))
    assert mentions["mass"].tolist() == [0, 0, 0, 0.0003]  # as stored
    assert mentions["step_ratio"].tolist() == pytest.approx([1, 1, 1, 0.0003 / 0.000025])
    assert mentions["mention_ratio"].tolist() == pytest.approx([1, 0, 1, 2])


def test_a_file_is_read_once_however_often_rows_are_appended(tmp_path, monkeypatch):
    store, module, read = Store(tmp_path), importlib.import_module("prunehal.experiments.store"), []
    plain = module.read_stored
    monkeypatch.setattr(module, "read_stored", lambda path: read.append(path) or plain(path))
    many = replace(ONE, n_images=30)
    with store.writing():
        for key in image_keys(many):
            store.append(many, [ROWS[0] | {"key": key}])
        assert len(read) < 6
        with pytest.raises(ValueError, match=r"has rows of.*already; expected new ones"):
            store.append(many, [ROWS[0] | {"key": key}])
        store.pack(many)
        with pytest.raises(ValueError, match=r"has rows of.*already; expected new ones"):
            store.append(many, [ROWS[0] | {"key": key}])
        store.append(replace(many, n_images=31), [ROWS[0] | {"key": image_keys(replace(many, n_images=31))[30]}])
    assert len(store.rows(many)) == 31


def test_the_packed_file_is_on_the_disk_before_the_rows_are_removed(store, monkeypatch):
    done = []
    fsync, unlink, rename = os.fsync, type(store.folder).unlink, os.replace

    def synced(number):
        done.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *args: done.append("rename") or rename(*args))
    monkeypatch.setattr(type(store.folder), "unlink", lambda path, **options: done.append("remove") or unlink(path, **options))
    store.pack(ONE)
    assert done == [f"sync {store.path(ONE).name}.part", "rename", "sync rows", "remove"]


# Rows that something else made.


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CODE", 99, "holds rows of other code: it was 1, is now 99"),
        ("weights_mark", lambda name: "0123", "holds rows of other weights: it was [0-9a-f]{16}, is now 0123"),
        ("_pictures", lambda *args: "4567", "holds rows of other pictures: it was [0-9a-f]{16}, is now 4567"),
    ],
)
def test_rows_of_something_else_are_refused_by_name(store, monkeypatch, packed, name, value, said):
    if packed:
        store.pack(ONE)
    monkeypatch.setattr(versions, name, value)
    path = store.path(ONE) if packed else in_work(store)
    for use in (store.rows, store.missing, store.captions, lambda each: store.append(each, [])):
        with pytest.raises(ValueError, match=said) as error:
            use(ONE)
        assert str(error.value).startswith(f"{path}: ")  # the file that is to be removed
    assert path.exists()


def test_rows_in_work_are_refused_beside_packed_ones_of_this_code(store, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(versions, "CODE", 99)
        old = replace(ONE, n_images=3)
        other = Store(store.folder.parent / "other")
        with other.writing():
            other.append(old, [ROWS[0] | {"key": image_keys(old)[2]}])
    store.pack(ONE)
    in_work(store).write_bytes(in_work(other).read_bytes())
    with pytest.raises(ValueError, match=r"\.jsonl: holds rows of other code: it was 99, is now 1"):
        store.rows(ONE)


def test_other_versions_of_libraries_are_recorded_only(store, monkeypatch):
    monkeypatch.setattr(versions.torch, "__version__", "99.0")
    assert len(store.rows(ONE)) == 2


@pytest.fixture
def folder(tmp_path):
    """Two images with ids that COCO knows."""
    for number, shade in ((42, 10), (73, 200)):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / f"COCO_val2014_{number:012}.png")
    yield tmp_path
    versions._pictures.cache_clear()


def test_a_changed_picture_and_changed_weights_are_noticed(folder, tmp_path, monkeypatch):
    weights = tmp_path / "model"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"a" * 100)
    one = Experiment(images=folder, split="mine", model=weights, n_images=2)
    store = Store(tmp_path / "rows")
    with store.writing():
        store.append(one, [ROWS[0] | {"key": 42}])
    assert store.missing(one) == [73]
    (weights / "model.safetensors").write_bytes(b"a" * 99 + b"b")
    with pytest.raises(ValueError, match="rows of other weights"):
        store.rows(one)
    (weights / "model.safetensors").write_bytes(b"a" * 100)
    Image.new("RGB", (8, 8), (11, 0, 0)).save(folder / "COCO_val2014_000000000042.png")
    versions._pictures.cache_clear()  # as in a new process
    with pytest.raises(ValueError, match="rows of other pictures"):
        store.rows(one)


@pytest.mark.parametrize("picture", ["COCO_val2014_000000000042.png", "COCO_val2014_000000000073.png"])
def test_every_picture_of_a_folder_is_marked(folder, picture):
    one = Experiment(images=folder, split="mine", n_images=1)
    before = pictures.pictures_version(one)
    assert pictures.pictures_version(replace(one, n_images=2)) == before  # more images may be added to the rows of few
    Image.new("RGB", (8, 8), (12, 0, 0)).save(folder / picture)
    assert pictures.pictures_version(one) != before


def test_both_ends_of_a_large_picture_are_marked(folder):
    one, path = Experiment(images=folder, split="mine", n_images=1), folder / "COCO_val2014_000000000073.png"
    Image.new("RGB", (300, 300)).save(path, format="BMP")
    plain, marks = path.read_bytes(), set()
    for change in (None, 100, 100_000, len(plain) - 1):
        path.write_bytes(plain if change is None else plain[:change] + b"\x01" + plain[change + 1 :])
        marks.add(pictures.pictures_version(one))
    assert len(marks) == 3  # at byte 100,000, between the ends, nothing is read


def test_the_truth_of_every_picture_of_a_folder_is_marked(folder, monkeypatch):
    one = Experiment(images=folder, split="mine", n_images=1)
    before, known = pictures.pictures_version(one), pictures.ground_truth_coco()
    monkeypatch.setattr(pictures, "ground_truth_coco", lambda name: {42: known[42], 73: {"zebra", "giraffe"}})
    assert pictures.pictures_version(one) != before


def test_captions_of_a_folder_are_scored_by_the_truth_of_the_scorer(folder, tmp_path, monkeypatch):
    known = {"pattern": {42: {"dog"}, 73: {"zebra"}}, "wordnet": {42: {"cat"}, 73: {"bus"}}}
    monkeypatch.setattr(pictures, "ground_truth_coco", known.__getitem__)
    one = Experiment(images=folder, split="mine", n_images=2)
    assert (truth(one), truth(one, coco="wordnet")) == (known["pattern"], known["wordnet"])
    store = Store(tmp_path / "rows")
    with store.writing():
        store.append(one, [ROWS[0] | {"key": key, "caption": text} for key, text in ((42, "A dog."), (73, "A cat."))])
    for scorer, wrong in (("fixed", [False, True]), ("pattern", [False, True]), ("wordnet", [True, True])):
        assert store.score(one, scorer).items["hallucinated"].tolist() == wrong


def test_the_mark_is_of_the_pictures_that_questions_name(folder, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"image_id": 42}\n')
    one = Experiment(images=folder, split="mine", n_images=1, questions=questions)
    before = pictures.pictures_version(one)
    assert before != pictures.pictures_version(replace(one, questions=None))
    Image.new("RGB", (8, 8), (12, 0, 0)).save(folder / "COCO_val2014_000000000073.png")
    assert pictures.pictures_version(one) == before


def test_a_folder_with_too_few_images_or_without_truth_is_refused(folder):
    with pytest.raises(ValueError, match=r"n_images=3: .* has 2 images; expected as many or more"):
        image_keys(Experiment(images=folder, split="mine", n_images=3))
    Image.new("RGB", (8, 8)).save(folder / "unknown.png")
    pictures._files.cache_clear()
    with pytest.raises(ValueError, match=r"COCO's truth lacks 1 of the images.*unknown"):
        truth(Experiment(images=folder, split="mine", n_images=3))


# Broken files, and who writes.


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda raw: raw[:-10], "it cannot be unpacked"),
        (lambda raw: b"rows", "it cannot be unpacked"),
        (lambda raw: gzip.compress(gzip.decompress(raw) + b"{\n"), "line 4: b'{'; expected a row"),
        (lambda raw: gzip.compress(gzip.decompress(raw) * 2), "line 4: key '' again"),
    ],
)
def test_a_broken_packed_file_is_named(store, broken, said):
    store.pack(ONE)
    path = store.path(ONE)
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(BadInput) as error:
        store.rows(ONE)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "Restore the file, or remove it and sweep again." in str(error.value)


@pytest.mark.parametrize(
    ("middle", "said"),
    [
        (b"{torn\n", "b'{torn'; expected a row, a JSON object with a key"),
        (b"3\n", "b'3'; expected a row, a JSON object with a key"),
        (b'{"caption": "no key"}\n', "no key; expected it, found ['caption']"),
    ],
)
def test_a_broken_line_in_the_middle_is_named(store, middle, said):
    path = in_work(store)
    header, *rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + middle + b"".join(rows))
    with pytest.raises(BadInput) as caught:
        store.rows(ONE)
    assert (caught.value.path, caught.value.problems) == (str(path), [f"line 2: {said}"])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tokens", "3", "tokens is '3'; expected a whole number"),
        ("finished", 1, "finished is 1; expected true or false"),
        ("caption", None, "caption is None; expected text"),
        ("key", 1.5, "key is 1.5; expected a whole number or text"),
        ("mass", 0.5, "mass is 0.5; expected a list"),
        ("events", [[2, None, 57]], "events[0][1] is None; expected text"),
        ("mentions", [["dog", True, 3, ["a"], 0.5]], "mentions[0][3][0] is 'a'; expected a number"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_field_of_another_type_is_named_with_file_and_line(store, name, value, said, packed):
    path = in_work(store)
    header, first, *rows = path.read_bytes().splitlines(keepends=True)
    changed = json.dumps(json.loads(first) | {name: value}).encode() + b"\n"
    path.write_bytes(b"".join([header, changed, *rows]))
    if packed:
        store.path(ONE).write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        path = store.path(ONE)
    with pytest.raises(BadInput) as caught:
        store.captions(ONE)
    assert (caught.value.path, caught.value.problems) == (str(path), [f"line 2: {said}"])


def test_a_header_whose_makers_are_no_table_is_named(store):
    path = in_work(store)
    header, *rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(json.dumps(json.loads(header) | {"made_by": [1]}).encode() + b"\n" + b"".join(rows))
    with pytest.raises(BadInput, match=r"line 1: made_by is \[1\]; expected an object in braces or null"):
        store.rows(ONE)


def test_rows_without_a_header_are_refused(store):
    path = in_work(store)
    path.write_bytes(path.read_bytes().partition(b"\n")[2])
    with pytest.raises(ValueError, match=r"\.jsonl: does not say what made its rows; expected a header; remove the file"):
        store.rows(ONE)


def write_elsewhere(folder, answers):
    try:
        with Store(folder).writing():
            answers.put("wrote")
    except BlockingIOError as error:
        answers.put(str(error))


def test_one_process_writes(store):
    """The fixture holds the folder."""
    with (
        pytest.raises(BlockingIOError, match=rf"another run writes here \(process {os.getpid()} on .*, since 2"),
        store.writing(),
    ):
        pass
    forked = multiprocessing.get_context("fork")
    answers = forked.SimpleQueue()
    process = forked.Process(target=write_elsewhere, args=(store.folder, answers))
    process.start()
    process.join(60)
    assert f"process {os.getpid()} on " in answers.get()


def test_a_folder_is_free_when_its_writer_failed(tmp_path):
    with pytest.raises(KeyError), Store(tmp_path).writing():
        raise KeyError
    with Store(tmp_path).writing():
        assert (tmp_path / "run.holder.json").exists()
