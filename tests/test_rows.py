"""Folders of rows: what cannot be read is one error that names file and line, and who writes nothing leaves nothing."""

import contextlib
import errno
import json
import os

import pytest

from prunehal.files.locking import locked
from prunehal.files.records import BadInput
from prunehal.files.rows import RowFile, refuse_other_settings
from prunehal.running.engine import Row


def test_a_disk_that_refuses_rows_is_named_with_the_file(tmp_path):
    file = RowFile(tmp_path / "rows.jsonl")
    file.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"rows\.jsonl: 1 rows could not be added \(No space left on device\); expected room"):
        file.append([{"key": 1}])
    assert file.rows == {}


def test_a_disk_that_loses_rows_leaves_none_of_them(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    file = RowFile(tmp_path / "rows.jsonl")
    file.append([{"key": 1}])
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"rows\.jsonl: 1 rows could not be added \(Input/output error\)"):
        file.append([{"key": 2}])
    assert file.path.read_bytes() == b'{"key": 1}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"settings": []}', "settings is []; expected an object in braces"),
        ('{"settings": {}, "free": 3}', "free is 3; expected an object in braces"),
        ("[]", "it is []; expected an object in braces"),
        ('{"free": {}}', "no settings; expected it, found ['free']"),
        ('{"settings": {"a": 1}, "settings": {"a": 2}}', "key 'settings' stands twice"),
        ('{"settings": {},\n"free": }', "line 2: no JSON (Expecting value)"),
        ("", "line 1: no JSON (Expecting value)"),
    ],
)
def test_settings_of_another_shape_are_one_error_that_names_the_file(content, said, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(content)
    with pytest.raises(BadInput) as caught:
        refuse_other_settings(path, {"seed": 0})
    assert caught.value.path == str(path)
    assert said in caught.value.problems[0]
    assert "choose another folder" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"key": None}, "key is None; expected a whole number or text"),
        ({"key": 2, "text": 5}, "text is 5; expected text"),
        ({"key": 2, "tokens": True}, "tokens is True; expected a whole number"),
        ({"key": 2, "prunes": {}}, "prunes is {}; expected a list"),
        ({"key": 2, "prunes": [{"step": "2", "reason": "vote", "kept": []}]}, "prunes[0].step is '2'; expected a whole number"),
    ],
)
def test_a_row_with_a_field_of_another_type_is_named(row, said, tmp_path):
    path, whole = tmp_path / "rows.jsonl", {"image": "1.jpg", "prompt": "", "text": "", "tokens": 1, "finished": True}
    whole |= {"prunes": [], "seconds": 0.1}
    path.write_text("".join(json.dumps(line) + "\n" for line in ({"key": 1} | whole, whole | row)))
    with pytest.raises(BadInput) as caught:
        RowFile(path, Row)
    assert (caught.value.path, caught.value.problems) == (str(path), [f"line 2: {said}"])


# Folders.


class Refused(Exception):
    pass


@pytest.mark.parametrize("there", [0, 1, 2], ids=["no folder", "its parent", "the folder"])
def test_a_block_that_writes_nothing_leaves_what_was_there(tmp_path, there):
    folder = tmp_path / "runs/first"
    (tmp_path, folder.parent, folder)[there].mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with contextlib.suppress(Refused), locked(folder):
        assert sorted(path.name for path in folder.iterdir()) == ["run.holder.json", "run.lock"]
        raise Refused
    assert sorted(tmp_path.rglob("*")) == before
    with locked(folder):  # and nothing of it is in the way of the next
        assert folder.is_dir()


def test_a_block_that_wrote_keeps_its_folder_and_blocks_nobody(tmp_path):
    with contextlib.suppress(Refused), locked(tmp_path / "out"):
        (tmp_path / "out/rows.jsonl").write_text("")
        raise Refused
    assert (tmp_path / "out/rows.jsonl").exists()
    assert not (tmp_path / "out/run.holder.json").exists()
    with locked(tmp_path / "out"):
        pass


def test_a_refused_second_process_takes_nothing_from_the_first(tmp_path):
    with locked(tmp_path / "out"):
        with pytest.raises(BlockingIOError, match="another run writes here"), locked(tmp_path / "out"):
            pass
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run.holder.json", "run.lock"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OSError, match=r"out: cannot be made \(File exists\); expected a folder"), locked(tmp_path / "out"):
        pass


@pytest.mark.parametrize("content", ['{"process": "x"}', "[]", "", '{"process": 1, "machine": 2, "since": "now"}'])
def test_a_holder_that_cannot_be_read_does_not_hide_the_lock(content, tmp_path):
    with locked(tmp_path):
        (tmp_path / "run.holder.json").write_text(content)
        with pytest.raises(BlockingIOError, match=r"another run writes here \(its process is unknown"), locked(tmp_path):
            pass
