"""Files that are still being written: found by name, removed when their writer is dead, never written through links."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import diffkit
from diffkit.cli.shared.paths import check_new_folder
from diffkit.data.exporting import Exporter
from diffkit.explain import explain
from diffkit.runtime import temporaries
from diffkit.runtime.files import replacing, write_atomically, write_through
from diffkit.runtime.publishing import save_npz
from diffkit.runtime.temporaries import is_temporary, replacement, sweep
from diffkit.spacing.files import save_grid

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
    def unsupported(handle, wait=False):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(temporaries, "lock", unsupported)
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


def test_a_new_folder_may_hold_what_a_kill_left(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".spec.json.0123456789abcdef.tmp").touch()
    check_new_folder("--out", out, overwrite=False)
    (tmp_path / ".out.0123456789abcdef.tmp").mkdir()
    Exporter(diffkit.data.loading.load("digits")).to_folder(out)
    assert names(tmp_path) == ["out"] and len(names(out)) == 1797
    Exporter(diffkit.data.loading.load("digits")).to_npz(tmp_path / "digits.npz")
    assert names(tmp_path) == ["digits.npz", "out"]
    (out / "mine").touch()
    with pytest.raises(diffkit.OptionError, match="is not empty"):
        check_new_folder("--out", out, overwrite=False)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_npz(path, a=np.zeros(2)),
        lambda path: explain(diffkit.compose(backbone=None)).plot(path.with_suffix(".png")),
        lambda path: save_grid(path.with_suffix(".json"), [1, 10], diffkit.compose(backbone=None).table),
    ],
)
def test_results_replace_a_link(tmp_path, write):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for suffix in (".npz", ".png", ".json"):
        (tmp_path / f"out{suffix}").symlink_to(precious)
    write(tmp_path / "out.npz")
    assert precious.read_text() == "precious"
    assert sum(not (tmp_path / f"out{suffix}").is_symlink() for suffix in (".npz", ".png", ".json")) == 1
