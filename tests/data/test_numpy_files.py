"""NumPy files of others: odd labels, classes, bins, types and sizes are one line, and nothing fills the memory."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile

import numpy as np
import pytest
import torch

from diffkit.data import from_array
from diffkit.data.loading import load
from diffkit.errors import DataError, DiffkitError

IMAGES = np.zeros((3, 4, 4, 3), np.uint8)
ODD = {
    "labels far too large": dict(arr_1=np.array([0, 1, 2 * 10**9])),
    "labels uint64": dict(arr_1=np.arange(3).astype(np.uint64) + np.uint64(2**63)),
    "labels negative": dict(arr_1=np.array([0, -7, 1])),
    "labels smallest": dict(arr_1=np.array([0, np.iinfo(np.int64).min, 1])),
    "labels float": dict(arr_1=np.array([0.0, 1.0, 2.0])),
    "labels nan": dict(arr_1=np.array([0.0, np.nan, 2.0])),
    "labels bool": dict(arr_1=np.array([True, False, True])),
    "labels text": dict(arr_1=np.array(["a", "b", "c"])),
    "labels one-hot": dict(arr_1=np.eye(3, dtype=np.int64)),
    "labels of records": dict(arr_1=np.zeros(3, [("a", "i4"), ("b", "f4")])),
    "labels too few": dict(arr_1=np.array([0, 1])),
    "labels one number": dict(arr_1=np.array(1)),
    "labels complex": dict(arr_1=np.array([0j, 1, 2])),
    "classes bytes": dict(arr_1=np.arange(3), classes=np.array([b"a", b"b", b"c"])),
    "classes numbers": dict(arr_1=np.arange(3), classes=np.arange(3)),
    "classes twice": dict(arr_1=np.arange(3), classes=np.array(["a", "b", "a"])),
    "classes too few": dict(arr_1=np.arange(3), classes=np.array(["a", "b"])),
    "classes one word": dict(arr_1=np.arange(3), classes=np.array("abc")),
    "classes in rows": dict(arr_1=np.arange(3), classes=np.array([["a"], ["b"], ["c"]])),
    "bins text": dict(bins=np.array("abc")),
    "bins several": dict(bins=np.array([1, 2])),
    "bins nan": dict(bins=np.array(np.nan)),
    "bins complex": dict(bins=np.array(3j)),
    "bins one": dict(bins=np.array(1)),
    "bins negative": dict(bins=np.array(-256)),
    "bins huge": dict(bins=np.array(2**64 - 1, np.uint64)),
    "bins float": dict(bins=np.array(256.0)),
    "bins too few": dict(bins=np.array(2), arr_0=IMAGES + 7),
    "no images": dict(arr_0=np.zeros((0, 4, 4, 3), np.uint8)),
    "no width": dict(arr_0=np.zeros((3, 4, 0, 3), np.uint8)),
    "a number": dict(arr_0=np.array(3)),
    "bool images": dict(arr_0=IMAGES > 3),
    "complex images": dict(arr_0=IMAGES + 1j),
    "text images": dict(arr_0=np.array(["a", "b"])),
    "record images": dict(arr_0=np.zeros((3, 4, 4, 3), [("r", "u1")])),
    "times": dict(arr_0=np.zeros((3, 4, 4, 3), "M8[s]")),
    "int64 without bins": dict(arr_0=IMAGES.astype(np.int64)),
    "longdouble nan": dict(arr_0=np.full((3, 4, 4, 3), np.nan, np.longdouble)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_arrays_are_one_line(tmp_path, name):
    path = tmp_path / "a.npz"
    np.savez(path, **{"arr_0": IMAGES} | ODD[name])
    with pytest.raises(DataError) as caught:
        load(path, labels="arr_1" in ODD[name])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_one_hot_labels_are_advised_how_to_be_numbers():
    labels = np.eye(3, dtype=np.int64)[[2, 0, 1]]
    with pytest.raises(DataError, match=r"give class numbers by labels\.argmax\(1\)"):
        from_array(IMAGES, labels=labels, layout="channels_last")
    assert from_array(IMAGES, labels=labels.argmax(1), layout="channels_last").labels.tolist() == [2, 0, 1]


def test_large_labels_are_advised_how_to_count_from_0():
    labels = np.array([7, 2 * 10**9, 7])
    with pytest.raises(DataError, match=r"as by numpy\.unique\(labels, return_inverse=True\)\[1\]"):
        from_array(IMAGES, labels=labels, layout="channels_last")
    counted = np.unique(labels, return_inverse=True)[1]
    assert from_array(IMAGES, labels=counted, layout="channels_last").labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "images",
    [
        np.asfortranarray(np.random.default_rng(0).random((3, 4, 4, 3), dtype=np.float32) - 0.5),
        (np.random.default_rng(0).random((3, 4, 4, 3)) - 0.5).astype(">f4"),
        (np.random.default_rng(0).random((3, 4, 4, 3)) - 0.5).astype(np.float16),
        (np.random.default_rng(0).random((3, 4, 4, 3)) - 0.5).astype(np.longdouble),
        np.arange(144).reshape(3, 4, 4, 3).astype(">u2"),
        np.asfortranarray(np.arange(144, dtype=np.uint8).reshape(3, 4, 4, 3)),
    ],
    ids=lambda x: f"{x.dtype.str}{'F' if x.flags.f_contiguous else ''}",
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_other_types_and_orders_are_the_same_values(tmp_path, images, suffix):
    path = tmp_path / f"a{suffix}"
    np.save(path, images) if suffix == ".npy" else np.savez(path, images)
    data = load(path)
    found = data.batch([2, 0]).images
    assert data.shape == (3, 4, 4) and torch.equal(data.batch([0]).images[0], torch.as_tensor(data[0][0]))
    assert np.allclose(np.moveaxis(found.numpy(), 1, -1), images[[2, 0]].astype(np.float64), atol=1e-7)
    json.dumps(data.describe())


def test_other_byte_orders_of_integers(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(48).reshape(1, 4, 4, 3).astype(">i4"))
    assert load(tmp_path / "a.npy", bins=256).batch([0]).images.max() == 47


@pytest.mark.slow  # it takes seconds to pack
def test_an_archive_that_is_made_to_fill_memory(tmp_path):
    """Two gigabytes of zeros packed in two megabytes; the header of the array is that of images."""
    path = tmp_path / "bomb.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (2**31 // 12288, 64, 64, 3)}
    )
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        file.write(header.getvalue())
        for _ in range(2**31 // 2**26):
            file.write(bytes(2**26))
    with pytest.raises(DataError, match=r"cannot be read as a NumPy file: arr_0\.npy has \d+ bytes packed in \d+"):
        load(path)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_one_kind_of_error(tmp_path, seed):
    rng, path = np.random.default_rng(seed), tmp_path / "a.npz"
    np.savez_compressed(path, arr_0=IMAGES, arr_1=np.arange(3), classes=np.array(["a", "b", "c"]), bins=np.array(256))
    good = path.read_bytes()
    for _ in range(40):
        bad = bytearray(good)
        for _ in range(rng.integers(1, 5)):
            bad[rng.integers(len(bad))] = rng.integers(256)
        path.write_bytes(bytes(bad))
        with contextlib.suppress(DiffkitError):
            json.dumps(load(path, labels=True).describe())
