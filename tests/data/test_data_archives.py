"""CIFAR-10 and LSUN from tiny archives of the real layout, and any data into PNGs or one .npz."""

from __future__ import annotations

import io
import os
import pickle
import re
import tarfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import diffkit.data
from diffkit.data import from_array
from diffkit.data.exporting import Exporter, file_prefixes
from diffkit.data.loading import load
from diffkit.errors import DataError, MissingExtraError, OptionError

EACH = 4
"""Images in a batch; the real ones have 10,000."""
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6 * EACH, 3, 32, 32)).astype(np.uint8)
LABELS = [(3 * i) % 10 for i in range(6 * EACH)]
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def rows(i: int) -> slice:
    return slice(i * EACH, (i + 1) * EACH)


def python_batch(i: int, protocol: int = 2) -> bytes:
    """As the archive has it: keys and texts are bytes, as Python 2 wrote them."""
    batch = {
        b"batch_label": f"batch {i}".encode(),
        b"labels": LABELS[rows(i)],
        b"data": PIXELS[rows(i)].reshape(EACH, -1),
        b"filenames": [b"some_s_000001.png"] * EACH,
    }
    return pickle.dumps(batch, protocol)


def binary_batch(i: int) -> bytes:
    labels = np.array(LABELS[rows(i)], np.uint8)[:, None]
    return np.concatenate([labels, PIXELS[rows(i)].reshape(EACH, -1)], 1).tobytes()


def members(version: str) -> dict[str, bytes]:
    if version == "binary":
        return {f"cifar-10-batches-bin/{name}.bin": binary_batch(i) for i, name in enumerate(NAMES)}
    return {f"cifar-10-batches-py/{name}": python_batch(i) for i, name in enumerate(NAMES)}


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def unpacked(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("version", ["python", "binary"])
@pytest.mark.parametrize("way", [packed, unpacked])
def test_cifar10(version, way, tmp_path):
    path = way(tmp_path / "cifar", members(version))
    train, test = load("cifar10", archive=path), load("cifar10", archive=path, split="test", labels=False)
    assert (len(train), train.shape, train.bins) == (5 * EACH, (3, 32, 32), 256)
    assert train.classes[:2] == ("airplane", "automobile") and len(train.classes) == 10
    batch = train.batch(range(5 * EACH))
    assert np.array_equal(batch.images, PIXELS[: 5 * EACH]) and batch.conditions["y"].tolist() == LABELS[: 5 * EACH]
    assert np.array_equal(test.batch(range(EACH)).images, PIXELS[-EACH:]) and test.classes is None
    assert sum(train.describe()["class_counts"]) == 5 * EACH


def test_cifar10_named_and_counted_as_by_the_published_script(tmp_path):
    path = packed(tmp_path / "cifar.tar.gz", members("python"))
    data = load("cifar10", archive=path, names="published")
    assert data.classes == ("bird", "car", "cat", "deer", "dog", "frog", "horse", "plane", "ship", "truck")
    published = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert [data.classes[y] for y in data.labels] == [published[y] for y in LABELS[: 5 * EACH]]


class Payload:
    """Writes a file when it is unpickled by someone careless."""

    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_hostile_pickle_is_not_run(protocol, tmp_path):
    mark = tmp_path / "executed"
    payloads = [
        Payload(os.system, f"touch {mark}"),
        Payload(open, str(mark), "w"),
        Payload(exec, f"open({str(mark)!r}, 'w')"),
        Payload(np.fromfile, "/etc/hostname"),
        {b"data": Payload(getattr, "text", "upper"), b"labels": [0]},
    ]
    for payload in payloads:
        files = members("python") | {"cifar-10-batches-py/data_batch_3": pickle.dumps(payload, protocol)}
        with pytest.raises(
            DataError, match=r"data_batch_3 cannot be read: UnpicklingError: it imports .*nothing was run"
        ):
            load("cifar10", archive=packed(tmp_path / "evil.tar.gz", files))
    assert not mark.exists()


def test_pickles_of_python_3_and_a_newer_numpy_are_read(tmp_path):
    for protocol in (2, 3, 4):
        files = {f"x/{name}": python_batch(i, protocol) for i, name in enumerate(NAMES)}
        data = load("cifar10", archive=packed(tmp_path / "a.tar.gz", files))
        assert np.array_equal(data.images, PIXELS[: 5 * EACH])


def batch_with(**changes) -> bytes:
    batch = {"data": PIXELS[:EACH].reshape(EACH, -1), "labels": LABELS[:EACH]}
    return pickle.dumps({key: value for key, value in (batch | changes).items() if value is not None}, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "data_batch_2 cannot be read: EOFError"),
        (python_batch(1)[:3000], "data_batch_2 cannot be read: "),
        (pickle.dumps([1, 2]), "data_batch_2 cannot be read: AttributeError"),
        (batch_with(data=None), "data_batch_2 cannot be read: KeyError: 'data'"),
        (batch_with(data=np.zeros((EACH, 3072))), "its pixels are not bytes"),
        (batch_with(data=np.zeros((EACH, 7), np.uint8)), f"has pixels of shape ({EACH}, 7) for {EACH} labels"),
        (batch_with(labels=[0]), f"has pixels of shape ({EACH}, 3072) for 1 labels; it is not CIFAR-10"),
        (batch_with(labels=[0, 1, 2, 10]), "has classes 0 to 10; CIFAR-10 has 0 to 9"),
        (batch_with(labels=[0, 1, 2, 0.5]), "its labels are not integers"),
    ],
)
def test_damaged_batches(content, message, tmp_path):
    files = members("python") | {"cifar-10-batches-py/data_batch_2": content}
    with pytest.raises(DataError, match=re.escape(message)):
        load("cifar10", archive=packed(tmp_path / "a.tar.gz", files))


def test_archives_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"is not there; the archive is cifar-10-python\.tar\.gz or"):
        load("cifar10", archive=tmp_path / "no.tar.gz")
    (tmp_path / "text.tar.gz").write_text("no archive")
    with pytest.raises(DataError, match="cannot be read as an archive: "):
        load("cifar10", archive=tmp_path / "text.tar.gz")
    whole = packed(tmp_path / "a.tar.gz", members("python"))
    whole.write_bytes(whole.read_bytes()[:20_000])
    with pytest.raises(DataError, match="cannot be read as an archive: "):
        load("cifar10", archive=whole)
    some = {name: content for name, content in members("python").items() if not name.endswith("4")}
    with pytest.raises(DataError, match="is not a whole CIFAR-10: it lacks data_batch_4 of the Python version"):
        load("cifar10", archive=packed(tmp_path / "b.tar.gz", some))
    odd = members("binary") | {"x/data_batch_1.bin": b"\0" * 3072}
    with pytest.raises(DataError, match=r"data_batch_1\.bin has 3072 bytes, which is not a multiple of 3073"):
        load("cifar10", archive=packed(tmp_path / "c.tar.gz", odd))
    monkeypatch.setattr("diffkit.data.cifar10._LARGEST", 100)
    with pytest.raises(DataError, match=r"data_batch_1 has .* bytes, no CIFAR-10 file has more than 100"):
        load("cifar10", archive=packed(tmp_path / "d.tar.gz", members("python")))
    with pytest.raises(OptionError, match="data 'cifar10' needs 'archive'"):
        load("cifar10")


# ---- LSUN ----------------------------------------------------------------------------------------------------------

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]


def encoded(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "WEBP", quality=100)
    return out.getvalue()


class Reader(Dataset):
    """What torch's loader reads in its workers."""

    def __init__(self, data):
        self.data = data

    def __getitem__(self, indices):
        return self.data.batch(indices).images


@pytest.fixture
def bedrooms(tmp_path: Path) -> Path:
    path = tmp_path / "bedroom_train_lmdb"
    with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for i, colour in enumerate(COLOURS):
            transaction.put(f"{i:040x}".encode(), encoded(colour))
    return path


def damage(path: Path, key: int, content: bytes) -> None:
    with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(f"{key:040x}".encode(), content)


def test_lsun(bedrooms, tmp_path):
    data = load("lsun", database=bedrooms, size=8)
    assert (len(data), data.shape, data.bins, data.classes) == (4, (3, 8, 8), 256, None)
    images = data.batch([2, 0]).images
    assert np.abs(images.float().mean((2, 3)).numpy() - np.array([COLOURS[2], COLOURS[0]])).max() < 8
    kept = load("lsun", database=bedrooms, size=8, cache=tmp_path / "c.npy")
    assert torch.equal(kept.batch([2, 0]).images, images) and kept.describe() == data.describe()
    unread = load("lsun", database=bedrooms, size=8, check=False)
    assert unread.pixels is None and torch.equal(unread.batch([2, 0]).images, images)
    again = pickle.loads(pickle.dumps(unread))
    assert torch.equal(again.batch([2, 0]).images, images)


def test_a_database_is_read_by_forked_workers_too(bedrooms):
    data = load("lsun", database=bedrooms, size=8, check=False)
    expected = data.batch([2, 0]).images
    found = list(DataLoader(Reader(data), batch_size=None, sampler=[[2, 0], [2, 0], [1, 3]], num_workers=2))
    assert torch.equal(found[0], expected) and torch.equal(found[1], expected)
    assert torch.equal(data.batch([2, 0]).images, expected)


def test_damaged_records_of_lsun_are_named_before_training(bedrooms, capsys):
    damage(bedrooms, 1, b"RIFF")
    with pytest.raises(DataError, match=r"1 of 4 files cannot be read.*\n.*bedroom_train_lmdb: 0{39}1: no image"):
        load("lsun", database=bedrooms, size=8)
    assert len(load("lsun", database=bedrooms, size=8, on_error="skip")) == 3


def test_databases_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="is not there; LSUN's databases are folders such as bedroom_train_lmdb"):
        load("lsun", database=tmp_path / "no", size=8)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "data.mdb").write_bytes(b"x" * 9000)
    with pytest.raises(DataError, match="cannot be read as an LMDB database: "):
        load("lsun", database=tmp_path / "bad", size=8)
    with lmdb.open(str(tmp_path / "empty"), map_size=1 << 20):
        pass
    with pytest.raises(DataError, match="holds no image"):
        load("lsun", database=tmp_path / "empty", size=8)
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(MissingExtraError, match=r'pip install "diffkit\[lsun\]"'):
        load("lsun", database=tmp_path / "empty", size=8)


# ---- writing -------------------------------------------------------------------------------------------------------


def small(classes=("a b", "x_y", "z"), **more):
    images = RNG.integers(0, 256, (7, 3, 5, 6)).astype(np.uint8)
    return from_array(images, labels=[0, 1, 2, 2, 1, 0, 0], classes=classes, **more)


def test_pngs_and_back(tmp_path):
    data = small()
    assert Exporter(data).to_folder(tmp_path / "out") == ["a b", "x-y", "z"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[:3] == ["a b_00000.png", "a b_00005.png", "a b_00006.png"] and names[-1] == "z_00003.png"
    back = load(tmp_path / "out", size=(5, 6), labels="prefix")
    order = [0, 5, 6, 1, 4, 2, 3]
    assert np.array_equal(back.batch(range(7)).images, data.images[order])
    assert back.labels.tolist() == data.labels[order].tolist()
    assert not list(tmp_path.glob(".*"))


def test_pngs_without_classes(tmp_path):
    plain = from_array(small().images)
    assert Exporter(plain).to_folder(tmp_path / "a") == []
    Exporter(plain).to_folder(tmp_path / "b", prefix="bedroom")
    assert sorted(path.name for path in (tmp_path / "a").iterdir())[0] == "00000.png"
    assert sorted(path.name for path in (tmp_path / "b").iterdir())[6] == "bedroom_00006.png"


def test_numbers_keep_their_order_as_prefixes():
    assert file_prefixes([str(i) for i in range(11)])[:2] == ["00", "01"]
    assert file_prefixes(["grüße", "猫", "a/b", "line\nbreak"]) == ["grüße", "猫", "a-b", "line-break"]
    assert file_prefixes(None) == []
    with pytest.raises(DataError, match="classes 'a/b' and 'a_b' would both be written 'a-b'"):
        file_prefixes(["a/b", "a_b"])


def test_values_are_spread_over_the_bits_of_a_png(tmp_path):
    few = from_array(np.arange(17, dtype=np.uint8).reshape(17, 1, 1, 1).repeat(2, 3), bins=17)
    Exporter(few).to_folder(tmp_path / "few")
    grey = load(tmp_path / "few", size=(1, 2), channels=1).batch(range(17)).images[:, 0, 0, 0]
    assert grey.tolist() == [round(i * 255 / 16) for i in range(17)]
    deep = from_array(np.array([0, 1, 40_000, 65_535], np.uint16).reshape(4, 1, 1, 1).repeat(2, 3))
    Exporter(deep).to_folder(tmp_path / "deep")
    back = load(tmp_path / "deep", size=(1, 2), channels=1, bits=16)
    assert back.batch(range(4)).images[:, 0, 0, 0].tolist() == [0, 1, 40_000, 65_535]
    scaled = from_array(np.array([-1, -1 / 255, 1], np.float32).reshape(3, 1, 1, 1), bins=256)
    Exporter(scaled).to_folder(tmp_path / "scaled")
    assert load(tmp_path / "scaled", size=1, channels=1).batch(range(3)).images.flatten().tolist() == [0, 127, 255]


@pytest.mark.parametrize("bins", [17, 256, 65536])
def test_npz_and_back(bins, tmp_path):
    images = RNG.integers(0, bins, (5, 2, 3, 4)).astype(np.int64)
    data = from_array(images, bins=bins, labels=[0, 1, 1, 0, 2], classes=["x", "y", "ü"])
    Exporter(data).to_npz(tmp_path / "d.npz")
    back = load(tmp_path / "d.npz", labels=True)
    assert np.array_equal(back.batch(range(5)).images, images) and back.bins == bins
    assert back.classes == ("x", "y", "ü") and back.labels.tolist() == [0, 1, 1, 0, 2]
    with np.load(tmp_path / "d.npz") as arrays:
        assert arrays["arr_0"].shape == (5, 3, 4, 2) and arrays["arr_0"].dtype == (
            np.uint8 if bins <= 256 else np.uint16
        )
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]


def test_continuous_data_goes_into_an_npz_only(tmp_path):
    points = load("points", examples=20)
    with pytest.raises(DataError, match=r"continuous data has no pixels; write a \.npz"):
        Exporter(points).to_folder(tmp_path / "p")
    Exporter(points).to_npz(tmp_path / "p.npz")
    assert np.array_equal(load(tmp_path / "p.npz").images, points.images)
    with pytest.raises(DataError, match=r"shape \(2, 5, 6\) are not images of 1, 3 or 4 channels"):
        Exporter(from_array(small().images[:, :2])).to_folder(tmp_path / "p")
    with pytest.raises(DataError, match="a PNG keeps 65536 values in grey only"):
        Exporter(from_array(small().images.astype(np.uint16))).to_folder(tmp_path / "p")


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(OptionError, match="out' exists already; name a folder that is new or empty"):
        Exporter(small()).to_folder(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    Exporter(small()).to_folder(tmp_path / "empty")
    assert len(list((tmp_path / "empty").iterdir())) == 7


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_examples_that_cannot_be_read(kind, bedrooms, tmp_path):
    damage(bedrooms, 0, b"RIFF")
    out = tmp_path / ("out" if kind == "folder" else "out.npz")
    data = load("lsun", database=bedrooms, size=8, check=False)

    def write(exporter):
        return exporter.to_folder(out, prefix="bedroom") if kind == "folder" else exporter.to_npz(out)

    with pytest.raises(DataError, match=r"0{40}: no image.*; remove it, or skip such examples; use on_error='skip'"):
        write(Exporter(data))
    assert {path.name for path in tmp_path.iterdir()} == {"bedroom_train_lmdb"}
    skipping = Exporter(data, on_error="skip")
    write(skipping)
    assert len(skipping.skipped) == 1
    if kind == "folder":
        names = sorted(path.name for path in out.iterdir())
        assert names == ["bedroom_00001.png", "bedroom_00002.png", "bedroom_00003.png"]
    else:
        assert len(load(out)) == 3


def test_photographs():
    data = load("photographs", size=64, labels=True)
    assert (len(data), data.shape, data.classes) == (2 * 6 * 10, (3, 64, 64), ("china", "flower"))
    assert data.describe()["class_counts"] == [60, 60]
    denser = load("photographs", size=(64, 32), stride=16)
    assert len(denser) == 2 * ((427 - 64) // 16 + 1) * ((640 - 32) // 16 + 1) and denser.classes is None
    assert np.array_equal(denser.images[1][:, :, :16], denser.images[0][:, :, 16:])
    random, same = (
        load("photographs", pieces="random", examples=9, seed=3),
        load("photographs", pieces="random", examples=9, seed=3),
    )
    assert np.array_equal(random.images, same.images) and random.images.shape == (9, 3, 64, 64)
    assert not np.array_equal(random.images, load("photographs", pieces="random", examples=9, seed=4).images)
    with pytest.raises(OptionError, match=r"size \(428, 428\) does not fit into a photograph of \(427, 640\)"):
        load("photographs", size=428)
    assert diffkit.data.Photographs().size == (64,)
