"""Files next to images that are not images: hidden folders, links out of the folder, files that end like images."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffkit
from diffkit.data.folder import list_images
from diffkit.data.inspection import check_images
from diffkit.data.loading import load
from diffkit.errors import DataError
from diffkit.evaluation.samples import read_samples
from diffkit.runtime.images import FORMATS, open_image

GOOD = ("cat/a.png", "cat/b.png", "dog/a.png", "dog/b.png")
HIDDEN = (
    ".ipynb_checkpoints/a-checkpoint.png",
    "cat/.ipynb_checkpoints/a-checkpoint.png",
    "cat/@eaDir/a.png/SYNOPHOTO_THUMB_M.png",
    "__MACOSX/cat/._a.png",
    "__MACOSX/cat/a.png",
    "#recycle/b.png",
    ".thumbnails/large/c.png",
)
OTHER = (".DS_Store", "cat/Thumbs.db", "dog/desktop.ini", "dog/._a.png")


def png(side: int = 8) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def source(tmp_path, packed, top=""):
    names = {**dict.fromkeys((*GOOD, *HIDDEN), png()), **dict.fromkeys(OTHER, b"no image")}
    if packed:
        path = tmp_path / "photos.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in names.items():
                archive.writestr(name if name.startswith("__MACOSX") else top + name, content)
        return path
    for name, content in names.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(content)
    return tmp_path / "photos"


@pytest.mark.parametrize("packed", [False, True])
def test_hidden_folders_hold_no_examples(tmp_path, packed):
    path = source(tmp_path, packed)
    data = load(path, size=8, labels="folders")
    assert data.classes == ("cat", "dog") and [data.pictures.name(i) for i in range(len(data))] == list(GOOD)
    report = check_images(path, labels="folders")
    assert set(report.images) == set(GOOD) and report.classes == {"cat": 2, "dog": 2}
    assert {"a hidden folder", "a folder of the operating system"} <= set(report.ignored.values())
    if not packed:
        assert len(read_samples(path)) == 4


def test_a_hidden_folder_that_is_named_is_read(tmp_path):
    root = tmp_path / ".cache" / "photos"
    root.mkdir(parents=True)
    (root / "a.png").write_bytes(png())
    assert len(load(root, size=8)) == 1 and len(load(tmp_path / ".cache", size=8)) == 1


@pytest.mark.parametrize("top", ["set/", "set/train/"])
def test_an_archive_of_one_folder(tmp_path, top):
    path = source(tmp_path, True, top)
    assert load(path, size=8, labels="folders").classes == ("cat", "dog")
    assert check_images(path, labels="folders").classes == {"cat": 2, "dog": 2}
    table = tmp_path / "t.csv"
    for before in ("", top):
        table.write_text("file,label\n" + "".join(f"{before}{name},{i % 2}\n" for i, name in enumerate(GOOD)))
        assert load(path, size=8, labels=str(table)).labels.tolist() == [0, 1, 0, 1]


def test_an_archive_of_one_class(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("set/a.png", "set/b.png"):
            archive.writestr(name, png())
    with pytest.raises(DataError, match="all images are of one class, 'set'"):
        load(tmp_path / "a.zip", size=8, labels="folders")


def test_a_folder_of_one_folder_names_the_one_to_take(tmp_path):
    root = source(tmp_path, False)
    root.rename(tmp_path / "all-of-it")
    (tmp_path / "outer").mkdir()
    (tmp_path / "all-of-it").rename(tmp_path / "outer/set")
    with pytest.raises(DataError, match=r"all images lie in the folder 'set' of .*; name that one: '(.*)'$") as caught:
        load(tmp_path / "outer", size=8, labels="folders")
    assert load(str(caught.value).rpartition(": ")[2].strip("'"), size=8, labels="folders").classes == ("cat", "dog")


@pytest.mark.skipif(sys.platform != "linux", reason="links to processes and devices are Linux's")
def test_links_out_of_the_folder(tmp_path):
    root = tmp_path / "photos"
    (root / "real").mkdir(parents=True)
    (root / "a.png").write_bytes(png())
    (root / "real/b.png").write_bytes(png())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/c.png").write_bytes(png())
    targets = {
        "proc": "/proc", "self": "/proc/self", "task": "/proc/self/task", "root": "/proc/self/root", "top": "/",
        "sys": "/sys", "dev": "/dev", "fd": "/proc/self/fd", "above": tmp_path, "here": root, "loop": root / "loop",
        "zero.png": "/dev/zero", "kmsg.png": "/proc/kmsg", "core.png": "/proc/kcore", "status.png": "/proc/self/status",
        "other": tmp_path / "elsewhere", "again": root / "real",
    }  # fmt: skip
    for name, target in targets.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe.png")
    found = list_images(root)
    names = [path.relative_to(root).as_posix() for path in found.files]
    assert names[0] == "a.png" and set(names) <= {"a.png", "again/b.png", "other/c.png", "real/b.png"}
    assert len(names) == 3 and len(found.ignored) < 30
    reasons = {path.name: reason for path, reason in found.ignored}
    assert reasons["above"] == reasons["top"] == "a link to a folder that holds this one"
    assert reasons["proc"] == reasons["dev"] == "a link to something other than a folder of files"
    assert reasons["kmsg.png"] == reasons["zero.png"] == "a link to something other than a file"


@pytest.mark.slow
def test_folders_deeper_than_python_recurses(tmp_path):
    folder = tmp_path
    handle = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    (folder / "a.png").write_bytes(png())
    try:
        assert [path.name for path in list_images(tmp_path).files] == ["a.png"]
    finally:
        _remove(tmp_path)


def _remove(root):
    """Take a chain of folders away from below, which shutil does by recursion."""
    chain = [root / "d"]
    while (chain[-1] / "d").is_dir():
        chain.append(chain[-1] / "d")
    for folder in reversed(chain):
        folder.rmdir()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["evil.png", "evil.jpg", "evil.tif"])
def test_a_picture_starts_no_other_program(tmp_path, monkeypatch, name):
    """EPS, named as an image: Pillow would start Ghostscript."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    root = tmp_path / "data"
    root.mkdir()
    (root / name).write_bytes(EPS)
    for call in (
        lambda: load(root, size=8),
        lambda: read_samples(root),
        lambda: load(_zip(tmp_path, root / name), size=8),
    ):
        with pytest.raises(DataError, match=r"no image of a kind that is read|holds no readable image"):
            call()
    assert f"no image of a kind that is read ({', '.join(FORMATS)})" == check_images(root).unreadable[name]
    assert not (tmp_path / "started").exists()


def _zip(tmp_path, path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, path.name)
    return tmp_path / "a.zip"


def test_kinds_that_are_not_listed_are_refused(tmp_path):
    for kind in ("PPM", "ICO", "PCX", "TGA"):
        out = io.BytesIO()
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(out, kind)
        with pytest.raises(Image.UnidentifiedImageError):
            open_image(io.BytesIO(out.getvalue()))


def test_images_are_opened_in_one_place_only():
    """Whoever opens a picture of others by Pillow itself opens it as anything that Pillow knows."""
    root = Path(diffkit.__file__).parent
    for path in root.rglob("*.py"):
        assert path == root / "runtime" / "images.py" or "Image.open(" not in path.read_text(encoding="utf-8"), path
