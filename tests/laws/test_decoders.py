"""Laws of the decoders: bins are a distribution, tails keep their digits and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import diffkit
from diffkit.explain import explain
from diffkit.likelihood import ode_likelihood
from diffkit.parts.decoders.binned import Binned
from diffkit.parts.decoders.continuous import Continuous
from diffkit.system.settings import decoder_for

means = st.floats(-1.5, 1.5)
log_variances = st.floats(-14, 3)
BINS = [2, 3, 17, 256, 4096]


def grid(bins):
    return torch.linspace(-1, 1, bins, dtype=torch.float64)


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("cdf", ["tanh", "exact"])
@pytest.mark.parametrize("bins", BINS)
@given(means, log_variances)
def test_probabilities_of_all_bins_sum_to_one(cdf, bins, mean, log_variance):
    found = Binned(bins, cdf=cdf, floor=0.0).log_prob(grid(bins), f64(mean), f64(log_variance))
    assert (found <= 1e-12).all()
    assert abs(float(found.exp().sum()) - 1) < 1e-9


@pytest.mark.parametrize("cdf", ["tanh", "exact"])
@given(st.integers(0, 255), means, log_variances)
def test_float32_agrees_with_float64(cdf, k, mean, log_variance):
    """The published code loses up to 10 nats in the tails."""
    decoder = Binned(cdf=cdf, floor=0.0)
    exact = decoder.log_prob(grid(256)[k].float().double(), f64(mean).float().double(), f64(log_variance))
    short = decoder.log_prob(grid(256)[k].float(), torch.tensor(mean).float(), torch.tensor(log_variance).float())
    # x - mean is exact to 6e-8, and the slope of log p there is (x - mean) / variance
    slope = (abs(float(grid(256)[k])) + abs(mean)) * math.exp(-log_variance)
    assert abs(float(short - exact)) <= 2e-5 * (1 + abs(float(exact))) + 4e-7 * slope


@given(st.integers(1, 254), means, st.floats(-8, 3))
def test_exact_cdf_is_the_normal_distributions(k, mean, log_variance):
    x, half, std = float(grid(256)[k]), 1 / 255, math.exp(log_variance / 2)
    low, high = sorted((abs(x - mean) - half, abs(x - mean) + half))
    tail = [0.5 * math.erfc(z / std / math.sqrt(2)) for z in (low, high)]
    wanted = tail[0] - tail[1]
    found = Binned(cdf="exact", floor=0.0).log_prob(f64(x), f64(mean), f64(log_variance))
    if wanted > 1e-290:
        assert abs(math.exp(float(found)) - wanted) <= 1e-10 * wanted + 1e-15


@pytest.mark.parametrize("k", [0, 255])
@given(mean=means, log_variance=st.floats(-8, 3))
def test_end_bins_are_open(k, mean, log_variance):
    std, x = math.exp(log_variance / 2), float(grid(256)[k])
    inner = x + 1 / 255 if k == 0 else x - 1 / 255
    z = (inner - mean) / std if k == 0 else (mean - inner) / std
    wanted = 0.5 * math.erfc(-z / math.sqrt(2))
    found = Binned(cdf="exact", floor=0.0).log_prob(f64(x), f64(mean), f64(log_variance))
    if wanted > 1e-290:
        assert abs(math.exp(float(found)) - wanted) <= 1e-10 * wanted


@pytest.mark.parametrize("cdf", ["tanh", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.integers(0, 255), st.floats(-30, 30), st.floats(-14, 3))
def test_gradients_are_finite_in_far_tails(cdf, dtype, k, mean, log_variance):
    at = torch.tensor([mean], dtype=dtype, requires_grad=True)
    wide = torch.tensor([log_variance], dtype=dtype, requires_grad=True)
    found = Binned(cdf=cdf, floor=0.0).log_prob(grid(256)[k : k + 1].to(dtype), at, wide)
    gradients = torch.autograd.grad(found.sum(), (at, wide))
    assert all(g.isfinite().all() for g in (found, *gradients))


@pytest.mark.parametrize("cdf", ["tanh", "exact"])
@given(st.integers(1, 254), st.floats(-6, 0))
def test_the_likeliest_mean_of_an_inner_bin_is_its_middle(cdf, k, log_variance):
    x, v = grid(256)[k], f64(log_variance)
    decoder = Binned(cdf=cdf, floor=0.0)
    best = decoder.log_prob(x, x, v)
    for shift in (0.003, -0.003, 0.1, -0.1):
        assert decoder.log_prob(x, x + shift, v) < best


@given(st.floats(1e-12, 0.5), st.integers(0, 255), means, log_variances)
def test_floor_is_a_floor(floor, k, mean, log_variance):
    found = Binned(floor=floor).log_prob(grid(256)[k], f64(mean), f64(log_variance))
    free = Binned(floor=0.0).log_prob(grid(256)[k], f64(mean), f64(log_variance))
    assert float(found) == pytest.approx(max(float(free), math.log(floor)), rel=1e-12)


@given(means, st.floats(-6, 3))
def test_continuous_density_integrates_to_one(mean, log_variance):
    reach = 12 * math.exp(log_variance / 2)
    x = torch.linspace(mean - reach, mean + reach, 4001, dtype=torch.float64)
    density = Continuous().log_prob(x, f64(mean), f64(log_variance)).exp()
    assert abs(float(torch.trapezoid(density, x)) - 1) < 1e-10


@given(st.integers(1, 65534), st.floats(-0.9, 0.9), st.floats(-4, 0))
def test_fine_bins_are_the_density(k, mean, log_variance):
    x = grid(65536)[k]
    binned = Binned(65536, cdf="exact", floor=0.0).log_prob(x, f64(mean), f64(log_variance))
    density = Continuous().log_prob(x, f64(mean), f64(log_variance)) + math.log(2 / 65535)
    assert abs(float(binned - density)) < 1e-6


def test_bins_that_a_mapping_leaves_out_are_its_256():
    """It raised KeyError where the options were read, in place of the decoder that was made of them."""
    assert decoder_for(None).bins is None and decoder_for(17).bins == 17
    assert decoder_for({"cdf": "exact"}).bins == 256
    system = diffkit.compose(bins={"cdf": "exact"}, data_shape=(1, 2, 2), num_steps=100, backbone=None)
    assert "256 values in [-1, 1]" in str(explain(system))
    found = ode_likelihood(system, torch.zeros(1, 1, 2, 2), model=lambda x, time, **_: x * 0, method="rk4")
    assert found.bits.isfinite().all()
