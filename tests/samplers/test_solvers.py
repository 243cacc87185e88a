"""Solvers on exact denoisers: order of convergence, ends of the table, short tables, other rows beside."""

from __future__ import annotations

import pytest
import torch
from solver_support import (
    GAUSSIAN,
    MIXTURE,
    PATHS,
    SEGMENTS,
    WITHOUT_SIGNAL,
    errors,
    order,
    points,
    run,
    sampling_program,
    system_on,
)

from diffkit.testing.oracles import DiracOracle

SOLVERS = ["euler", "heun", "dpmpp_2m"]
label = lambda value: getattr(value, "label", None) or str(value)  # noqa: E731


@pytest.mark.parametrize("path", SEGMENTS, ids=label)
@pytest.mark.parametrize("sampler", SOLVERS, ids=label)
def test_order_on_a_mixture(sampler, path):
    found = errors(path, sampler, MIXTURE)
    declared = system_on(path, 2)._sampler(sampler).order
    assert order(found) >= declared - 0.2, found


@pytest.mark.parametrize("path", (*PATHS, *WITHOUT_SIGNAL), ids=label)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("sampler", SOLVERS, ids=label)
def test_one_point_of_data_is_found_exactly(sampler, num_steps, path):
    system = system_on(path, num_steps)
    program = sampling_program(system.parts, system._sampler(sampler), system.table)
    x = points(system.table)
    assert torch.equal(run(program, DiracOracle(0.25), x, lambda: torch.randn_like(x)), torch.full_like(x, 0.25))


@pytest.mark.parametrize("path", (*PATHS, *WITHOUT_SIGNAL), ids=label)
@pytest.mark.parametrize("sampler", SOLVERS, ids=label)
def test_one_point_of_data_is_followed_along_its_line(sampler, path):
    """x = alpha x_start + sigma eps at every step, with the eps it started with."""
    system = system_on(path, 12)
    program = sampling_program(system.parts, system._sampler(sampler), system.table)
    alpha, sigma, oracle = system.table.alpha, system.table.sigma, DiracOracle(0.25)
    x = points(system.table)
    eps = (x - alpha[-1] * 0.25) / sigma[-1]
    for moment in program.run(oracle, x, None):
        wanted = alpha[moment.level] * 0.25 + sigma[moment.level] * eps
        torch.testing.assert_close(moment.x, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", SOLVERS, ids=label)
def test_rows_at_different_levels_give_their_own_results(sampler):
    system = system_on(PATHS[0], 9)
    chosen = system._sampler(sampler)
    program = sampling_program(system.parts, chosen, system.table)
    matrix = program.columns.on(torch.device("cpu"), torch.float64)
    x, state = points(system.table, 3), chosen.init(points(system.table, 3))
    rows = [2, 5, 4]
    together, _ = program.step(GAUSSIAN, x, state, matrix[rows], torch.ones_like(x), False)
    for i, row in enumerate(rows):
        one = tuple(s[i : i + 1] for s in state)
        alone, _ = program.step(GAUSSIAN, x[i : i + 1], one, matrix[row], torch.ones(1, 1).double(), False)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-13, atol=1e-13)
