"""Classifier guidance against guided-diffusion: both forms, both samplers, the stored noise in place of its draws."""

from __future__ import annotations

import pytest
import torch
from reference import PROCESSES, assert_close, compose, golden, model_of

from diffkit.guidance import GradientGuidance
from diffkit.system.call_parts import parts_for
from diffkit.system.sampling import sampling_program

TAGS = ["EPSILON__LEARNED_RANGE", "START_X__FIXED_LARGE", "EPSILON__FIXED_SMALL"]


def log_prob(x, time, conditions):
    """Its gradient is the stored one, -0.4 x + 0.2 time / 1000 + 0.03 y."""
    shape = (-1, *(1,) * (x.ndim - 1))
    slope = 0.2 * (time / 1000).view(shape) + 0.03 * conditions["y"].to(x.dtype).view(shape)
    return (-0.2 * x.square() + slope * x).flatten(1).sum(1)


@pytest.fixture(params=PROCESSES)
def process(request):
    return request.param


@pytest.fixture(params=[f"{tag}{suffix}" for tag in TAGS for suffix in ("", "__rescale")])
def case(request, process):
    mean, var, *rescale = request.param.split("__")
    system = compose(PROCESSES[process], mean=mean, var=var, rescale_time=bool(rescale))
    return system, model_of(var), golden(f"guidance_{process}"), request.param


def one_step(case, sampler, shift, noise=None):
    """One step at a different level for every row, and the estimate of x_start it was taken with."""
    system, model, stored, _ = case
    x, t, y = (torch.from_numpy(stored[name]) for name in ("x", "t", "y"))
    parts = parts_for(system.parts, sampler, GradientGuidance(log_prob, shift=shift))
    program = sampling_program(parts, parts.sampler, system.table)
    row = program.columns.on(x.device)[system.num_steps - 1 - t]
    denoiser = system.denoiser(model, guidance=GradientGuidance(log_prob, shift=shift), clip=True, y=y)
    prediction = denoiser(x, program.columns.level(row, x.ndim, "t"))
    return program.step(denoiser, x, (), row, noise, False)[0], prediction.x_start


def unmoved(case):
    """The stated deviation, (B, 1, 1, 1).

    The published code's fixed small variance is 0 at t = 0 where its log-variance is clipped, and it shifts the mean by
    the former. diffkit knows the latter only, so it moves the mean a little there.
    """
    system, _, stored, tag = case
    if "FIXED_SMALL" not in tag:
        return torch.zeros(len(stored["t"]), 1, 1, 1)
    at_start = (torch.from_numpy(stored["t"]) == 0).view(-1, 1, 1, 1)
    return at_start * float(torch.tensor(system.table.posterior_log_variance[1]).exp())


def gradient(case):
    system, _, stored, _ = case
    x, t, y = (torch.from_numpy(stored[name]) for name in ("x", "t", "y"))
    time = torch.from_numpy(system.table.time.copy())[t + 1].float()
    return -0.4 * x + (0.2 * time / 1000 + 0.03 * y).view(-1, 1, 1, 1)


def test_shifted_mean(case):
    _, _, stored, tag = case
    mean, _ = one_step(case, "ancestral", "mean", torch.zeros(stored["x"].shape))
    assert_close(mean - unmoved(case) * gradient(case), stored, f"condition_mean__{tag}")


def test_guided_ancestral_step(case):
    _, _, stored, tag = case
    got, _ = one_step(case, "ancestral", "mean", torch.from_numpy(stored["noise"]))
    assert_close(got - unmoved(case) * gradient(case), stored, f"p_sample_guided__{tag}")


def test_shifted_score(case):
    """The estimate is not clipped again, as in the published code."""
    _, _, stored, tag = case
    mean, x_start = one_step(case, "ancestral", "score", torch.zeros(stored["x"].shape))
    assert_close(x_start, stored, f"condition_score_pred_xstart__{tag}")
    assert_close(mean, stored, f"condition_score_mean__{tag}")


@pytest.mark.parametrize("eta", ["0.0", "0.5"])
def test_guided_ddim_step(case, eta):
    _, _, stored, tag = case
    noise = torch.from_numpy(stored["noise"]) if float(eta) else None
    got, _ = one_step(case, ("ddim", {"eta": float(eta)}), "score", noise)
    assert_close(got, stored, f"ddim_guided_eta{eta}__{tag}")
