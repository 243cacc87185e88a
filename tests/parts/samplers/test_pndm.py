"""PLMS with its first step taken twice, written out as latent diffusion and diffusers have it."""

from __future__ import annotations

import pytest
import torch

import diffkit

ADAMS_BASHFORTH = {
    1: [1],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return 0.5 * x + 0.3 * torch.sin(3 * x) * (time / 1000).view(-1, 1, 1, 1)


@pytest.mark.parametrize("steps", [1, 2, 3, 9, "karras7:exact"])
def test_the_first_step_is_taken_again_by_the_mean_of_both_ends(steps: int | str) -> None:
    system = diffkit.compose(backbone=None, data_shape=(1, 1, 2), bins=None, rescale_time=False)
    table = system.table_for(steps)
    alpha, sigma, n = table.alpha, table.sigma, table.num_steps
    start = torch.linspace(-2, 2, 4, dtype=torch.float64).view(2, 1, 1, 2)

    def eps_at(x: torch.Tensor, k: int) -> torch.Tensor:
        return network(x, torch.full((2,), table.time[k], dtype=torch.float64))

    def ddim(x: torch.Tensor, eps: torch.Tensor, k: int) -> torch.Tensor:
        return alpha[k - 1] / alpha[k] * (x - sigma[k] * eps) + sigma[k - 1] * eps

    x, known = start, list[torch.Tensor]()
    for k in range(n, 0, -1):
        known = [eps_at(x, k), *known][:4]
        weights = ADAMS_BASHFORTH[len(known)]
        eps = sum(w * e for w, e in zip(weights, known, strict=True))
        if k == n > 1:
            eps = (known[0] + eps_at(ddim(x, known[0], k), k - 1)) / 2
        x = ddim(x, eps, k)
    found = system.sample_from(network, start, None, table, sampler=("pndm", {"start": "heun"}))
    torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)
