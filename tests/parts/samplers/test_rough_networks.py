"""A network that errs, and few steps: what a solver extends must not carry it off to where no data is."""

from __future__ import annotations

import pytest

import diffkit
from diffkit.registry import registry
from diffkit.testing.oracles import GaussianOracle, network_of


@pytest.mark.parametrize("sampler", registry("sampler").built_in_names())
def test_ten_steps_keep_the_spread_of_the_data(sampler):
    """Data has a deviation of 0.3; eps is off by up to a tenth, and near level T that is 200 in x_start, clipped to 1.

    Before long steps had bounded weights, 'heun' took all samples to -1 or 1, and the demo's digits were none.
    """
    system = diffkit.compose(schedule="cosine", num_steps=100, backbone=None, data_shape=(2,), bins=256)
    exact = network_of(GaussianOracle(0.1, 0.3), system)
    rough = lambda x, time: exact(x, time) + 0.1 * (3 * x).cos()  # noqa: E731
    x = system.sample(64, steps=10, sampler=sampler, seed=0, model=rough, progress=False)
    assert 0.18 < float(x.std()) < 0.36
