"""Which earlier estimates a multistep solver uses, by the relative length of its step."""

from __future__ import annotations

import numpy as np
import pytest

from diffkit.parts.samplers._multistep import relative_steps


@pytest.mark.parametrize(
    ("end", "wanted"),
    [
        (6.0, [-1, -2, -3]),  # even steps: all
        (5.0, [-1 / 2, -1, -3 / 2]),  # twice as long: still all
        (4.0, [-1 / 3, np.nan, np.nan]),  # three times: a line, no curve
        (3.0, [np.nan, np.nan, np.nan]),  # four times: none
        (6.5, [-2, -4, -6]),
        (-np.inf, [np.nan, np.nan, np.nan]),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_long_step_leaves_estimates_out(end, wanted, sign):
    t, s = sign * np.array([10.0, 9, 8, 7]), sign * np.array([9.0, 8, 7, end])
    found = relative_steps(t, s, 3)
    np.testing.assert_allclose(found[-1], wanted, rtol=1e-15)
    assert np.isnan(found[0]).all() and np.isnan(found[1, 1:]).all()  # the ramp-up


def test_a_repeated_level_ends_the_history():
    t, s = np.array([9.0, 8, 8, 7]), np.array([8.0, 8, 7, 6])
    np.testing.assert_array_equal(relative_steps(t, s, 2)[2], [np.nan, np.nan])
    np.testing.assert_array_equal(relative_steps(t, s, 2)[3], [-1, np.nan])
