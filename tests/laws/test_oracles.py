"""The oracles against numerical integration, and the strategies against their contracts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffkit.table import ProcessTable
from diffkit.testing import DiracOracle, GaussianOracle, MixtureOracle, SeparableMixtureOracle, strategies

LEVELS = [(1.0, 0.01), (0.9, 0.4), (0.3, 0.95), (1.0, 5.0), (0.05, 1.0)]
NORMAL = GaussianOracle(0.3, 0.5)
MIXTURE = MixtureOracle([1.0, 3.0], [[-0.8], [0.6]], 0.3)
GRID = torch.linspace(-8, 8, 64001, dtype=torch.float64)
X = torch.tensor([[-1.3], [0.05], [2.0]], dtype=torch.float64)


def prior(oracle):
    """Density of clean data on the grid."""
    return oracle.log_prob(GRID[:, None]).exp()


def joint(oracle, x, alpha, sigma):
    """Density of (x_start, x_t = x) on the grid of x_start."""
    away = (x - alpha * GRID) / sigma
    return prior(oracle) * torch.exp(-0.5 * away**2) / (sigma * math.sqrt(2 * math.pi))


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
@pytest.mark.parametrize("oracle", [NORMAL, MIXTURE])
class TestAgainstIntegration:
    def test_marginal_density(self, oracle, alpha, sigma):
        for x in X:
            integral = torch.trapezoid(joint(oracle, x, alpha, sigma), GRID)
            found = oracle.at(alpha, sigma).log_prob(x[None])
            assert abs(float(found.exp() - integral)) < 1e-9 * (1 + float(integral))

    def test_posterior_mean(self, oracle, alpha, sigma):
        for x in X:
            density = joint(oracle, x, alpha, sigma)
            if (mass := float(torch.trapezoid(density, GRID))) < 1e-200:
                continue
            integral = torch.trapezoid(GRID * density, GRID) / mass
            found = oracle.x_start(x[None], alpha, sigma)
            assert abs(float(found - integral)) < 1e-7

    def test_score_is_the_gradient_and_tweedies_formula_holds(self, oracle, alpha, sigma):
        at = oracle.at(alpha, sigma)
        x = X.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(at.log_prob(x).sum(), x)
        torch.testing.assert_close(at.score(X), gradient, rtol=1e-10, atol=1e-10)
        tweedie = (X + sigma**2 * at.score(X)) / alpha
        torch.testing.assert_close(oracle.x_start(X, alpha, sigma), tweedie, rtol=1e-8, atol=1e-8)

    def test_density_integrates_to_one(self, oracle, alpha, sigma):
        assert (
            abs(float(torch.trapezoid(oracle.at(alpha, sigma).log_prob(GRID[:, None] * 4).exp(), GRID * 4)) - 1) < 1e-6
        )


def test_posterior_variance_of_a_normal():
    for alpha, sigma in LEVELS:
        density = joint(NORMAL, X[1], alpha, sigma)
        mass, mean = torch.trapezoid(density, GRID), NORMAL.x_start(X[1:2], alpha, sigma)
        integral = torch.trapezoid((GRID - mean[0]) ** 2 * density, GRID) / mass
        assert abs(float(NORMAL.variance(alpha, sigma) - integral)) < 1e-8


def test_values_of_an_example_are_one_likelihood():
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    oracle = MixtureOracle([0.2, 0.8], torch.stack([torch.zeros(2, 4), torch.ones(2, 4)]), 0.5)
    parts = [GaussianOracle(m, 0.5).log_prob(x) + math.log(w) for m, w in ((0.0, 0.2), (1.0, 0.8))]
    torch.testing.assert_close(oracle.log_prob(x), torch.logsumexp(torch.stack(parts), 0))


def test_a_mixture_of_one_is_a_normal():
    one = MixtureOracle([2.0], [[0.3]], 0.5)
    for alpha, sigma in LEVELS:
        torch.testing.assert_close(one.x_start(X, alpha, sigma), NORMAL.x_start(X, alpha, sigma))
        torch.testing.assert_close(one.at(alpha, sigma).log_prob(X), NORMAL.at(alpha, sigma).log_prob(X))
    way = ((0.1, 1.0), (1.0, 0.1))
    torch.testing.assert_close(one.flow(X, *way), NORMAL.flow(X, *way), rtol=1e-9, atol=1e-9)


def test_flows_follow_the_ode_and_come_back():
    """d(x/alpha)/d(sigma/alpha) = eps, by central differences."""
    for oracle in (NORMAL, MIXTURE, DiracOracle(0.4)):
        x, h = X, 1e-4
        ahead, behind = (oracle.flow(x, (0.8, 0.6), (0.8, 0.6 + 0.8 * s * h)) for s in (1, -1))
        slope = (ahead - behind) / (2 * h * 0.8)
        eps = (x - 0.8 * oracle.x_start(x, 0.8, 0.6)) / 0.6
        torch.testing.assert_close(slope, eps, rtol=1e-5, atol=1e-5)
        there = oracle.flow(x, (0.8, 0.6), (0.2, 0.9))
        torch.testing.assert_close(oracle.flow(there, (0.2, 0.9), (0.8, 0.6)), x, rtol=1e-8, atol=1e-8)


def test_flow_carries_the_marginal_along():
    """Quantiles go to quantiles: the ODE is monotone in one dimension."""
    start, end = MIXTURE.at(0.3, 0.9), MIXTURE.at(1.0, 0.2)
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    y = MIXTURE.flow(x, (0.3, 0.9), (1.0, 0.2))
    for a, b in zip(x, y, strict=True):
        assert abs(share_below(start, float(a)) - share_below(end, float(b))) < 1e-5


def share_below(oracle, x):
    grid = torch.linspace(-12, x, 40001, dtype=torch.float64)
    return float(torch.trapezoid(oracle.log_prob(grid[:, None]).exp(), grid))


def test_dirac():
    oracle = DiracOracle([0.2, -0.3])
    x = torch.randn(4, 2)
    assert torch.equal(oracle.x_start(x, 0.1, 3.0), torch.tensor([[0.2, -0.3]]).expand(4, 2))
    assert oracle.log_prob(torch.tensor([[0.2, -0.3], [0.2, 0.0]])).tolist() == [math.inf, -math.inf]
    torch.testing.assert_close(oracle.at(0.5, 2.0).log_prob(x), GaussianOracle([0.1, -0.15], 2.0).log_prob(x))


def test_levels_may_differ_from_row_to_row():
    x = torch.randn(3, 2, dtype=torch.float64)
    alpha = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)[:, None]
    sigma = torch.tensor([0.1, 0.9, 1.0], dtype=torch.float64)[:, None]
    for oracle in (GaussianOracle([0.1, 0.2], 0.7), MixtureOracle([1, 2], torch.randn(2, 2), 0.7)):
        together = oracle.x_start(x, alpha, sigma)
        for i in range(3):
            alone = oracle.x_start(x[i : i + 1], float(alpha[i]), float(sigma[i]))
            torch.testing.assert_close(together[i : i + 1], alone)


@given(strategies.any_tables())
def test_tables_are_valid_and_of_their_path(table):
    assert isinstance(table, ProcessTable)
    assert np.all(np.diff(table.log_snr[1:]) < 0)


@pytest.mark.parametrize("path", ["vp", "ve", "linear"])
@given(data=st.data())
def test_tables_of_a_path(path, data):
    table = data.draw(strategies.tables(path))
    quantity = {"vp": table.total_std, "ve": table.alpha, "linear": table.alpha + table.sigma}[path]
    np.testing.assert_allclose(quantity, 1, rtol=1e-12)


@settings(max_examples=20)
@given(st.data())
def test_other_strategies(data):
    shares = data.draw(strategies.alpha_bars(no_signal=True))
    assert shares[0] == 1 and shares[-1] == 0 and np.all(np.diff(shares) < 0)
    assert ProcessTable.from_alpha_bar(shares).log_snr[-1] == -np.inf
    level = data.draw(strategies.levels(7, batch=5))
    assert level.shape == (5,) and level.dtype == torch.int64 and 1 <= level.min() <= level.max() <= 7
    image = data.draw(strategies.images((2, 1, 3), bins=17))
    assert image.shape == (2, 1, 3) and image.dtype == torch.float32 and image.abs().max() <= 1
    assert ((image.double() + 1) * 8 - ((image.double() + 1) * 8).round()).abs().max() < 1e-5


SEPARABLE = SeparableMixtureOracle([0.4, 0.6], [-0.9, 0.8], [0.35, 0.35])


def test_quantiles_solve_the_ode():
    same = MixtureOracle([0.4, 0.6], [[-0.9], [0.8]], 0.35)
    t, s = (0.3, 0.9), (0.95, 0.2)
    torch.testing.assert_close(SEPARABLE.flow(X, t, s), same.flow(X, t, s, steps=500), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(SEPARABLE.x_start(X, *t), same.x_start(X, *t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(SEPARABLE.log_prob(X), same.log_prob(X), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(SEPARABLE.at(*t).log_prob(X), same.at(*t).log_prob(X), rtol=1e-12, atol=1e-12)


def test_the_flow_map_of_quantiles_composes_and_stays():
    """X(m, s) X(t, m) = X(t, s) and X(t, t) = id, from pure noise to clean data, in the tails too."""
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)[:, None]
    t, m, s = (0.0, 1.0), (0.6, 0.7), (1.0, 0.0)
    flow = SEPARABLE.flow
    torch.testing.assert_close(flow(flow(x, t, m), m, s), flow(x, t, s), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(flow(flow(x, t, s), s, t), x, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(flow(x, m, m), x, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own decompositions
def test_the_flow_map_of_quantiles_has_derivatives():
    """The flow map to clean data does not change along the ODE: dX/dt + dX/dx v = 0."""
    u = torch.full_like(X, 0.6)
    v = (X - SEPARABLE.x_start(X, 0.4, 0.6)) / 0.6
    to_clean = lambda x, u: SEPARABLE.flow(x, (1 - u, u), (1 + 0 * u, 0 * u))  # noqa: E731
    _, change = torch.func.jvp(to_clean, (X, u), (v, torch.ones_like(u)))
    assert change.abs().max() < 1e-11
