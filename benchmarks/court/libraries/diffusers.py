"""diffusers: its schedulers' loops, on the grids that they choose for n steps.

A scheduler of noise predictions is asked in units of x / alpha, on the path alpha = 1; the network sees the timestep
only, and answers for the noise level that this timestep has in training.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from attrs import field, frozen
from torch import Tensor

from benchmarks.court.entry import Entry
from benchmarks.court.rules import OWN_COUNTS
from diffkit.testing import ExactModel
from diffkit.testing.exact_model import PATHS

DISTRIBUTION = "diffusers"
BETAS = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
NO_CLIP = dict(clip_sample=False)
NOISE: list[tuple[str, int, bool, dict[str, Any]]] = [
    *(("DDIMScheduler", 1, True, NO_CLIP | {"timestep_spacing": how}) for how in ("leading", "linspace", "trailing")),
    *(
        ("DDPMScheduler", 1, True, NO_CLIP | {"variance_type": how})
        for how in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
    ),
    ("DDPMScheduler", 1, True, NO_CLIP | {"timestep_spacing": "linspace"}),
    ("DDPMScheduler", 1, True, NO_CLIP | {"timestep_spacing": "trailing"}),
    ("DDIMParallelScheduler", 1, True, NO_CLIP),
    ("DDPMParallelScheduler", 1, True, NO_CLIP),
    ("CogVideoXDDIMScheduler", 1, True, NO_CLIP),
    *(("EulerDiscreteScheduler", 1, False, {"timestep_spacing": how}) for how in ("leading", "linspace", "trailing")),
    ("EulerAncestralDiscreteScheduler", 1, False, {}),
    ("HeunDiscreteScheduler", 2, False, {"timestep_spacing": "leading"}),
    ("KDPM2DiscreteScheduler", 2, False, {"timestep_spacing": "leading"}),
    *(("DPMSolverMultistepScheduler", min(order, 2), True, {"solver_order": order}) for order in (1, 2, 3)),
    ("DPMSolverMultistepScheduler", 2, True, {"solver_order": 2, "solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", 2, True, {"solver_order": 2, "timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", 1, True, {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
    *(("DPMSolverSinglestepScheduler", order, True, {"solver_order": order}) for order in (1, 2, 3)),
    *(("DEISMultistepScheduler", 2, True, {"solver_order": order}) for order in (2, 3)),
    *(("UniPCMultistepScheduler", 2, True, {"solver_order": order}) for order in (2, 3)),
    ("SASolverScheduler", 1, True, {}),
]
"""Class, order, whether x is scaled by alpha, options.

The order is that of the method, a weak 1 if it is stochastic, and 2 at most if it has a history: its first step is of
order 1, and leaves no more. Singlestep ones have no history. PNDM and LMS cannot begin in the middle of a grid, where
the laws are measured: they find their history by the position in the whole.
"""
FLOW: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    ("FlowMatchEulerDiscreteScheduler", 1, {}, {}),
    ("FlowMatchEulerDiscreteScheduler", 1, {"shift": 3.0}, {}),
    ("FlowMatchEulerDiscreteScheduler", 1, {"shift": 3.0}, {"by": "timesteps"}),
    ("FlowMatchEulerDiscreteScheduler", 1, {"shift": 3.0}, {"by": "sigmas"}),
    ("FlowMatchEulerDiscreteScheduler", 1, {"stochastic_sampling": True}, {}),
    ("FlowMatchEulerDiscreteScheduler", 1, {}, {"s_churn": 10.0}),
    ("FlowMatchHeunDiscreteScheduler", 2, {}, {}),
    ("FlowMatchHeunDiscreteScheduler", 1, {}, {"s_churn": 10.0}),
]
"""Class, order, options, options of the call; ``by`` is the argument of set_timesteps that holds the grid."""


@frozen(eq=False)
class Loop:
    """A scheduler's loop over the part of its grid between two noise levels; ``flow`` is on the straight path."""

    kind: str
    options: dict[str, Any]
    scaled: bool = False
    flow: bool = False
    call: dict[str, Any] = field(factory=dict)

    def make(self, n: int) -> Any:
        """Return the scheduler, set to n steps."""
        import diffusers

        scheduler = getattr(diffusers, self.kind)(**self.options)
        how = self.call.get("by")
        share = np.linspace(1.0, 1 / 1000, n)
        given = {"timesteps": (1000 * share).tolist()} if how == "timesteps" else {"sigmas": share.tolist()}
        scheduler.set_timesteps(**(given if how else {"num_inference_steps": n}))
        return scheduler

    def positions(self, scheduler: Any) -> list[int]:
        """Return where in its timesteps each step begins: one that evaluates twice has each inner time twice."""
        twice = getattr(scheduler, "order", 1) == 2 and len(scheduler.timesteps) % 2 == 1
        return list(range(0, len(scheduler.timesteps), 2 if twice else 1))

    def level_of(self, scheduler: Any) -> Any:
        """Return the function from a timestep to the noise level that the network was trained at there."""
        if self.flow:
            return lambda t: float(t) / 1000
        trained = scheduler.alphas_cumprod.double().numpy()
        sigmas = ((1 - trained) / trained) ** 0.5
        if getattr(scheduler.config, "timestep_spacing", "") == "linspace":  # whose timesteps are fractions of a level
            return lambda t: float(np.interp(float(t), np.arange(1000), sigmas))
        return lambda t: math.exp(float(np.interp(float(t), np.arange(1000), np.log(sigmas))))

    @functools.cache  # noqa: B019  a loop lives as long as the run
    def levels(self, n: int) -> list[float]:
        """Return the noise levels of the whole grid of n steps, and that of clean data."""
        scheduler = self.make(n)
        level = self.level_of(scheduler)
        if self.flow or not self.scaled:
            found = [float(scheduler.sigmas[i]) for i in self.positions(scheduler)]
        else:
            found = [level(scheduler.timesteps[i]) for i in self.positions(scheduler)]
        return [*found, 0.0]

    def middle(self, n: int) -> list[float]:
        """Return those between log_snr -4 and 4."""
        ratio = (lambda s: s / (1 - s) if s < 1 else math.inf) if self.flow else float
        return [s for s in self.levels(n) if math.exp(-2) <= ratio(s) <= math.exp(2)]

    def __call__(self, model: ExactModel, x: Tensor, times: Sequence[float]) -> Tensor:
        """Return x at the last of the times, which are those of a grid."""
        n, first = next((n, i) for n in self.counts() for i in _found(self.levels(n), times))
        scheduler = self.make(n)
        level = self.level_of(scheduler)
        positions = [*self.positions(scheduler), len(scheduler.timesteps)]
        begin, end = positions[first], positions[first + len(times) - 1]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        x = x[:, :, None, None] / (math.hypot(1, times[0]) if self.scaled else 1)
        call = {key: value for key, value in self.call.items() if key != "by"}
        for t in scheduler.timesteps[begin:end]:
            sigma = level(t)
            scale = math.hypot(1, sigma) if self.scaled else 1
            at = x.flatten(1) * scale
            out = model.velocity(at, sigma) if self.flow else model.eps(at, sigma)
            if not self.scaled and not self.flow:
                scheduler.scale_model_input(x, t)  # the exact model needs no scaling; that it was called is noted
            x = scheduler.step(out[:, :, None, None].to(x.dtype), t, x, **call).prev_sample.double()
        return x.flatten(1) * (math.hypot(1, times[-1]) if self.scaled else 1)

    @staticmethod
    def counts() -> tuple[int, ...]:
        """Return every number of steps that the laws call it with."""
        return (*OWN_COUNTS, 1, 2, 3, 20)


def _found(levels: Sequence[float], times: Sequence[float]) -> list[int]:
    """Return where some times begin among levels, if they are there."""
    count = len(times)
    return [i for i in range(len(levels) - count + 1) if list(levels[i : i + count]) == list(times)][:1]


def entries() -> Iterator[Entry]:
    """Yield its schedulers that follow a Gaussian path."""
    for kind, order, scaled, options in NOISE:
        loop = Loop(kind, BETAS | options, scaled)
        yield _entry(loop, kind, options, PATHS["ve"], order)
    for kind, order, options, call in FLOW:
        loop = Loop(kind, options, flow=True, call=call)
        yield _entry(loop, kind, options | call, PATHS["linear"], order)


def _entry(loop: Loop, kind: str, options: dict[str, Any], path: Any, order: int) -> Entry:
    shown = ", ".join(f"{key}={value}" for key, value in options.items() if key != "clip_sample")
    grids = dict(grid=loop.middle, to_clean=loop.levels)
    return Entry(f"{kind}({shown})", loop, path, order, counts=OWN_COUNTS, precision="float32", **grids)
