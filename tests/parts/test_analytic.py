"""Analytic-DPM's variance: the best there is for a measured error, with even and with the best levels."""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest
import torch

import diffkit
from diffkit.errors import CompositionError, OptionError
from diffkit.parts.variances.analytic import Analytic
from diffkit.spacing import levels
from diffkit.spacing.optimal import chain_bits, optimal_levels
from diffkit.testing.oracles import GaussianOracle, MixtureOracle, network_of

ORACLE = MixtureOracle([0.3, 0.7], [[-0.6, 0.1], [0.5, -0.3]], 0.2)
T = 60


def make(var):
    return diffkit.compose(schedule="cosine", num_steps=T, data_shape=(2,), var=var, bins=None, backbone=None)


@pytest.fixture(scope="module")
def measured():
    """Data, and the error of the exact network at every level."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.multinomial(ORACLE.weights.float(), 400, True, generator=generator)
    x = (ORACLE.means[kind] + ORACLE.std * torch.randn(400, 2, generator=generator, dtype=torch.float64)).float()
    return x, bound(make("fixed_small"), x, None).x_start_mse.double().mean(0).tolist()


def bound(system, x, steps):
    return system.bits_per_dim(x, steps=steps, model=network_of(ORACLE, system), seed=0, rows_per_call=4096)


def bits(system, x, steps):
    return float(bound(system, x, steps).total.double().mean())


@pytest.mark.parametrize("count", [5, 10, 25])
def test_it_has_a_lower_bound_than_every_fixed_variance(measured, count):
    x, error = measured
    found = {name: bits(make(name), x, f"linspace{count}") for name in ("fixed_small", "fixed_large")}
    analytic = bits(make(("analytic", {"x_start_mse": error})), x, f"linspace{count}")
    assert analytic < min(found.values())


@pytest.mark.parametrize("count", [5, 10, 25])
def test_the_best_levels_lower_it_further(measured, count):
    x, error = measured
    system = make(("analytic", {"x_start_mse": error}))
    best = optimal_levels(system.table, error, count)
    even = levels(T, f"linspace{count}")
    assert chain_bits(system.table, error, best) < chain_bits(system.table, error, even)
    assert bits(system, x, best) < bits(system, x, even) + 0.03  # what 400 examples leave to chance


def test_its_chain_bits_are_those_of_the_bound(measured):
    x, error = measured
    for steps in ("linspace7", "logsnr12"):
        kept = levels(T, steps, make("fixed_small").table)
        table = make("fixed_small").table
        own = np.array(error)
        own[np.array(kept) - 1] = bound(make("fixed_small"), x, kept).x_start_mse.double().mean(0)
        found = bound(make(("analytic", {"x_start_mse": own.tolist()})), x, kept)
        assert chain_bits(table, own, kept) == pytest.approx(float(found.terms.double()[:, 1:].sum(1).mean()), rel=1e-4)


def test_no_other_variance_of_one_number_is_better(measured):
    """Scaled up or down at every level, the bound rises."""
    x, error = measured

    @attrs.frozen
    class Scaled(diffkit.protocols.VarianceParameterization):
        factor: float

        def columns(self, table):
            best = Analytic(tuple(error)).columns(table)["log_variance"]
            return {"log_variance": best + math.log(self.factor)}

        def log_variance(self, raw, cols):
            return cols["log_variance"]

    found = [bits(make(Scaled(factor)), x, "linspace10") for factor in (0.95, 1.0, 1.05)]
    assert found[1] < found[0] and found[1] < found[2]


def test_sampling_normal_data_with_it_is_exact_at_any_number_of_steps():
    """The true reverse step of normal data has just this mean and variance."""
    oracle = GaussianOracle(0.3, 0.5)
    plain = make("fixed_small")
    table = plain.table
    error = oracle.variance(torch.from_numpy(table.alpha[1:]), torch.from_numpy(table.sigma[1:])).tolist()
    for var, exact in ((("analytic", {"x_start_mse": error}), True), ("fixed_small", False)):
        system = make(var)
        respaced = system.table_for("linspace4")
        start = oracle.at(float(table.alpha[-1]), float(table.sigma[-1]))
        # one row at the mean, one a standard deviation beside it, one for the noise of each step but the last
        x = (start.mean + torch.zeros(5, 2)).double()
        x[1] += start.std
        unit = iter(torch.eye(5, dtype=torch.float64)[2:, :, None].expand(3, 5, 2))
        noise = lambda unit=unit: next(unit, torch.zeros(5, 2).double())  # noqa: E731
        end = system.sample_from(
            network_of(oracle, system, respaced), x, noise, respaced, sampler="ancestral", clip=False
        )
        spread = (end[1:] - end[0]).square().sum(0).sqrt()
        # the last step adds no noise and leaves the error of level 1
        wanted = math.sqrt(0.5**2 - error[0])
        assert (abs(float(spread[0]) / wanted - 1) < 1e-6) == exact


def test_respaced_tables_take_the_errors_of_their_own_levels(measured):
    _, error = measured
    part, system = Analytic(tuple(error)), make("fixed_small")
    table = system.table_for([3, 20, 60])
    posterior = table.posterior()
    found = np.exp(part.columns(table)["log_variance"][1:])
    picked = np.array(error)[[2, 19, 59]]
    np.testing.assert_allclose(found, posterior.variance[1:] + posterior.coef_x_start[1:] ** 2 * picked, rtol=1e-12)
    assert Analytic().columns(table)["log_variance"].tolist() == table.posterior_log_variance.tolist()
    assert Analytic((0.0,) * T).columns(table)["log_variance"].tolist() == pytest.approx(
        table.posterior_log_variance.tolist()
    )


def test_too_few_errors_are_refused():
    with pytest.raises(CompositionError, match=r"x_start_mse has 2 values, but the table goes up to level 60; measure"):
        make(("analytic", {"x_start_mse": [0.1, 0.2]}))
    with pytest.raises(OptionError, match="x_start_mse has 2 values"):
        Analytic((0.1, 0.2)).columns(make("fixed_small").table)
    with pytest.raises(OptionError, match="each of x_start_mse must be >= 0, got -1"):
        Analytic((-1.0,))


def test_it_is_saved_with_its_errors(measured, tmp_path):
    _, error = measured
    system = make(("analytic", {"x_start_mse": error}))
    assert diffkit.load(system.save(tmp_path / "s")).parts.var == system.parts.var
