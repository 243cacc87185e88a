"""The flow's likelihood against closed forms, and what it refuses."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from attrs import frozen
from gaussian_data import Ideal, true_bin_bits, true_bits

import diffkit
from diffkit.errors import CompositionError, MissingExtraError, OptionError
from diffkit.guidance import MMPS, StaticThreshold
from diffkit.likelihood import ode_likelihood
from diffkit.protocols import ContinuousSchedule
from diffkit.table import ProcessTable

pytest.importorskip("torchdiffeq")
MEAN, STD = 0.2, 0.5
SPREAD = torch.linspace(0.3, 2, 6).view(1, 2, 3).double()


def flow(shape=(1, 2, 3), std=SPREAD, *, mean="eps", bins=None, **more):
    """A system with the ideal network for Gaussian data, and 3 examples of it."""
    parts = dict(schedule="cosine", num_steps=1000) | more
    system = diffkit.compose(backbone=None, mean=mean, data_shape=shape, bins=bins, **parts)
    raw = "ideal" if parts.get("var") == "learned_range" else None
    system.network = Ideal(system.table, MEAN, std, mean, raw)
    x = MEAN + std * torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    return system, x.float()


@pytest.mark.parametrize(
    ("schedule", "mean", "end"),
    [
        ("cosine", "eps", "clean"),
        ("cosine", "v", "level1"),
        ("cosine", "x_start", "level1"),
        ("linear", "eps", "level1"),
    ],
)
def test_it_is_the_true_likelihood(schedule, mean, end):
    system, x = flow(schedule=schedule, mean=mean)
    found = ode_likelihood(system, x, divergence="exact", end=end)
    assert (found.bits - true_bits(x, MEAN, SPREAD)).abs().max() < 1e-3
    assert found.bits.dtype == torch.float64 and not found.bits.requires_grad
    assert found.probe_error.eq(0).all() and found.draw_error.eq(0).all() and found.evaluations > 50
    assert "differential" in found.meaning


@frozen
class Line(ContinuousSchedule):
    """Straight lines from data to noise, as in flow matching: alpha = 1 - t, sigma = t, which is the time."""

    def table(self, num_steps):
        t = np.arange(1, num_steps + 1) / num_steps
        return ProcessTable.from_alpha_sigma(1 - t, t, t)

    def level(self, log_snr):
        t = (-log_snr / 2).sigmoid()
        return (t.square() + (1 - t).square()).sqrt(), t


class IdealOnLines(torch.nn.Module):
    """The mean of N(MEAN, SPREAD^2) given x_t on these lines, at any time."""

    def forward(self, x, time):
        t = time.double().view(-1, *(1,) * (x.ndim - 1))
        gain = (1 - t) * SPREAD**2 / ((1 - t) ** 2 * SPREAD**2 + t**2)
        return (MEAN + gain * (x.double() - (1 - t) * MEAN)).to(x.dtype)


@pytest.mark.parametrize(("num_steps", "end"), [(1000, "level1"), (10, "clean"), (2, "clean")])
def test_a_flow_that_ends_without_signal(num_steps, end):
    system = diffkit.compose(
        schedule=Line(), mean="x_start", backbone=IdealOnLines(), data_shape=(1, 2, 3), num_steps=num_steps, bins=None
    )
    x = (MEAN + SPREAD * torch.randn(3, 1, 2, 3, generator=torch.Generator().manual_seed(1))).float()
    found = ode_likelihood(system, x, divergence="exact", end=end)
    assert (
        found.bits - true_bits(x, MEAN, SPREAD)
    ).abs().max() < 2e-3  # eps of an x_start in float32, divided by a small sigma
    torch.testing.assert_close(found.latent.double(), (x - MEAN) / SPREAD, rtol=2e-3, atol=5e-3)
    clipped = ode_likelihood(system, x, divergence="exact", end=end, guidance=StaticThreshold(1e6))
    torch.testing.assert_close(clipped.bits, found.bits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mean", ["v", "x_start"])
def test_zero_snr_has_a_likelihood(mean):
    system, x = flow(schedule="zero_snr", mean=mean)
    found = ode_likelihood(system, x, divergence="exact")
    assert (found.bits - true_bits(x, MEAN, SPREAD)).abs().max() < 5e-3


@pytest.mark.parametrize("shape", [(2,), (2, 3), (1, 2, 1, 3)])
def test_every_shape(shape):
    system, x = flow(shape, torch.tensor(STD))
    found = ode_likelihood(system, x, divergence="exact", rtol=1e-4, atol=1e-4)
    assert (found.bits - true_bits(x, MEAN, STD)).abs().max() < 3e-3


@pytest.mark.parametrize("clip", [False, True])
def test_guidance_makes_it_the_likelihood_of_the_posterior(clip):
    """Of normal data measured with noise of 0.4: whether or not the estimate is clipped, which is far from here."""
    system, _ = flow((2,), torch.tensor(STD))
    noise, y = 0.4, torch.tensor([[0.1, 0.3]])
    precision = 1 / STD**2 + 1 / noise**2
    mean, std = (MEAN / STD**2 + y / noise**2) / precision, torch.tensor(precision**-0.5)
    x = torch.tensor([[0.1, 0.2], [0.3, -0.1]])
    given = dict(divergence="exact", clip=clip, measurement=y.expand(2, 2), rtol=1e-4, atol=1e-4)
    found = ode_likelihood(system, x, guidance=MMPS(lambda x: x * 1.0, noise, iterations=2), **given)
    assert (found.bits - true_bits(x, mean, std)).abs().max() < 0.02


def test_the_latent_is_the_whitened_data():
    system, x = flow()
    found = ode_likelihood(system, x, divergence="exact")
    torch.testing.assert_close(found.latent.double(), (x - MEAN) / SPREAD, rtol=2e-3, atol=2e-3)


class Mixed(torch.nn.Module):
    """A network whose Jacobian is not diagonal, which is where probes differ."""

    def __init__(self, ideal):
        super().__init__()
        self.ideal, self.mix = ideal, torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double() / 6

    def forward(self, x, time):
        out = self.ideal(x, time).double()
        return (out + (out.flatten(1).tanh() @ self.mix).view_as(out)).to(x.dtype)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_scatter_around_the_exact_divergence_as_they_say(probe):
    system, x = flow()
    system.network = Mixed(system.network)
    loose = dict(rtol=1e-3, atol=1e-3)
    exact = ode_likelihood(system, x, divergence="exact", **loose).bits
    found = ode_likelihood(system, x, probes=60, probe=probe, **loose)
    assert ((found.bits - exact).abs() < 4 * found.probe_error + 1e-3).all()
    assert (found.probe_error > 1e-3).all() and found.draw_error.eq(0).all()
    one = ode_likelihood(system, x, probe=probe, **loose)
    assert one.probe_error.isnan().all()
    again = ode_likelihood(system, x[:2], probe=probe, **loose)
    torch.testing.assert_close(again.bits, one.bits[:2], rtol=1e-2, atol=1e-2)  # the same probes, other step sizes


def test_the_noise_goes_by_index():
    system, x = flow()
    system.network = Mixed(system.network)
    loose = dict(rtol=1e-3, atol=1e-3)
    three, one = ode_likelihood(system, x, **loose), ode_likelihood(system, x[2:], indices=[2], **loose)
    torch.testing.assert_close(one.bits, three.bits[2:], rtol=1e-2, atol=1e-2)
    other = ode_likelihood(system, x[2:], **loose)
    assert (other.bits - one.bits).abs() > 0.02


def test_the_gradient_is_the_score():
    system, x = flow((1, 2, 2), torch.tensor(STD))
    x.requires_grad_()
    found = ode_likelihood(system, x, divergence="exact", gradient=True, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(found.bits.sum() * x[0].numel() * math.log(2), x, retain_graph=True)
    torch.testing.assert_close(gradient, (x.detach() - MEAN) / STD**2, rtol=5e-3, atol=5e-3)
    (of_weights,) = torch.autograd.grad(found.bits.sum(), system.network.gain)
    assert of_weights.isfinite() and str(found)


def test_the_gradient_reaches_the_weights_alone():
    system, x = flow((1, 2, 2), torch.tensor(STD))
    found = ode_likelihood(system, x, gradient=True, rtol=1e-2, atol=1e-2)
    assert torch.autograd.grad(found.bits.mean(), system.network.gain)[0].isfinite()


def test_the_gradient_passes_through_attention():
    """Fused attention has no second derivative; that of `differentiable_twice` is right (tests/parts/backbones)."""
    recipe = dict(channels=8, groups=8, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(4,), num_heads=2)
    system = diffkit.compose(
        schedule="cosine", backbone=("unet", recipe), data_shape=(1, 4, 4), num_steps=20, bins=None
    )
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 1, 4, 4).requires_grad_()
    found = ode_likelihood(system, x, gradient=True, rtol=0.1, atol=0.1)
    (gradient,) = torch.autograd.grad(found.bits.sum(), x)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


# ---- binned data -----------------------------------------------------------------------------------------------------


def binned(bins, **more):
    system, _ = flow((1, 3, 3), 0.3, bins=bins, num_steps=1000, **more)
    x = 0.2 + 0.3 * torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(2))
    top = bins - 1
    return system, ((x.clamp(-1, 1) + 1) / 2 * top).round() / top * 2 - 1


@pytest.mark.parametrize("bins", [17, 256])
def test_uniform_dequantization_bounds_the_log_probability(bins):
    system, x = binned(bins)
    found = ode_likelihood(system, x, divergence="exact", draws=4, rtol=1e-4, atol=1e-4)
    above = found.bits - true_bin_bits(x, MEAN, 0.3, bins)
    assert (above > -4 * found.draw_error - 1e-3).all() and "uniform" in found.meaning
    assert above.mean() < {17: 0.05, 256: 0.002}[bins]  # finer bins lose less
    assert (found.draw_error > 0).all() and (ode_likelihood(system, x, rtol=1e-2).draw_error.isnan()).all()


def test_the_decoder_bounds_the_log_probability_more_tightly():
    parts = dict(var="learned_range", loss="hybrid")
    system, x = binned(17, **parts)
    decoder = ode_likelihood(system, x, divergence="exact", dequantize="decoder", draws=4, rtol=1e-3, atol=1e-3)
    above = decoder.bits - true_bin_bits(x, MEAN, 0.3, 17)
    assert (above > -4 * decoder.draw_error - 1e-3).all() and "decoder" in decoder.meaning
    bound = system.bits_per_dim(x.repeat(8, 1, 1, 1), steps=20, seed=0).total.mean()
    assert decoder.bits.mean() < bound + 4 * decoder.draw_error.max()


def test_the_decoder_works_on_continuous_data_too():
    system, x = flow((1, 3, 3), STD, var="learned_range", loss="hybrid")
    found = ode_likelihood(system, x, divergence="exact", dequantize="decoder", draws=3, rtol=1e-4, atol=1e-4)
    # With the ideal decoder the bound is the truth: whatever x_1 is drawn, the three terms add up to it.
    torch.testing.assert_close(found.bits, true_bits(x, MEAN, STD), rtol=0, atol=2e-3)
    assert (found.draw_error < 1e-3).all()


# ---- choices ---------------------------------------------------------------------------------------------------------


def test_a_trained_kind_of_network_with_conditions():
    system = diffkit.compose(
        schedule="cosine", var="learned_range", loss="hybrid", data_shape=(1, 4, 4), num_steps=50, bins=17,
        backbone=("mlp", {"hidden": 8, "depth": 1, "num_classes": 3}),
    )  # fmt: skip
    x = (torch.randint(0, 17, (2, 1, 4, 4)) / 8 - 1).float()
    found = ode_likelihood(system, x, y=[0, 2], rtol=1e-2, atol=1e-2)
    assert found.bits.isfinite().all() and math.isfinite(found.mean) and math.isfinite(found.std_error)
    assert re.fullmatch(r"[\d.-]+ \+- [\d.]+ bits/dim over 2 examples by the flow ODE: .*\)", str(found))
    clipped = ode_likelihood(system, x, y=[0, 2], clip=True, rtol=1e-2, atol=1e-2)
    assert clipped.bits.isfinite().all()


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_other_solvers(method):
    system, x = flow((1, 2, 2), torch.tensor(STD))
    options = {"step_size": 0.1} if method == "rk4" else {"first_step": 0.01}
    found = ode_likelihood(system, x, divergence="exact", method=method, options=options)
    assert (found.bits - true_bits(x, MEAN, STD)).abs().max() < 1e-3


def test_refusals():
    system, x = flow()
    for wrong, text in (
        (dict(divergence="trace"), "divergence must be one of 'hutchinson', 'exact', got 'trace'"),
        (dict(probe="sign"), "probe must be one of 'rademacher', 'gaussian', got 'sign'"),
        (dict(end="zero"), "end must be one of 'level1', 'clean', got 'zero'"),
        (dict(dequantize="uniform"), "dequantize='uniform' is for data on bins; this system's is continuous"),
        (dict(dequantize="decoder", end="clean"), "dequantize='decoder' ends the flow at level 1"),
        (dict(indices=[0]), "indices must have one entry for each of 3 examples, got 1"),
        (dict(probes=0), "probes must be >= 1, got 0"),
        (dict(rtol=0), "rtol must be > 0, got 0"),
        (dict(method="guess"), "torchdiffeq refused method='guess'"),
    ):
        with pytest.raises(OptionError, match=re.escape(text)):
            ode_likelihood(system, x, **wrong)
    previous = diffkit.compose(backbone=None, mean="x_prev", data_shape=(1, 2, 3), num_steps=30, bins=None)
    with pytest.raises(CompositionError, match="mean 'x_prev' is not defined between levels"):
        ode_likelihood(previous, x, model=system.network)
    empty = diffkit.compose(backbone=None, schedule="cosine", mean="v", data_shape=(1, 2, 3), num_steps=1, bins=None)
    empty = diffkit.recompose(empty, schedule="zero_snr", num_steps=20, train_spacing=[20])
    with pytest.raises(CompositionError, match="one level, without signal"):
        ode_likelihood(empty, x, model=system.network)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchdiffeq", None)
    system, x = flow()
    with pytest.raises(MissingExtraError, match=r'pip install "diffkit\[ode\]"'):
        ode_likelihood(system, x)


def test_a_network_without_a_gradient_has_no_divergence():
    """It would be taken for a constant."""
    system = diffkit.compose(backbone=None, data_shape=(2,), num_steps=5, schedule="cosine", bins=None)
    data = torch.zeros(3, 2)
    for model in (lambda x, time: 0.5 * x.detach(), torch.no_grad()(lambda x, time: 0.5 * x)):
        with pytest.raises(
            OptionError, match="the network's output depends on data but has no gradient, which the divergence needs"
        ):
            ode_likelihood(system, data, model=model)
    assert ode_likelihood(system, data, model=lambda x, time: torch.zeros_like(x)).bits.isfinite().all()
