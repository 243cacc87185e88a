"""Where the values of data lie."""

from __future__ import annotations

import numpy as np
import pytest

from diffkit.data import from_array, load
from diffkit.data.ranges import range_of


@pytest.mark.parametrize(
    ("scale", "shift", "words"),
    [(255, 0, "0..255"), (1, 0, "0..1"), (300, 0, "0..300"), (40, -20, "-20..20"), (0.02, -0.01, "-0.01..0.01")],
)
def test_values_that_no_network_expects(scale, shift, words):
    x = np.linspace(0, 1, 100 * 9).reshape(100, 1, 3, 3) * scale + shift
    found = range_of(from_array(x))
    assert str(found) == words
    assert found.remark == (
        f"values lie in {words}; networks expect about [-1, 1]: store images as uint8, or scale the values"
    )


def test_values_of_about_unit_size():
    assert range_of(load("points")).remark is None
    assert range_of(from_array(np.linspace(-1, 1, 36).reshape(4, 1, 3, 3))).remark is None


def test_data_on_bins_says_its_range_itself():
    assert range_of(from_array(np.zeros((4, 1, 3, 3), np.uint8))) is None
