"""What is asked, where the images lie, what is written: without a model."""

import gzip
import json
import os
import re
import subprocess
import sys

import pytest
from PIL import Image

from prunehal.benchmarks.chair.images import Item, image_key, images_of
from prunehal.files.locking import locked
from prunehal.files.paths import data_path
from prunehal.files.records import BadInput, read_records
from prunehal.files.rows import RowFile, keep_settings, refuse_other_settings
from prunehal.models.chat import CAPTION_PROMPT
from prunehal.running.tasks import BENCHMARKS, items_of, write_result


def pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("COCO_val2014_000000310196.jpg", 310196),
        ("COCO_val2014_000000310196.JPG", 310196),
        ("000000000009.png", 9),
        ("cat.jpg", "cat"),
        ("2nd.jpeg", "2nd"),
        ("v1.5.jpg", "v1.5"),
        ("cat_1.png", "cat_1"),
        ("42", 42),
        ("photo.tiff", "photo.tiff"),
    ],
)
def test_the_key_of_an_image_is_the_number_at_the_end_of_its_name(name, key):
    assert image_key(name) == key


def test_chair_asks_about_all_images_of_a_folder_in_the_order_of_their_numbers(tmp_path):
    pictures(tmp_path, "COCO_val2014_000000000100.jpg", "val2014/COCO_val2014_000000000009.jpg", "cat.png", "ant.jpeg")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    items = items_of("chair", tmp_path)
    assert [item.key for item in items] == [9, 100, "ant", "cat"]
    assert items[0] == Item(9, "COCO_val2014_000000000009.jpg", CAPTION_PROMPT)
    assert {item.text for item in items_of("chair", tmp_path, prompt="What is this?")} == {"What is this?"}
    _, found = images_of(items, tmp_path)
    assert found["COCO_val2014_000000000009.jpg"] == (tmp_path / "val2014/COCO_val2014_000000000009.jpg", 12)


def test_two_images_of_one_number_are_named(tmp_path):
    pictures(tmp_path, "COCO_val2014_000000000007.jpg", "7.png")
    with pytest.raises(BadInput, match=r"7\.png and COCO_val2014_000000000007\.jpg are both image 7|COCO.* and 7\.png are both"):
        items_of("chair", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[9, 100]",
        '["COCO_val2014_000000000009.jpg", "100"]',
        "9\n100\n",
        "COCO_val2014_000000000009.jpg\n\n \n100\n\n9\n",
        "\nimage_id\n9\n\n100\n",
        "File_Name\r\nCOCO_val2014_000000000009.jpg\r\n100\r\n",
        '{"image_id": 9, "caption": "a"}\n{"image_id": 100, "caption": "b"}\n',
        '[{"image_id": 9}, {"image": 100}]',
        '{"image_id": 9}\n{"image_id": 100}',
    ],
)
def test_chair_takes_a_list_of_images(tmp_path, text):
    pictures(tmp_path, "COCO_val2014_000000000100.jpg", "COCO_val2014_000000000009.jpg", "8.jpg")
    (tmp_path / "list.txt").write_text(text)
    assert [item.image for item in items_of("chair", tmp_path, tmp_path / "list.txt")] == [
        "COCO_val2014_000000000009.jpg",
        "COCO_val2014_000000000100.jpg",
    ]


def test_a_listed_image_that_is_missing_is_named_as_coco_names_it(tmp_path):
    pictures(tmp_path, "9.jpg")
    (tmp_path / "list.json").write_text("[9, 8]")
    items = items_of("chair", tmp_path, tmp_path / "list.json")
    with pytest.raises(BadInput, match=r"COCO_val2014_000000000008\.jpg is missing"):
        images_of(items, tmp_path)
    (tmp_path / "list.json").write_text('[9, null, true, ""]')
    with pytest.raises(
        BadInput, match=r"(?s)list\.json: 3 problems.*entry 2: None is no image id.*entry 3: True is no.*entry 4: '' is"
    ):
        items_of("chair", tmp_path, tmp_path / "list.json")


def test_a_listed_image_without_a_name_is_named_by_its_line(tmp_path):
    pictures(tmp_path, "9.jpg")
    (tmp_path / "list.jsonl").write_text('{"image_id": 9}\n\n{"id": 8}\n{"image_id": " "}\n')
    with pytest.raises(BadInput, match=r"(?s)list\.jsonl: 2 problems.*line 3: None is no image id.*line 4: ' ' is no image id"):
        items_of("chair", tmp_path, tmp_path / "list.jsonl")
    (tmp_path / "list.txt").write_text("\nimage_id\n\n")
    with pytest.raises(BadInput, match=r"list\.txt: 1 problem\n  it holds no image id"):
        items_of("chair", tmp_path, tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("9\nimage_id\n")  # a header line comes first
    assert [item.key for item in items_of("chair", tmp_path, tmp_path / "list.txt")] == [9, "image_id"]


def test_folders_that_hold_no_image(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere': is no folder; expected one with \.jpg or \.png"):
        items_of("chair", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no image; expected"):
        items_of("chair", tmp_path)
    with pytest.raises(ValueError, match=r"none of 96 images is there; expected such as \['7206072054_c53d53b97d_o\.jpg'\]"):
        images_of(items_of("mmhal", tmp_path), tmp_path, skip_missing=True)


def test_missing_and_broken_images_are_named_together(tmp_path):
    pictures(tmp_path, "images/1.jpg", "3.jpg")
    (tmp_path / "2.jpg").write_bytes(b"no picture")
    items = [Item(number, f"{number}.jpg", "") for number in range(1, 40)] + [Item("again", "9.jpg", "")]
    with pytest.raises(
        BadInput, match=r"(?s)37 problems.*2\.jpg' cannot be read.*  4\.jpg is missing.*and 17 more.*--skip-missing"
    ):
        images_of(items, tmp_path)
    with pytest.raises(BadInput, match=r"1 problem\n"):
        images_of(items, tmp_path, skip_missing=True)
    (tmp_path / "2.jpg").unlink()
    kept, found = images_of(items, tmp_path, skip_missing=True)
    assert [item.key for item in kept] == [1, 3]
    assert found == {"1.jpg": (tmp_path / "images/1.jpg", 12), "3.jpg": (tmp_path / "3.jpg", 12)}


def test_pope_asks_a_shipped_file_or_one_of_the_users(tmp_path):
    items = items_of("pope", tmp_path, "coco/adversarial")
    assert len(items) == 3000
    assert items[1] == Item(2, "COCO_val2014_000000310196.jpg", "Is there a backpack in the image?")
    mine = {"question_id": 7, "image": "7.jpg", "text": "Is there a dog?"}
    path = tmp_path / "mine.json.gz"
    path.write_bytes(gzip.compress(json.dumps(mine).encode()))
    assert items_of("pope", tmp_path, path) == [Item(7, "7.jpg", "Is there a dog?")]
    path.write_text(json.dumps(mine) + "\n" + json.dumps(mine | {"question_id": None}) + "\n" + json.dumps({"question_id": 3}))
    with pytest.raises(BadInput, match=r"(?s)2 problems.*line 2: question_id is None; exp.*line 3: no image, text; exp"):
        items_of("pope", tmp_path, path)
    path.write_text(json.dumps(mine) + "\n" + json.dumps(mine))
    with pytest.raises(BadInput, match="line 2: question_id 7 again, first on line 1"):
        items_of("pope", tmp_path, path)
    path.write_text(json.dumps(mine) + "\n" + json.dumps(mine | {"question_id": "7"}))  # one question to the scorer
    with pytest.raises(BadInput, match="line 2: question_id '7' again, first on line 1"):
        items_of("pope", tmp_path, path)
    path.write_text(json.dumps({"question_id": "q7", "image_source": "7", "image": None, "question": "Is there a dog?"}))
    assert items_of("pope", tmp_path, path) == [Item("q7", "7", "Is there a dog?")]
    for benchmark, what in (("pope", "question"), ("amber", "query")):
        for text in ("", "[]"):
            path.write_text(text)
            with pytest.raises(BadInput, match=rf"mine\.json\.gz: 1 problem\n  it holds no {what}\n"):
                items_of(benchmark, tmp_path, path)
    path.write_text(json.dumps(mine | {"question": "Is there a cat?"}))
    with pytest.raises(BadInput, match=r"line 1: text is 'Is there a dog\?' and question is 'Is there a cat\?'; exp"):
        items_of("pope", tmp_path, path)


@pytest.mark.parametrize("questions", [None, "coco/hard", "nowhere.json"])
def test_pope_without_questions(tmp_path, questions):
    with pytest.raises(ValueError, match=r"questions=.*expected a POPE question file that exists, or one of coco/random, .*gqa/"):
        items_of("pope", tmp_path, questions)


def test_amber_asks_both_kinds_or_one(tmp_path):
    assert len(items_of("amber", tmp_path)) == 1004 + 14216
    first, *_ = items_of("amber", tmp_path, "discriminative")
    assert first == Item(1005, "AMBER_1.jpg", "Is the sky sunny in this image?")
    assert items_of("amber", tmp_path, "generative")[0] == Item(1, "AMBER_1.jpg", "Describe this image.")
    (tmp_path / "some.json").write_text('[{"id": 3, "image": "AMBER_3.jpg", "query": "Describe this image."}]')
    assert [item.key for item in items_of("amber", tmp_path, tmp_path / "some.json")] == [3]
    (tmp_path / "some.json").write_text('[{"id": 99999, "image": "AMBER_3.jpg", "query": "Describe this image."}]')
    with pytest.raises(BadInput, match=r"line 1: unknown id 99999; expected a number from 1 to 15220"):
        items_of("amber", tmp_path, tmp_path / "some.json")
    first = {"id": "1005", "image": "AMBER_1.jpg", "query": "Is the sky sunny in this image? Answer yes or no."}
    prompted = {"id": 2, "image": "AMBER_2.jpg", "query": "What is there?"}
    (tmp_path / "some.json").write_text(json.dumps([first, prompted]))
    assert items_of("amber", tmp_path, tmp_path / "some.json") == [
        Item(1005, "AMBER_1.jpg", first["query"]),
        Item(2, "AMBER_2.jpg", "What is there?"),
    ]
    for change, message in (
        ({"query": "Is the sky gloomy in this image?"}, r"line 1: query is 'Is the sky gloomy.*; expected 'Is the sky sunny"),
        ({"image": "AMBER_2.jpg"}, r"line 1: image is 'AMBER_2\.jpg'; expected 'AMBER_1\.jpg' \(id 1005\)"),
        ({"id": 1}, r"line 1: query is 'Is the sky sunny.* expected 'Describe this image\.' \(id 1\)"),
        ({"query": 5}, "line 1: query is 5; expected text"),
    ):
        (tmp_path / "some.json").write_text(json.dumps([first | {"query": first["query"].partition(" Answer")[0]} | change]))
        with pytest.raises(BadInput, match=message):
            items_of("amber", tmp_path, tmp_path / "some.json")
    with pytest.raises(ValueError, match="expected a query file that exists, generative, discriminative or none"):
        items_of("amber", tmp_path, "relation")


def test_mmhal_asks_its_own_questions(tmp_path):
    items = items_of("mmhal", tmp_path)
    assert [item.key for item in items] == list(range(96))
    assert items[0] == Item(0, "7206072054_c53d53b97d_o.jpg", "What color is the fire hydrant cap in the picture?")
    with pytest.raises(ValueError, match="has its own 96 questions"):
        items_of("mmhal", tmp_path, "mine.json")


def test_a_benchmark_of_another_name(tmp_path):
    with pytest.raises(ValueError, match="benchmark='chairs': expected one of 'chair', 'pope', 'amber', 'mmhal'"):
        items_of("chairs", tmp_path)


def test_results_stand_in_the_benchmarks_order_and_layout(tmp_path):
    texts = {2: "Yes.", 1: 'No, "none"\n ü'}
    answers = {key: {"text": text, "finished": key == 2, "tokens": 3} for key, text in texts.items()}
    items = [Item(1, "1.jpg", "Is there a dog?"), Item(2, "2.jpg", "Is there a cat?")]
    rows = {
        name: [record.value for record in read_records(write_result(name, tmp_path / name, items, answers))[0]]
        for name in BENCHMARKS
    }
    assert rows["chair"] == [
        {"image_id": 1, "caption": texts[1], "finished": False},
        {"image_id": 2, "caption": "Yes.", "finished": True},
    ]
    assert rows["pope"] == [
        {"question": "Is there a dog?", "answer": texts[1], "question_id": 1, "image": "1.jpg"},
        {"question": "Is there a cat?", "answer": "Yes.", "question_id": 2, "image": "2.jpg"},
    ]
    assert rows["amber"] == [{"id": 1, "response": texts[1]}, {"id": 2, "response": "Yes."}]
    template = json.loads(gzip.decompress(data_path("mmhal", "mmhal-bench_answer_template.json.gz").read_bytes()))
    assert rows["mmhal"] == [template[1] | {"model_answer": texts[1]}, template[2] | {"model_answer": "Yes."}]
    assert json.loads((tmp_path / "amber/responses.json").read_text()) == rows["amber"]


# Rows.


def test_rows_are_there_when_append_returns(tmp_path):
    file = RowFile(tmp_path / "rows.jsonl")
    file.append([{"key": 1, "text": "ü\u2028"}, {"key": "1", "text": ""}])
    assert RowFile(file.path).rows == file.rows == {1: {"key": 1, "text": "ü\u2028"}, "1": {"key": "1", "text": ""}}
    with pytest.raises(ValueError, match=r"rows \['1'\] are there already"):
        file.append([{"key": 2}, {"key": "1"}])
    assert list(RowFile(file.path).rows) == [1, "1"]


@pytest.mark.parametrize("torn", [b'{"key": 2, "text": "b', b"{", b'{"key": 2, "text": "b"}', "ü".encode()[:1]])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"key": 1}\n' + torn)
    file = RowFile(path)
    assert path.read_bytes() == b'{"key": 1}\n' + torn  # reading changes nothing
    assert file.repair() == f"{path}: a torn last line ({len(torn)} bytes) was cut off"
    assert path.read_bytes() == b'{"key": 1}\n'
    file.append([{"key": 2}])
    assert path.read_bytes() == b'{"key": 1}\n{"key": 2}\n'
    assert RowFile(path).repair() == ""
    path.write_bytes(b'{"key": 1}\n' + torn)
    RowFile(path).append([{"key": 2}])  # which repairs first
    assert path.read_bytes() == b'{"key": 1}\n{"key": 2}\n'


def test_rows_in_the_middle_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    text = b'{"key": 1}\n{"key": 2, "te{"key": 3}\n{"key": 1}\n[]\n{"text": "a"}\n'
    path.write_bytes(text)
    with pytest.raises(BadInput, match=r"(?s)4 problems.*line 2: .*line 3: key 1 again; .*line 4: .*line 5: ") as caught:
        RowFile(path)
    assert "Remove these lines" in str(caught.value)
    assert path.read_bytes() == text


def test_a_full_disk_leaves_no_half_row(tmp_path, monkeypatch):
    file = RowFile(tmp_path / "rows.jsonl")
    file.append([{"key": 1}])
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    said = r"rows\.jsonl: 2 rows could not be added \(only 5 of 22 bytes .*room for 22 bytes; free some disk space"
    with pytest.raises(OSError, match=said):
        file.append([{"key": 2}, {"key": 3}])
    assert file.path.read_bytes() == b'{"key": 1}\n'
    assert list(file.rows) == [1]


def test_settings_are_compared_name_by_name(tmp_path):
    path = tmp_path / "settings.json"
    first = {"seed": 0, "policy": {"name": "PruneHal", "r": 0.4}, "revision": None, "model": "m"}
    refuse_other_settings(path, first)
    keep_settings(path, first, {"batch_size": 8}, has_rows=False)
    keep_settings(path, first, {"batch_size": 1}, has_rows=True)
    assert json.loads(path.read_text()) == {"settings": first, "free": {"batch_size": 1}}
    other = first | {"policy": {"name": "TopK", "k": 3}, "seed": 1}
    with pytest.raises(ValueError, match="holds rows of other settings") as caught:
        keep_settings(path, other, {}, has_rows=True)
    differing = re.findall(r"(\S+) was (.*?), is now (.*?);", str(caught.value))
    assert sorted(differing) == [
        ("policy.name", "'PruneHal'", "'TopK'"),
        ("seed", "0", "1"),
    ]
    with pytest.raises(
        ValueError, match=r"other settings: policy\.r was 0\.4, is now 0\.5; policy\.t was not there, is now 3; exp"
    ):
        refuse_other_settings(path, first | {"policy": {"name": "PruneHal", "r": 0.5, "t": 3}})
    assert json.loads(path.read_text())["free"] == {"batch_size": 1}
    refuse_other_settings(path, {"seed": 0})  # some of them, before the others are known
    with pytest.raises(ValueError, match="weights was not there, is now 'x'"):
        refuse_other_settings(path, first | {"weights": "x"})
    keep_settings(path, other, {}, has_rows=False)  # nothing was made with the old ones
    assert json.loads(path.read_text())["settings"] == other


def test_rows_of_unknown_settings_are_refused(tmp_path):
    path = tmp_path / "settings.json"
    with pytest.raises(ValueError, match=r"holds rows, but no settings\.json"):
        keep_settings(path, {}, {}, has_rows=True)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"(?s)settings\.json: 1 problem.*line 1: no JSON.*choose another folder"):
        keep_settings(path, {}, {}, has_rows=True)


HOLD = """
import sys
from pathlib import Path
from prunehal.files.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=rf"another run writes here \(process {holder.pid} on .*, since 20"):  # noqa: SIM117
            with locked(tmp_path / "out"):
                pass
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path / "out"):  # a killed process holds nothing
        with pytest.raises(BlockingIOError, match=rf"process {os.getpid()} on "), locked(tmp_path / "out"):
            pass
        (tmp_path / "out/run.holder.json").unlink()
        with pytest.raises(BlockingIOError, match="its process is unknown"), locked(tmp_path / "out"):
            pass
