"""Samplers that name their own steps, and nodes at or beyond the start of a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from solver_support import LINEAR, VP, points, sampling_program, system_on

import diffkit
from diffkit.errors import ProtocolError
from diffkit.protocols import MultistageSampler, RoutedSampler
from diffkit.testing.oracles import DiracOracle


@frozen
class Back(RoutedSampler):
    """Deterministic: down, back up without noise (of data at one point, the line is kept), down again."""

    pairs: tuple[tuple[int, int], ...]

    def route(self, log_snr):
        return self.pairs

    def plan(self, steps):
        before = np.concatenate([steps.t.sigma[:1], steps.s.sigma[:-1]])
        alpha = np.concatenate([steps.t.alpha[:1], steps.s.alpha[:-1]])
        keep = steps.s.sigma / before
        return {"x": keep, "x_start": steps.s.alpha - keep * alpha}

    def step(self, denoise, x, state, row, noise, last):
        return row.coef["x"] * x + row.coef["x_start"] * denoise(x, row.t).x_start, state


def test_a_route_is_followed():
    system = system_on(VP, 4)
    pairs = ((4, 2), (4, 3), (3, 1), (2, 1), (1, 0))
    program = sampling_program(system.parts, Back(pairs), system.table)
    assert program.levels == (2, 3, 1, 1, 0)
    x = points(system.table)
    eps = (x - system.table.alpha[4] * 0.5) / system.table.sigma[4]
    for moment, (_, to) in zip(program.run(DiracOracle(0.5), x, None), pairs, strict=True):
        torch.testing.assert_close(moment.x, system.table.alpha[to] * 0.5 + system.table.sigma[to] * eps)


@pytest.mark.parametrize(
    "pairs",
    [(), ((3, 0),), ((4, 1),), ((4, -1), (4, 0)), ((4, 2), (1, 0)), ((4, 2), (2, 3), (3, 0)), ((4, 2), (5, 0))],
)
def test_a_route_that_leads_nowhere_is_refused(pairs):
    system = system_on(VP, 4)
    with pytest.raises(ProtocolError, match="route of sampler 'ddim' is not one of downward steps from level 4"):
        sampling_program(system.parts, Back(pairs), system.table)


@frozen
class Asks(MultistageSampler):
    """Holds the estimate it gets at a node."""

    shift: float

    def nodes(self, steps):
        return (steps.t.log_snr + self.shift)[:, None]

    def plan(self, steps):
        (node,) = steps.nodes
        assert np.all(np.isfinite(node.sigma))
        return {"sigma": node.sigma}

    def step(self, denoise, x, state, row, noise, last):
        torch.testing.assert_close(row.nodes[0].sigma, row.coef["sigma"])
        return denoise(x, row.nodes[0]).x_start + row.nodes[0].sigma, state


def evaluated_sigmas(system, table, shift):
    program = sampling_program(system.parts, Asks(shift), table)
    return [float(m.x[0, 0]) for m in program.run(DiracOracle(0.0), points(table), None)]


@pytest.mark.parametrize("path", [VP, LINEAR], ids=lambda p: p.label)
def test_nodes_beyond_the_start_of_a_step(path):
    continuous = system_on(path, 6)
    exact = evaluated_sigmas(continuous, continuous.table, -0.5)
    t = continuous.table.log_snr[6:0:-1] - 0.5
    total_std = path.level(torch.from_numpy(t))[0].numpy()
    np.testing.assert_allclose(exact, total_std / np.sqrt(1 + np.exp(t)), rtol=1e-12)
    discrete = system_on(discretized(path), 400)
    table = discrete.table_for([50, 100, 200, 400])
    found = evaluated_sigmas(discrete, table, -0.5)
    nearest = [
        discrete.table.sigma[1:][np.argmin(abs(discrete.table.log_snr[1:] - c + 0.5))] for c in table.log_snr[1:]
    ]
    np.testing.assert_allclose(found[1:], nearest[:3][::-1], rtol=1e-12)
    assert found[0] == table.sigma[-1], "there is nothing beyond level T"


def test_a_node_at_the_start_is_that_level_though_it_has_no_signal():
    path = evolve(VP, last=-np.inf)
    for schedule in (path, discretized(path)):
        system = system_on(schedule, 5)
        assert evaluated_sigmas(system, system.table, 0.0) == list(system.table.sigma[:0:-1])


@frozen
class Discrete(diffkit.protocols.NoiseSchedule):
    """A continuous schedule of which only the table is known."""

    path: object

    def table(self, num_steps):
        return self.path.table(num_steps)


def discretized(path):
    return Discrete(path)


def test_nodes_inside_a_step_stay_inside():
    system = system_on(discretized(VP), 40)
    table = system.table_for([1, 2, 10, 40])
    found = evaluated_sigmas(system, table, 0.01)
    ends = [(table.sigma[k], table.sigma[k - 1]) for k in (4, 3, 2, 1)]
    inside = [low < sigma < high or sigma == high for sigma, (high, low) in zip(found, ends, strict=True)]
    assert all(inside) and found[2:] == [table.sigma[2], table.sigma[1]]
