"""Exact likelihood by the probability-flow ODE.

In y = x / alpha and rho = sigma / alpha the flow of any Gaussian path is ``dy/drho = eps(y, rho)``, with no derivative
of the schedule in it, and along it ``d log p(y) / drho = -div eps``. So

    log p(y_start) = log N(x_T; 0, total_std_T^2) + D log alpha_T + integral of div eps from rho_start to rho_T

If level T has no signal, rho is infinite there. From the last level with signal to level T the flow is integrated for
z = x / total_std in the angle phi = atan(rho), up to pi / 2: ``dz/dphi = cos(phi) eps - sin(phi) x_start``. At the end
z is normal.

Source: Song et al. 2021, arXiv:2011.13456, section 4.3 and appendix D.2; the coordinates are those of Karras et al.
2022, arXiv:2206.00364, section 3, and Song et al. 2021, arXiv:2010.02502, section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from diffkit.errors import UNSET, CompositionError, OptionError, needed
from diffkit.gaussian import NATS_PER_BIT, mean_flat
from diffkit.options import check_integer, check_number, choice
from diffkit.protocols import ContinuousSchedule, Level, Model, Scalings
from diffkit.runtime.eval_mode import eval_mode
from diffkit.runtime.output import log
from diffkit.system.bound import BoundTerms
from diffkit.system.codec import check_likelihood, to_latents, volume_bits
from diffkit.system.conditions import check_unused
from diffkit.system.denoiser import Denoiser
from diffkit.system.guidance import GuidanceSlot
from diffkit.system.module import System
from diffkit.system.randomness import generators_of
from diffkit.table import Coefs
from diffkit.tensors import differentiable_twice, ordinary


@frozen(eq=False)
class OdeLikelihood:
    """Likelihood of each example by the flow ODE, in bits per dimension.

    Attributes:
        bits: Negative log-likelihood of each example in bits per dimension, mean over the draws, (B,).
        probe_error: Its standard error from Hutchinson's probes, (B,): 0 if the divergence is exact, NaN for one probe.
        draw_error: Its standard error from the dequantization's draws, (B,): 0 without draws, NaN for one.
        latent: End point of the flow, in units of the noise at level T, for the last draw, (B, C, *S).
        meaning: Description of the number: a density, or which bound.
        evaluations: Number of network calls, over all draws.
    """

    bits: Tensor
    probe_error: Tensor = field(repr=False)
    draw_error: Tensor = field(repr=False)
    latent: Tensor = field(repr=False)
    meaning: str
    evaluations: int

    @property
    def nats(self) -> Tensor:
        """Negative log-likelihood of each example in nats, (B,)."""
        return self.bits * (self.latent[0].numel() * NATS_PER_BIT)

    @property
    def mean(self) -> float:
        """Mean of `bits` over the examples."""
        return float(self.bits.detach().double().mean())

    @property
    def std_error(self) -> float:
        """Standard error of `mean` over examples, probes and draws; NaN for a single example."""
        bits = self.bits.detach().double()
        return float(bits.std() / len(bits) ** 0.5) if len(bits) > 1 else math.nan

    def __str__(self) -> str:
        error = self.std_error if len(self.bits) > 1 else float(self.probe_error[0])
        shown = "" if math.isnan(error) else f" +- {error:.4f}"
        return (
            f"{self.mean:.4f}{shown} bits/dim over {len(self.bits)} examples by the flow ODE: {self.meaning} "
            f"({self.evaluations} network evaluations)"
        )


def ode_likelihood(
    system: System,
    x_start: Tensor,
    *,
    dequantize: str | None = None,
    draws: int = 1,
    divergence: str = "hutchinson",
    probes: int = 1,
    probe: str = "rademacher",
    end: str = "level1",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
    options: Mapping[str, Any] | None = None,
    seed: int | None = 0,
    indices: Sequence[int] | None = None,
    guidance: GuidanceSlot = None,
    clip: bool = False,
    model: Model | None = None,
    gradient: bool = False,
    **conditions: Any,
) -> OdeLikelihood:
    """Return the negative log-likelihood of each example under the model that the flow ODE samples from.

    Between levels the network is conditioned on a time interpolated over log_snr (on a continuous schedule, on the
    schedule's own), so it has to take fractional times, as all of diffkit's backbones do.

    Args:
        system: Any system; mean 'x_prev', which is not defined between levels, is refused.
        x_start: Clean data, (B, C, *S).
        dequantize: How data on n-bit bins is turned into a density. "uniform" adds noise of a bin's width: the mean log
            density bounds the log-probability from below (Theis et al. 2016, arXiv:1511.01844, section 3.1). "decoder"
            takes level 1 as the latent variable of data: ``log p(x_1) + log p(x_start | x_1) - log q(x_1 | x_start)``,
            a bound too, with the system's decoder and variance, on any data. "none" is the density itself. By default
            "uniform" for binned data, "none" for continuous.
        draws: Number of draws of dequantization noise to average over.
        divergence: "hutchinson" estimates the divergence without bias, by random probes that are fixed along the path;
            "exact" takes a backward pass for each dimension.
        probes: Number of probes; each costs a backward pass per evaluation.
        probe: "rademacher" (signs, less variance) or "gaussian".
        end: Where the flow ends. "level1": at level 1, where the model's samples are x / alpha; the network is not
            evaluated below the levels it was trained on. "clean": at rho = 0; below level 1 with the time of level 1.
        rtol, atol: Tolerances of an adaptive solver, over the whole batch.
        method, options: Arguments of `torchdiffeq.odeint`.
        seed: Probes and dequantization of example i are a function of (seed, i); None draws new ones.
        indices: Index of each example; 0, 1, 2, ... by default.
        guidance: As in `System.sample`; the likelihood is then that of the guided model.
        clip: Clip the estimate of x_start to [-1, 1], as samplers do: another flow, with kinks.
        model: Network to use instead of the system's own.
        gradient: Keep the graph, so that ``bits`` can be differentiated by x_start and the network's weights.
        conditions: Keywords for the network.
    Raises:
        OptionError: An argument is wrong, or x_start does not fit the system.
        CompositionError: The system has no flow between levels.
        MissingExtraError: torchdiffeq is not installed.
    """
    check_likelihood(system.parts)
    binned = system.parts.codec is None and system.decoder.bounded
    how = _FlowOptions(
        dequantize=("uniform" if binned else "none") if dequantize is None else dequantize,
        divergence=divergence,
        probe=probe,
        end=end,
    )
    if how.dequantize == "decoder" and how.end == "clean":
        raise OptionError("ends the flow at level 1", option="dequantize", value="decoder", fix={"end": UNSET})
    if how.dequantize == "uniform" and not binned:
        raise OptionError(
            "is for data on bins; this system's is continuous",
            option="dequantize",
            value="uniform",
            fix={"dequantize": "none"},
        )
    draws, probes = check_integer("draws", draws, ge=1), check_integer("probes", probes, ge=1)
    seed = None if seed is None else check_integer("seed", seed, ge=0)
    rtol, atol = check_number("rtol", rtol, gt=0), check_number("atol", atol, gt=0)
    solve = _create_solver(rtol, atol, method, options)
    with torch.inference_mode(False):
        x_start = ordinary(system.checked(x_start).to(system.device))
        z, volume = to_latents(system.parts, x_start), volume_bits(system.parts, x_start)
    places = list(range(len(x_start))) if indices is None else [int(i) for i in indices]
    if len(places) != len(x_start):
        raise OptionError(f"indices must have one entry for each of {len(x_start)} examples, got {len(places)}")
    job = system.prepare(len(x_start), guidance=guidance, seed=seed, clip=clip, model=model, **conditions)
    check_unused(job.model, conditions, "steps", "sampler", "compile", "final")
    if system.parts.self_conditioned:
        log("note: the flow is that of the network without its previous estimates, which are zeros here")
    flow = _Flow(system, job.denoiser(), how, probes, gradient, None if seed is None else (seed, places))
    # the divergence is a gradient, so that inference mode is left; probes then are ordinary tensors, too
    with eval_mode(system, *job.networks()), torch.inference_mode(False), torch.set_grad_enabled(gradient):
        found = [flow.bits(z, draw, solve) for draw in range(1 if how.dequantize == "none" else draws)]
    bits = torch.stack([bits for bits, _ in found]) + volume  # (draws, probes, B)
    return OdeLikelihood(
        bits=bits.mean((0, 1)),
        probe_error=_std_error(bits.mean(0), how.divergence == "exact"),
        draw_error=_std_error(bits.mean(1), how.dequantize == "none"),
        latent=found[-1][1],
        meaning=_MEANING[how.dequantize],
        evaluations=flow.evaluations,
    )


_MEANING = {
    "none": "differential, the density itself",
    "uniform": "a bound, uniform dequantization",
    "decoder": "a bound, level 1 as the latent variable of the decoder",
}


@frozen
class _FlowOptions:
    dequantize: str = choice("none", ("none", "uniform", "decoder"))
    divergence: str = choice("hutchinson", ("hutchinson", "exact"))
    probe: str = choice("rademacher", ("rademacher", "gaussian"))
    end: str = choice("level1", ("level1", "clean"))


_ADAPTIVE = frozenset(("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"))
_FIRST_STEP = 0.05
"""First step in u; the whole flow is about 10 to 16 long, and solvers lengthen the step at once if they can."""

Solve = Callable[[Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]], tuple[Tensor, ...], Tensor], Any]


def _create_solver(rtol: float, atol: float, method: str, options: Mapping[str, Any] | None) -> Solve:
    with needed("ode", "the flow ODE"):
        import torchdiffeq  # type: ignore[import-not-found,import-untyped,unused-ignore]

    # By default the solver finds its first step from the data, and gradients would flow through its size.
    chosen = {**({"first_step": _FIRST_STEP} if method in _ADAPTIVE else {}), **(options or {})}

    def solve(field: Any, state: Any, times: Tensor) -> Any:
        try:
            return torchdiffeq.odeint(field, state, times, rtol=rtol, atol=atol, method=method, options=chosen)
        except ValueError as error:
            raise OptionError(f"torchdiffeq refused method={method!r}: {error}") from error

    return solve


def _std_error(values: Tensor, exact: bool) -> Tensor:
    """Return the standard error of the mean over the first dimension, (n, B) -> (B,)."""
    values = values.detach()
    if exact:
        return torch.zeros_like(values[0])
    return values.std(0) / len(values) ** 0.5 if len(values) > 1 else torch.full_like(values[0], math.nan)


class _FlowPath:
    """The noise path of the flow ODE: coefficients and times between levels, at any rho."""

    def __init__(self, system: System):
        table, parts = system.table, system.parts
        self.parts, self.ends_without_signal = parts, not np.isfinite(table.log_snr[-1])
        with_signal = slice(1, -1 if self.ends_without_signal else None)
        self.clock = -table.log_snr[with_signal]
        if not len(self.clock):
            raise CompositionError("this schedule has one level, without signal (alpha_bar = 0); use num_steps >= 2")
        if not parts.mean.continuous_time:
            raise CompositionError(
                f"{parts.label('mean')} is not defined between levels, where the flow goes; mean='eps' and 'v' are"
            )
        self.time, self.total_std = table.time[with_signal], table.total_std[with_signal]
        self.end = (float(table.total_std[-1]), float(table.time[-1]))
        self.first, self.last = (float(np.exp(self.clock[k] / 2)) for k in (0, -1))

    def at(self, rho: float) -> tuple[Coefs, Scalings, float]:
        """Return coefficients, mean parameterization and time of the flow at sigma / alpha = rho."""
        log_snr = -2 * math.log(rho)
        schedule = self.parts.schedule
        if isinstance(schedule, ContinuousSchedule):
            total_std, time = (float(v) for v in schedule.level(torch.tensor(log_snr, dtype=torch.float64)))
        elif self.ends_without_signal and rho > self.last:  # the last level is at no log_snr, but at an angle
            ends = [math.atan(self.last), math.pi / 2]
            pairs = zip((self.total_std[-1], self.time[-1]), self.end, strict=True)
            total_std, time = (float(np.interp(math.atan(rho), ends, pair)) for pair in pairs)
        else:
            total_std, time = (float(np.interp(-log_snr, self.clock, column)) for column in (self.total_std, self.time))
        alpha = total_std / math.sqrt(1 + rho * rho)
        at = Coefs(*map(np.float64, (alpha, alpha * rho, log_snr)))
        return at, self.parts.mean.scalings(at, None), time


class _Flow:
    """The flow ODE of one batch: integrates data and log-density together."""

    def __init__(
        self,
        system: System,
        denoiser: Denoiser,
        how: _FlowOptions,
        probes: int,
        gradient: bool,
        seeds: tuple[int, list[int]] | None,
    ):
        self.system, self.denoiser, self.how, self.gradient = system, denoiser, how, gradient
        self.path = _FlowPath(system)
        self.probes = 1 if how.divergence == "exact" else probes
        self.seeds, self.generators = seeds, list[torch.Generator | None]()
        self.evaluations = 0

    def bits(self, x_start: Tensor, draw: int, solve: Solve) -> tuple[Tensor, Tensor]:
        """Return the bits per dimension by the flow with each probe, (probes, B) float64, and the latent."""
        if draw == 0 and self.seeds is not None:
            seed, places = self.seeds
            self.generators = [*generators_of(seed, places, x_start.device)]
        if draw == 0:
            self._check_gradient(x_start)
        y, offset = self._dequantize(x_start)
        density, latent = self._density(y.double(), x_start.dtype, solve)
        return offset.double() - density / (x_start[0].numel() * NATS_PER_BIT), latent

    def _check_gradient(self, x: Tensor) -> None:
        """Raise if the network's output depends on data but has no gradient, and so no divergence."""
        at, mean, time = self.path.at(self.path.first)
        idle = (False,) * len(self.denoiser.guidance)
        network = attrs.evolve(self.denoiser, transform=None, clip=False, acting=idle)
        level = _level((*at, 0.0, 1.0, mean.c_in, time), x)
        with torch.enable_grad():
            at_x = x.detach().requires_grad_()
            out = network(at_x, level).x_start
            any_vector = torch.linspace(1, 2, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
            (pulled,) = torch.autograd.grad(out, at_x, any_vector)
        if not pulled.any() and not torch.equal(network(0.9 * x.detach() + 0.1, level).x_start, out):
            raise OptionError(
                "the network's output depends on data but has no gradient, which the divergence needs; give one whose "
                "layers are not quantized, and which calls neither detach() nor no_grad"
            )

    def _dequantize(self, x_start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the start of the flow, and the bits per dimension to add to its density for the likelihood, (B,)."""
        zero = x_start.new_zeros(len(x_start))
        if self.how.dequantize == "none":
            return x_start, zero
        if self.how.dequantize == "uniform":
            bins = self.system.decoder.bins
            assert bins is not None, "refused for continuous data"
            width = 2 / (bins - 1)
            return x_start + width * (self._draw(x_start, "uniform") - 0.5), zero - math.log2(width)
        noise = self._draw(x_start, "gaussian")
        level = torch.ones(len(x_start), dtype=torch.int64, device=x_start.device)
        terms = BoundTerms.of(self.system.parts, self.system.table, self.system.decoder)
        decoder = terms(self.denoiser, x_start, level, noise, len(x_start))[0]
        log_q = -0.5 * (mean_flat(noise.square()) + math.log(2 * math.pi)) - math.log(self.path.first)
        return x_start + self.path.first * noise, decoder + log_q / NATS_PER_BIT

    def _density(self, y: Tensor, dtype: torch.dtype, solve: Solve) -> tuple[Tensor, Tensor]:
        """Return the flow's log-density log p(y) with each probe, (probes, B) nats, and the latent."""
        path, table = self.path, self.system.table
        if self.gradient and not y.requires_grad:
            y = y.requires_grad_()
        vectors = self._probe_vectors(y)
        # rho = first sinh(u): steps of u are steps of rho near 0 and of log(rho) far from it.
        begin = 0.0 if self.how.end == "clean" else math.asinh(1.0)
        times = torch.tensor([begin, math.asinh(path.last / path.first)], dtype=torch.float64, device=y.device)

        def field(u: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            rho, slope = path.first * math.sinh(float(u)), path.first * math.cosh(float(u))
            eps, divergence = self._eps(state[0], max(rho, _SMALLEST * path.first), dtype, vectors)
            return eps * slope, divergence * slope

        state: tuple[Tensor, ...] = (y, y.new_zeros(self.probes, len(y)))
        if times[1] > times[0]:
            state = tuple(part[-1] for part in solve(field, state, times))
        cosine = float(table.alpha[-1]) / float(table.total_std[-1])
        if path.ends_without_signal:
            cosine = 1 / math.hypot(1.0, path.last)
            state = self._integrate_to_last_level((state[0] * cosine, state[1]), dtype, vectors, solve)
        latent = state[0] if path.ends_without_signal else state[0] * cosine
        squared = (latent.square() + math.log(2 * math.pi)).flatten(1).sum(1)
        return y[0].numel() * math.log(cosine) - 0.5 * squared + state[1], latent.to(dtype)

    def _integrate_to_last_level(
        self, state: tuple[Tensor, ...], dtype: torch.dtype, vectors: list[Tensor], solve: Solve
    ) -> tuple[Tensor, ...]:
        """Integrate the flow from the last level with signal to that without, in the angle; state z = x / total_std."""
        begin = math.atan(self.path.last)
        length = math.pi / 2 - begin

        def field(share: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            angle = begin + min(float(share), 1.0) * length  # solvers evaluate beyond the end
            velocity, divergence = self._velocity(state[0], angle, dtype, vectors)
            return velocity * length, divergence * length

        times = torch.tensor([0.0, 1.0], dtype=torch.float64, device=state[0].device)
        return tuple(part[-1] for part in solve(field, state, times))

    def _eps(self, y: Tensor, rho: float, dtype: torch.dtype, vectors: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the noise estimate at y = x / alpha and its divergence by y with each probe, float64."""
        at, mean, time = self.path.at(rho)
        linear = (1 / at.sigma, -at.alpha / at.sigma)
        return self._with_divergence(y, float(at.alpha), linear, (at, mean, time), dtype, vectors)

    def _velocity(self, z: Tensor, angle: float, dtype: torch.dtype, vectors: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the flow's velocity dz/dphi at z = x / total_std, and its divergence by z with each probe, float64."""
        at, mean, time = self.path.at(math.tan(angle))
        total_std, sine = math.hypot(at.alpha, at.sigma), math.sin(angle)
        linear = (np.float64(math.cos(angle) / sine / total_std), np.float64(-1 / sine))
        return self._with_divergence(z, total_std, linear, (at, mean, time), dtype, vectors)

    def _with_divergence(
        self,
        y: Tensor,
        grow: float,
        linear: tuple[Any, Any],
        known: tuple[Coefs, Scalings, float],
        dtype: torch.dtype,
        vectors: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return ``a x + b x_start``, where x = grow y and (a, b) = linear, and its divergence by y with each probe."""
        self.evaluations += 1
        with torch.enable_grad(), differentiable_twice(self.gradient):
            y = y if self.gradient else y.detach().requires_grad_()
            value = self._estimate((grow * y).to(dtype), linear, known).double()
            rows = []
            for vector in vectors:
                (pulled,) = torch.autograd.grad(value, y, vector, retain_graph=True, create_graph=self.gradient)
                rows.append((pulled * vector).flatten(1).sum(1))
        divergence = torch.stack(rows)
        if self.how.divergence == "exact":
            divergence = divergence.sum(0, keepdim=True)
        return (value, divergence) if self.gradient else (value.detach(), divergence.detach())

    def _estimate(self, x: Tensor, linear: tuple[Any, Any], known: tuple[Coefs, Scalings, float]) -> Tensor:
        (at, mean, time), (a, b) = known, linear
        if self.denoiser.clip or self.denoiser.guidance:  # which act on an estimate of x_start
            return float(a) * x + float(b) * self.denoiser(x, _level((*at, *mean, time), x)).x_start
        # It is linear in the network's output, so one decoding gives it, with coefficients computed in float64.
        level = _level((*at, a + b * mean.c_skip, b * mean.c_out, mean.c_in, time), x)
        return self.denoiser(x, level).x_start

    def _probe_vectors(self, y: Tensor) -> list[Tensor]:
        if self.how.divergence == "exact":
            basis = torch.eye(y[0].numel(), dtype=y.dtype, device=y.device)
            return [row.view(1, *y.shape[1:]).expand_as(y) for row in basis]
        return [self._draw(y, self.how.probe) for _ in range(self.probes)]

    def _draw(self, like: Tensor, kind: str) -> Tensor:
        """Return random numbers for probes and dequantization; those of example i depend on (seed, i) only."""
        draw = torch.rand if kind == "uniform" else torch.randn
        shape = like.shape[1:]
        generators = self.generators or [None] * len(like)
        rows = [draw(shape, generator=g, device=like.device, dtype=torch.float32) for g in generators]
        values = torch.stack(rows).to(like.dtype)
        return values.sign() if kind == "rademacher" else values


_SMALLEST = 1e-6
"""Share of level 1's rho that is used instead of rho = 0, where log rho is infinite."""


def _level(values: tuple[Any, ...], like: Tensor) -> Level:
    alpha, sigma, log_snr, c_skip, c_out, c_in, time = (like.new_tensor(float(v)) for v in values)
    return Level(alpha, sigma, log_snr, c_skip, c_out, c_in, time, coefficients=None)
