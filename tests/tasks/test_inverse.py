"""Linear inverse problems on normal data, where the posterior is known in closed form."""

from __future__ import annotations

import re

import pytest
import torch
from gaussian_support import affine_law, posterior, some_gaussian, system_for

import diffkit
from diffkit.errors import CompositionError, OptionError
from diffkit.guidance import DPS, MMPS, DiffPIR, PiGDM, StaticThreshold
from diffkit.parts.guidance._linear import adjoint_of, conjugate_gradients
from diffkit.system.call_parts import parts_for
from diffkit.tasks import average_pool, masked, solve
from diffkit.testing.oracles import network_of

SHAPE, SIZE = (2, 3), 6
MATRIX = torch.randn(3, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def operator(x):
    return x.flatten(1) @ MATRIX.T.to(x)


def agrees(data, guidance, noise_std, tolerance, *, steps=50, sampler="dpm_solver_2", **parts):
    mean, covariance = affine_law(system_for(SHAPE, **parts), data, Y, guidance, steps=steps, sampler=sampler)
    wanted = posterior(data, MATRIX, Y, noise_std)
    torch.testing.assert_close(mean, wanted[0], rtol=0, atol=tolerance)
    torch.testing.assert_close(covariance, wanted[1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("noise_std", [0.05, 0.5])
@pytest.mark.parametrize(
    ("schedule", "mean", "sampler", "steps"),
    [
        ("cosine", "eps", "dpm_solver_2", 50),
        ("cosine", "v", "ddim", 200),
        ("linear", "x_start", "dpm_solver_2", 50),
        ("cosine", "eps", "unipc", 50),
    ],
)
def test_mmps_is_the_posterior_for_any_covariance(noise_std, schedule, mean, sampler, steps):
    """The tolerance is the sampler's own error: the measured values' scale is 0.7, the covariance's 0.3."""
    guidance = MMPS(operator, noise_std, iterations=3)
    agrees(some_gaussian(SIZE), guidance, noise_std, 0.008, steps=steps, sampler=sampler, schedule=schedule, mean=mean)


@pytest.mark.parametrize(("mean", "tolerance"), [("v", 0.003), ("x_start", 0.003), ("eps", 0.04)])
@pytest.mark.parametrize("sampler", ["heun", "ddim"])
def test_short_chains_are_guided_from_their_first_level(mean, tolerance, sampler):
    """Where alpha is 1e-3. A sampler of order 2 weighs what a level left alone would make of the next by 30."""
    data, method = some_gaussian(SIZE), MMPS(operator, 0.3, iterations=6)
    found, _ = affine_law(system_for(SHAPE, num_steps=50, mean=mean), data, Y, method, steps=None, sampler=sampler)
    wanted, covariance = posterior(data, MATRIX, Y, 0.3)
    assert float(((found - wanted) / covariance.diagonal().sqrt()).abs().max()) < tolerance


@pytest.mark.parametrize("noise_std", [0.05, 0.5])
@pytest.mark.parametrize("method", [PiGDM, DiffPIR])
def test_one_variance_for_all_is_the_posterior_if_it_is_the_datas(method, noise_std):
    agrees(some_gaussian(SIZE, spread=0.5), method(operator, noise_std, data_std=0.5), noise_std, 0.005)


def test_what_is_measured_without_noise_is_met():
    data = some_gaussian(SIZE, spread=0.5)
    for method in (PiGDM(operator, data_std=0.5), DiffPIR(operator)):
        mean, covariance = affine_law(system_for(SHAPE), data, Y, method, steps=50, sampler="dpm_solver_2")
        torch.testing.assert_close(MATRIX @ mean, Y, rtol=0, atol=1e-3)
        assert (MATRIX @ covariance @ MATRIX.T).abs().max() < 1e-4


def test_dps_is_the_posterior_where_the_noise_outweighs_what_x_t_leaves_open():
    """Its likelihood form leaves out the variance of x_start given x_t, at most that of the data: 1.2 against 100."""
    agrees(some_gaussian(SIZE), DPS(operator, form="likelihood", noise_std=10.0), 10.0, 0.02)


@pytest.mark.parametrize("clip", [False, True])
def test_dps_moves_an_ancestral_step_down_the_misfit(clip):
    """Its definition: x_s - step / |r| grad |r|^2, with the gradient through the network, after any clipping."""
    system, data = system_for(SHAPE, num_steps=50), some_gaussian(SIZE)
    model, x, noise = network_of(data, system), torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
    measurement = Y.float().expand(2, 3)

    def step(guidance, x):
        parts = parts_for(system.parts, "ancestral", guidance)
        program = diffkit.system.sampling.sampling_program(parts, parts.sampler, system.table)
        given = {"measurement": measurement} if guidance else {}
        denoiser = system.denoiser(model, guidance=guidance, clip=clip, **given)
        row = program.columns.on(x.device)[20]
        level = program.columns.level(row, x.ndim, "t")
        return program.step(denoiser, x, (), row, noise, False)[0], system.denoiser(model, clip=False)(x, level).x_start

    at = x.clone().requires_grad_()
    plain, estimate = step(None, at)
    misfit = (measurement - operator(estimate)).square().sum(1)
    (gradient,) = torch.autograd.grad(misfit.sum(), at)
    wanted = plain - 0.7 * gradient / misfit.sqrt().view(2, 1, 1)
    torch.testing.assert_close(step(DPS(operator, 0.7), x)[0], wanted.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "sampler"),
    [
        (MMPS(lambda x: x[:, :1], 0.3), "ddim"),
        (PiGDM(lambda x: x[:, :1], 0.3), "ddim"),
        (DiffPIR(lambda x: x[:, :1], 0.3), "ddim"),
        (DPS(lambda x: x[:, :1], form="likelihood", noise_std=0.6), "ddim"),
        (DPS(lambda x: x[:, :1], 0.1), "ancestral"),
    ],
)
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1, 2)])
def test_gradients_flow_through_guided_walks(method, sampler, wanted):
    """By noise, measurement and weight, whichever ask for one: against finite differences."""
    system = system_for((2,), mean="x_start", num_steps=50)
    table, noise = system.table_for(3), torch.full((1, 2), 0.3, dtype=torch.float64)

    def end(x, measurement, weight):
        return system.sample_from(
            lambda x, time: torch.tanh(weight * x), x, lambda: noise, table,
            sampler=sampler, guidance=method, grad=True, measurement=measurement,
        ).sum()  # fmt: skip

    given = [torch.tensor([[0.5, -0.4]]).double(), torch.tensor([[0.2]]).double(), torch.tensor(0.7).double()]
    leaves = [value.clone().requires_grad_(i in wanted) for i, value in enumerate(given)]
    found = torch.autograd.grad(end(*leaves), [leaves[i] for i in wanted])
    for i, gradient in zip(wanted, found, strict=True):
        small = torch.zeros_like(given[i])
        small.view(-1)[0] = 1e-6
        above, below = (end(*(v + s * small if i == j else v for j, v in enumerate(given))) for s in (1, -1))
        assert float(gradient.view(-1)[0]) == pytest.approx(float((above - below).detach()) / 2e-6, rel=1e-4, abs=1e-6)


def test_dps_takes_an_operator_that_is_not_linear():
    system, data = system_for(SHAPE, num_steps=100), some_gaussian(SIZE, spread=0.5)
    measurement = torch.full((3,), 0.8)
    x = solve(
        system,
        measurement,
        DPS(lambda x: operator(x).sin(), 0.2),
        n=4,
        seed=0,
        model=network_of(data, system),
        progress=False,
    )
    free = system.sample(4, seed=0, model=network_of(data, system), progress=False)

    def misfit(x):
        return float((operator(x).sin() - 0.8).norm(dim=1).mean())

    assert misfit(x) < 0.4 * misfit(free)


def test_without_signal_the_estimate_stays():
    """J would be rounding errors there."""
    system = system_for(SHAPE, mean="x_start", num_steps=20)
    columns = diffkit.system.coefficients.CoefficientTable(
        {"level": diffkit.system.coefficients.level_coefficients(system.parts, system.table)}
    )
    level = columns.level(columns.on(torch.device("cpu"))[20], 3)
    nothing = level._replace(alpha=torch.zeros(()), sigma=torch.ones(()))
    x, model = torch.randn(2, *SHAPE), lambda x, time: 0.1 * x
    for method in (MMPS(operator, 0.1), PiGDM(operator, 0.1), DPS(operator, form="likelihood", noise_std=0.1)):
        denoiser = system.denoiser(model, guidance=method, measurement=torch.ones(2, 3))
        torch.testing.assert_close(denoiser(x, nothing).x_start, 0.1 * x)


@pytest.mark.parametrize("method", [MMPS(operator, 0.1), PiGDM(operator), DiffPIR(operator), DPS(operator, 0.3)])
def test_a_sample_does_not_depend_on_its_batch_and_measurements_are_cut_with_it(method):
    system, data = system_for(SHAPE, num_steps=20, mean="v"), some_gaussian(SIZE, spread=0.5)
    measurements = torch.randn(5, 3)
    how = dict(seed=3, model=network_of(data, system), progress=False)
    whole = solve(system, measurements, method, **how)
    torch.testing.assert_close(solve(system, measurements, method, batch_size=2, **how), whole, rtol=1e-4, atol=1e-4)
    alone = solve(system, measurements[2], method, **{**how, "seed": [7]})
    mixed = solve(system, measurements[[0, 2]], method, **{**how, "seed": [1, 7]})
    torch.testing.assert_close(mixed[1], alone[0], rtol=1e-4, atol=1e-4)


def test_other_guidance_acts_before_the_method():
    system, data = system_for(SHAPE, num_steps=20), some_gaussian(SIZE, spread=0.5)
    how = dict(seed=0, n=2, model=network_of(data, system), progress=False)
    known = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    x = solve(system, known * 2, DiffPIR(masked(known)), guidance=StaticThreshold(0.1), **how)
    torch.testing.assert_close(x[:, known.bool()], torch.full((2, 2), 2.0), rtol=0, atol=1e-3)
    assert x[:, ~known.bool()].abs().max() < 0.11


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_averages_over_blocks(axes):
    x = torch.randn(2, 3, *(4,) * axes)
    small = average_pool(2)(x)
    assert small.shape == (2, 3, *(2,) * axes)
    torch.testing.assert_close(small.flatten(2).mean(2), x.flatten(2).mean(2))
    with pytest.raises(OptionError, match=r"factor=3 does not divide the sides \(4"):
        average_pool(3)(x)


def test_the_adjoint_is_one():
    x, y = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 2, 2)
    pool = average_pool(2)
    torch.testing.assert_close((pool(x) * y).sum(), (x * adjoint_of(pool, x)(y)).sum())


@pytest.mark.parametrize("iterations", [6, 20])
def test_conjugate_gradients_solve_each_row(iterations):
    """More iterations than unknowns change nothing, and neither does a row that is solved at once."""
    root = torch.randn(6, 6, dtype=torch.float64)
    matrix = root @ root.T + 0.5 * torch.eye(6)
    right = torch.randn(3, 6, dtype=torch.float64)
    right[1] = 0
    found = conjugate_gradients(lambda v: v @ matrix, right, iterations)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right.T).T, rtol=1e-6, atol=1e-8)
    assert found[1].eq(0).all()


BAD = [
    (
        lambda s: solve(s, torch.zeros(4), MMPS(operator, 0.1)),
        "measurement must have shape (3,), as the operator",
    ),
    (lambda s: solve(s, torch.zeros(2, 3), MMPS(operator, 0.1), n=3), "or (3, 3), got (2, 3)"),
    (lambda s: solve(s, torch.zeros(3), "static_threshold"), "method must be MMPS, PiGDM, DiffPIR or DPS of"),
    (
        lambda s: solve(s, torch.zeros(3), PiGDM(lambda x: operator(x) + 1)),
        "the operator is not linear: it does not map",
    ),
    (lambda s: MMPS(operator, 0.0), "noise_std must be > 0, got 0.0"),
    (lambda s: MMPS("blur", 0.1), "operator must be a function from data to measurements, got 'blur'"),
    (lambda s: DPS(operator, form="likelihood"), "noise_std is for form='likelihood', which needs it"),
    (lambda s: DPS(operator, noise_std=0.1), "noise_std is for form='likelihood', which needs it"),
    (
        lambda s: solve(s, torch.zeros(3), DPS(operator), sampler="dpm_solver_2"),
        "it moves a step, but sampler 'dpm_solver_2' evaluates between levels; use form='likelihood'",
    ),
    (
        lambda s: s.sample(2, guidance=MMPS(operator, 0.1)),
        "guidance 'mmps' needs the condition 'measurement'; pass measurement=...",
    ),
]


@pytest.mark.parametrize(("call", "text"), BAD, ids=[text[:40] for _, text in BAD])
def test_wrong_use(call, text):
    calls = []
    system = system_for(SHAPE, num_steps=10)
    system.network = None
    with pytest.raises((OptionError, CompositionError), match=re.escape(text)):
        call(_Watched(system, calls))
    assert not calls


class _Watched:
    """A system whose network must not be called."""

    def __init__(self, system, calls):
        self._system, self._calls = system, calls

    def sample(self, n, **given):
        return self._system.sample(n, **{**given, "model": lambda *a, **k: self._calls.append(a), "progress": False})

    def __getattr__(self, name):
        return getattr(self._system, name)
