"""Output files: only regular files are replaced; links, devices, pipes and open files receive what was written."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prunehal.benchmarks import Report
from prunehal.files.paths import written


def write(path, text="new"):
    with written(path) as part:
        part.write_text(text)


def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    target, link, chain = tmp_path / "far" / "out.json", tmp_path / "link.json", tmp_path / "chain.json"
    target.write_text("old")
    link.symlink_to(target)
    chain.symlink_to("link.json")
    write(chain)
    assert (target.read_text(), link.is_symlink(), chain.is_symlink()) == ("new", True, True)
    assert [path.name for path in target.parent.iterdir()] == ["out.json"]
    target.unlink()
    write(link, "again")  # a link that leads nowhere yet
    assert (target.read_text(), link.is_symlink()) == ("again", True)
    with pytest.raises(TypeError), written(link) as part:
        part.write_text(b"no text")
    assert target.read_text() == "again"
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links") as caught:
        write(loop)
    assert (caught.value.filename, loop.is_symlink()) == (str(loop), True)


def test_a_pipe_receives_the_content(tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    Report({"a": 1}, []).write(pipe)
    reader.join(60)
    assert received == ['{\n "metrics": {\n  "a": 1\n },\n "items": [],\n "settings": {}\n}\n']
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_device_stays_a_device():
    before = Path("/dev/null").stat().st_rdev
    write(Path("/dev/null"))
    after = Path("/dev/null").stat()
    assert stat.S_ISCHR(after.st_mode)
    assert after.st_rdev == before


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("into", ["file", "pipe"])
def test_an_open_file_receives_the_content_in_its_place(tmp_path, name, into):
    code = (
        "from pathlib import Path; from prunehal.files.paths import written\n"
        "print('before', flush=True)\n"
        f"with written(Path({name!r})) as part: part.write_text('content\\n')\n"
        "print('after')"
    )
    out = tmp_path / "out.txt"
    if into == "file":
        with out.open("w") as file:
            subprocess.run([sys.executable, "-c", code], check=True, stdout=file)
        text = out.read_text()
    else:
        text = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert text == "before\ncontent\nafter\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OSError, match="No space left on device: '/dev/full'") as caught:
        write(Path("/dev/full"))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")
    path = tmp_path / "out.json"
    path.write_text("old")
    for names_part in (False, True):  # a write() names no file, an open() the part
        with pytest.raises(OSError, match="No space left") as caught, written(path) as part:
            raise OSError(errno.ENOSPC, "No space left on device", str(part) if names_part else None)
        assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="other") as caught, written(path):
        raise OSError(errno.ENOENT, "No such file or directory", "other.json")
    assert caught.value.filename == "other.json"
    assert path.read_text() == "old"


def test_neighbours_stay_whatever_their_names(tmp_path):
    path, part, elsewhere, link = (tmp_path / name for name in ("out.json", "out.json.part", "elsewhere", "link.json.part"))
    elsewhere.write_text("not mine")
    part.write_text("the user's")
    link.symlink_to(elsewhere)
    write(path)
    write(tmp_path / "link.json", "newer")
    with pytest.raises(TypeError), written(path) as begun:
        begun.write_text(b"no text")
    texts = {name.name: name.read_text() for name in tmp_path.iterdir()}
    assert texts == {
        "out.json": "new", "out.json.part": "the user's", "elsewhere": "not mine", "link.json.part": "not mine",
        "link.json": "newer",
    }  # fmt: skip
    assert link.is_symlink()


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "out.json"
    with written(path) as first, written(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
    assert path.read_text() == "first"  # the last one that ended
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


def test_a_new_file_has_the_mode_that_the_user_asks_for(tmp_path):
    (tmp_path / "plain").write_text("")
    write(tmp_path / "out.json")
    assert (tmp_path / "out.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_name_that_ends_in_a_slash_is_a_folder(tmp_path):
    for name in (f"{tmp_path}/a.out/", f"{tmp_path}/", "/"):
        with pytest.raises(IsADirectoryError, match="is a folder; expected the name of a file to write"), written(name):
            pytest.fail("nothing is to be written")
    assert list(tmp_path.iterdir()) == []
