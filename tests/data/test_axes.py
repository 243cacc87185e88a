"""Where the channels of examples are: right by the shape, or refused with the layouts that settle it, everywhere."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from diffkit.cli._app import run
from diffkit.data import from_array, from_dataset
from diffkit.data.loading import load
from diffkit.errors import DataError, OptionError

N = 12
ENTRIES = {
    "pair": lambda x, **o: from_dataset((x, np.arange(N) % 3), **o),
    "array": lambda x, **o: from_dataset(x, **o),
    "tensor": lambda x, **o: from_dataset(torch.from_numpy(x), **o),
    "TensorDataset": lambda x, **o: from_dataset(TensorDataset(torch.from_numpy(x)), **o),
    "list of items": lambda x, **o: from_dataset([(each, 0) for each in x], **o),
    "from_array": from_array,
    "load": load,
}
LOOKS_WRONG = [
    ((28, 28), "grey images of 28x", (1, 28, 28)),
    ((28, 24), "grey images of 28x", (1, 28, 24)),
    ((32, 30, 3), "channels last", (3, 32, 30)),
    ((16, 16, 1), "channels last", (1, 16, 16)),
    ((16, 16, 8), "channels last", (8, 16, 16)),
]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("shape", "words", "right"), LOOKS_WRONG)
def test_what_looks_wrong_is_refused_and_the_layouts_settle_it(entry, dtype, shape, words, right):
    x, make = np.zeros((N, *shape), dtype), ENTRIES[entry]
    with pytest.raises(DataError, match=words) as caught:
        make(x)
    layouts = re.findall(r"layout='(\w+)'", str(caught.value))
    assert set(layouts) == {"channels_first", "channels_last"}
    assert make(x, layout="channels_last").shape == right
    assert make(x, layout="channels_first").shape == shape
    assert tuple(make(x, layout="channels_last").batch([1]).images.shape) == (1, *right)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 32, 32), np.uint8),
        ((1, 4, 6), np.uint8),
        ((4, 64, 64), np.float32),
        ((16, 24, 24), np.float32),
        ((12, 1000), np.float32),
        ((3, 7), np.float32),
        ((1, 128), np.uint8),
        ((2,), np.float32),
        ((2, 9, 9, 9), np.float32),
    ],
)
def test_channels_first_is_taken_as_it_is(entry, shape, dtype):
    assert ENTRIES[entry](np.zeros((N, *shape), dtype)).shape == shape


def write(folder, x, suffix):
    path = folder / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, x)
    else:
        np.savez(path, x)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("shape", "right"),
    [
        ((3, 32, 32), (3, 32, 32)),
        ((32, 32, 3), (3, 32, 32)),
        ((1, 28, 28), (1, 28, 28)),
        ((28, 28), (1, 28, 28)),
        ((4, 4, 3), (3, 4, 4)),
        ((16, 24, 24), (16, 24, 24)),
        ((2,), (2,)),
    ],
)
def test_files_are_read_by_their_shape(tmp_path, suffix, shape, right):
    x = np.random.default_rng(0).integers(0, 256, (N, *shape)).astype(np.uint8)
    data = load(write(tmp_path, x, suffix))
    assert data.shape == right
    channels_last = np.moveaxis(x.reshape(N, *right) if shape in (right, (28, 28)) else np.moveaxis(x, -1, 1), 1, -1)
    assert np.array_equal(np.moveaxis(data.batch(range(N)).images.numpy(), 1, -1), channels_last)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("shape", "first", "last"), [((1, 128), (1, 128), (1, 1, 128)), ((9, 9, 9), (9, 9, 9), (9, 9, 9))]
)
def test_files_that_could_be_two_things_are_refused(tmp_path, capsys, suffix, shape, first, last):
    path = write(tmp_path, np.zeros((N, *shape), np.float32), suffix)
    with pytest.raises(DataError, match=r"layout='channels_"):
        load(path)
    assert load(path, layout="channels_first").shape == first
    assert load(path, layout="channels_last").shape == last
    assert run(["data", "check", str(path)]) == 2
    said = capsys.readouterr().err
    assert "--layout channels_first" in said and "--layout channels_last" in said
    assert run(["data", "check", str(path), "--layout", "channels_first"]) == 0
    assert "x".join(map(str, first)) in capsys.readouterr().out


def test_a_layout_that_is_none():
    for make in ENTRIES.values():
        with pytest.raises(OptionError, match="layout must be 'channels_first' or 'channels_last', got 'NHWC'"):
            make(np.zeros((N, 3, 8, 8), np.uint8), layout="NHWC")


def test_a_shape_settles_it_as_well():
    x = np.zeros((N, 28, 28), np.uint8)
    assert from_dataset(x, shape=(28, 28)).shape == (28, 28)
    assert from_dataset(TensorDataset(torch.from_numpy(x)), shape=(28, 28)).shape == (28, 28)
