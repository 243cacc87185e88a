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

from diffkit.protocols import ContinuousSchedule
from diffkit.table import ProcessTable

RHO = np.geomspace(20.0, 0.02, 12)
"""Sigma / alpha at each level, noisy ones first."""


@frozen
class Exploding(ContinuousSchedule):
    """``x = x_start + rho eps``, known at every level."""

    def table(self, num_steps):
        return ProcessTable.from_alpha_sigma(np.ones(num_steps), RHO[::-1], np.arange(num_steps))

    def level(self, log_snr):
        return (1 + torch.exp(-log_snr)).sqrt(), log_snr


@frozen
class Preserving(ContinuousSchedule):
    """``x = alpha x_start + sigma eps``, alpha^2 + sigma^2 = 1, at the same ratios."""

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


@pytest.mark.parametrize(
    ("s_churn", "s_tmin", "s_tmax", "s_noise"),
    [(4.0, 0.0, 100.0, 1.0), (100.0, 0.1, 5.0, 1.0), (40.0, 0.05, 50.0, 1.003)],
)
def test_churn(s_churn, s_tmin, s_tmax, s_noise):
    """Karras et al. 2022, algorithm 2; the last row has its table 5's S_noise for ImageNet-64."""
    noise, wanted = noises(len(RHO)), []
    x = start() * RHO[0]
    for t, s, eps in zip(RHO, np.append(RHO[1:], 0), noise, strict=True):
        gamma = min(s_churn / len(RHO), np.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0.0
        hat = t + gamma * t
        x = heun_step(x + np.sqrt(hat**2 - t**2) * s_noise * eps, hat, s)
        wanted.append(x)
    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
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


def eta_split(t, s, eta):
    """Standard deviations in rho: what is drawn afresh on the way from t to s, and what is reached before that."""
    up = min(s, eta * np.sqrt(s**2 * (t**2 - s**2) / t**2))
    return np.sqrt(s**2 - up**2), up


def to_rho(x, t, s, d):
    """DPM-Solver++ of first order from rho_t to rho_s, where x = x_start + rho eps: x_start is held."""
    return s / t * x + (1 - s / t) * d


@pytest.mark.parametrize(("eta", "r"), [(1.0, 0.5), (0.6, 0.5), (0.6, 0.3)])
def test_dpmpp_2s_ancestral(eta, r):
    """Algorithm 1 of Lu et al. 2022b from rho_t down to less noise than at s, then fresh noise; eta = 1, r = 1/2 is
    k-diffusion's."""
    x, wanted, noise = start() * RHO[0], [], noises(len(RHO))
    for (t, s), eps in zip(pairwise(RHO), noise, strict=False):
        down, up = eta_split(t, s, eta)
        first = estimate(x, 1, t)
        u = t if down == 0 else np.exp(np.log(t) + r * (np.log(down) - np.log(t)))
        second = estimate(to_rho(x, t, u, first), 1, u)
        x = to_rho(x, t, down, (1 - 1 / (2 * r)) * first + second / (2 * r)) + up * eps
        wanted.append(x)
    found = ours(("dpmpp_2s_ancestral", {"eta": eta, "r": r}), Exploding(), start() * RHO[0], noise)
    close(found[:-1], wanted)


@pytest.mark.parametrize(("eta", "r", "s_noise"), [(1.0, 0.5, 1.0), (0.6, 0.3, 1.0), (1.0, 0.7, 1.02)])
def test_dpmpp_sde(eta, r, s_noise):
    """k-diffusion's two stages in rho, for a pair of noises that share what the first has carried to s.

    Their covariance, for x_start held: the noise of x_u is multiplied by sigma_down / sigma_t of the way from u on.
    """
    noise = noises(2 * len(RHO) - 1)
    x, wanted, fresh = start() * RHO[0], [], iter(noise)
    for t, s in pairwise(RHO):
        u = np.exp((1 - r) * np.log(t) + r * np.log(s))
        (down_u, up_u), (down, up) = eta_split(t, u, eta), eta_split(t, s, eta)
        one, other = next(fresh), next(fresh)
        share = up_u * (down / down_u) / up
        both = share * one + np.sqrt(1 - share**2) * other
        first = estimate(x, 1, t)
        second = estimate(to_rho(x, t, down_u, first) + s_noise * up_u * one, 1, u)
        wanted.append(to_rho(x, t, down, first) + s_noise * up * one)
        x = to_rho(x, t, down, (1 - 1 / (2 * r)) * first + second / (2 * r)) + s_noise * up * both
        wanted.append(x)
    options = {"eta": eta, "r": r, "s_noise": s_noise}
    close(ours(("dpmpp_sde", options), Exploding(), start() * RHO[0], noise)[:-1], wanted)


def test_noise_of_the_two_stages_correlates_as_along_a_brownian_path():
    """To leading order in the step, sqrt(r): what a Brownian path in rho has too. In snr, as at eta = 1, exactly."""
    sampler = part(("dpmpp_sde", {"r": 0.3}))
    for h in (1.0, 1e-3):
        table = ProcessTable.from_alpha_sigma(np.ones(2), np.exp([-h, 0.0]), np.arange(2))
        system = system_on(Known(table), 2)
        plan = sampling_program(system.parts, sampler, system.table).columns.blocks["coef"]
        found = 1 + plan["rest_noise"][0] / plan["noise"][0]
        assert found == pytest.approx(np.sqrt(np.expm1(2 * 0.3 * h) / np.expm1(2 * h)), rel=1e-12)
        assert found == pytest.approx(np.sqrt(0.3), rel=h)


@frozen
class Known(ContinuousSchedule):
    """A variance-exploding table, known at every level."""

    known: ProcessTable

    def table(self, num_steps):
        return self.known

    def level(self, log_snr):
        return (1 + torch.exp(-log_snr)).sqrt(), log_snr


def sde_3m_step(x, rho, estimates, eta, eps):
    """k-diffusion's third-order step in rho, from rho[1] to rho[0], and its second difference times the other half.

    ``estimates`` at rho[1], rho[2], rho[3].
    """
    lam = -np.log(rho)
    h, back_1, back_2 = lam[0] - lam[1], lam[1] - lam[2], lam[2] - lam[3]
    full, (d, d_1, d_2) = h * (1 + eta), estimates
    slope_0, slope_1 = (d - d_1) / (back_1 / h), (d_1 - d_2) / (back_2 / h)
    bend = (slope_0 - slope_1) / ((back_1 + back_2) / h)
    slope = slope_0 + bend * back_1 / h
    phi_2 = np.expm1(-full) / full + 1
    phi_3 = phi_2 / full - 0.5
    y = np.exp(-full) * x - np.expm1(-full) * d + phi_2 * slope - phi_3 * bend
    return y + rho[0] * np.sqrt(-np.expm1(-2 * eta * h)) * eps, -phi_3 * bend


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_sde_dpmpp_3m(eta):
    """Once three estimates are there, k-diffusion's step with the whole of the integral of the second difference."""
    noise = noises(len(RHO))
    found = ours(("sde_dpmpp_3m", {"eta": eta}), Exploding(), start() * RHO[0], noise)
    states = [start() * RHO[0], *found]
    for i in range(2, len(RHO) - 1):
        estimates = [estimate(states[k], 1, RHO[k]) for k in (i, i - 1, i - 2)]
        y, half = sde_3m_step(states[i], RHO[[i + 1, i, i - 1, i - 2]], estimates, eta, noise[i])
        np.testing.assert_allclose(states[i + 1], y + half, rtol=1e-11, atol=1e-11)
        assert np.abs(half).max() > 1e-4 or RHO[i] < 0.1
