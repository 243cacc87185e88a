"""Flow maps on any Gaussian path, and what each loss takes for the truth: pure functions of levels and data.

The probability-flow ODE of a path ``x_t = alpha x_start + sigma eps`` is, with the ideal denoiser D = E[x_start | x_t],

    d(x / sigma) = D d(alpha / sigma)

Its flow map X(t, s) takes x_t to x_s. Integrating from t to s gives

    X(t, s)(x) = keep x + move A,    keep = sigma_s / sigma_t,    move = alpha_s - alpha_t keep

with A(x, t, s) the average of D along the way, weighted by d(alpha / sigma). A network of two times estimates A: its
x_start "towards s". A = D where s = t, so such a network is a denoiser too; A = X(t, 0) where s is clean data. The
step itself is DDIM's (or Euler's, on the straight path) with A in place of D, and without error.

Levels are `diffkit.protocols.Level` records, (B,1..), so the formulas hold for every schedule and mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from diffkit.gaussian import mean_flat

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from diffkit.protocols import Level


class Step(NamedTuple):
    """The step ``x_s = keep x_t + move A`` between two levels, each (B,1..)."""

    keep: Tensor
    move: Tensor


def step_between(t: Level, s: Level) -> Step:
    """Return the step from level t to level s, which may be clean."""
    keep = s.sigma / t.sigma
    return Step(keep, s.alpha - t.alpha * keep)


def moved(x: Tensor, average: Tensor, step: Step) -> Tensor:
    """Return X(t, s)(x) from the average of the denoiser along the way."""
    return step.keep * x + step.move * average


def joined(first: Tensor, second: Tensor, t: Level, m: Level, s: Level) -> Tensor:
    """Return the average from t to s of two steps, ``first`` from t to m and ``second`` from m to s.

    ``X(m, s) X(t, m) = X(t, s)`` solved for A(x, t, s): a weighted mean,
    ``A = share first + (1 - share) second``, ``share = keep(m, s) move(t, m) / move(t, s)``, which loses no digits when
    steps are short. Where m is s it is ``first``.
    Source: Frans et al. 2024, arXiv:2410.12557, eq. 4, on the straight path, where the share is 1/2 for the velocity;
        Salimans & Ho 2022, arXiv:2202.00512, algorithm 2.
    """
    import torch

    there = m.sigma == s.sigma
    keep = torch.where(there, 1.0, s.sigma / torch.where(there, 1.0, m.sigma))
    whole = step_between(t, s).move
    share = keep * step_between(t, m).move / torch.where(whole == 0, 1.0, whole)
    return torch.where(there, first, second + share * (first - second))


def velocity(x: Tensor, x_start: Tensor, t: Level, rate: Level) -> Tensor:
    """Return dx/dtime along the path through x that ends at x_start: ``alpha' x_start + sigma' eps``.

    With x_start = D it is the velocity of the probability-flow ODE; with the x_start that x was made of, a sample of
    which that is the mean.

    Args:
        x, x_start: Data at level t, and clean data.
        t: The level of x.
        rate: Its derivative by time.
    """
    return rate.alpha * x_start + rate.sigma * (x - t.alpha * x_start) / t.sigma


def mean_flow_error(
    x: Tensor, x_start: Tensor, out: Tensor, out_rate: Tensor, t: Level, s: Level, rate: Level
) -> Tensor:
    """Return by how much the network's output breaks the MeanFlow identity, (B, C, *S).

    X(t, s)(x_t) stays where it is as t moves along the ODE: 0 = d/dt (keep x + move A). With
    ``keep' = -keep sigma' / sigma``, ``move' = keep q``, ``q = alpha sigma' / sigma - alpha'``, and
    ``keep' x + keep dx/dt = -keep q D``, this is

        keep (A - D) + (move / q) dA/dt = 0

    and the left side, in units of the network's output (divided by c_out), is returned. On the straight path with
    mean="flow" it is ``u - v + (t - s) du/dt``, the paper's; where s = t it is ``F - F*``, the error of `simple`, and
    where s is clean data ``dX(t, 0)/dt / q``, that of a continuous-time consistency model. It is linear in D, so D may
    be replaced by the x_start that x was made of: the mean over x_start given x is the same.

    Args:
        x: Data at level t, (B, C, *S).
        x_start: D, or the clean data that x was made of.
        out: The network's mean channels F at (x, t, s); ``A = c_skip x + c_out F``.
        out_rate: Their derivative by time along `velocity`, s fixed.
        t, s: Levels.
        rate: Derivative of level t by time.
    Source: Geng et al. 2025, arXiv:2505.13447, eqs. 6 and 11.
    Deviates: written for any path and mean.
    """
    keep, move = step_between(t, s)
    q = t.alpha * rate.sigma / t.sigma - rate.alpha
    average = t.c_skip * x + t.c_out * out
    along = rate.c_skip * x + t.c_skip * velocity(x, x_start, t, rate) + rate.c_out * out + t.c_out * out_rate
    return (keep * (average - x_start) + move / q * along) / t.c_out


def output_error(average: Tensor, wanted: Tensor, t: Level) -> Tensor:
    """Return the error of an estimate of clean data in units of the network's output."""
    return (average - wanted) / t.c_out


def consistency_error(here: Tensor, there: Tensor, t: Level, s: Level) -> Tensor:
    """Return by how much the clean data reached from two neighbours on a path differ, (B, C, *S).

    ``(f(x_t, t) - f(x_s, s)) / (c_out sqrt(move))``: as neighbours close in, the gradient of its square becomes that of
    `mean_flow_error` towards clean data, so what a level counts for does not depend on the grid.

    Args:
        here, there: f at level t, with gradients, and at level s, the target.
        t, s: The levels, s the less noisy one.
    Source: Song et al. 2023, arXiv:2303.01469, eqs. 7 and 9, with d the squared distance; stop-gradient without a
        running mean as in Song & Dhariwal 2023, arXiv:2310.14189, section 3.2.
    Deviates: lambda = 1 / (c_out^2 move), where the papers have 1 and, the second, 1 / (sigma_t - sigma_s). On the
        straight path it is 1 / (t (t - s)), with sigma = t.
    """
    return (here - there) / (t.c_out * step_between(t, s).move.sqrt())


def heun_step(denoise: Callable[[Tensor, Level], Tensor], x: Tensor, t: Level, s: Level) -> Tensor:
    """Return x at level s by Heun's method on the probability flow; by Euler's where s is clean.

    Any path is the straight one, scaled: ``y = x / (alpha + sigma)`` is ``(1 - p) x_start + p eps`` at the position
    ``p = sigma / (alpha + sigma)``, and its velocity ``dy/dp = (y - D) / p`` has no infinite end, unlike eps at a level
    without signal or D at one without noise.
    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1, which Song et al. 2023 take for distillation.
    Deviates: on the straight path, where they are on the variance-exploding one.
    """
    import torch

    total, total_s = t.alpha + t.sigma, s.alpha + s.sigma
    p, p_s = t.sigma / total, s.sigma / total_s
    y = x / total
    first = (y - denoise(x, t)) / p
    euler = y + (p_s - p) * first
    noisy = p_s > 0
    second = (euler - denoise(total_s * euler, s)) / torch.where(noisy, p_s, 1.0)
    return total_s * (y + (p_s - p) / 2 * (first + torch.where(noisy, second, first)))


def robust(error: Tensor, power: float, floor: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Return ``w |error|^2`` and ``|error|^2``, means over dimensions, (B,): ``w = 1 / (|error|^2 + floor)^power``.

    The weight has no gradient. Power 0 is the squared error, 1/2 the gradient of a pseudo-Huber distance, 1 that of a
    logarithm: rows with large errors count for less.
    Source: Geng et al. 2025, arXiv:2505.13447, section 4.3, the adaptive weight.
    """
    squared = mean_flat(error.square())
    return (squared if power == 0 else squared / (squared.detach() + floor) ** power), squared
