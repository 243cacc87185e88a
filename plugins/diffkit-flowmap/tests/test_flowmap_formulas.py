"""What the losses take for the truth is true: on data whose flow map is known, on two paths, for every mean."""

from __future__ import annotations

import math

import pytest
import torch
from diffkit_flowmap import _formulas as formulas
from flowmap_support import DATA, MEANS, PATHS, Path, expected, grid, slopes

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own decompositions
PAIRS = [(0.8, 0.8), (0.8, 0.3), (0.95, 0.0), (0.2, 0.1)]


def exact(path: Path):
    """The exact average of the denoiser between two times."""

    def average(x, t, s):
        return DATA(x, path(t), path(s)).x_start

    return average


@pytest.mark.parametrize("path", PATHS)
def test_a_step_of_the_average_is_the_flow_map(path: str):
    levels = Path(path, "v")
    for pair in PAIRS:
        x, t, s = grid(*pair)
        t, s = levels(t), levels(s)
        found = formulas.moved(x, DATA(x, t, s).x_start, formulas.step_between(t, s))
        torch.testing.assert_close(found, DATA.flow(x, t[:2], s[:2]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("pair", PAIRS)
def test_the_mean_flow_error_is_zero_on_average_at_the_exact_map(path: str, mean: str, pair: tuple[float, float]):
    levels = Path(path, mean)
    x, t, s = grid(*pair)
    here, there, rate = levels(t), levels(s), levels.rate(t)

    def error(average):
        out, by_time, by_x = slopes(levels, average, x, t, s)

        def at(x_start):
            out_rate = by_time + by_x * formulas.velocity(x, x_start, here, rate)
            return formulas.mean_flow_error(x, x_start, out, out_rate, here, there, rate)

        return at

    at_exact = error(exact(levels))
    assert expected(at_exact, x, here).abs().max() < 1e-9
    # with the denoiser in place of examples there is nothing to average
    assert at_exact(DATA.x_start(x, *here[:2])).abs().max() < 1e-9
    off = expected(error(lambda x, t, s: exact(levels)(x, t, s) + 0.1 * torch.cos(x + t[:, None])), x, here)
    assert off.abs().max() > 1e-3


def test_on_the_straight_path_it_is_the_papers():
    """u - v + (t - s) du/dt, v of one example."""
    levels = Path("linear", "flow")
    x, t, s = grid(0.8, 0.3)
    x_start, u, slope = torch.randn(3, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = (x - x_start) / t[:, None]
    here, there, rate = levels(t), levels(s), levels.rate(t)
    torch.testing.assert_close(formulas.velocity(x, x_start, here, rate), v, rtol=1e-12, atol=1e-12)
    found = formulas.mean_flow_error(x, x_start, u, slope, here, there, rate)
    torch.testing.assert_close(found, u - v + (t - s)[:, None] * slope, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("path", PATHS)
def test_where_both_levels_are_one_it_is_the_error_of_the_output(path: str):
    levels = Path(path, "v")
    x, t = grid(0.7)
    x_start, out, slope = torch.randn(3, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    here = levels(t)
    found = formulas.mean_flow_error(x, x_start, out, slope, here, here, levels.rate(t))
    wanted = out - (x_start - here.c_skip * x) / here.c_out
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("way", [(0.9, 0.5, 0.1), (0.9, 0.4, 0.0), (0.5, 0.3, 0.3), (0.9, 0.0, 0.0)])
def test_two_exact_steps_join_to_the_exact_one(path: str, way: tuple[float, float, float]):
    levels = Path(path, "v")
    x, *times = grid(*way)
    t, m, s = map(levels, times)
    first = DATA(x, t, m).x_start
    second = DATA(formulas.moved(x, first, formulas.step_between(t, m)), m, s).x_start if way[1] else 0 * x
    torch.testing.assert_close(formulas.joined(first, second, t, m, s), DATA(x, t, s).x_start, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("pair", [(0.8, 0.7), (0.1, 0.0)])
def test_the_consistency_error_is_zero_along_the_flow(path: str, pair: tuple[float, float]):
    levels = Path(path, "v")
    x, *times = grid(*pair)
    t, s = map(levels, times)
    clean = levels(torch.zeros(5, dtype=torch.float64))
    x_s = DATA.flow(x, t[:2], s[:2])
    there = DATA(x_s, s, clean).x_start if pair[1] else x_s
    assert formulas.consistency_error(DATA(x, t, clean).x_start, there, t, s).abs().max() < 1e-12


@pytest.mark.parametrize("path", PATHS)
def test_in_training_it_vanishes_with_the_distance_of_neighbours(path: str):
    """On average over the data given x_t; its gradient is error / sqrt(move), which falls in proportion."""
    levels = Path(path, "v")
    pulls = []
    for gap in (0.02, 0.01, 0.005):
        x, t, s, zero = grid(0.6, 0.6 - gap, 0.0)
        t, s, clean = levels(t), levels(s), levels(zero)
        here = DATA(x, t, clean).x_start

        def error(x_start, t=t, s=s, clean=clean, here=here, x=x):
            x_s = s.alpha * x_start + s.sigma * (x - t.alpha * x_start) / t.sigma
            return formulas.consistency_error(here, DATA(x_s, s, clean).x_start, t, s)

        move = formulas.step_between(t, s).move
        pulls.append(float((expected(error, x, t) / move.sqrt()).abs().max()))
    assert pulls[2] < 0.5
    assert 0.9 < math.log2(pulls[0] / pulls[1]) < 1.2
    assert 0.9 < math.log2(pulls[1] / pulls[2]) < 1.2


@pytest.mark.parametrize("path", PATHS)
def test_a_step_of_the_teacher_is_of_second_order(path: str):
    levels = Path(path, "v")
    errors = []
    for gap in (0.1, 0.05, 0.025):
        x, *times = grid(0.6, 0.6 - gap)
        t, s = map(levels, times)
        found = formulas.heun_step(lambda x, level: DATA(x, level).x_start, x, t, s)
        errors.append(float((found - DATA.flow(x, t[:2], s[:2])).abs().max()))
    assert 2.7 < math.log2(errors[1] / errors[2]) < 3.4  # of one step


@pytest.mark.parametrize("path", PATHS)
def test_its_ends_may_be_pure_noise_and_clean_data(path: str):
    levels = Path(path, "v")
    x, *times = grid(1.0, 0.0)
    t, s = map(levels, times)
    found = formulas.heun_step(lambda x, level: DATA.x_start(x, level.alpha, level.sigma), x, t, s)
    torch.testing.assert_close(found, DATA.x_start(x, 0.0, 1.0), rtol=1e-9, atol=1e-9)


def test_power_one_half_has_the_gradient_of_a_pseudo_huber_distance():
    error = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (found,) = torch.autograd.grad(formulas.robust(error, 0.5)[0].sum(), error)
    huber = (error.square().mean(1) + 1e-3).sqrt()
    (wanted,) = torch.autograd.grad(2 * huber.sum(), error)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    loss, squared = formulas.robust(error, 0.0)
    assert torch.equal(loss, squared)
