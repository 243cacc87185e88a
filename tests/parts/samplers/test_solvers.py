"""Solvers on exact denoisers: order of convergence, ends of the table, short tables, other rows beside."""

from __future__ import annotations

from itertools import product

import attrs
import numpy as np
import pytest
import torch
from lanes import some_by_default
from solver_support import (
    GAUSSIAN,
    MIXTURE,
    NOISY,
    PATHS,
    SEGMENTS,
    SOLVERS,
    VP,
    WITHOUT_SIGNAL,
    errors,
    order,
    part,
    points,
    program_between,
    quantile_flow,
    run,
    sampling_program,
    system_on,
)

from diffkit.protocols import NoiseSchedule, Prediction
from diffkit.testing import network_of

LEARNED = ["euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral", "sde_dpmpp_2m", "sde_dpmpp_3m"]
"""Samplers that take the noise of a learned variance."""


def label(value):
    if isinstance(value, tuple):
        return value[0] + "".join(f"-{name}={option}" for name, option in value[1].items())
    return getattr(value, "label", None) or str(value)


def point(x, level):
    """One point of data, and the log-variance of its reverse step."""
    return Prediction(torch.full_like(x, 0.25), level.coefficients["log_variance"] if level.coefficients else None)


def walk(sampler, system, denoise, x, noise_fn=None):
    return list(sampling_program(system.parts, part(sampler), system.table).run(denoise, x, noise_fn))


@pytest.mark.parametrize(
    ("sampler", "path"),
    some_by_default(
        [(s, p) for i, s in enumerate(SOLVERS) for j, p in enumerate(SEGMENTS) if isinstance(s, str) or i % 3 == j], 3
    ),
    ids=label,
)
def test_order_on_a_mixture(sampler, path):
    found = errors(path, sampler, MIXTURE)
    assert order(found) >= part(sampler).order - 0.2, found


def test_four_estimates_are_better_than_three():
    three, four = (errors(SEGMENTS[1], ("lms", {"estimates": n}), MIXTURE, (80,))[0] for n in (3, 4))
    assert four < three / 2


def test_pndm_is_of_order_2_where_steps_change_slowly():
    even = attrs.evolve(SEGMENTS[0], uneven=False)
    assert order(errors(even, "pndm", MIXTURE)) >= 1.8


@pytest.mark.parametrize("name", ["deis", "lms"])
def test_without_a_corrected_start_the_first_error_stays(name):
    plain, corrected = (errors(SEGMENTS[0], (name, {"corrected_start": on}), MIXTURE, (320,)) for on in (False, True))
    assert plain[0] > 3 * corrected[0]


@pytest.mark.parametrize(
    ("sampler", "path"), some_by_default(product(SOLVERS + NOISY, (*PATHS, *WITHOUT_SIGNAL)), 3), ids=label
)
def test_one_point_of_data_is_found_exactly(sampler, path):
    for num_steps in (1, 2, 3):
        system = system_on(path, num_steps)
        x = points(system.table)
        end = walk(sampler, system, point, x, lambda x=x: torch.randn_like(x))[-1].x
        torch.testing.assert_close(end, torch.full_like(x, 0.25), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("sampler", "path"), some_by_default(product(SOLVERS, (*PATHS, *WITHOUT_SIGNAL)), 3), ids=label
)
def test_one_point_of_data_is_followed_along_its_line(sampler, path):
    """x = alpha x_start + sigma eps at every step, with the eps it started with."""
    system = system_on(path, 12)
    alpha, sigma = system.table.alpha, system.table.sigma
    x = points(system.table)
    eps = (x - alpha[-1] * 0.25) / sigma[-1]
    for moment in walk(sampler, system, point, x):
        wanted = alpha[moment.level] * 0.25 + sigma[moment.level] * eps
        torch.testing.assert_close(moment.x, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", SOLVERS + NOISY, ids=label)
def test_rows_at_different_levels_give_their_own_results(sampler):
    system = system_on(PATHS[0], 9)
    program = sampling_program(system.parts, part(sampler), system.table)
    matrix = program.columns.on(torch.device("cpu"), torch.float64)
    x, noise = points(system.table, 3), torch.ones(3, 1).double() if part(sampler).stochastic else None
    state = tuple(torch.randn_like(x) for _ in part(sampler).init(x))
    rows = [2, 5, 4]

    def denoise(x, level):
        return Prediction(
            GAUSSIAN(x, level).x_start, level.coefficients["log_variance"] if level.coefficients else None
        )

    together, _ = program.step(denoise, x, state, matrix[rows], noise, False)
    for i, row in enumerate(rows):
        one = tuple(s[i : i + 1] for s in state)
        alone, _ = program.step(denoise, x[i : i + 1], one, matrix[row], noise if noise is None else noise[:1], False)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("euler", "ddim"),
        ("dpm_solver_1", "ddim"),
        ("dpm2", "dpm_solver_2"),
        (("deis", {"estimates": 1}), "ddim"),
        (("lms", {"estimates": 1}), "ddim"),
        (("sde_dpmpp_2m", {"eta": 0.0}), "dpmpp_2m"),
        (("euler_ancestral", {"eta": 0.0}), "ddim"),
        (("euler_ancestral", {"eta": 0.7}), ("ddim", {"eta": 0.7})),
        (("dpm2_ancestral", {"eta": 0.0}), "dpm2"),
        (("dpmpp_2s_ancestral", {"eta": 0.0}), "dpmpp_2s"),
        (("dpmpp_2s_ancestral", {"eta": 0.0, "r": 0.3}), ("dpmpp_2s", {"r": 0.3})),
        (("sde_dpmpp_3m", {"eta": 0.0}), "dpmpp_3m"),
        (("churn", {"s_churn": 0.0}), "heun"),
        (("restart", {"times": 0}), "heun"),
    ],
    ids=label,
)
@pytest.mark.parametrize("path", PATHS, ids=label)
def test_these_are_the_same(one, other, path):
    system = system_on(path, 8)
    x = points(system.table)
    noise = torch.randn(8, *x.shape, dtype=x.dtype)
    ends = []
    for sampler in (one, other):
        fresh = iter(noise)
        ends.append(walk(sampler, system, MIXTURE, x, lambda fresh=fresh: next(fresh))[-1].x)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)


@attrs.frozen
class Discrete(NoiseSchedule):
    """A path of which only the table is known."""

    path: object

    def table(self, num_steps):
        return self.path.table(num_steps)


@pytest.mark.parametrize("sampler", some_by_default(["dpm_solver_2", "dpm2", "dpmpp_2s", "dpm_solver_3"], 4))
def test_nodes_between_the_levels_of_a_discrete_schedule(sampler):
    """Snapped nodes keep the gain over Euler's method; where no level lies between, Euler's step is what is left."""
    system = system_on(Discrete(VP), 300)
    x = points(system.table)
    exact = run(sampling_program(system.parts, part("heun"), system.table), MIXTURE, x)

    def error(sampler, steps):
        table = system.table_for(steps)
        return float((run(sampling_program(system.parts, part(sampler), table), MIXTURE, x) - exact).abs().max())

    assert error(sampler, "trailing20") < error("euler", "trailing20") / 4
    ends = [walk(name, system, MIXTURE, x)[-1].x for name in (sampler, "euler")]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)
    sections = system.table_for("3,10,5")
    assert torch.isfinite(run(sampling_program(system.parts, part(sampler), sections), MIXTURE, x)).all()


BETWEEN = ["churn", "dpm2", "dpm2_ancestral", "dpm_solver_2", "dpm_solver_3", "dpmpp_2s"]


@pytest.mark.parametrize("sampler", BETWEEN)
@pytest.mark.parametrize("schedule", ["log_linear", "laplace", "shifted_cosine"])
def test_a_mean_defined_at_levels_is_evaluated_at_levels_of_a_continuous_schedule_too(schedule, sampler):
    system = system_on(schedule, 30, mean="x_prev")
    exact = network_of(GAUSSIAN, system)
    asked = []

    def model(x, time):
        asked.append(time[0])
        return exact(x, time)

    samples = system.sample(3, steps=5, sampler=sampler, model=model, seed=0, progress=False)
    assert torch.isfinite(samples).all()
    assert np.isin(torch.stack(asked).numpy(), system.table.time[1:].astype(np.float32)).all()


def test_third_order_with_one_level_inside_a_step_is_second_order():
    system = system_on(Discrete(VP), 200)
    x = points(system.table)
    pairs = system.table_for(list(range(2, 201, 2)))
    ends = [
        run(sampling_program(system.parts, part(name), pairs), MIXTURE, x) for name in ("dpm_solver_3", "dpm_solver_2")
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)


def test_a_repeated_level_changes_nothing():
    """Two levels of equal noise: no solver may divide by the step between them."""

    @attrs.frozen
    class Repeats(NoiseSchedule):
        def table(self, num_steps):
            return type(VP.table(3)).from_alpha_bar([1.0, 0.9, 0.9, 0.5, 0.5, 0.1, 0.01])

    system = system_on(Repeats(), 6, var="fixed_large")
    x = points(system.table)
    for sampler in SOLVERS + NOISY:
        program = sampling_program(system.parts, part(sampler), system.table)
        assert torch.isfinite(run(program, point, x, lambda: torch.randn_like(x))).all(), sampler


def exact_reverse(system):
    """A denoiser of normal data that knows the true variance of every reverse step of the table."""
    table = system.table
    posterior = table.posterior()
    gain = GAUSSIAN.variance(torch.from_numpy(table.alpha[1:]), torch.from_numpy(table.sigma[1:])).numpy()
    log_variance = torch.from_numpy(np.log(posterior.variance[2:] + posterior.coef_x_start[2:] ** 2 * gain[1:]))
    clock = torch.from_numpy(table.log_snr[2:].copy())

    def denoise(x, level):
        k = (clock - level.log_snr).abs().argmin()
        return Prediction(GAUSSIAN(x, level).x_start, log_variance[k])

    return denoise


@pytest.mark.parametrize("path", SEGMENTS, ids=label)
def test_with_the_true_variance_few_steps_are_exact_on_normal_data(path):
    """Sampling with the optimal variance has the right mean and variance at any number of steps."""
    system = system_on(path, 5)
    table = system.table
    program = program_between(system, ("euler_ancestral", {"variance": "learned"}))
    denoise, start = exact_reverse(system), GAUSSIAN.at(table.alpha[-1], table.sigma[-1])
    # One row at the mean, one a standard deviation beside it, one for the noise of each step.
    rows = program.num_steps + 2
    x = start.mean.repeat(rows)[:, None].clone()
    x[1] += start.std
    unit = iter(torch.eye(rows, dtype=torch.float64)[2:, :, None])
    end = run(program, denoise, x, lambda: next(unit))
    exact = GAUSSIAN.at(table.alpha[1], table.sigma[1])
    torch.testing.assert_close(end[0, 0], exact.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((end[1:] - end[0]).square().sum().sqrt(), exact.std, rtol=1e-12, atol=0)
    analytic = errors_of_variance(system, ("euler_ancestral", {"variance": "analytic"}))
    assert analytic > 0.05


def errors_of_variance(system, sampler):
    table = system.table
    program, start = program_between(system, sampler), GAUSSIAN.at(table.alpha[-1], table.sigma[-1])
    rows = program.num_steps + 2
    x = start.mean.repeat(rows)[:, None].clone()
    x[1] += start.std
    unit = iter(torch.eye(rows, dtype=torch.float64)[2:, :, None])
    end = run(program, exact_reverse(system), x, lambda: next(unit))
    exact = GAUSSIAN.at(table.alpha[1], table.sigma[1])
    return float(abs((end[1:] - end[0]).square().sum().sqrt() / exact.std - 1))


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_variance_scales_the_noise_and_spares_the_last_step(name):
    system = system_on(VP, 6)
    program = sampling_program(system.parts, part((name, {"variance": "learned"})), system.table)
    matrix = program.columns.on(torch.device("cpu"), torch.float64)
    x, noise = points(system.table, 3), torch.ones(3, 1).double()
    state = part(name).init(x)

    def denoise(log_variance):
        return lambda x, level: Prediction(x * 0, torch.tensor(log_variance).double())

    for i in range(6):
        quiet, loud = (
            program.step(denoise(v), x, state, matrix[i], noise, i == 5)[0] for v in (-1000.0, 2 * np.log(3.0))
        )
        torch.testing.assert_close(loud - quiet, torch.full_like(x, 3.0 if i < 5 else 0.0))


@pytest.mark.parametrize(
    ("sampler", "schedule", "steps"), some_by_default(product(SOLVERS, ["cosine", "linear"], [10, 20]), 3), ids=label
)
def test_few_steps_are_no_worse_than_ddims(sampler, schedule, steps):
    """Evenly spaced levels begin or end with steps of 3 to 8 in lambda: beyond what any polynomial is good for.

    Before long steps were told apart, 'heun' had up to 82 times the error of DDIM here, 'dpmpp_3m' 16 times,
    'dpmpp_2m' 2.7 times.
    """
    system = system_on(schedule, 1000)
    table = system.table_for(f"linspace{steps}")
    x = points(table)
    wanted = quantile_flow(MIXTURE, x, (table.alpha[-1], table.sigma[-1]), (1.0, 0.0))

    def error(slot):
        return (sampling_program(system.parts, part(slot), table).finish(MIXTURE, x, None) - wanted).abs().max()

    assert error(sampler) <= 1.05 * error("ddim")


VE_OF_EDM = ("log_linear", {"path": "ve", "log_snr_max": -2 * np.log(0.002), "log_snr_min": -2 * np.log(80.0)})


@pytest.mark.parametrize("sampler", [s for s in NOISY if "learned" not in str(s)], ids=label)
def test_ten_karras_levels_with_noise_keep_the_deviation(sampler):
    """From sigma 80 down to 0.002 on ten levels, steps of 0.6 to 2.3 in lambda: 'sde_dpmpp_3m' was off by 1.03."""
    system = system_on(VE_OF_EDM, 1000)
    program = sampling_program(system.parts, part(sampler), system.table_for("karras10"))
    x = points(system.table, 4000)
    generator = torch.Generator().manual_seed(0)

    def denoise(x, level):
        return Prediction(MIXTURE(x, level).x_start, level.coefficients["log_variance"] if level.coefficients else None)

    end = program.finish(denoise, x, lambda: torch.randn(x.shape, dtype=x.dtype, generator=generator))
    assert abs(float(end.std()) - (0.0625 + 0.3549) ** 0.5) < 0.45


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("sampler", [s for s in NOISY if "learned" not in str(s)], ids=label)
def test_few_steps_with_noise_are_no_disaster(sampler, steps):
    """'dpm2_ancestral' had a hundred times the data's deviation: its steps go further down than where they end."""
    system = system_on("cosine", 1000)
    program = sampling_program(system.parts, part(sampler), system.table_for(f"linspace{steps}"))
    x = points(system.table, 2000)
    generator = torch.Generator().manual_seed(0)

    def denoise(x, level):
        return Prediction(MIXTURE(x, level).x_start, level.coefficients["log_variance"] if level.coefficients else None)

    end = program.finish(denoise, x, lambda: torch.randn(x.shape, dtype=x.dtype, generator=generator))
    # of the mixture: variance 0.25^2 within, 0.3 * 0.7 * 1.3^2 between
    assert abs(float(end.std()) - (0.0625 + 0.3549) ** 0.5) < 0.6
