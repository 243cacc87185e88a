"""Datasets of the Hugging Face library, whose part is played by a stand-in with the few calls that are made of it."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diffkit.data.loading import load
from diffkit.errors import DataError, MissingExtraError, OptionError


class Image:
    """datasets.Image: a column of encoded images."""

    def __init__(self, decode: bool = True):
        self.decode = decode


class ClassLabel:
    def __init__(self, names: list[str]):
        self.names = names


class Value:
    pass


class Dataset:
    """datasets.Dataset: rows by number, columns by name."""

    def __init__(self, features: dict, rows: list[dict], fingerprint: str = "f00"):
        self.features, self.rows, self._fingerprint = features, rows, fingerprint

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key):
        if isinstance(key, str):
            return [row[key] for row in self.rows]
        assert type(key) is int
        images = [name for name, feature in self.features.items() if isinstance(feature, Image)]
        assert not any(self.features[name].decode for name in images), "images are to be taken encoded"
        return self.rows[key]

    def select_columns(self, names: list[str]) -> Dataset:
        rows = [{name: row[name] for name in names} for row in self.rows]
        return Dataset({name: self.features[name] for name in names}, rows, "other")

    def cast_column(self, name: str, feature) -> Dataset:
        return Dataset(self.features | {name: feature}, self.rows, "other")


class IterableDataset:
    def __iter__(self):
        return iter(())


def encoded(value: int, mode: str = "PNG") -> bytes:
    out = io.BytesIO()
    Pillow.fromarray(np.full((9, 12), value * 257, np.uint16)).save(out, mode)
    return out.getvalue()


def dataset(**changes) -> Dataset:
    features = {"img": Image(), "label": ClassLabel(["cat", "dog", "owl"]), "number": Value(), "word": Value()}
    rows = [
        {"img": {"bytes": encoded(v), "path": None}, "label": y, "number": 2 * y, "word": "ab"[y]}
        for v, y in ((10, 1), (20, 0), (200, 1))
    ]
    for row, value in changes.get("images", {}).items():
        rows[row]["img"] = value
    for row, value in changes.get("labels", {}).items():
        rows[row]["label"] = value
    return Dataset(features, rows, changes.get("fingerprint", "f00"))


@pytest.fixture
def library(monkeypatch) -> list:
    """The module, and the arguments it received."""
    asked: list = []
    module = types.ModuleType("datasets")

    def load_dataset(*words, **options):
        asked.append((words, options))
        if words[0] == "nobody/nothing":
            raise FileNotFoundError("no such dataset on the Hub")
        return dataset()

    def load_from_disk(path):
        asked.append(path)
        return {"train": dataset(), "test": dataset()} if (Path(path) / "dataset_dict.json").exists() else dataset()

    module.load_dataset, module.load_from_disk = load_dataset, load_from_disk
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_images_are_decoded_here_and_labels_keep_their_names():
    data = load("hf", dataset=dataset(), size=(6, 8), channels=1, labels=True)
    assert (len(data), data.shape, data.bins, data.classes) == (3, (1, 6, 8), 256, ("cat", "dog", "owl"))
    batch = data.batch([2, 0])
    assert batch.images[:, 0, 0, 0].tolist() == [200, 10] and batch.conditions["y"].tolist() == [1, 1]
    assert data.describe()["class_counts"] == [1, 2, 0]
    assert load("hf", dataset=dataset(), size=8).classes is None
    assert load("hf", dataset=dataset(), size=8, labels=True, label="number").classes == ("0", "1", "2")
    assert load("hf", dataset=dataset(), size=8, labels=True, label="word").classes == ("a", "b")
    deep = load("hf", dataset=dataset(), size=8, channels=1, bits=16)
    assert deep.batch([0]).images.max() == 10 * 257


def test_the_datasets_own_fingerprint_tells_it_apart():
    first, second = (
        load("hf", dataset=dataset(fingerprint=f), size=8).describe()["fingerprint"] for f in ("f00", "f01")
    )
    assert first != second and first == load("hf", dataset=dataset(), size=8).describe()["fingerprint"]


def test_images_kept_in_files(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(77))
    found = dataset(images={1: {"bytes": None, "path": str(tmp_path / "a.png")}})
    assert load("hf", dataset=found, size=8, channels=1).batch([1]).images.max() == 77


def test_rows_that_cannot_be_read_are_named_before_training(capsys, tmp_path):
    found = dataset(images={0: {"bytes": b"broken", "path": None}, 2: None})
    with pytest.raises(DataError) as caught:
        load("hf", dataset=found, size=8)
    assert str(caught.value).splitlines()[1:-1] == [
        "  dataset row 0: no image of a kind that is read (AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP)",
        "  dataset row 2: there is no image",
    ]
    data = load("hf", dataset=found, size=8, channels=1, on_error="skip", labels=True, cache=tmp_path / "c.npy")
    assert len(data) == 1 and data.batch([0]).images.max() == 20 and data.labels.tolist() == [0]
    assert capsys.readouterr().err.count("skipped dataset row") == 2


def test_streaming_is_refused():
    with pytest.raises(
        DataError, match="IterableDataset is not a map-style dataset; load it without streaming, which no"
    ):
        load("hf", dataset=IterableDataset(), size=8)
    with pytest.raises(DataError, match=r"the dataset has parts \(train, test\); use split="):
        load("hf", dataset={"train": dataset(), "test": dataset()}, size=8)


def test_columns_that_are_not_there_or_not_plain():
    two = dataset()
    two.features["second"] = Image()
    for options, message in (
        ({"image": "picture"}, r"no column 'picture' \(columns: img, label, number, word, second\)"),
        ({}, r"has 2 columns of kind Image .*; say which with image=\.\.\."),
        ({"image": "img", "labels": True, "label": "labels"}, "no column 'labels'"),
    ):
        with pytest.raises(DataError, match=message):
            load("hf", dataset=two, size=8, **options)
    for none in (-1, None):
        some = load("hf", dataset=dataset(labels={1: none}), size=8, labels=True)
        assert some.labels[1] == -1 and some.describe()["without_class"] == 1
        with pytest.raises(DataError, match="none of 3 rows has a class in column 'label'; use labels=False"):
            load("hf", dataset=dataset(labels=dict.fromkeys(range(3), none)), size=8, labels=True)


def test_arguments_passed_to_the_library(library, tmp_path):
    def ask(name, **options):
        del library[:]
        assert len(load("hf", dataset=str(name), size=8, **options)) == 3
        return library[0]

    assert ask("org/cats", revision="v1", subset="small", split="train[:3]") == (
        ("org/cats", "small"), {"split": "train[:3]", "revision": "v1"},
    )  # fmt: skip
    images = tmp_path / "images"
    (images / "cat").mkdir(parents=True)
    assert ask(images) == (("imagefolder",), {"data_dir": str(images), "split": "train"})
    (tmp_path / "parts").mkdir()
    for name in ("b.parquet", "a.parquet"):
        (tmp_path / "parts" / name).write_bytes(b"")
    files = [str(tmp_path / "parts" / name) for name in ("a.parquet", "b.parquet")]
    assert ask(tmp_path / "parts") == (("parquet",), {"data_files": files, "split": "train"})
    assert ask(files[0], split="test[:5]") == (("parquet",), {"data_files": files[:1], "split": "train[:5]"})
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "state.json").write_text("{}")
    assert ask(tmp_path / "one") == str(tmp_path / "one")
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text("{}")
    assert ask(tmp_path / "dict", split="test") == str(tmp_path / "dict")
    with pytest.raises(
        DataError, match="dataset 'nobody/nothing' cannot be loaded: FileNotFoundError: no such dataset"
    ):
        ask("nobody/nothing")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "diffkit\[hf\]"'):
        load("hf", dataset="org/cats", size=8)
    with pytest.raises(OptionError, match="data 'hf' needs 'size' and 'dataset'"):
        load("hf")


def test_batches_are_as_of_any_data():
    data = load("hf", dataset=dataset(), size=8)
    image, conditions = data[1]
    assert torch.equal(torch.as_tensor(image), data.batch([1]).images[0]) and conditions == {}
