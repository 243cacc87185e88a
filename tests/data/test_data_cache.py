"""The cache of decoded pixels: the same pixels, built once, and never used when it does not fit or is damaged."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffkit.data
from diffkit.data import folder as folders
from diffkit.data.cache import MemoryMappedArray
from diffkit.errors import DataError, OptionError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(
            root / f"{'cat' if i % 2 else 'dog'}_{i}.png"
        )
    return root


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Every file that is decoded in this process."""
    found: list[str] = []
    original = folders.FolderPictures.read

    def read(self, index):
        found.append(self.name(index))
        return original(self, index)

    monkeypatch.setattr(folders.FolderPictures, "read", read)
    return found


def load(folder: Path, **options):
    return diffkit.data.loading.load(folder, **({"size": (6, 8), "cache": folder.parent / "cache.npy"} | options))


def pixels(data) -> torch.Tensor:
    return data.batch(range(len(data))).images


def test_the_pixels_are_the_same_and_decoded_once(folder, reads):
    plain = diffkit.data.loading.load(folder, size=(6, 8), labels="prefix")
    del reads[:]
    first, second = load(folder, labels="prefix"), load(folder, labels="prefix")
    assert len(reads) == 5 and isinstance(second.pixels, MemoryMappedArray)
    for data in (first, second):
        assert torch.equal(pixels(data), pixels(plain)) and data.describe() == plain.describe()
        batch = data.batch([3, 0, 3])
        assert torch.equal(batch.images, plain.batch([3, 0, 3]).images) and batch.conditions["y"].tolist() == [1, 0, 1]
        assert batch.images.is_contiguous()
        batch.images.add_(1)  # a copy, never the mapped file
    assert torch.equal(pixels(load(folder, labels="prefix")), pixels(plain))
    assert {path.name for path in folder.parent.iterdir()} == {"photos", "cache.npy", "cache.json", "cache.npy.lock"}


@pytest.mark.parametrize("change", ["options", "content", "time", "added", "removed", "renamed"])
def test_what_decides_the_pixels_decides_the_cache(folder, reads, change):
    load(folder)
    del reads[:]
    options: dict = {}
    path = folder / "dog_0.png"
    if change == "options":
        options = {"size": (6, 6)}
    elif change == "content":
        stat = path.stat()
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "added":
        Image.new("RGB", (9, 9)).save(folder / "new.png")
    elif change == "removed":
        path.unlink()
    else:
        path.rename(folder / "dog_9.png")
    data = load(folder, **options)
    assert len(reads) == len(data)
    assert torch.equal(pixels(data), pixels(load(folder, **options, cache=None)))


def test_labels_do_not_decide_the_pixels(folder, reads):
    load(folder)
    del reads[:]
    assert load(folder, labels="prefix").classes == ("cat", "dog") and not reads


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "empty"])
def test_a_damaged_cache_is_built_again(folder, reads, damage, capsys):
    load(folder)
    good, path = (folder.parent / "cache.npy").read_bytes(), folder.parent / "cache.npy"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"bit": good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], "cut": good[:-1], "empty": b""}[damage])
    del reads[:]
    load(folder)
    assert len(reads) == 5 and path.read_bytes() == good
    assert ("is damaged; it is built again" in capsys.readouterr().err) == (damage != "gone")


def test_a_file_that_is_not_a_cache_is_left_alone(folder):
    np.save(folder.parent / "cache.npy", np.zeros(3))
    with pytest.raises(
        DataError, match=r"cache\.npy' or .* exists, but is not a cache of diffkit; remove both, or name"
    ):
        load(folder)
    (folder.parent / "other.json").write_text('{"my": "notes"}')
    with pytest.raises(DataError, match=r"other\.json' exists, but is not a cache"):
        load(folder, cache=folder.parent / "other.npy")
    assert np.load(folder.parent / "cache.npy").shape == (3,)
    with pytest.raises(OptionError, match=r"cache must be a \.npy file, got 'x\.bin'"):
        load(folder, cache="x.bin")
    with pytest.raises(DataError, match="in a folder that is missing or cannot be written"):
        load(folder, cache=folder.parent / "nowhere" / "c.npy")


def test_unreadable_images(folder, capsys, reads):
    (folder / "dog_2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 5 files cannot be read.*\n.*dog_2\.png"):
        load(folder)
    assert not (folder.parent / "cache.npy").exists()
    kept = load(folder, on_error="skip", labels="prefix")
    del reads[:]
    again = load(folder, on_error="skip", labels="prefix")
    assert not reads and len(kept) == len(again) == 4
    assert torch.equal(pixels(kept), pixels(again)) and again.describe() == kept.describe()
    assert torch.equal(pixels(again), pixels(load(folder, on_error="skip", cache=None)))
    assert capsys.readouterr().err.count("dog_2.png") == 3
    with pytest.raises(DataError, match="1 of 5 files cannot be read"):
        load(folder)


def test_sixteen_bits_are_kept(tmp_path):
    root = tmp_path / "deep"
    root.mkdir()
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(root / "a.png")
    Image.fromarray((ramp // 257).astype(np.uint8)).save(root / "b.png")
    for cache in (None, tmp_path / "c.npy"):
        data = diffkit.data.loading.load(root, size=8, channels=1, bits=16, cache=cache)
        images = pixels(data)
        assert data.bins == 65536 and images.dtype == torch.int32
        assert np.array_equal(images[0, 0], ramp) and np.array_equal(images[1, 0], ramp // 257 * np.int32(257))
    assert np.load(tmp_path / "c.npy").dtype == np.uint16
    with pytest.raises(OptionError, match="bits=16 is for grey images; use channels=1 or bits=8"):
        diffkit.data.loading.load(root, size=8, bits=16)
    with pytest.raises(OptionError, match="bits must be 8 or 16, got 12"):
        diffkit.data.loading.load(root, size=8, bits=12)


def test_another_process_maps_it_for_itself(folder):
    data = load(folder)
    sent = pickle.dumps(data)
    assert len(sent) < 5000
    assert torch.equal(pixels(pickle.loads(sent)), pixels(data))


def test_a_cache_in_a_folder_that_cannot_be_written_is_used_if_it_fits(folder, monkeypatch, reads):
    load(folder)
    del reads[:]
    monkeypatch.setattr("diffkit.data.cache.os.access", lambda path, mode: False)
    assert len(load(folder)) == 5 and not reads
    with pytest.raises(DataError, match="cannot be written"):
        load(folder, size=(3, 3))


def test_a_full_disk_is_one_clear_error(folder, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffkit.data.cache.open_memmap", full)
    with pytest.raises(DataError, match=r"cannot be written: .*No space left on device; it takes 720 bytes"):
        load(folder)
    assert {path.name for path in folder.parent.iterdir()} == {"photos", "cache.npy.lock"}


def test_the_record_fits_the_pixels(folder):
    load(folder)
    record = json.loads((folder.parent / "cache.json").read_text())
    assert record["size"] == (folder.parent / "cache.npy").stat().st_size and record["bad"] == {}
    assert np.load(folder.parent / "cache.npy").shape == (5, 3, 6, 8)


BUILD = """
import sys, diffkit.data
from diffkit.data import folder
original = folder.FolderPictures.read
def read(self, index):
    print("decoding", flush=True)
    import time; time.sleep(0.02)
    return original(self, index)
folder.FolderPictures.read = read
diffkit.data.loading.load(sys.argv[1], size=(6, 8), cache=sys.argv[2])
"""


@pytest.mark.slow  # three interpreters that import torch
def test_two_processes_build_it_once_and_a_killed_one_leaves_nothing_to_be_used(folder):
    words = [sys.executable, "-c", BUILD, str(folder), str(folder.parent / "cache.npy")]
    killed = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert killed.stdout is not None and killed.stdout.readline() == b"decoding\n"
    killed.kill()
    killed.communicate()
    assert not (folder.parent / "cache.npy").exists()
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
    out = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text.count(b"decoding") for text in out) == [0, 5]
    assert torch.equal(pixels(load(folder)), pixels(load(folder, cache=None)))


def test_several_processes_decode_the_same(folder):
    data = load(folder, processes=2)
    assert torch.equal(pixels(data), pixels(load(folder, cache=None)))
    (folder / "dog_2.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 of 5 files cannot be read.*\n.*dog_2\.png: no image"):
        load(folder, processes=2)


def full(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def unable(*arguments):
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_a_full_disk_is_an_error_before_anything_is_decoded(folder, reads, monkeypatch):
    """A map of a file without room would kill the process."""
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(DataError, match=r"cache .* cannot be written: .*No space left on device; it takes 720 bytes"):
        load(folder)
    assert not reads and sorted(path.name for path in folder.parent.iterdir() if path.suffix != ".lock") == ["photos"]


@pytest.mark.parametrize("how", ["unable", "absent"])
def test_where_no_room_can_be_reserved_it_is_written(folder, monkeypatch, how):
    wanted = pixels(diffkit.data.loading.load(folder, size=(6, 8)))
    if how == "unable":
        monkeypatch.setattr(os, "posix_fallocate", unable, raising=False)
    else:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    assert torch.equal(pixels(load(folder)), wanted)
    path = folder.parent / "cache.npy"
    assert path.stat().st_blocks * 512 >= path.stat().st_size  # no holes are left


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting takes root")
def test_a_disk_that_is_really_full(folder, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        with pytest.raises(DataError, match=r"cannot be written: .*No space left on device"):
            load(folder, size=128, cache=small / "c.npy")
        assert [path.name for path in small.iterdir() if path.suffix != ".lock"] == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="locks by flock")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_has_a_cache_too(folder, monkeypatch, capsys, number):
    """As for runs: a warning says so once, and nothing is left to be read wrongly."""
    import fcntl

    def unsupported(*arguments):
        raise OSError(number, os.strerror(number))

    plain = pixels(diffkit.data.loading.load(folder, size=(6, 8)))
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", unsupported)
        assert torch.equal(pixels(load(folder)), plain)
    assert "has no locks" in capsys.readouterr().err
    assert torch.equal(pixels(load(folder)), plain)
