"""Solvers against the algorithms of their papers, written out here line by line in the papers' own variables.

Those with a scheduler in diffusers are compared in `test_against_diffusers`; here are the others, in float64.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from attrs import frozen
from solver_support import MIXTURE, part, sampling_program, system_on

from diffkit.protocols import NoiseSchedule
from diffkit.table import ProcessTable

RHO = np.geomspace(20.0, 0.02, 12)
"""Sigma / alpha at each level, noisy ones first."""


@frozen
class Exploding(NoiseSchedule):
    """``x = x_start + rho eps``, known at every level."""

    continuous = True

    def table(self, num_steps):
        return ProcessTable.from_alpha_sigma(np.ones(num_steps), RHO[::-1], np.arange(num_steps))

    def level(self, log_snr):
        return (1 + torch.exp(-log_snr)).sqrt(), log_snr


@frozen
class Preserving(NoiseSchedule):
    """``x = alpha x_start + sigma eps``, alpha^2 + sigma^2 = 1, at the same ratios."""

    continuous = True

    def table(self, num_steps):
        alpha, sigma = scales(RHO[::-1])
        return ProcessTable.from_alpha_sigma(alpha, sigma, np.arange(num_steps))

    def level(self, log_snr):
        return torch.ones_like(log_snr), log_snr


def scales(rho):
    alpha = 1 / np.sqrt(1 + rho**2)
    return alpha, rho * alpha


def start():
    return np.linspace(-2, 2, 9)[:, None]


def noises(count):
    return list(np.random.default_rng(0).normal(size=(count, 9, 1)))


def estimate(x, alpha, sigma):
    """E[x_start | x_t]."""
    return MIXTURE.x_start(torch.from_numpy(np.asarray(x)), float(alpha), float(sigma)).numpy()


def ours(sampler, schedule, x, noise=None):
    """Data after every step to a level with noise."""
    system = system_on(schedule, len(RHO))
    program = sampling_program(system.parts, part(sampler), system.table)
    fresh = iter(noise or ())
    moments = program.run(MIXTURE, torch.from_numpy(x), (lambda: torch.from_numpy(next(fresh))) if noise else None)
    return [moment.x.numpy() for moment in moments]


def close(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def heun_step(x, t, s):
    """Karras et al. 2022, algorithm 1, lines 4 to 8."""
    d = (x - estimate(x, 1, t)) / t
    y = x + (s - t) * d
    if s == 0:
        return y
    return x + (s - t) * (d + (y - estimate(y, 1, s)) / s) / 2


def test_heun():
    x, wanted = start() * RHO[0], []
    for t, s in zip(RHO, np.append(RHO[1:], 0), strict=True):
        x = heun_step(x, t, s)
        wanted.append(x)
    close(ours("heun", Exploding(), start() * RHO[0]), wanted)


@pytest.mark.parametrize(("s_churn", "s_tmin", "s_tmax"), [(4.0, 0.0, 100.0), (100.0, 0.1, 5.0)])
def test_churn(s_churn, s_tmin, s_tmax):
    """Karras et al. 2022, algorithm 2, with S_noise = 1."""
    noise, wanted = noises(len(RHO)), []
    x = start() * RHO[0]
    for t, s, eps in zip(RHO, np.append(RHO[1:], 0), noise, strict=True):
        gamma = min(s_churn / len(RHO), np.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0.0
        hat = t + gamma * t
        x = heun_step(x + np.sqrt(hat**2 - t**2) * eps, hat, s)
        wanted.append(x)
    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax}
    close(ours(("churn", options), Exploding(), start() * RHO[0], noise), wanted)


def test_restart():
    """Xu et al. 2023, algorithm 1, the stretch on the levels at hand: down to RHO[8], twice up to RHO[5], and on."""
    noise = noises(len(RHO) + 6)
    x, wanted, taken = start() * RHO[0], [], 0
    grid = np.append(RHO, 0)
    for i in [*range(8), *(["up", 5, 6, 7] * 2), *range(8, 12)]:
        if i == "up":
            x = x + np.sqrt(RHO[5] ** 2 - RHO[8] ** 2) * noise[taken]  # drawn with the step that follows
            continue
        x = heun_step(x, grid[i], grid[i + 1])
        taken += 1
        wanted.append(x)
    options = {"times": 2, "rho_min": RHO[8], "rho_max": RHO[5]}
    close(ours(("restart", options), Exploding(), start() * RHO[0], noise), wanted)


def eps_at(x, lam):
    alpha, sigma = scales(np.exp(-lam))
    return (x - alpha * estimate(x, alpha, sigma)) / sigma


def held(x, t, s, eps):
    """DPM-Solver-1 from lambda_t to lambda_s: Lu et al. 2022, eq. 3.7."""
    (alpha_t, _), (alpha_s, sigma_s) = scales(np.exp(-t)), scales(np.exp(-s))
    return alpha_s / alpha_t * x - sigma_s * np.expm1(s - t) * eps


def dpm_solver_2(x, t, s, r):
    """Lu et al. 2022, algorithm 1, in the general form of its appendix (r = 1/2 there)."""
    h, sigma_s = s - t, scales(np.exp(-s))[1]
    first = eps_at(x, t)
    u = held(x, t, t + r * h, first)
    return held(x, t, s, first) - sigma_s / (2 * r) * np.expm1(h) * (eps_at(u, t + r * h) - first)


def dpm_solver_3(x, t, s):
    """Lu et al. 2022, algorithm 2, r1 = 1/3, r2 = 2/3."""
    h, r1, r2 = s - t, 1 / 3, 2 / 3
    first = eps_at(x, t)
    u1 = held(x, t, t + r1 * h, first)
    d1 = eps_at(u1, t + r1 * h) - first
    sigma_2, sigma_s = scales(np.exp(-(t + r2 * h)))[1], scales(np.exp(-s))[1]
    u2 = held(x, t, t + r2 * h, first) - sigma_2 * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = eps_at(u2, t + r2 * h) - first
    return held(x, t, s, first) - sigma_s / r2 * (np.expm1(h) / h - 1) * d2


def dpmpp_2s(x, t, s, r):
    """Lu et al. 2022b (DPM-Solver++), algorithm 1."""
    h, u = s - t, t + r * (s - t)
    (alpha_t, sigma_t), (alpha_u, sigma_u), (alpha_s, sigma_s) = (scales(np.exp(-lam)) for lam in (t, u, s))
    first = estimate(x, alpha_t, sigma_t)
    between = sigma_u / sigma_t * x - alpha_u * np.expm1(-r * h) * first
    d = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * estimate(between, alpha_u, sigma_u)
    return sigma_s / sigma_t * x - alpha_s * np.expm1(-h) * d


@pytest.mark.parametrize(
    ("sampler", "step"),
    [
        ("dpm_solver_2", lambda *a: dpm_solver_2(*a, 0.5)),
        (("dpm_solver_2", {"r": 0.7}), lambda *a: dpm_solver_2(*a, 0.7)),
        ("dpm_solver_3", dpm_solver_3),
        ("dpmpp_2s", lambda *a: dpmpp_2s(*a, 0.5)),
        (("dpmpp_2s", {"r": 0.3}), lambda *a: dpmpp_2s(*a, 0.3)),
    ],
    ids=["dpm_solver_2", "dpm_solver_2 r=0.7", "dpm_solver_3", "dpmpp_2s", "dpmpp_2s r=0.3"],
)
def test_single_step_dpm_solvers(sampler, step):
    x, wanted, lam = start(), [], -np.log(RHO)
    for t, s in pairwise(lam):
        x = step(x, t, s)
        wanted.append(x)
    close(ours(sampler, Preserving(), start())[:-1], wanted)
