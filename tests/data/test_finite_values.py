"""Values that are not finite: the examples that hold them are named wherever they come in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import diffkit
from diffkit.data import LowRes, from_array, from_dataset
from diffkit.data.loading import as_data, load
from diffkit.data.ranges import range_of
from diffkit.errors import DataError, OptionError
from diffkit.evaluation import evaluate

BAD = [float("nan"), float("inf"), -float("inf")]


def values(count=100, bad=BAD[0], at=(57,)):
    x = torch.rand(count, 1, 8, 8) * 2 - 1
    x[list(at), 0, 3, 3] = bad
    return x


def system(**more):
    return diffkit.compose(backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(1, 8, 8), bins=None, **more)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "read",
    [
        from_array,
        from_dataset,
        lambda x: from_dataset((x, torch.zeros(len(x), dtype=torch.int64))),
        lambda x: from_dataset(TensorDataset(x)),
        lambda x: from_array(x, bins=256),
    ],
)
def test_sources_name_the_example(read, bad):
    with pytest.raises(DataError, match=r"example 57 holds NaN or infinity.*; correct or remove such examples"):
        read(values(bad=bad))


def test_files_name_the_example(tmp_path):
    np.save(tmp_path / "x.npy", values(3000, at=(1500, 2100)).numpy())
    with pytest.raises(DataError, match="example 1500 holds NaN or infinity"):
        load(tmp_path / "x.npy")


class Items(list):
    """A dataset of the user's own, of which only some items are looked at beforehand."""


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unchecked_example_ends_the_run_by_name(tmp_path, workers):
    data = from_dataset(Items(values()))
    with pytest.raises(DataError, match="example 57 holds NaN or infinity; correct or remove such examples"):
        diffkit.train(system(), data, out=tmp_path / "r", steps=40, batch_size=8, workers=workers, progress=False)


def test_conditions_and_held_out_data(tmp_path):
    good = from_dataset(Items(values(bad=0.0)))
    with pytest.raises(DataError, match="example 57 holds NaN or infinity"):
        diffkit.train(
            system(), good, val=from_dataset(Items(values())), out=tmp_path / "r", steps=1, batch_size=8, progress=False
        )
    with pytest.raises(DataError, match="example 3 holds NaN or infinity in low_res; correct or remove"):
        from_dataset([(torch.zeros(1, 8, 8), {"low_res": row}) for row in values(16, at=(3,))])


def test_what_is_looked_at_for_a_note():
    with pytest.raises(DataError, match="example 0 holds NaN or infinity"):
        range_of(as_data(LowRes(_Raw(values(at=(0,))), 4)))


class _Raw:
    """Data of a class of the user's own."""

    shape, bins, classes = (1, 8, 8), None, None

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], {}


@pytest.mark.parametrize("bins", [None, 256])
@pytest.mark.parametrize("bad", BAD)
def test_methods_of_a_system_on_the_cpu(bins, bad):
    one = diffkit.compose(
        schedule="cosine", num_steps=10, backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(1, 8, 8), bins=bins
    )
    x = values(4, bad, at=(2,))
    for call in (one, one.bits_per_dim, lambda x: one.encode(x, sampler="ddim")):
        with pytest.raises(OptionError, match="x_start is not finite: example 2 holds NaN or infinity"):
            call(x)
    with pytest.raises(OptionError, match="start is not finite: example 2 holds NaN or infinity"):
        one.sample(4, start=x)


def test_samples_that_are_evaluated(tmp_path):
    np.save(tmp_path / "s.npy", values(30, at=(7,)).numpy())
    with pytest.raises(DataError, match="example 7 holds NaN or infinity"):
        evaluate(tmp_path / "s.npy", values(60, bad=0.0), extractor=torch.nn.Flatten(), metrics=["fid"])
