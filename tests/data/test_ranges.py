"""Where the values of data lie."""

from __future__ import annotations

import re

import numpy as np
import pytest

import diffkit
from diffkit.data import from_array
from diffkit.data.loading import load
from diffkit.data.ranges import range_of
from diffkit.errors import DataError


@pytest.mark.parametrize(
    ("scale", "shift", "words", "remedy"),
    [
        (255, 0, "0..255", "store images as uint8, or scale them by x / 127.5 - 1"),
        (1, 0, "0..1", "scale them by 2 * x - 1"),
        (300, 0, "0..300", "store images as uint8, or scale the values, such as by codec 'standardize'"),
        (40, -20, "-20..20", "store images as uint8, or scale the values, such as by codec 'standardize'"),
        (0.02, -0.01, "-0.01..0.01", "store images as uint8, or scale the values, such as by codec 'standardize'"),
    ],
)
def test_values_that_no_network_expects(scale, shift, words, remedy):
    x = np.linspace(0, 1, 100 * 9).reshape(100, 1, 3, 3) * scale + shift
    found = range_of(from_array(x))
    assert str(found) == words
    assert found.remark == f"values lie in {words}; networks expect about [-1, 1]: {remedy}"


@pytest.mark.parametrize(("scale", "remedy"), [(1, "2 * x - 1"), (255, "x / 127.5 - 1")])
def test_the_remedy_leads_to_values_that_are_expected(scale, remedy):
    x = np.linspace(0, 1, 900).reshape(100, 1, 3, 3) * scale
    assert remedy in range_of(from_array(x)).remark
    assert range_of(from_array(eval(remedy, {"x": x}))).remark is None
    with pytest.raises(DataError, match=re.escape("must lie in [-1, 1], got values in [0, ")):
        from_array(x, bins=256)
    assert from_array(eval(remedy, {"x": x}), bins=256).bins == 256


def test_values_far_from_zero():
    x = 3 + np.linspace(-4, 4, 900).reshape(100, 1, 9) / 3
    assert range_of(from_array(x)).remark is not None
    assert range_of(from_array(x - 2)).remark is None


def test_values_of_about_unit_size():
    assert range_of(load("points")).remark is None
    assert range_of(from_array(np.linspace(-1, 1, 36).reshape(4, 1, 3, 3))).remark is None


def test_data_on_bins_has_a_known_range():
    assert range_of(from_array(np.zeros((4, 1, 3, 3), np.uint8))) is None


@pytest.mark.parametrize(
    ("low", "high", "advice", "mend"),
    [
        (0, 1, r"scale images by 2 \* x - 1 and load them with bins=256", lambda x: from_array(2 * x - 1, bins=256)),
        (0, 255, "give images as uint8", lambda x: from_array(x.astype(np.uint8))),
        (-1, 1, "load images with bins=256; use bins=None", lambda x: from_array(x, bins=256)),
        (-3, 3, "use bins=None", None),
        (0, 9000, "use bins=None", None),
    ],
)
def test_images_as_floating_point_are_advised_to_be_scaled(tmp_path, low, high, advice, mend):
    """For a system on bins, and not to give up its bins."""
    x = np.linspace(low, high, 40 * 16).reshape(40, 1, 4, 4)
    backbone, more = ("mlp", {"hidden": 8, "depth": 1}), dict(steps=1, batch_size=4, progress=False)
    system = diffkit.compose(backbone=backbone, data_shape=(1, 4, 4))
    with pytest.raises(DataError, match=advice) as caught:
        diffkit.train(system, from_array(x), out=tmp_path / "a", **more)
    assert mend is None or "use bins=None" not in str(caught.value) or low == -1
    if mend is None:
        system = diffkit.compose(backbone=backbone, data_shape=(1, 4, 4), bins=None)
    diffkit.train(system, from_array(x) if mend is None else mend(x), out=tmp_path / "b", **more)
