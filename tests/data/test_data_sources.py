"""Arrays, files, named data, and every error about data that cannot be used."""

from __future__ import annotations

import builtins
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from diffkit.data import Digits, Folder, MapData, Points, from_array
from diffkit.data.loading import as_data, load
from diffkit.errors import DataError, MissingExtraError, OptionError


def test_digits():
    data = load("digits")
    assert (len(data), data.shape, data.bins) == (1797, (1, 8, 8), 17)
    assert data.classes == tuple("0123456789")
    train, held_out = load("digits", split="train"), load("digits", split="held_out")
    assert (len(train), len(held_out)) == (1498, 299)
    both = np.concatenate([train.images, held_out.images]).reshape(1797, -1)
    assert np.array_equal(np.sort(both, axis=0), np.sort(data.images.reshape(1797, -1), axis=0))
    batch = data.batch([0, 10])
    assert batch.images.dtype == torch.uint8 and batch.images.max() <= 16
    assert batch.conditions["y"].tolist() == [0, 0] and batch.indices.tolist() == [0, 10]
    assert load("digits", labels=False).batch([0]).conditions == {}


@pytest.mark.parametrize(("kind", "classes"), [("moons", 2), ("gaussians", 8), ("rings", 2)])
def test_points(kind, classes):
    data = load("points", kind=kind, examples=2000, labels=True)
    assert (len(data), data.shape, data.bins, len(data.classes)) == (2000, (2,), None, classes)
    x = data.batch(range(2000)).images
    assert x.dtype == torch.float32
    assert torch.allclose(x.mean(0), torch.zeros(2), atol=1e-5) and torch.allclose(x.std(0), torch.ones(2), atol=1e-3)
    assert np.array_equal(load("points", kind=kind, examples=2000).images, data.images)
    assert not np.array_equal(load("points", kind=kind, examples=2000, seed=1).images, data.images)


def test_a_path_is_never_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert len(load("digits")) == 1797
    for folder in (Path("digits"), "./digits"):
        with pytest.raises(DataError, match="digits' holds no image"):
            load(folder, size=8)


def test_arrays_and_tensors():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    data = load(images, labels=[1, 0], classes=["a", "b"])
    assert (len(data), data.shape, data.bins, data.classes) == (2, (3, 4, 5), 256, ("a", "b"))
    image, conditions = data[1]
    assert torch.equal(image, images[1]) and conditions == {"y": 0}
    assert torch.equal(data.batch(np.array([1, 1, 0])).images, images[[1, 1, 0]])
    assert load(np.zeros((3, 2), np.float64)).batch([0]).images.dtype == torch.float32
    assert load(np.zeros((3, 1, 4)), bins=256).bins == 256
    assert load(np.zeros((3, 4, 5), np.uint8), layout="channels_last").shape == (1, 4, 5)
    assert load(np.zeros((3, 4, 5, 2), np.uint8), layout="channels_last").shape == (2, 4, 5)
    assert load(np.full((2, 1, 2), 65535, np.uint16)).batch([0]).images.max() == 65535
    assert load(np.zeros((2, 1, 3, 3, 3), np.uint8)).shape == (1, 3, 3, 3)


def test_npz_and_npy_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3)).astype(np.uint8)
    np.savez(tmp_path / "samples.npz", images, np.array([0, 1, 2, 1, 0]))
    np.save(tmp_path / "images.npy", images)
    for name, options in (("samples.npz", {}), ("images.npy", {}), ("samples.npz", {"labels": True})):
        data = load(tmp_path / name, **options)
        assert (len(data), data.shape, data.bins) == (5, (3, 4, 6), 256)
        assert torch.equal(data.batch([3, 1]).images, torch.from_numpy(images[[3, 1]].transpose(0, 3, 1, 2).copy()))
        data.batch([0]).images.add_(1)  # a copy, never the mapped file
    assert data.classes == ("0", "1", "2") and data.batch([2]).conditions["y"].tolist() == [2]
    with pytest.raises(DataError, match="has no labels, arr_1"):
        np.savez(tmp_path / "bare.npz", images)
        load(tmp_path / "bare.npz", labels=True)
    with pytest.raises(DataError, match=r"has no array arr_0 \(it has: x\)"):
        np.savez(tmp_path / "other.npz", x=images)
        load(tmp_path / "other.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(DataError, match="cannot be read as a NumPy file"):
        load(tmp_path / "bad.npz")
    with pytest.raises(DataError, match="is not there"):
        load(tmp_path / "gone.npy")


def test_a_pickle_in_a_numpy_file_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    np.save(tmp_path / "evil.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read as a NumPy file"):
        load(tmp_path / "evil.npy")
    assert not (tmp_path / "executed").exists()


def test_a_fingerprint_tells_data_apart():
    images = np.zeros((100, 1, 2), np.uint8)
    a, b = from_array(images), from_array(images + 1)
    labelled = from_array(images, labels=np.zeros(100, int))
    prints = {data.describe()["fingerprint"] for data in (a, b, labelled)}
    assert len(prints) == 3
    assert from_array(images.copy()).describe() == a.describe()


class Custom:
    """A user's own data."""

    shape, bins, classes = (1, 2, 2), None, ("a", "b")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.full((1, 2, 2), index, np.float32), {"y": index % 2, "extra": torch.ones(3) * index}


def test_data_of_a_users_own_class():
    data = as_data(Custom())
    assert isinstance(Custom(), MapData)
    batch = data.batch([3, 1])
    assert batch.images[:, 0, 0, 0].tolist() == [3, 1] and batch.conditions["y"].tolist() == [1, 1]
    assert batch.conditions["extra"].shape == (2, 3)
    assert data.describe() == {"examples": 4, "shape": [1, 2, 2], "bins": None, "classes": ["a", "b"]}
    assert as_data(data) is data


def test_a_users_own_data_that_contradicts_its_attributes():
    class Ragged(Custom):
        def __getitem__(self, index):
            return np.zeros((1, 2, 2 + index)), {"y": 0} if index < 2 else {}

    with pytest.raises(DataError, match=re.escape("example 1 has shape (1, 2, 3), but the data has shape (1, 2, 2)")):
        as_data(Ragged()).batch([0, 1])

    class Sometimes(Custom):
        def __getitem__(self, index):
            return np.zeros((1, 2, 2)), {"y": 0} if index < 2 else {}

    with pytest.raises(DataError, match=re.escape("example 2 has conditions [], example 0 has ['y']")):
        as_data(Sometimes()).batch([0, 2])
    with pytest.raises(
        DataError, match=r"^dict is not data: it has no shape, bins, classes; see diffkit\.data\.MapData"
    ):
        as_data({})


@pytest.mark.parametrize(
    ("images", "options", "text"),
    [
        (np.zeros((0, 1, 2, 2), np.uint8), {}, "images must have shape (N, C, ...) with nothing empty, got (0, 1, 2"),
        (np.zeros(3, np.uint8), {}, "images must have shape (N, C, ...) with nothing empty, got (3,)"),
        (np.array([["a"]]), {}, "images must be numbers, got an array of <U1"),
        (np.zeros((2, 1), np.int64), {}, "leaves the number of values unknown; store 0..255 as uint8, or pass bins"),
        (np.full((2, 1), 17, np.uint8), {"bins": 17}, "with 17 bins must lie in 0..16, got values in 17..17"),
        (np.full((2, 1), -1, np.int32), {"bins": 17}, "with 17 bins must lie in 0..16, got values in -1..-1"),
        (np.full((2, 1), 2.0), {"bins": 17}, "with bins must lie in [-1, 1], got values in [2, 2]"),
        (np.array([[0.0], [np.nan]]), {}, "example 1 holds NaN or infinity; correct or remove such examples"),
        (np.array([[0.0], [-np.inf]]), {}, "example 1 holds NaN or infinity"),
        (np.zeros((2, 1)), {"labels": [0]}, "labels must be integers of shape (2,), got int64 of shape (1,)"),
        (np.zeros((2, 1)), {"labels": [0.5, 1]}, "labels must be integers of shape (2,), got float64"),
        (np.zeros((2, 1)), {"labels": [-2, 1]}, "example 0 has label -2; classes count from 0, and -1 is for no class"),
        (np.zeros((2, 1)), {"labels": [0, 2], "classes": ["a", "b"]}, "a label is 2, but there are 2 class names"),
        (np.zeros((2, 1)), {"classes": ["a"]}, "class names were given without labels"),
    ],
)
def test_arrays_that_cannot_be_used(images, options, text):
    with pytest.raises(DataError, match=re.escape(text)):
        load(images, **options)


def test_names_paths_and_options_that_are_wrong(tmp_path):
    with pytest.raises(DataError, match=r"data 'digit' is not a folder or file, .*; did you mean 'digits'\?"):
        load("digit")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"is a file, but not a \.npz, \.npy, \.zip or \.tar"):
        load(tmp_path / "a.txt")
    with pytest.raises(OptionError, match=r"'digits' has no option 'splt'; did you mean 'split'\?"):
        load("digits", splt="train")
    with pytest.raises(OptionError, match=r"an array has no option 'label'; did you mean 'labels'\?"):
        load(np.zeros((2, 1)), label=[0, 1])
    with pytest.raises(OptionError, match="split must be one of 'all', 'train', 'held_out', got 'test'"):
        Digits(split="test")
    with pytest.raises(OptionError, match="kind must be one of"):
        Points(kind="moon")
    with pytest.raises(OptionError, match=r"is a folder of images, .*; use size=64"):
        load(tmp_path)
    with pytest.raises(OptionError, match="size must be one number or two"):
        Folder(path=tmp_path, size=(1, 2, 3))
    with pytest.raises(OptionError, match="channels must be 1, 3 or 4, got 2"):
        Folder(path=tmp_path, size=(8,), channels=2)
    with pytest.raises(OptionError, match="layout must be 'channels_first' or 'channels_last', got 'NHWC'"):
        load(np.zeros((2, 1)), layout="NHWC")


@pytest.mark.parametrize(
    ("module", "call", "extra"),
    [
        ("sklearn", lambda folder: load("digits"), "demo"),
        ("PIL", lambda folder: load(folder, size=8), "train"),
    ],
)
def test_what_is_not_installed_is_named(module, call, extra, monkeypatch, tmp_path):
    original = builtins.__import__

    def missing(name, *rest):
        if name.split(".")[0] == module:
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=rf'pip install "diffkit\[{extra}\]"'):
        call(tmp_path)
