"""Predictor and corrector, written out by the score, and what the corrector mends."""

from __future__ import annotations

import itertools

import pytest
import torch

import diffkit
from diffkit.testing.oracles import MixtureOracle, network_of

SYSTEM = diffkit.compose(backbone=None, data_shape=(1, 1), bins=None, rescale_time=False)
DATA = MixtureOracle([0.3, 0.7], torch.tensor([-0.8, 0.5]).view(2, 1, 1), 0.25)


def drawn(x: torch.Tensor, sampler: object, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    return SYSTEM.sample_from(network_of(DATA, SYSTEM), x, noise, SYSTEM.table_for(steps), sampler=sampler)


@pytest.mark.parametrize("bounded", [True, False])
def test_steps_are_those_of_algorithm_1(bounded: bool):
    snr, network, table = 0.3, network_of(DATA, SYSTEM), SYSTEM.table_for(60)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(5, 1, 1)
    found = drawn(x, ("predictor_corrector", {"snr": snr, "bounded": bounded}), 60)

    def eps(x: torch.Tensor, k: int) -> torch.Tensor:
        return network(x, torch.full((5,), table.time[k], dtype=torch.float64))

    generator = torch.Generator().manual_seed(1)
    for t, s in itertools.pairwise(range(60, -1, -1)):
        x = table.alpha[s] / table.alpha[t] * (x - table.sigma[t] * eps(x, t)) + table.sigma[s] * eps(x, t)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        if s == 0:
            break
        ancestral = 1 - (table.sigma[s] * table.alpha[t] / (table.sigma[t] * table.alpha[s]))
        squared = min(snr**2, ancestral / 2) if bounded else snr**2
        step = 2 * squared * table.sigma[s] ** 2
        x = x - step * eps(x, s) / table.sigma[s] + (2 * step * (1 - squared)) ** 0.5 * noise
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)


def test_the_corrector_forgets_a_wrong_start():
    """Half the noise: 100 steps of the probability flow carry it into the samples, the corrector loses it."""
    x = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400).view(-1, 1, 1)
    std = (0.3 * 0.8**2 + 0.7 * 0.5**2 - 0.11**2 + 0.25**2) ** 0.5
    errors = {
        name: max(abs(float(found.std()) - std), abs(float(found.mean()) - 0.11))
        for name in ("ddim", "predictor_corrector")
        for found in [drawn(x / 2, name, 100)]
    }
    assert errors["predictor_corrector"] < 0.05 and errors["ddim"] > 0.2, errors
