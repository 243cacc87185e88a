"""Grids of noise between the levels of a table: where they lie, the time there, and what refuses them.

Stored noise and times are those of k-diffusion 0.1.1.post1 on the linear schedule, in float64:
`sampling.get_sigmas_karras` and `external.DiscreteEpsDDPMDenoiser.sigma_to_t`.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import diffkit
from diffkit.errors import OptionError
from diffkit.parts.spacings._beta_distribution import beta_probability, even_quantiles
from diffkit.registry import registry
from diffkit.spacing import levels, visited
from diffkit.table import interpolate, respace

LINEAR = registry("schedule").create("linear").table(1000)
SILENT = registry("schedule").create("zero_snr").table(1000)


X = torch.zeros(1, 1, 4, 4)


def system(**changes):
    parts = {"schedule": "linear", "backbone": "mlp", "data_shape": (1, 4, 4), "rescale_time": False}
    return diffkit.compose(**parts | changes)


def ratio(table):
    return (table.sigma[1:] / table.alpha[1:])[::-1]


def test_karras_levels_and_times_are_those_of_k_diffusion():
    table = system().table_for("karras5:exact")
    np.testing.assert_allclose(ratio(table), SIGMAS, rtol=1e-13)
    np.testing.assert_allclose(table.time[:0:-1], TIMES, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(table.index + table.fraction, np.append(0, table.time[1:] + 1))
    np.testing.assert_array_equal(table.alpha**2 + table.sigma**2, 1)


SIGMAS = [157.40728081040749, 36.90895160563345, 5.911208764768033, 0.4913011708241883, 0.010000500037502566]
TIMES = [999.0, 843.355429825579, 592.9947056124696, 141.81732581363732, 0.0]


@pytest.mark.parametrize(
    ("spacing", "wanted"),
    [
        ("karras9:exact:rho=3:sigma_min=0.05:sigma_max=20", np.linspace(20 ** (1 / 3), 0.05 ** (1 / 3), 9) ** 3),
        ("exponential9:sigma_min=0.05", np.geomspace(ratio(LINEAR)[0], 0.05, 9)),
        ("exponential3:rho=2:sigma_min=0.05:sigma_max=20", [20, 0.05 * 400**0.25, 0.05]),
        ("beta3:measure=sigma:sigma_min=1:sigma_max=3", [3, 2, 1]),
        (("sigmas", {"values": [0.0, 0.2, 14.6, 1.0]}), [14.6, 1.0, 0.2]),
        ("ays_sd15:exact", [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152]),
    ],
    ids=str,
)
def test_exact_grids_have_the_noise_they_name(spacing, wanted):
    np.testing.assert_allclose(ratio(system().table_for(spacing)), wanted, rtol=1e-12)


def test_beta_levels_are_quantiles_of_the_level():
    """Lee et al. 2024; quantiles of Beta(0.6, 0.6) by scipy 1.17.1's `stats.beta.ppf`."""
    table = system().table_for("beta5")
    share = (table.index + table.fraction - 1)[1:] / 999
    np.testing.assert_allclose(share, QUANTILES, rtol=1e-12)
    found = beta_probability(even_quantiles(101, 0.4, 2.5), 0.4, 2.5)
    np.testing.assert_allclose(found, np.linspace(0, 1, 101), atol=1e-13)


QUANTILES = [0.0, 0.17568037865269498, 0.5, 0.824319621347305, 1.0]


@pytest.mark.parametrize("name", ["karras{}:exact", "exponential{}", "beta{}", "beta{}:measure=sigma"])
@pytest.mark.parametrize("table", [LINEAR, SILENT], ids=["linear", "no signal"])
def test_exact_grids_have_both_ends(name, table):
    for count in (1, 2, 3, 30):
        chain = interpolate(table, visited(1000, name.format(count), table).log_snr)
        assert chain.num_steps == count and chain.interpolated
        assert chain.index[-1] == 1000 and (count == 1 or chain.index[1] == 1)
        for column in ("alpha_bar", "one_minus_alpha_bar", "time"):  # of the ends, to the bit
            assert getattr(chain, column)[-1] == getattr(table, column)[-1]
            assert count == 1 or getattr(chain, column)[1] == getattr(table, column)[1]


def test_at_trained_levels_a_grid_is_the_respaced_table():
    selected = [1, 2, 40, 170, 999, 1000]
    for table in (LINEAR, SILENT, registry("schedule").create("log_linear", path="ve").table(1000)):
        found, wanted = interpolate(table, table.log_snr[selected]), respace(table, selected)
        for column in ("alpha_bar", "one_minus_alpha_bar", "total_std", "time", "index"):
            np.testing.assert_array_equal(getattr(found, column), getattr(wanted, column))
        assert not found.fraction.any()


@pytest.mark.parametrize("continuous", [False, True])
def test_the_path_between_levels(continuous):
    """On a continuous schedule total_std and time are its own; elsewhere they lie between those of the neighbours."""
    composed = system(schedule=("log_linear", {"path": "ve", "log_snr_min": -9.0}), num_steps=50, sampler="dpm2")
    table = composed.table_for("exponential12")
    if continuous:
        np.testing.assert_allclose(table.alpha, 1, rtol=1e-12)
    sides = composed.table.time[table.index[1:-1]], composed.table.time[table.index[1:-1] + 1]
    assert np.all(sides[0] - 1e-9 <= table.time[1:-1]) and np.all(table.time[1:-1] <= sides[1] + 1e-9)
    assert composed.sample(2, steps="exponential12", seed=0, progress=False).isfinite().all()


def test_the_network_is_called_at_real_times_also_within_a_step():
    times = []

    class Network(torch.nn.Module):
        def forward(self, x, time):
            times.append(float(time[0]))
            return x

    composed = system(backbone=Network())
    composed.sample(1, steps="karras5:exact", sampler="dpm2", progress=False)
    table = composed.table_for("karras5:exact")
    np.testing.assert_allclose(times[::2], table.time[:0:-1], rtol=1e-6)
    middle = np.exp(-(table.log_snr[2:] + table.log_snr[1:-1]) / 4)[::-1]
    np.testing.assert_allclose(
        times[1::2], np.interp(np.log(middle), np.log(ratio(LINEAR)[::-1]), np.arange(1000)), rtol=1e-6
    )


@pytest.mark.parametrize(
    "var", ["fixed_small", "fixed_large", "learned_range", ("analytic", {"x_start_mse": [0.1] * 1000})]
)
def test_a_bound_on_levels_between(var):
    loss = "hybrid" if var == "learned_range" else "simple"
    composed = system(var=var, loss=loss)
    bound = composed.bits_per_dim(torch.zeros(1, 1, 4, 4), steps="karras8:exact", seed=0)
    assert bound.terms.shape == (1, 8) and bound.total.isfinite().all()


def test_the_measured_error_is_a_line_between_levels():
    error = tuple(np.linspace(0.01, 0.5, 1000))
    var = registry("var").create("analytic", x_start_mse=error)
    table = interpolate(LINEAR, [3.0, -2.0, -4.0])
    posterior = table.posterior()
    e = np.interp((table.index + table.fraction)[1:], np.arange(1, 1001), error)
    wanted = np.log(posterior.variance[1:] + posterior.coef_x_start[1:] ** 2 * e)
    np.testing.assert_allclose(var.columns(table)["log_variance"][1:], wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.table_for("karras5:exact:sigma_min=0.001"), "less noise than .* use sigma_min=0.0100005"),
        (lambda s: s.table_for("karras5:exact:sigma_max=1e4"), "more noise than .* use sigma_max=157.407"),
        (lambda s: s.table_for("karras5:exact:sigma_min=9:sigma_max=2"), "sigma_min must be below sigma_max, 2, got 9"),
        (lambda s: s.table_for(("sigmas", {"values": [0.0]})), "values must hold a value above 0"),
        (lambda s: s.table_for(("sigmas", {"values": [1.0, 1.0]})), "each at most once"),
        (lambda s: s.table_for(("sigmas", {"values": [1.0], "times": [1, 2]})), "one entry for each of the 1 values"),
        (lambda s: levels(1000, "beta5", s.table), "lies between the levels of the table, .* such as 'karras20'"),
        (lambda s: levels(1000, "beta5"), "spacing 'beta5' depends on noise levels, so it needs the table"),
        (lambda s: diffkit.recompose(s, train_spacing="beta5"), "train_spacing: .* lies between the levels"),
        (lambda s: s.table_for("use_karras_sigmas"), "named 'use_karras_sigmas'; here it is 'karras20:exact'"),
        (lambda s: s.table_for("lu8"), "no spacing named 'lu'; here it is 'exponential8'"),
        (lambda s: diffkit.recompose(s, mean="x_prev").table_for("beta5"), "mean 'x_prev' is defined at the levels of"),
        (lambda s: s.sample_from(None, X, None, interpolate(SILENT, [1.0, 0.0]), sampler="ddim"), "was not made from"),
    ],
)  # fmt: skip
def test_what_cannot_lie_between_levels(call, message):
    with pytest.raises(OptionError, match=message):
        call(system())


def test_a_system_samples_between_levels_by_default(tmp_path):
    composed = system(sampling={"steps": ("karras", {"count": 4, "exact": True})}, sampler="dpmpp_2m")
    again = diffkit.load(composed.save(tmp_path / "system"))
    found = [one.sample(2, seed=1, progress=False) for one in (composed, again)]
    assert torch.equal(*found)
    assert torch.equal(found[0], composed.sample(2, steps="karras4:exact", seed=1, progress=False))
    file = tmp_path / "grid.json"
    file.write_text(json.dumps({"sigma": list(ratio(composed.table_for("karras4:exact")))}))
    assert torch.equal(found[0], composed.sample(2, steps=f"{file}:exact", seed=1, progress=False))


def test_the_explanation_says_that_time_is_interpolated():
    said = str(diffkit.explain.explain(system(), steps="karras3:exact"))
    assert "3 levels between those of training, where time is interpolated in log-SNR: 1, " in " ".join(said.split())
