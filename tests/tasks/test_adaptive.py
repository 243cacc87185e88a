"""Sampling by steps of controlled error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import diffkit
from diffkit.errors import DiffkitError
from diffkit.tasks import sample_adaptive
from diffkit.testing.oracles import MixtureOracle

SYSTEM = diffkit.compose(backbone=None, data_shape=(1, 1), bins=None, rescale_time=False)
DATA = MixtureOracle(torch.ones(2), torch.tensor([-0.7, 0.6]).view(2, 1, 1), 0.2)
START = torch.linspace(-2, 2, 16, dtype=torch.float64).view(16, 1, 1)


def exact_network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """eps of the mixture at any real time, all rows at the same."""
    table = SYSTEM.table
    ratio = np.exp(np.interp(float(time[0]), table.time[1:], np.log(table.sigma[1:] / table.alpha[1:])))
    alpha = 1 / np.sqrt(1 + ratio**2)
    return (x - alpha * DATA.x_start(x, alpha, alpha * ratio)) / (alpha * ratio)


@pytest.fixture(scope="module")
def solution():
    how = {"sampler": "rk4", "start": START, "model": exact_network, "progress": False}
    return SYSTEM.sample(16, steps="exponential200", **how)


@pytest.mark.parametrize("solver", ["dpm_solver_23", "dpm_solver_12", "heun_12"])
def test_the_error_follows_the_tolerances(solver, solution):
    errors, counts = [], []
    for tolerance in (1e-1, 1e-3):
        how = {"solver": solver, "rtol": tolerance, "atol": tolerance / 10}
        found = sample_adaptive(SYSTEM, 16, start=START, model=exact_network, **how)
        errors.append(float((found.samples - solution).abs().max()))
        counts.append(found.evaluations)
        assert np.all(np.diff(found.log_snr) > 0) and f"{found.evaluations} evaluations" in str(found)
    assert errors[1] < errors[0] / 5 and errors[0] < 0.1 and counts[0] < counts[1], (errors, counts)


def test_it_starts_without_signal_and_ends_where_the_grid_does():
    silent = diffkit.compose(schedule="zero_snr", mean="v", backbone="mlp", data_shape=(1, 4, 4))
    found = sample_adaptive(silent, 2, seed=0, rtol=0.5)
    assert found.log_snr[0] == -np.inf and found.log_snr[-1] == np.inf and found.samples.isfinite().all()
    assert torch.equal(found.samples, sample_adaptive(silent, 2, seed=0, rtol=0.5).samples)
    short = sample_adaptive(silent, 2, seed=0, steps="karras2:exact:sigma_min=0.1:sigma_max=5", final="sigma_min")
    np.testing.assert_allclose(np.exp(-short.log_snr[[0, -1]] / 2), [5, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "rk45"}, "solver must be one of 'dpm_solver_23', 'dpm_solver_12', 'heun_12', got 'rk45'"),
        ({"rtol": 0}, "rtol must be > 0, got 0"),
        ({"safety": 1.0}, "safety must be > 0 and < 1, got 1"),
        ({"sampler": "heun"}, "sampler"),
        ({"model": lambda x, time: x / 0}, "an error is not finite"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(DiffkitError, match=message):
        sample_adaptive(SYSTEM, 2, **{"model": exact_network, **options})
