"""Masked values are never read as numbers, and arrays of every floating type are."""

import numpy as np
import pytest
import torch

import diffkit
from diffkit.data.loading import load
from diffkit.data.parallel import map_in_order
from diffkit.errors import DataError, OptionError


def masked(dtype: str = "float32") -> np.ma.MaskedArray:
    values = np.zeros((6, 1, 4, 4), dtype)
    return np.ma.masked_array(values, mask=np.arange(values.size).reshape(values.shape) % 7 == 0)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_masked_examples_are_refused_until_they_are_filled(dtype):
    with pytest.raises(DataError, match=r"images have masked values.*fill them by images\.filled"):
        load(masked(dtype))
    assert len(load(masked(dtype).filled(0))) == 6
    with pytest.raises(DataError, match=r"item 0 has masked values.*x\.filled"):
        diffkit.data.from_dataset(list(masked(dtype)))


def test_masked_labels_are_refused_until_they_are_filled():
    labels = np.ma.masked_array([0, 1, 1, 0, 1, 0], mask=[0, 0, 1, 0, 0, 0])
    with pytest.raises(DataError, match=r"labels have masked values; fill them by labels\.filled\(-1\)"):
        load(masked().filled(0), labels=labels)
    data = load(masked().filled(0), labels=labels.filled(-1))
    assert data.batch([1, 2]).conditions["y"].tolist() == [1, -1]


def test_bfloat16_is_read_as_it_is():
    images = torch.linspace(-1, 1, 96).reshape(6, 1, 4, 4).bfloat16()
    assert torch.equal(load(images).batch(range(6)).images, images.float())


def test_examples_carry_no_graph():
    items = [torch.zeros(1, 4, 4, requires_grad=True) * 2 for _ in range(6)]
    assert not diffkit.data.from_dataset(items).batch([0, 1]).images.requires_grad


def test_more_processes_than_help_are_refused():
    with pytest.raises(OptionError, match="processes=1000000 is more than are useful; pass at most"):
        next(map_in_order(len, ["a"], 1_000_000))
