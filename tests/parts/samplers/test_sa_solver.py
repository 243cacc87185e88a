"""SA-Solver, written out: predict, evaluate, correct, with polynomials integrated by quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import diffkit

SYSTEM = diffkit.compose(backbone=None, data_shape=(1, 1, 2), bins=None, rescale_time=False)
TABLE = SYSTEM.table_for("karras12:exact:sigma_max=20:sigma_min=0.05")
X = torch.linspace(-2, 2, 4, dtype=torch.float64).view(2, 1, 1, 2)
PUBLISHED = {"lower_order_long": False}


def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return 0.8 * x + 0.3 * torch.sin(3 * x) * (time / 1000).view(-1, 1, 1, 1)


def sample(sampler: tuple[str, dict[str, object]]) -> torch.Tensor:
    noises = iter(np.random.default_rng(0).standard_normal((12, *X.shape)))
    return SYSTEM.sample_from(network, X, lambda: torch.from_numpy(next(noises)), TABLE, sampler=sampler)


@pytest.mark.parametrize("estimates", [1, 2, 3])
def test_without_noise_it_is_unipc(estimates: int) -> None:
    found = sample(("sa_solver", {"tau": 0.0, "estimates": estimates}))
    torch.testing.assert_close(found, sample(("unipc", {"estimates": estimates})), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("estimates", [2, 3])
def test_steps_are_those_of_algorithm_1(estimates: int, corrected: bool) -> None:
    tau, nodes, weights = 0.8, *np.polynomial.legendre.leggauss(40)
    alpha, sigma = TABLE.alpha[::-1], TABLE.sigma[::-1]
    lam = TABLE.log_snr[::-1] / 2

    def integral(i: int, known: dict[int, torch.Tensor]) -> torch.Tensor:
        """Of the polynomial through estimates at levels, over the step from i."""
        h = lam[i + 1] - lam[i]
        u, length = (1 + nodes) / 2, (1 + tau**2) * h
        places = {k: (lam[k] - lam[i]) / h for k in known}
        weight = length * np.exp(-length * (1 - u)) * weights / 2
        if len(known) == 2:  # by the middle of the step
            u = np.full_like(u, 0.5)
        basis = {k: np.prod([(u - v) / (places[k] - v) for j, v in places.items() if j != k], axis=0) for k in known}
        return alpha[i + 1] * sum((weight * basis[k]).sum() * d for k, d in known.items())

    noises = np.random.default_rng(0).standard_normal((12, *X.shape))
    estimates_at: dict[int, torch.Tensor] = {}
    x, before, y = X, X, X
    for i in range(12):
        eps = network(x, torch.full((2,), TABLE.time[12 - i], dtype=torch.float64))
        estimates_at[i] = (x - sigma[i] * eps) / alpha[i]
        last = sorted(estimates_at)[-estimates:]
        if i and corrected:
            known = {k: estimates_at[k] for k in sorted(estimates_at)[-estimates - 1 :]}
            x = y + integral(i - 1, known)
        before = x
        if i == 11:
            break
        drift = tau**2 * (lam[i + 1] - lam[i])
        y = sigma[i + 1] / sigma[i] * np.exp(-drift) * before
        y = y + sigma[i + 1] * np.sqrt(-np.expm1(-2 * drift)) * torch.from_numpy(noises[i])
        x = y + integral(i, {k: estimates_at[k] for k in last})
    options = {"estimates": estimates, "tau": tau, "s_tmin": 0.0, "s_tmax": 1e3, "corrected": corrected, **PUBLISHED}
    torch.testing.assert_close(sample(("sa_solver", options)), estimates_at[11], rtol=1e-10, atol=1e-10)
