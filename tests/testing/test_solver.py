"""Laws of solvers that are no part of diffkit: right ones pass, and each mistake fails the law that is about it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from diffkit.errors import OptionError
from diffkit.testing import TimePath, check_solver, require_laws, solver_times, step_solver

COUNTS = (10, 20, 40)


def euler(model, times):
    return lambda x, t, s: x + (s - t) * model.velocity(x, t)


def ancestral(model, times, *, batch_wide=False, stale=False, loud=1.0):
    def step(x, t, s):
        ratio = (model.sigma(s) / model.alpha(s)) / (model.sigma(t) / model.alpha(t))
        x_start = model.x_start(x, max(s, 1e-3) if stale else t)
        eps = (x - model.alpha(t) * x_start) / model.sigma(t)
        noise = torch.randn_like(x)
        if batch_wide:
            noise = noise - noise.mean(0)
        spread = loud * model.sigma(s) * (1 - ratio**2).sqrt()
        return model.alpha(s) * x_start + model.sigma(s) * ratio * eps + spread * noise

    return step


def dpmpp_2m(model, times):
    """Second order with start-up: the second step knows the first's estimate and the ratio of their lengths."""
    known = []

    def step(x, t, s):
        rho = [model.sigma(u) / model.alpha(u) for u in (t, s)]
        x_start = model.x_start(x, t)
        length = (rho[0] / rho[1]).log()
        estimate = x_start
        if known and rho[1] > 0:
            before, last = known[-1]
            estimate = x_start + length / last / 2 * (x_start - before)
        known.append((x_start, length))
        ratio = model.sigma(s) / model.sigma(t)
        return ratio * x + (model.alpha(s) - model.alpha(t) * ratio) * estimate

    return step


def failed(results):
    return {result.check for result in results if not result.ok}


@pytest.mark.parametrize(("start", "order", "path"), [(euler, 1, "linear"), (dpmpp_2m, 2, "vp"), (ancestral, 1, "ve")])
def test_a_solver_that_is_right_passes(start, order, path):
    require_laws(check_solver(step_solver(start), path=path, order=order, counts=(15, 30, 60)))


def without(**mistakes):
    return step_solver(lambda model, times: ancestral(model, times, **mistakes))


def skips_ahead(model, x, times):
    """Goes less far than the grid says, as a fixed step between unevenly rounded times does."""
    for t, s in pairwise(times):
        x = x + 0.9 * (s - t) * model.velocity(x, t)
    return x


def explodes_at_the_end(model, x, times):
    for t, s in pairwise(times):
        x = x + (s - t) * model.velocity(x, t) + 0 * model.sigma(s).log()
    return x


@pytest.mark.parametrize(
    ("solve", "order", "law"),
    [
        (step_solver(euler), 2, "order_as_declared"),
        (skips_ahead, 1, "begins_where_the_last_ended"),
        (explodes_at_the_end, 1, "finite_to_the_end"),
        (without(loud=1.2), 1, "keeps_the_marginals"),
        (without(stale=True), 1, "begins_where_the_last_ended"),
        (without(batch_wide=True), 1, "rows_on_their_own"),
    ],
    ids=["order", "grid", "finite", "marginals", "level", "rows"],
)
def test_a_mistake_fails_the_law_that_is_about_it(solve, order, law):
    results = check_solver(solve, order=order, counts=COUNTS)
    assert law in failed(results)
    with pytest.raises(AssertionError, match=law):
        require_laws(results)


def test_a_low_order_of_the_first_steps_is_told_from_one_of_all():
    def third_order_but_for_the_start(model, x, times):
        """Is exact but for an error of size h^2 in its first step, and of h^3 in its last."""
        points = [model.path.at(t) for t in times]
        lengths = [math.log(t[1] / t[0] * s[0] / s[1]) for t, s in pairwise(points)]
        return model.oracle.flow(x, points[0], points[-1]) + lengths[0] ** 2 / 20 + lengths[-1] ** 3 / 20

    results = check_solver(third_order_but_for_the_start, order=3, counts=COUNTS)
    (order,) = (result for result in results if result.check == "order_as_declared")
    assert not order.ok and order.cause.startswith("its first steps")


def test_a_path_of_ones_own_has_times_of_any_log_snr():
    path = TimePath("mine", lambda t: (1 - t**2).sqrt(), lambda t: t, 0.0, 1.0)
    times = solver_times(path, 3, uneven=True)
    ratios = [path.at(t)[1] / path.at(t)[0] for t in times]
    assert torch.allclose(-2 * torch.tensor(ratios).log(), torch.tensor([-4.0, -2.0, 2.0, 4.0]))
    require_laws(check_solver(step_solver(euler), path=path, counts=COUNTS))


def test_what_is_no_path_or_solver_is_refused():
    with pytest.raises(OptionError, match="no path named 'liner'; did you mean 'linear'"):
        check_solver(step_solver(euler), path="liner")
    with pytest.raises(OptionError, match=r"is not callable; use solve=step_solver\(start\)"):
        check_solver(0.5)
