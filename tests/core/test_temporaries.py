"""Files that are still being written: found by name, removed when their writer is dead, never written through links."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from diffkit import temporaries
from diffkit.files import replacing, write_atomically, write_through
from diffkit.temporaries import is_temporary, replacement, sweep

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def writer(path: Path, *, folder: bool = False) -> int:
    """Fork a process that begins to write something and waits; return its number once it has begun."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        with replacement(path, folder=folder):
            os.write(writing, b".")
            time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    os.close(reading), os.close(writing)
    return process


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


@forking
@pytest.mark.parametrize("folder", [False, True])
def test_what_a_living_process_writes_stays_and_what_a_dead_one_left_goes(tmp_path, folder):
    process = writer(tmp_path / "a.bin", folder=folder)
    try:
        (left,) = tmp_path.iterdir()
        assert is_temporary(left) and left.is_dir() == folder
        sweep(tmp_path)
        assert left.exists()
    finally:
        kill(process)
    assert left.exists()
    sweep(tmp_path, "b.bin")
    assert left.exists()
    sweep(tmp_path, "a.bin")
    assert not left.exists()


def test_what_was_left_of_a_file_goes_when_it_is_written_again(tmp_path):
    (tmp_path / ".a.bin.0123456789abcdef.tmp").write_bytes(b"x" * 1000)
    (tmp_path / ".b.bin.0123456789abcdef.tmp").write_bytes(b"x" * 1000)
    (tmp_path / ".a.bin.tmp").touch()  # of someone else
    write_atomically(tmp_path / "a.bin", b"whole")
    assert names(tmp_path) == [".a.bin.tmp", ".b.bin.0123456789abcdef.tmp", "a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"whole"


def test_without_locks_only_what_is_old_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(temporaries, "_lock", lambda handle, wait: None)
    new, old = tmp_path / ".a.0123456789abcdef.tmp", tmp_path / ".b.0123456789abcdef.tmp"
    new.touch()
    old.touch()
    os.utime(old, (0, 0))
    sweep(tmp_path)
    assert names(tmp_path) == [new.name]


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    with pytest.raises(ValueError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise ValueError
    assert names(tmp_path) == ["a.bin"] and path.read_bytes() == b"before"


@pytest.mark.parametrize("write", [write_atomically, write_through])
def test_a_link_is_replaced_and_its_target_stays(tmp_path, write):
    target, link = tmp_path / "precious", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    write(link, b"new")
    assert target.read_text() == "precious" and not link.is_symlink() and link.read_bytes() == b"new"


def test_a_link_named_as_a_temporary_file_is_removed_itself(tmp_path):
    folder, target = tmp_path / "folder", tmp_path / "precious"
    folder.mkdir()
    target.mkdir()
    (target / "kept").touch()
    (folder / ".a.0123456789abcdef.tmp").symlink_to(target)
    sweep(folder)
    assert names(folder) == [] and names(target) == ["kept"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.bin"
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        one.write_bytes(b"one")
        other.write_bytes(b"other")
    assert names(tmp_path) == ["a.bin"] and path.read_bytes() == b"one"
