"""WebDataset's tar archives of images: as a folder of the same files, read by offset, and refused if damaged."""

from __future__ import annotations

import io
import json
import pickle
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_archives import Reader
from torch.utils.data import DataLoader

import diffkit
from diffkit.data import WebDataset
from diffkit.data.inspection import check_images
from diffkit.data.loading import load
from diffkit.errors import DataError, OptionError
from diffkit.testing import check_component, report
from diffkit.training import read_metrics


def encoded(seed: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def examples(start: int, stop: int) -> dict[str, bytes]:
    found = {}
    for i in range(start, stop):
        found |= {
            f"./a/{i:06}.png": encoded(i),
            f"./a/{i:06}.cls": f"{i % 3}\n".encode(),
            f"./a/{i:06}.json": json.dumps({"label": "xyz"[i % 3], "index": i}).encode(),
        }
    return found


def tar(path: Path, content: dict[str, bytes], *odd: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, each in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(each)
            archive.addfile(info, io.BytesIO(each))
        for info in odd:
            archive.addfile(info)
    return path


@pytest.fixture
def shards(tmp_path) -> Path:
    for i in range(3):
        tar(tmp_path / "shards" / f"s-{i:03}.tar", examples(4 * i, 4 * i + 4))
    return tmp_path / "shards"


def test_the_same_as_the_folder(shards, tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(12):
        (tmp_path / "a" / f"{i:06}.png").write_bytes(encoded(i))
    folder = load(tmp_path / "a", size=(6, 8))
    for path in (shards, shards / "s-{000..002}.tar", shards / "s-*.tar", shards / "s-{000,001,002}.tar"):
        data = load(path, size=(6, 8))
        assert torch.equal(data.batch(range(12)).images, folder.batch(range(12)).images)
    assert data.pictures.name(4) == "s-001.tar: a/000004.png"
    index = tmp_path / "i.json"
    ways = ({"check": False}, {"cache": tmp_path / "c.npy"}, {"index": index}, {"index": index})
    for options in ways:
        other = load(path, size=(6, 8), **options)
        assert torch.equal(other.batch([9, 0, 5]).images, data.batch([9, 0, 5]).images)
        assert other.describe()["fingerprint"] == data.describe()["fingerprint"]
    other = load(path, size=(6, 8), check=False, index=index)
    assert torch.equal(pickle.loads(pickle.dumps(other)).batch([9]).images, data.batch([9]).images)
    read = list(DataLoader(Reader(other), batch_size=None, sampler=[[2, 0]] * 4, num_workers=2))
    assert all(torch.equal(each, data.batch([2, 0]).images) for each in read)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_format_of_tar(tmp_path, form):
    names = [f"{'long/' * 19}n{i}.png" for i in range(2)] + ["one.png", "._one.png", ".hidden/two.png"]
    data = load(tar(tmp_path / "a.tar", {name: encoded(0) for name in names}, form=form), size=8)
    assert len(data) == 3 and data.describe()["skipped"] == 2


def test_classes(shards, tmp_path):
    assert load(shards, size=8, labels="cls").labels.tolist() == [0, 1, 2] * 4
    named = load(shards, size=8, labels="json")
    assert named.labels.tolist() == [0, 1, 2] * 4 and named.classes == ("x", "y", "z")
    assert load(shards, size=8, labels="json", label="index").classes == tuple(map(str, range(12)))
    images = {name: encoded(0) for name in ("top/cat/1_a.png", "top/dog/2_a.png")}
    path = tar(tmp_path / "f.tar", images)
    assert load(path, size=8, labels="folders").classes == ("cat", "dog")
    assert load(path, size=8, labels="prefix").classes == ("1", "2")
    none = tar(tmp_path / "n.tar", examples(0, 4) | {"./a/000001.cls": b"-1", "./a/000003.cls": b""})
    assert load(none, size=8, labels="cls").labels.tolist() == [0, -1, 2, -1]


def test_laws_of_data_and_the_folder_as_a_source(shards, tmp_path):
    results = check_component("data", WebDataset(path=shards, size=8, labels="cls", check=False))
    assert all(result.ok for result in results), report(results)
    (shards / "0.png").write_bytes(encoded(0))
    assert len(load(shards, size=8)) == 1  # a folder of images that has archives, too


def test_an_index_is_read_again_for_changed_archives_only(shards, tmp_path, monkeypatch):
    index = tmp_path / "i.json"
    load(shards, size=8, index=index, check=False)
    tar(shards / "s-001.tar", examples(20, 25))
    opened, original = [], tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda path, *a: opened.append(Path(path).name) or original(path, *a))
    assert len(load(shards, size=8, index=index, check=False)) == 13
    assert opened == ["s-001.tar"]
    index.write_text("{}")
    with pytest.raises(DataError, match=r"exists, but is not an index of diffkit; remove it, or name another file"):
        load(shards, size=8, index=index)
    with pytest.raises(OptionError, match=r"\.json"):
        load(shards, size=8, index=tmp_path / "i.txt")


def link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("a/link.png")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


ONE = examples(0, 2)
DAMAGED = {
    "symbolic link": (lambda p: tar(p, ONE, link(tarfile.SYMTYPE)), r"a\.tar: a/link\.png is a link, which is not fol"),
    "hard link": (lambda p: tar(p, ONE, link(tarfile.LNKTYPE)), r"a/link\.png is a link, which is not followed"),
    "pipe": (lambda p: tar(p, ONE, link(tarfile.FIFOTYPE)), r"a/link\.png is not an ordinary file; pack only such"),
    "no tar": (lambda p: p.write_bytes(b"hello" * 400), r"is not a tar file, or damaged: "),
    "empty": (lambda p: p.write_bytes(b""), r"is not a tar file, or damaged: empty file"),
    "compressed": (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(600)), r"is compressed, so .* alone; call gunzip"),
    "cut off": (lambda p: changed(p, lambda content: content[:1100]), r"is not a tar file, or damaged: "),
    "cut after a file": (
        lambda p: changed(p, lambda content: content[:1536]),
        r"is not a tar file, or damaged: it has no end, so it was cut off",
    ),
    "damaged header": (
        lambda p: changed(p, lambda content: content[:1600] + b"\xff" * 88 + content[1688:]),
        r"is damaged, or more than one tar file: byte 1536 is neither header nor end",
    ),
    "two in one": (lambda p: p.write_bytes(tar(p, ONE).read_bytes() * 2), r"is damaged, or more than one tar file"),
    "no image": (lambda p: tar(p, {"notes.txt": b"x"}), r"1 files have no image .* first: a\.tar: notes\.txt; pack"),
    "nothing": (lambda p: tar(p, {}), r"holds no image \(0 other files\)"),
    "class alone": (lambda p: tar(p, ONE | {"a/9.cls": b"1"}), r"1 files have no image of the same stem, the first: a"),
    "twice": (lambda p: tar(p, ONE | {"a/000000.png": b""}), r"a/000000\.png is there twice; give each file a name"),
    "two images": (lambda p: tar(p, ONE | {"a/000000.jpg": b""}), r"is one of 2 images of one stem, .*: png, jpg"),
    "bad image": (lambda p: tar(p, ONE | {"a/000007.png": b"x"}), r"a\.tar: a/000007\.png: no image of a kind"),
}


def changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes of an archive: a folder's header, then a header and 512 bytes of content for each file."""
    path.write_bytes(change(tar(path, {"x.cls": b"1", "y.cls": b"2"}).read_bytes()))


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_archives_are_refused_in_one_line(tmp_path, kind):
    make, message = DAMAGED[kind]
    make(tmp_path / "a.tar")
    with pytest.raises((DataError, OptionError), match=message):
        load(tmp_path / "a.tar", size=8)


def test_any_damage_is_one_error_or_none(tmp_path):
    path = tmp_path / "a.tar"
    good, draw = tar(path, ONE).read_bytes(), random.Random(0)
    for _ in range(60):
        content = bytearray(good)
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(good)) // 512 * 512 + draw.randrange(512)] = draw.randrange(256)
        path.write_bytes(content)
        try:
            load(path, size=8, labels="json")
        except (DataError, OptionError) as error:
            assert "Traceback" not in str(error)


def test_what_is_skipped(tmp_path):
    path = tar(tmp_path / "a.tar", ONE | {"a/9.cls": b"1", "a/000007.png": b"x"})
    data = load(path, size=8, on_error="skip")
    assert len(data) == 2 and data.describe()["skipped"] == 2
    assert len(load(tar(path, {"0.in.png": encoded(0), "0.out.png": encoded(1)}), size=8, image="out.png")) == 1


def test_missing_labels_and_bad_ones(shards, tmp_path):
    path = tar(tmp_path / "a.tar", ONE | {"b.png": encoded(0)})
    with pytest.raises(DataError, match=r"do not fit '.*a\.tar':\n  1 images have no label: 'a\.tar: b\.png'"):
        load(path, size=8, labels="cls")
    for content, message in (
        (b"{", r"a\.tar: a/000000\.png: its \.json cannot be read: "),
        (b"[1]", r"its \.json has no entry 'label'; name the class's entry with label"),
        (b'{"label": 1.5}', r"its class is 1\.5, neither a name nor a number"),
    ):
        with pytest.raises(DataError, match=message):
            load(tar(path, ONE | {"./a/000000.json": content}), size=8, labels="json")
    with pytest.raises(DataError, match=r"'.*s-003\.tar' is not there; name a \.tar file, a folder of them, or a pa"):
        load(shards / "s-{000..003}.tar", size=8)
    with pytest.raises(DataError, match=r"'.*none\*\.tar' names no \.tar file"):
        load(shards / "none*.tar", size=8)


def test_a_run_goes_on_to_the_bit_and_refuses_changed_archives(shards, tmp_path):
    def train(out: str, **options):
        torch.manual_seed(0)
        system = diffkit.compose(backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(3, 4, 4), num_steps=50)
        data = load(shards, size=4, check=False)
        diffkit.train(system, data, out=tmp_path / out, batch_size=4, save_every=2, log_every=1, **options)
        return [row["loss"] for row in read_metrics(tmp_path / out)]

    whole = train("whole", steps=5, workers=1)
    train("parts", steps=2)
    assert train("parts", steps=5) == whole
    tar(shards / "s-001.tar", examples(4, 7) | {"./a/000007.png": encoded(7) + b"0"})
    with pytest.raises(OptionError, match=r"holds a run that differs from this one:\n  data fingerprint='"):
        train("parts", steps=6)


def test_an_inspection_reads_archives_as_a_folder_of_the_same_files(tmp_path):
    changed = {"./a/000002.png": b"torn", "./a/000002.cls": b"2", "./a/000009.txt": b"alone"}
    content = examples(0, 4) | changed
    tar(tmp_path / "shards" / "0.tar", {name: content[name] for name in list(content)[:6]})
    tar(tmp_path / "shards" / "1.tar", {name: content[name] for name in list(content)[6:]})
    for labels, classes in (("cls", {"0": 2, "1": 1, "2": 0}), ("json", {"x": 2, "y": 1, "z": 0})):
        found = check_images(tmp_path / "shards", labels=labels)
        assert found.classes == classes and not found.good and found.fault is None
        assert found.images["0.tar: a/000000.png"].size == (9, 12)
    assert found.unreadable.keys() == {"1.tar: a/000002.png", "1.tar: a/000009.txt"}
    assert found.unreadable["1.tar: a/000009.txt"] == "no image of the same stem"
    for name in ("one", "two"):
        assert check_images(tar(tmp_path / f"{name}.tar", examples(0, 2))).good
    assert len(check_images(tmp_path / "{one,two}.tar").images) == 4
