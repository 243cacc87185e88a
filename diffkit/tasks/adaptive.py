"""Sampling with steps as long as an error allows: an embedded pair of solvers, and a controller of the step size.

A step from lambda = log(alpha / sigma) to lambda + h is made by a solver, and from the same evaluations by one of lower
order. Their difference estimates the error of the lower one, and decides whether the step is made again, shorter, and
how long the next one is. The steps lie between the levels of the table, so the network's time is interpolated as in
`diffkit.table.interpolate`.

Source: Lu et al. 2022, arXiv:2206.00927, appendix C (DPM-Solver-12 and -23); the controller as in k-diffusion's
`sample_dpm_adaptive`, after Soderlind 2003, Digital filters in adaptive time-stepping.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Unpack

import attrs
import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import check_number
from diffkit.parts.samplers.dpm_solver_1 import DPMSolver1
from diffkit.parts.samplers.dpm_solver_2 import DPMSolver2
from diffkit.parts.samplers.dpm_solver_3 import DPMSolver3
from diffkit.parts.samplers.euler import Euler
from diffkit.parts.samplers.heun import Heun
from diffkit.protocols import Level, Prediction, Sampler
from diffkit.spacing import Grid
from diffkit.system.call_options import JobOptions, shows_options
from diffkit.system.chains import chain_of
from diffkit.system.conditions import check_unused
from diffkit.system.denoiser import Denoiser
from diffkit.system.module import System
from diffkit.system.prepared import SamplingJob
from diffkit.system.sampling import Program, sampling_program
from diffkit.table import ProcessTable

PAIRS: dict[str, tuple[Sampler, Sampler, int]] = {
    "dpm_solver_23": (DPMSolver3(lower_order_long=False), DPMSolver2(r=1 / 3, lower_order_long=False), 3),
    "dpm_solver_12": (DPMSolver2(lower_order_long=False), DPMSolver1(), 2),
    "heun_12": (Heun(lower_order_long=False), Euler(), 2),
}
"""A solver, the one of lower order that uses some of its evaluations, and its order."""
_EPS = 1e-8
"""Keeps the inverse of an error finite."""
_ENDS = 1e-5
"""Distance in lambda from the end at which sampling has arrived."""
_MOST = 100_000
"""Steps after which tolerances are taken as out of reach."""


@frozen(eq=False)
class AdaptiveSamples:
    """Result of `sample_adaptive`.

    Attributes:
        samples: (n, C, *S).
        log_snr: Of the levels visited, noisiest first, float64.
        rejected: Number of steps that were made again, shorter.
        evaluations: Number of network calls.
    """

    samples: Tensor
    log_snr: np.ndarray
    rejected: int
    evaluations: int

    def __str__(self) -> str:
        steps = len(self.log_snr) - 1
        return f"{len(self.samples)} samples by {steps} steps, {self.rejected} rejected, {self.evaluations} evaluations"


@shows_options(JobOptions)
@torch.no_grad()
def sample_adaptive(
    system: System,
    n: int,
    *,
    solver: str = "dpm_solver_23",
    rtol: float = 0.05,
    atol: float = 0.0078,
    first_step: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    safety: float = 0.81,
    start: Tensor | None = None,
    **options: Unpack[JobOptions],
) -> AdaptiveSamples:
    """Return n samples by steps of controlled error.

    All samples take the same steps, so that one depends on the others of its call, and every step waits for its error.

    Args:
        system: The system; its mean must be defined between levels.
        n: Number of samples.
        solver: A pair of `PAIRS`: "dpm_solver_23", "dpm_solver_12", or "heun_12".
        rtol, atol: Tolerances of an element of x / alpha, > 0; the error is the root of the mean square.
        first_step: First step in lambda, > 0.
        pcoeff, icoeff, dcoeff: Proportional, integral and derivative share of the controller.
        safety: A step is accepted if the next one may be at least so many times as long, in (0, 1).
        start: As in `System.sample`.
        options: Those of `diffkit.system.call_options.JobOptions`, of which ``steps`` gives the two ends, those of its
            grid; no sampler.
        conditions: As in `System.sample`.
    Raises:
        OptionError: An argument is wrong.
    """
    if solver not in PAIRS:
        raise OptionError(f"must be one of {', '.join(map(repr, PAIRS))}", option="solver", value=solver)
    for name, value in (("rtol", rtol), ("atol", atol), ("first_step", first_step)):
        check_number(name, value, gt=0)
    check_number("safety", safety, gt=0, lt=1)
    job = system.prepare(n, **options)
    check_unused(job.model, options, "sampler", "compile")
    if job.parts.self_conditioned:
        raise OptionError("sample_adaptive makes steps again, which a network that reads its previous estimate forbids")
    high, low, order = PAIRS[solver]
    control = _StepSize(first_step, (pcoeff, icoeff, dcoeff), order, safety)
    run = _Run(job, high, low, rtol, atol)
    with job.running(f"sampling {n}", 0, False):
        x = job.begin(range(n), job.noise(range(n)), job.checked_start(start))
        found = run.finish(x, control)
    return attrs.evolve(found, samples=system.from_latents(found.samples))


class _StepSize:
    """A PID controller of the step size in lambda."""

    def __init__(self, h: float, shares: tuple[float, float, float], order: int, safety: float):
        names = ("pcoeff", "icoeff", "dcoeff")
        p, i, d = (check_number(name, share) for name, share in zip(names, shares, strict=True))
        self.h, self.safety = h, safety
        self._powers = (p + i + d) / order, -(p + 2 * d) / order, d / order
        self._inverse: list[float] = []

    def accepts(self, error: float) -> bool:
        """Return whether a step with this error is accepted, and change the size of the next."""
        inverse = 1 / (error + _EPS)
        known = self._inverse or [inverse] * 3
        known[0] = inverse
        factor = math.prod(value**power for value, power in zip(known, self._powers, strict=True))
        factor = 1 + math.atan(factor - 1)
        accepted = factor >= self.safety
        self._inverse = [inverse, known[0], known[1]] if accepted else known
        self.h *= factor
        return accepted


class _Run:
    """One batch on its way from the noisiest level with signal to level 1."""

    def __init__(self, job: SamplingJob, high: Sampler, low: Sampler, rtol: float, atol: float):
        self.job, self.high, self.low, self.rtol, self.atol = job, high, low, rtol, atol
        self.denoise, self.evaluations = job.denoiser(), 0

    def finish(self, x: Tensor, control: _StepSize) -> AdaptiveSamples:
        """Run to the end, and take the last step to clean data unless the job ends before it."""
        log_snr = self.job.table.log_snr[1:]
        known = log_snr[np.isfinite(log_snr)]
        visited, rejected = [float(log_snr[-1])], 0
        if len(known) < len(log_snr):  # a level without signal, which is at no distance
            x = self._step(Euler(), self._between(known[-1], log_snr[-1]), x)[0]
            visited.append(float(known[-1]))
        at, end = float(known[-1]) / 2, float(known[0]) / 2
        before = x / self._alpha(2 * at)
        while at < end - _ENDS:
            if len(visited) + rejected > _MOST:
                raise OptionError(f"the tolerances need more than {_MOST} steps; use a larger rtol or atol")
            to = min(end, at + control.h)
            if to <= at:
                raise OptionError(
                    f"the tolerances need steps below rounding at log-SNR {2 * at:.4g}; use a larger atol"
                )
            table = self._between(2 * to, 2 * at)
            alpha = float(table.alpha[1])
            y, predictions = self._step(self.high, table, x)
            coarse = self._step(self.low, table, x, predictions)[0] / alpha
            allowed = (self.rtol * torch.maximum(coarse.abs(), before.abs())).clamp_min(self.atol)
            error = float(((coarse - y / alpha) / allowed).square().mean().sqrt())
            if not math.isfinite(error):
                raise OptionError("an error is not finite: the network's output is not")
            if control.accepts(error):
                x, before, at = y, coarse, to
                visited.append(2 * at)
            else:
                rejected += 1
        if self.job.final == "zero":
            x = self._step(Euler(), chain_of(self.job.parts, Grid(np.array([2 * end]))), x, last=0)[0]
            visited.append(math.inf)
        return AdaptiveSamples(x, np.array(visited), rejected, self.evaluations)

    def _between(self, end: float, start: float) -> ProcessTable:
        return chain_of(self.job.parts, Grid(np.array([end, start])))

    def _alpha(self, log_snr: float) -> float:
        return float(chain_of(self.job.parts, Grid(np.array([log_snr]))).alpha[1])

    def _step(
        self, sampler: Sampler, table: ProcessTable, x: Tensor, known: list[Prediction] | None = None, last: int = 1
    ) -> tuple[Tensor, list[Prediction]]:
        """Take the only step of a table, with evaluations that are known; return its end and the evaluations."""
        parts = attrs.evolve(self.job.parts, sampler=sampler)
        program = sampling_program(parts, sampler, table, last)
        found: list[Prediction] = []
        denoise = _counted(self.denoise, found) if known is None else _replayed(known)
        x = _only_step(program, denoise, x, last == 0)
        self.evaluations += len(found)
        return x, found


def _only_step(program: Program, denoise: Any, x: Tensor, last: bool) -> Tensor:
    row = program.rows(x, None)[0]
    return program.step(denoise, x, program.sampler.init(x), row, None, last and program.uses_last)[0]


def _counted(denoise: Denoiser, found: list[Prediction]) -> Callable[..., Prediction]:
    def evaluate(x: Tensor, level: Level, *more: Any) -> Prediction:
        found.append(denoise(x, level, *more))
        return found[-1]

    return evaluate


def _replayed(known: list[Prediction]) -> Callable[..., Prediction]:
    left = iter(known)
    return lambda x, level, *more: next(left)
