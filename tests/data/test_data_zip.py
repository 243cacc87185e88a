"""Images in a zip archive: as in a folder of the same files, without unpacking."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_archives import Reader
from torch.utils.data import DataLoader

from diffkit.data.exporting import Exporter
from diffkit.data.inspection import check_images
from diffkit.data.loading import load
from diffkit.errors import DataError, OptionError

NAMES = ("00000/img00000000.png", "00000/img00000001.png", "00001/cat_2.webp", "grüße 猫.png")


def encoded(seed: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def files() -> dict[str, bytes]:
    return {name: encoded(i) for i, name in enumerate(NAMES)}


def zipped(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("00000")
        for name, each in content.items():
            archive.writestr(name, each)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_the_same_as_the_folder(tmp_path, method):
    path = zipped(tmp_path / "a.zip", files() | {"notes.txt": b"", "__MACOSX/._a.png": b"", "x/._b.png": b""}, method)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "a")
    data, folder = load(path, size=(6, 8)), load(tmp_path / "a", size=(6, 8), on_error="skip")
    assert [data.pictures.name(i) for i in range(4)] == list(NAMES)
    assert torch.equal(data.batch(range(4)).images, folder.batch(range(4)).images)
    assert data.describe()["fingerprint"] == folder.describe()["fingerprint"] and data.describe()["skipped"] == 3
    for options in ({"cache": tmp_path / "c.npy"}, {"processes": 2}, {"check": False}):
        other = load(path, size=(6, 8), **options)
        assert torch.equal(other.batch([3, 0]).images, data.batch([3, 0]).images)
    sent = pickle.loads(pickle.dumps(other))
    assert torch.equal(sent.batch([3, 0]).images, data.batch([3, 0]).images)


def test_an_archive_is_read_by_forked_workers_too(tmp_path):
    data = load(zipped(tmp_path / "a.zip", files()), size=8, check=False)
    expected = data.batch([2, 0]).images
    found = list(DataLoader(Reader(data), batch_size=None, sampler=[[2, 0]] * 6, num_workers=2))
    assert all(torch.equal(each, expected) for each in found)


def test_labels_from_the_table_in_the_archive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [[name, label] for name, label in zip(NAMES, (2, 0, 1, 2), strict=True)]
    path = zipped(tmp_path / "a.zip", files() | {"dataset.json": json.dumps({"labels": rows}).encode()})
    data = load(path, size=8, labels="dataset.json")
    assert data.labels.tolist() == [2, 0, 1, 2] and data.classes == ("0", "1", "2")
    Path("dataset.json").write_text(json.dumps({"labels": [[name, i] for i, name in enumerate(NAMES)]}))
    assert load(path, size=8, labels="dataset.json").labels.tolist() == [0, 1, 2, 3]  # a file that is there wins
    with pytest.raises(DataError, match=r"the labels 'other\.json' do not exist"):
        load(path, size=8, labels="other.json")
    Path("dataset.json").write_text(json.dumps({"labels": rows[:3]}))
    with pytest.raises(DataError, match=r"do not fit '.*a\.zip':\n  1 images have no label: 'grüße 猫\.png'"):
        load(path, size=8, labels="dataset.json")


def test_labels_from_folders_and_names(tmp_path):
    content = {f"{'ab'[i % 2]}/{'xy'[i // 2]}_{i}.png": encoded(i) for i in range(4)}
    path = zipped(tmp_path / "a.zip", content)
    assert load(path, size=8, labels="folders").classes == ("a", "b")
    assert load(path, size=8, labels="prefix").labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match="labels='folders' needs every image in a folder; 1 are in none"):
        load(zipped(tmp_path / "b.zip", files()), size=8, labels="folders")


def damaged(path: Path) -> None:
    """Change a byte of the first image's data, which its checksum is not of."""
    content = bytearray(path.read_bytes())
    at = content.index(b"IDAT") + 40
    content[at] ^= 255
    path.write_bytes(content)


def test_damaged_members_are_named(tmp_path, capsys, monkeypatch):
    path = zipped(tmp_path / "a.zip", files() | {"zz.png": b"no picture"})
    damaged(path)
    with pytest.raises(DataError) as caught:
        load(path, size=8)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("2 of 5 files cannot be read") and "img00000000.png: BadZipFile: Bad CRC-32" in lines[1]
    assert lines[2].endswith("a.zip: zz.png: no image of a kind that is read (AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP)")
    assert len(load(path, size=8, on_error="skip")) == 3
    assert "skipped " in capsys.readouterr().err
    monkeypatch.setattr("diffkit.data.zip_archives._LARGEST", 100)
    with pytest.raises(DataError, match="more than 100 bytes, which no image has"):
        load(path, size=8)


def test_encrypted_members_are_named(tmp_path):
    path = zipped(tmp_path / "a.zip", files())
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.index(NAMES[0].encode(), content.index(mark)) if mark == b"PK\3\4" else content.index(mark)
        at = content.rindex(mark, 0, at + 4)
        while content.find(mark, at) != -1:
            at = content.index(mark, at)
            struct.pack_into("<H", content, at + offset, struct.unpack_from("<H", content, at + offset)[0] | 1)
            at += 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"RuntimeError: File .* is encrypted"):
        load(path, size=8)


def test_archives_that_are_none(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"a\.zip' cannot be read as a zip archive: "):
        load(tmp_path / "a.zip", size=8)
    with pytest.raises(DataError, match=r"holds no image \(1 other files\); images end in \.avif"):
        load(zipped(tmp_path / "b.zip", {"notes.txt": b""}), size=8)
    with pytest.raises(DataError, match="is not a folder or file"):
        load(tmp_path / "gone.zip", size=8)
    with pytest.raises(OptionError, match="data a zip archive needs size"):
        load(tmp_path / "a.zip")


def test_an_archive_that_was_replaced_is_read_anew(tmp_path):
    path = zipped(tmp_path / "a.zip", files())
    assert len(load(path, size=8)) == 4
    zipped(path, {"one.png": encoded(1)})
    assert len(load(path, size=8)) == 1


def test_import_from_an_archive(tmp_path):
    data = load(zipped(tmp_path / "a.zip", files()), size=(9, 12), check=False)
    Exporter(data, processes=2).to_folder(tmp_path / "out", prefix="cat")
    assert torch.equal(load(tmp_path / "out", size=(9, 12)).batch(range(4)).images, data.batch(range(4)).images)


@pytest.mark.parametrize("processes", [0, 2])
def test_an_archive_is_checked_as_a_folder_is(tmp_path, processes):
    rows = [[name, label] for name, label in zip(NAMES, (2, 0, 1, 2), strict=True)]
    table = {"dataset.json": json.dumps({"labels": [*rows, ["zz.png", 0]]}).encode()}
    path = zipped(tmp_path / "a.zip", files() | table | {"zz.png": b"no picture"})
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "a")
    found = check_images(path, labels="dataset.json", processes=processes)
    folder = check_images(tmp_path / "a", labels=str(tmp_path / "a" / "dataset.json"), processes=processes)
    assert found.as_dict() == folder.as_dict() | {"source": str(path)}
    assert found.classes == {"0": 1, "1": 1, "2": 2} and found.ignored == {"dataset.json": "no image by its name"}
    assert found.unreadable == {"zz.png": "no image of a kind that is read (AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP)"}
    damaged(path)
    assert check_images(path).unreadable[NAMES[0]].startswith("BadZipFile: Bad CRC-32")
