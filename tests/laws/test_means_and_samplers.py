"""Decoding undoes the target; DDIM at eta = 1 is ancestral sampling; an exact denoiser is sampled exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diffkit
from diffkit.registry import registry
from diffkit.system.coefficients import scalings
from diffkit.table import ProcessTable, respace
from diffkit.testing import DiracOracle, GaussianOracle, network_of, strategies

MEANS = registry("mean").built_in_names()
EDGES = [1, 2, 3, 20, 4000]


def system_of(**parts):
    plain = dict(schedule="cosine", backbone=None, data_shape=(2, 3), bins=None, loss="vlb", var="fixed_small")
    return diffkit.compose(**plain | dict(num_steps=20) | parts)


@pytest.mark.parametrize("mean", MEANS)
@given(strategies.any_tables(), st.floats(-1, 1), st.floats(-3, 3))
def test_decoding_the_target_gives_x_start(mean, table, x_start, eps):
    c_skip, c_out, _ = (column[1:] for column in scalings(registry("mean").create(mean), table))
    alpha, sigma = table.alpha[1:], table.sigma[1:]
    p, q = (1 - c_skip * alpha) / c_out, -c_skip * sigma / c_out
    found = c_skip * (alpha * x_start + sigma * eps) + c_out * (p * x_start + q * eps)
    size = 1 + np.abs(c_skip) * (alpha + 3 * sigma)  # what is subtracted from what
    assert np.all(np.abs(found - x_start) <= 1e-14 * size + 1e-12)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("num_steps", EDGES)
def test_an_exact_network_has_no_loss_at_any_level(mean, num_steps):
    system = system_of(mean=mean, num_steps=num_steps, loss="simple")
    point = torch.linspace(-0.9, 0.8, 6, dtype=torch.float64).view(2, 3)
    level = torch.arange(1, num_steps + 1)[:: max(1, num_steps // 50)]
    x_start = point.expand(len(level), 2, 3)
    noise = torch.randn(x_start.shape, dtype=torch.float64)
    terms = system.loss_terms(network_of(DiracOracle(point), system), x_start, level, noise)
    assert terms["loss"].max() < 1e-12


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("sampler", registry("sampler").built_in_names())
def test_every_sampler_finds_the_one_point_there_is(mean, sampler):
    """Network, parameterization and sampler together, in float32, through the system."""
    system = system_of(mean=mean, sampler=sampler, num_steps=50)
    point = torch.tensor([[0.5, -0.25, 0.0], [1.0, -1.0, 0.125]])
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(4, 2, 3, generator=noise)
    found = system.sample_from(network_of(DiracOracle(point), system), x, lambda: torch.randn(x.shape, generator=noise))
    assert (found - point).abs().max() < 1e-4  # eps at level T is divided by alpha_T


@given(strategies.any_tables())
def test_ddim_at_eta_1_has_the_posteriors_variance_and_mean(table):
    steps = table.steps()
    plan = registry("sampler").create("ddim", eta=1.0).plan(steps)
    posterior = steps.posterior()
    size = np.maximum(steps.s.sigma, 1e-3)
    assert np.all(np.abs(plan["noise"] ** 2 - posterior.variance) <= 1e-12 * size**2)
    assert np.all(np.abs(plan["x"] - posterior.coef_x_t) <= 1e-6 * (1 + posterior.coef_x_t))
    assert np.all(np.abs(plan["x"] ** 2 - posterior.coef_x_t**2) <= 1e-12 * (size / steps.t.sigma) ** 2)


@pytest.mark.parametrize("num_steps", EDGES)
def test_ddim_at_eta_1_is_finite_at_every_length(num_steps):
    """The published code takes the root of a rounding error below 0 there."""
    table = registry("schedule").create("cosine").table(num_steps)
    plan = registry("sampler").create("ddim", eta=1.0).plan(table.steps())
    assert all(np.all(np.isfinite(column)) for column in plan.values())
    assert plan["noise"][-1] == 0 and plan["x"][-1] == 0 and plan["x_start"][-1] == 1


@given(strategies.tables("vp", 2), st.data())
def test_a_respaced_sampler_uses_the_selected_levels_only(table, data):
    keep = data.draw(strategies.respacings(table.num_steps))
    short = respace(table, keep)
    alone = ProcessTable.from_alpha_sigma(short.alpha[1:], short.sigma[1:])
    for name in ("ancestral", "ddim"):
        sampler = registry("sampler").create(name)
        ours, theirs = sampler.plan(short.steps()), sampler.plan(alone.steps())
        for column in ours:
            lost = 1e-14 / np.min(short.beta[1:]) + 1e-14 / np.min(short.one_minus_alpha_bar[1:])
            assert np.all(np.abs(ours[column] - theirs[column]) <= 1e-9 + lost)


@settings(max_examples=10)
@given(st.floats(-0.5, 0.5), st.floats(0.2, 1.5))
def test_a_gaussian_is_sampled_as_what_it_is(mean, std):
    """DDIM on 400 levels from exact start: the end is the ODE's, to the method's order."""
    system = system_of(sampler="ddim", num_steps=400, data_shape=(1,))
    oracle, table = GaussianOracle(mean, std), system.table
    z = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    x = oracle.at(float(table.alpha[-1]), float(table.sigma[-1])).sample(z)
    found = system.sample_from(network_of(oracle, system), x, None)
    assert (found - oracle.sample(z)).abs().max() < 0.02 * (1 + std)


@pytest.mark.parametrize("var", ["fixed_small", "fixed_large"])
def test_the_bound_of_an_exact_network_is_the_likelihood_and_what_its_variance_costs(var):
    """Nats to bits, prior, KLs and decoder term together, against closed forms: the mean is right, so at each level
    just the wrong variance is paid for, ``KL = (v/c - 1 - log(v/c)) / 2``, v exact and c the part's.
    """
    system = system_of(num_steps=50, var=var, data_shape=(4,))
    oracle, table = GaussianOracle(0.1, 0.7), system.table
    x = oracle.sample(torch.randn(2000, 4, generator=torch.Generator().manual_seed(1)))
    bound = system.bits_per_dim(x, model=network_of(oracle, system), seed=3, rows_per_call=20_000)
    exact = -oracle.log_prob(x) / (4 * np.log(2))
    gap, error = (bound.total - exact).mean(), (bound.total - exact).std() / len(x) ** 0.5

    unknown = oracle.variance(torch.from_numpy(table.alpha[1:]), torch.from_numpy(table.sigma[1:])).numpy()
    posterior = table.posterior()
    right = posterior.variance[1:] + posterior.coef_x_start[1:] ** 2 * unknown
    chosen = np.exp(system.parts.var.columns(table)["log_variance"][1:])
    ratio = right / chosen
    at_end = (table.alpha[-1] * 0.1, table.alpha[-1] ** 2 * 0.49 + table.sigma[-1] ** 2)
    prior = (at_end[1] + at_end[0] ** 2 - 1 - np.log(at_end[1])) / 2
    wanted = (np.sum(ratio - 1 - np.log(ratio)) / 2 + prior) / np.log(2)
    assert abs(float(gap) - wanted) < 5 * float(error)
    assert wanted > 0.01 > float(error) / 10
