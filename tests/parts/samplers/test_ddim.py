"""DDIM with the network's own eps beside a clipped estimate of x_start."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import diffkit


def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return 0.7 * x + 0.2


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_own_eps_is_not_computed_from_the_clipped_estimate(eta: float) -> None:
    """Song et al. 2021, eq. 12, x_start clipped and eps as predicted: diffusers' use_clipped_model_output=False."""
    system = diffkit.compose(backbone=None, data_shape=(1, 2, 2), clip_x_start=True)
    table = system.table_for(6)
    start = torch.linspace(-3, 3, 8, dtype=torch.float64).view(2, 1, 2, 2)
    noises = iter(np.random.default_rng(0).standard_normal((6, 2, 1, 2, 2)))
    y = start
    for k in range(6, 0, -1):
        eps = network(y, torch.zeros(2))
        x_start = ((y - table.sigma[k] * eps) / table.alpha[k]).clamp(-1, 1)
        std = eta * table.sigma[k - 1] * np.sqrt(-np.expm1(table.log_snr[k] - table.log_snr[k - 1]))
        y = table.alpha[k - 1] * x_start + np.sqrt(max(table.sigma[k - 1] ** 2 - std**2, 0)) * eps
        y = y + (std * torch.from_numpy(next(noises)) if eta else 0)
    noises = iter(np.random.default_rng(0).standard_normal((6, 2, 1, 2, 2)))
    sampler = ("ddim", {"eta": eta, "clipped_eps": False})
    found = system.sample_from(network, start, lambda: torch.from_numpy(next(noises)), table, sampler=sampler)
    torch.testing.assert_close(found, y, rtol=1e-12, atol=1e-12)
    clipped = system.sample_from(network, start, lambda: start, table, sampler=("ddim", {"eta": eta}))
    assert not torch.allclose(found, clipped)
    samplers = ("ddim", {"eta": eta}), sampler
    free = [system.sample_from(network, start, lambda: start, table, sampler=s, clip=False) for s in samplers]
    torch.testing.assert_close(*free, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("clip", "steps"), [(False, 8), (True, 2)])
def test_inversion_at_the_time_of_the_level_gone_to(clip: bool, steps: int) -> None:
    """diffusers' DDIMInverseScheduler, and the loop of prompt-to-prompt's null-text inversion."""
    system = diffkit.compose(backbone=None, data_shape=(1, 2, 2), rescale_time=False, clip_x_start=clip)
    sampler = ("ddim", {"clipped_eps": False})
    table = system.table_for(steps)
    x = torch.linspace(-1, 1, 8).view(2, 1, 2, 2)

    def by_time(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return (time / 500).sin().view(-1, 1, 1, 1) - 0.3 * x

    y = x.double()
    for k in range(steps):
        eps = by_time(y, torch.full((2,), table.time[k + 1]))
        x_start = (y - table.sigma[k] * eps) / table.alpha[k]
        x_start = x_start.clamp(-1, 1) if clip else x_start
        y = table.alpha[k + 1] * x_start + table.sigma[k + 1] * eps
    found = system.encode(x, steps=steps, model=by_time, sampler=sampler, time_of="end")
    torch.testing.assert_close(found, y.float(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, system.encode(x, steps=steps, model=by_time, sampler=sampler), rtol=1e-3)
    latent = diffkit.tasks.invert(
        system, x, steps=steps, model=by_time, sampler=sampler, time_of="end", progress=False
    ).latent
    assert torch.equal(latent, found)
    with pytest.raises(diffkit.DiffkitError, match="time_of must be 'start' or 'end', got 'both'"):
        system.encode(x, model=by_time, time_of="both")
