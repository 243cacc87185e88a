"""The variational bound in continuous time, the limit of many levels, from few times of each example.

bound = continuous_bound(system, x, times_per_example=32, seed=0)
print(bound)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.gaussian import NATS_PER_BIT, mean_flat, mixed
from diffkit.options import check_integer
from diffkit.protocols import LearnedSchedule, Level, Model
from diffkit.runtime.eval_mode import eval_mode
from diffkit.runtime.publishing import save_npz
from diffkit.system.bound import prior_bits, rows_at_a_time
from diffkit.system.codec import check_likelihood, to_latents, volume_bits
from diffkit.system.coefficients import continuous_path
from diffkit.system.conditions import check_unused
from diffkit.system.module import System
from diffkit.system.prepared import SamplingJob
from diffkit.system.randomness import seeds_of
from diffkit.table import F64


@frozen(eq=False)
class ContinuousBound:
    """The bound of each example, in bits per dimension, in continuous time.

    Attributes:
        diffusion: Estimate of the part between the ends, mean over the times, (N,).
        diffusion_error: Its standard error from times and noise, (N,).
        decoder: Negative log-likelihood of data at the clean end, for one draw of noise, (N,).
        prior: KL at the noisy end, (N,).
        variance: Variance of an estimate of the diffusion part from one time of one example, (N,), a mean over strata.
        index: Index of each example, (N,) int64.
        times_per_example: Number of times.
    """

    diffusion: F64
    diffusion_error: F64
    decoder: F64
    prior: F64
    variance: F64
    index: Any
    times_per_example: int

    @property
    def total(self) -> F64:
        """The bound of each example, (N,)."""
        return np.asarray(self.diffusion + self.decoder + self.prior)

    @property
    def mean(self) -> float:
        """Mean of `total` over the examples."""
        return float(self.total.mean())

    @property
    def std_error(self) -> float:
        """Standard error of `mean` over examples, times and noise; NaN for a single example."""
        return float(self.total.std(ddof=1) / len(self.total) ** 0.5) if len(self.total) > 1 else math.nan

    @property
    def estimate_error(self) -> float:
        """Standard error of `mean` for these very examples: from the times and the noise between the ends."""
        return float(np.sqrt((self.diffusion_error**2).sum()) / len(self.total))

    def __str__(self) -> str:
        count = len(self.total)
        return (
            f"{self.mean:.4f} +- {self.std_error if count > 1 else self.estimate_error:.4f} bits/dim over {count} "
            f"example{'s' if count > 1 else ''} in continuous time, {self.times_per_example} times each (decoder: "
            f"{self.decoder.mean():.4f}, diffusion: {self.diffusion.mean():.4f} +- {self.estimate_error:.4f}, prior: "
            f"{self.prior.mean():.4g})"
        )

    def save(self, path: str | Path) -> Path:
        """Write total, diffusion, diffusion_error, decoder, prior, variance and index, (N,) each, to an .npz file."""
        names = ("total", "diffusion", "diffusion_error", "decoder", "prior", "variance", "index")
        path = Path(path)
        path = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
        save_npz(path, **{name: getattr(self, name) for name in names})
        return path


def check_continuous(system: System) -> None:
    """Raise `OptionError` if data has no bound in continuous time."""
    if continuous_path(system.parts) is None:
        raise OptionError(
            f"the bound in continuous time needs a schedule and a mean that are defined between levels, not "
            f"{system.parts.label('schedule')} with {system.parts.label('mean')}; use schedule='log_linear' or "
            "'monotone', and levels of the table otherwise"
        )
    check_likelihood(system.parts)


@torch.no_grad()
def continuous_bound(
    system: System,
    x_start: Tensor,
    *,
    times_per_example: int = 32,
    seed: int | None = 0,
    indices: Sequence[int] | None = None,
    rows_per_call: int | None = None,
    clip: bool | None = None,
    model: Model | None = None,
    progress: Callable[[int], None] | None = None,
    **conditions: Any,
) -> ContinuousBound:
    """Return the variational bound on the negative log-likelihood of data in continuous time, in bits per dimension.

    The part between the ends, levels 1 and T of the table, is ``1/2 integral of |eps - eps_hat|^2 d log_snr``, the
    limit of all levels but the first, whatever the variance. The decoder's term at level 1 has the variance of its
    noise, ``sigma^2 / (alpha^2 + sigma^2)``, as that in a table depends on T; the prior is that of level T. Times are
    uniform, one in each of so many strata;
    a schedule with weights turns them into log_snr by these, which lowers the error, and on another continuous
    schedule log_snr is uniform.

    Args:
        system: A system with a continuous schedule.
        x_start: Clean data, (N, C, *S).
        times_per_example: Number of times, >= 2.
        seed: Times and noise of example i are a function of (seed, i); None draws new ones.
        indices: Index of each example; 0, 1, 2, ... by default.
        rows_per_call: Number of times in one call of the network; 16 on a CPU, 256 on a GPU.
        clip, model: As in `System.bits_per_dim`.
        progress: Called with the number of network evaluations.
        conditions: Keywords for the network, with an entry for each example.
    Raises:
        OptionError: The system has no continuous schedule or mean, or an argument is wrong.
    Source: Kingma et al. 2021, arXiv:2107.00630, eqs. 11 and 17.
    """
    count = check_integer("times_per_example", times_per_example, ge=2)
    check_continuous(system)
    x_start = system.checked(x_start).to(system.device)
    job = system.prepare(len(x_start), steps=None, guidance=None, seed=seed, clip=clip, model=model, **conditions)
    check_unused(job.model, conditions, "sampler", "compile")
    index = list(range(len(x_start))) if indices is None else [int(i) for i in indices]
    if len(index) != len(x_start):
        raise OptionError(f"indices must have one entry for each example, got {len(index)}")
    z, volume = to_latents(system.parts, x_start), volume_bits(system.parts, x_start)
    estimate = _Estimate(system, job, count, rows_at_a_time(rows_per_call, system.device))
    seeds = [None] * len(index) if seed is None else seeds_of(check_integer("seed", seed, ge=0), index)
    found = []
    with eval_mode(system, *job.networks()):
        for i, own in enumerate(seeds):
            found.append(estimate(z[i : i + 1], i, own))
            if progress is not None:
                progress(count + 1)
    of_times, of_decoder = (torch.stack(each).double() for each in zip(*found, strict=True))
    terms, decoder = of_times.cpu().numpy(), (of_decoder + volume).cpu().numpy()
    variance = _variance(terms)
    prior = prior_bits(system.table, z).double().cpu().numpy()
    error = np.sqrt(variance / count)
    return ContinuousBound(terms.mean(1), error, decoder, prior, variance, np.array(index, dtype=np.int64), count)


class _Estimate:
    """The terms of one example: the diffusion term at a time of each stratum, and the decoder's."""

    def __init__(self, system: System, job: SamplingJob, count: int, rows: int):
        self.system, self.job, self.count, self.rows = system, job, count, rows
        self.log_snr = system.table.log_snr
        self.log_variance = float(system.table.upper_log_variance[1])

    def __call__(self, x: Tensor, i: int, seed: int | None) -> tuple[Tensor, Tensor]:
        """Return the diffusion terms, (K,), and the decoder's, 0-d, in bits per dimension, of example i."""
        device, generator = x.device, torch.Generator(x.device)
        generator.seed() if seed is None else generator.manual_seed(seed)
        noise = torch.randn((self.count + 1, *x.shape[1:]), generator=generator, device=device, dtype=x.dtype)
        u = torch.rand(self.count, generator=generator, device=device, dtype=torch.float64)
        log_snr, rate = self._levels((torch.arange(self.count, device=device) + u) / self.count)
        log_snr = torch.cat([log_snr, log_snr.new_full((1,), float(self.log_snr[1]))])
        estimate = torch.cat([self._x_start(x, i, noise[s], log_snr[s]) for s in self._slices()])
        error = (estimate - x).square()
        terms = mean_flat(error[:-1]).double() * log_snr[:-1].exp() * rate / (2 * NATS_PER_BIT)
        nll = -self.system.decoder.log_prob(x, estimate[-1:], x.new_full((), self.log_variance))
        return terms, mean_flat(nll)[0] / NATS_PER_BIT

    def _levels(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Log-SNR at times, and its rate of fall, (K,) float64."""
        schedule, high, low = self.system.parts.schedule, float(self.log_snr[1]), float(self.log_snr[-1])
        if isinstance(schedule, LearnedSchedule):
            return schedule.log_snr_at(self.system.learned["schedule"], time)
        if not math.isfinite(low):
            raise OptionError(
                f"{self.system.parts.label('schedule')} ends without signal, where the bound in continuous time has no "
                "end; use one whose log_snr is finite"
            )
        return high - (high - low) * time, time.new_full(time.shape, high - low)

    def _slices(self) -> list[slice]:
        return [slice(start, start + self.rows) for start in range(0, self.count + 1, self.rows)]

    def _x_start(self, x: Tensor, i: int, noise: Tensor, log_snr: Tensor) -> Tensor:
        """The estimate of one example at some levels."""
        x = x.expand(len(noise), *x.shape[1:])
        at: Level = self.system.objective.at_log_snr(log_snr, x)
        rows = torch.full((len(noise),), i, device=x.device)
        return self.job.denoiser(rows)(mixed(at.alpha, x, at.sigma, noise), at).x_start


def _variance(terms: F64) -> F64:
    """Variance of a term within its stratum, a mean over strata, from differences of neighbours, (N, K) -> (N,).

    It is too large if terms follow a trend.
    """
    return np.asarray(np.square(np.diff(terms, axis=1)).mean(1) / 2)


def merge_bounds(bounds: Sequence[ContinuousBound]) -> ContinuousBound:
    """Return the bounds of several parts of the data, in ascending order of index."""
    order = np.argsort(np.concatenate([each.index for each in bounds]), kind="stable")
    names = ("diffusion", "diffusion_error", "decoder", "prior", "variance", "index")
    joined = {name: np.concatenate([getattr(each, name) for each in bounds])[order] for name in names}
    return ContinuousBound(**joined, times_per_example=bounds[0].times_per_example)
