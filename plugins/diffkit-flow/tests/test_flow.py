"""Straight paths, velocities and Euler steps are the papers'; the whole composition samples its data."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffkit_flow import Flow, FlowEuler, FlowHeun, FlowLinear, FlowLogitNormal
from numpy.typing import NDArray

import diffkit
from diffkit.table import Coefs
from diffkit.testing import Check, parametrize_checks

F64 = NDArray[np.float64]


@parametrize_checks("schedule", FlowLinear(), FlowLinear(1))
def test_schedule(check: Check):
    check()


@parametrize_checks("mean", Flow())
def test_mean(check: Check):
    check()


@parametrize_checks("timesteps", FlowLogitNormal(), FlowLogitNormal(-0.5, 2.0))
def test_timesteps(check: Check):
    check()


@parametrize_checks("sampler", FlowEuler(), FlowHeun())
def test_sampler(check: Check):
    check()


def flow(num_steps: int = 20, **slots: Any) -> diffkit.System:
    """The flow matching composition, without a network."""
    parts: dict[str, Any] = dict(
        schedule="flow_linear", mean="flow", timesteps="flow_logit_normal", sampler="flow_euler", backbone=None
    )
    return diffkit.compose(**parts | slots, data_shape=(3,), num_steps=num_steps, bins=None)


def test_the_mean_is_found_as_velocity_and_written_as_flow():
    system = flow(mean="velocity")
    assert system.parts.mean == Flow()
    assert system.spec()["parts"]["mean"]["name"] == "flow"
    assert diffkit.from_spec(system.spec()).spec() == system.spec()


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 1000])
def test_the_path_is_straight(num_steps: int):
    table = flow(num_steps).table
    u = np.arange(num_steps + 1) / num_steps
    np.testing.assert_allclose(table.alpha, 1 - u, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(table.sigma, u, rtol=1e-12)
    np.testing.assert_allclose(table.time[1:], 1000 * u[1:], rtol=1e-12)
    assert table.alpha_bar[-1] == 0


def test_continuous_levels_agree_with_the_table():
    table, schedule = flow(50).table, FlowLinear()
    total_std, time = schedule.level(torch.from_numpy(table.log_snr[1:].copy()))
    np.testing.assert_allclose(total_std.numpy(), table.total_std[1:], rtol=1e-12)
    np.testing.assert_allclose(time.numpy(), table.time[1:], rtol=1e-12)


@pytest.mark.parametrize("time_scale", [1.0, 1000.0])
def test_the_network_is_shown_the_position_on_the_path(time_scale: float):
    u = torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64)
    _, time = FlowLinear(time_scale).level(2 * torch.log((1 - u) / u))
    torch.testing.assert_close(time, time_scale * u, rtol=1e-12, atol=0)


def test_the_target_is_the_velocity():
    """d/du of (1 - u) x_start + u eps, at any u: the conditional flow matching objective."""
    system, batch = flow(), 50
    x_start, eps, out = torch.randn(3, batch, 3, dtype=torch.float64)
    level, weight = system.draw_levels(batch, generator=torch.Generator().manual_seed(0))
    seen: dict[str, torch.Tensor] = {}

    def model(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        seen.update(x=x, time=time)
        return out

    found = system.loss_terms(model, x_start, level, eps)["loss"]
    u = torch.sigmoid(-level / 2)[:, None]
    torch.testing.assert_close(seen["x"], (1 - u) * x_start + u * eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen["time"], 1000 * u.flatten(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found, ((out - (eps - x_start)) ** 2).mean(1), rtol=1e-10, atol=0)
    assert torch.equal(weight, torch.ones(batch))


def test_every_level_of_the_table_can_be_trained():
    system = flow(5, timesteps="uniform")
    x_start, eps = torch.randn(2, 5, 3)
    found = system.loss_terms(lambda x, time: eps - x_start, x_start, torch.arange(1, 6), eps)["loss"]
    assert found.max() < 1e-12


@pytest.mark.parametrize("path", ["straight", "vp", "ve"])
def test_decoding_the_velocity_gives_the_data_on_any_path(path: str):
    u = np.linspace(0.01, 0.99, 30)
    alpha = {"straight": 1 - u, "vp": np.cos(u * math.pi / 2), "ve": np.ones(30)}[path]
    sigma = {"straight": u, "vp": np.sin(u * math.pi / 2), "ve": 80 * u}[path]
    x_start, eps = np.random.default_rng(0).standard_normal((2, 30))
    c_skip, c_out, c_in = Flow().scalings(Coefs(alpha, sigma, 2 * np.log(alpha / sigma)), None)
    found = c_skip * (alpha * x_start + sigma * eps) + c_out * (eps - x_start)
    np.testing.assert_allclose(found, x_start, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(c_in, 1)


def test_levels_are_logit_normal():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log_snr, weight = FlowLogitNormal(0.3, 0.9).sample((), u, 20)
    position = torch.sigmoid(-log_snr / 2)
    logit = torch.log(position / (1 - position))
    assert abs(logit.mean() - 0.3) < 1e-9
    assert abs(logit.std() - 0.9) < 1e-4
    assert log_snr.dtype == torch.float64
    assert weight.dtype == torch.float32


@pytest.mark.parametrize("u", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
def test_every_uniform_gives_a_finite_level(u: float):
    log_snr, _ = FlowLogitNormal().sample((), torch.tensor([u], dtype=torch.float64), 1)
    assert log_snr.isfinite().all()


# ---- sampling --------------------------------------------------------------------------------------------------------

CENTRES = np.array([[0.7, -0.2, 0.1], [-0.4, 0.5, 0.9], [0.0, -0.8, -0.6]])
SPREAD = 0.1


def velocity(x: F64, u: float) -> F64:
    """E[eps - x_start | x_u = x] for data ~ an even mixture of N(CENTRES, SPREAD^2), x (B, 3)."""
    alpha, sigma = 1 - u, u
    total = (alpha * SPREAD) ** 2 + sigma**2
    logits = -((x[:, None] - alpha * CENTRES) ** 2).sum(-1) / (2 * total)
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    centre = share @ CENTRES
    gap = x - alpha * centre
    x_start = centre + alpha * SPREAD**2 / total * gap
    return np.asarray(sigma / total * gap - x_start)


def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(velocity(x.double().numpy(), float(time[0].double()) / 1000)).to(x.dtype)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 18, 100])
def test_sampling_is_eulers_method(num_steps: int):
    x = np.random.default_rng(0).standard_normal((50, 3))
    found = flow(num_steps).sample_from(network, torch.from_numpy(x), None).numpy()
    for k in range(num_steps, 0, -1):
        x = x - velocity(x, k / num_steps) / num_steps
    assert np.abs(found - x).max() < 1e-12


@pytest.mark.parametrize("num_steps", [2, 20])
def test_on_any_path_it_is_the_deterministic_ddim(num_steps: int):
    system = diffkit.compose(schedule="cosine", backbone=None, data_shape=(3,), num_steps=num_steps, bins=None)
    x = torch.randn(4, 3, dtype=torch.float64)

    def model(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return x.sin()

    mine = system.sample_from(model, x, None, sampler=FlowEuler())
    theirs = system.sample_from(model, x, None, sampler=("ddim", {"eta": 0}))
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_the_error_halves_with_the_step():
    """On one Gaussian, where the flow is known: ``x - alpha mean`` grows as the spread of x does."""
    mean, spread = 0.3, 0.6
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 3)))

    def gaussian(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        u = float(time[0]) / 1000
        gap = x - (1 - u) * mean
        return (u - (1 - u) * spread**2) / ((1 - u) ** 2 * spread**2 + u**2) * gap - mean

    exact = mean + spread * x
    errors = [float((flow(n).sample_from(gaussian, x, None) - exact).abs().max()) for n in (32, 64, 128)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert 0.9 < min(orders) <= max(orders) < 1.1, orders


def test_the_samples_are_data():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1500, 3)))
    found = flow(100).sample_from(network, x, None).numpy()
    nearest = ((found[:, None] - CENTRES) ** 2).sum(-1).argmin(1)
    share = np.bincount(nearest, minlength=3) / len(found)
    # Three standard errors of a share of a third among 1500.
    assert np.abs(share - 1 / 3).max() < 3 * math.sqrt(2 / 9 / 1500)
    # 4500 numbers, and the error of 100 steps of first order.
    assert abs((found - CENTRES[nearest]).std() / SPREAD - 1) < 0.1


def test_it_is_saved_with_its_origin():
    system = flow(schedule=("flow_linear", {"time_scale": 10}))
    spec = system.spec()["parts"]
    assert {spec[kind]["origin"] for kind in ("schedule", "mean", "timesteps", "sampler")} == {"diffkit-flow"}
    assert diffkit.from_spec(system.spec()).parts.schedule == FlowLinear(10)
