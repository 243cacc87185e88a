"""The parts conform, compose, and have their minimum at the exact flow map; `flow_map` with it gives the exact law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffkit_flow import Flow, FlowLinear
from diffkit_flowmap import Consistency, Distill, FlowMap, FlowMapLevelPairs, FlowMapPairs, MeanFlow, Shortcut
from flowmap_support import DATA, expected, posterior
from torch import Tensor

import diffkit
from diffkit import CompositionError, OptionError
from diffkit.testing import Check, parametrize_checks

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own decompositions


@parametrize_checks("sampler", FlowMap(times=1))
def test_sampler(check: Check):
    check()


class Exact(torch.nn.Module):
    """The exact flow map as the network of a system on the straight path, time_scale 1, in any mean.

    Attributes:
        off: What is added to the estimate of clean data, times the cosine of x; a parameter.
    """

    def __init__(self, mean: Any, times: int):
        super().__init__()
        self.mean, self.times, self.off = mean, times, torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, time_to: Tensor | None = None) -> Tensor:
        t, to = self._at(time, x), torch.zeros_like(time) if self.times == 1 else time_to
        assert to is not None
        average = DATA.average(x, t, self._at(to, x)) + self.off * torch.cos(x)
        c_skip, c_out, _ = self.mean.scalings(diffkit.table.Coefs(*t, 2 * torch.log(t[0] / t[1])), None)
        return (average - c_skip * x) / c_out

    @staticmethod
    def _at(time: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        u = time.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
        return 1 - u, u


def system_of(loss: Any, timesteps: Any, mean: Any = Flow(), num_steps: int = 32, **slots: Any) -> diffkit.System:
    times = 2 if loss.needs_two_times else 1
    return diffkit.compose(
        **dict(
            schedule=FlowLinear(1.0), mean=mean, loss=loss, timesteps=timesteps, var="fixed_small",
            backbone=Exact(mean, times), time_to_argument="time_to" if times == 2 else None,
            data_shape=(1,), num_steps=num_steps, bins=None,
        ) | slots
    )  # fmt: skip


CASES = {
    "mean_flow": (MeanFlow(), FlowMapPairs()),
    "mean_flow, backward": (MeanFlow(derivative="backward"), FlowMapPairs()),
    "mean_flow, of a table": (MeanFlow(), FlowMapLevelPairs()),
    "shortcut": (Shortcut(), FlowMapPairs()),
    "shortcut, of a table": (Shortcut(), FlowMapLevelPairs()),
}


def pull(system: diffkit.System, t: Tensor, s: Tensor | None, x: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """Gradient by `Exact.off` of the loss of each row, and the loss: means over the data given x_t."""
    level = system.objective.level(t, x)
    pairs = {} if s is None else {"level_to": s}

    def loss(off: Tensor, x_start: Tensor) -> Tensor:
        system.network.off.data = off
        noise = (x - level.alpha * x_start) / level.sigma
        return system.loss_terms(None, x_start, t, noise, **pairs, **given)["loss"]

    found, values = torch.zeros_like(x), torch.zeros_like(x)
    network: Any = system.network
    for x_start, weight in zip(*posterior(x, level, nodes=12), strict=True):
        noise = (x - level.alpha * x_start) / level.sigma
        terms = system.loss_terms(None, x_start, t, noise, **pairs, **given)["loss"]
        for row in range(len(x)):
            (slope,) = torch.autograd.grad(terms[row], network.network.off if hasattr(network, "network") else network.off, retain_graph=True)
            found[row] += weight[row] * slope
        values += weight * terms.detach()[:, None]
    return found, values
