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
from prunehal.resources import written


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
        "from pathlib import Path; from prunehal.resources import written\n"
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
    for filename in (None, f"{path}.part"):  # a write() names no file, an open() the part
        with pytest.raises(OSError, match="No space left") as caught, written(path):
            raise OSError(errno.ENOSPC, "No space left on device", filename)
        assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="other") as caught, written(path):
        raise OSError(errno.ENOENT, "No such file or directory", "other.json")
    assert caught.value.filename == "other.json"
    assert path.read_text() == "old"


def test_what_a_killed_run_left_is_no_obstacle(tmp_path):
    path, elsewhere = tmp_path / "out.json", tmp_path / "elsewhere"
    elsewhere.write_text("not mine")
    (tmp_path / "out.json.part").symlink_to(elsewhere)
    write(path)
    assert (path.read_text(), elsewhere.read_text(), path.is_symlink()) == ("new", "not mine", False)
