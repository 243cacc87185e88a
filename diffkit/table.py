"""The one numeric object: noise levels 0..T in float64, and everything that follows from them.

Level 0 is clean data. On any Gaussian path ``x_t = alpha x_start + sigma eps``, two numbers describe a level:
``alpha_bar = alpha^2 / (alpha^2 + sigma^2)`` and ``total_std = sqrt(alpha^2 + sigma^2)``. Variance-preserving
paths (DDPM) have total_std 1; variance-exploding and straight paths differ in total_std only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import attrs
import numpy as np
from attrs import field, frozen
from numpy.typing import ArrayLike, NDArray

from diffkit.errors import OptionError

F64 = NDArray[np.float64]

_SMALLEST_VARIANCE = 1e-20
"""Floor under a variance before its log, for levels that repeat (Ho et al. 2020 use the same figure)."""


class Coefs(NamedTuple):
    """Signal scale, noise scale and log of their squared ratio at some levels; float64 arrays or tensors.

    log_snr is infinite at level 0, which has no noise, and minus infinity at a level without signal.
    """

    alpha: Any
    sigma: Any
    log_snr: Any


class Posterior(NamedTuple):
    """``q(x_s | x_t, x_start)``: mean ``coef_x_start x_start + coef_x_t x_t``, and variance, float64 arrays."""

    coef_x_start: F64
    coef_x_t: F64
    variance: F64


@frozen(eq=False)
class Steps:
    """Pairs of levels that a sampler moves between, in the order it visits them; a plan depends on nothing else.

    ``t, s = steps`` unpacks the pairs.

    Attributes:
        t: Where each step starts, float64 arrays (n,).
        s: Where each step ends.
        nodes: Further levels where the network is evaluated within each step, if the sampler has any (see
            `MultistageSampler.nodes`): one `Coefs` of arrays (n,) for each evaluation, strictly between t and s where
            the grid allows, else equal to t.
    """

    t: Coefs
    s: Coefs
    nodes: tuple[Coefs, ...] = ()

    def __iter__(self) -> Iterator[Coefs]:
        return iter((self.t, self.s))

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.t.alpha)

    def posterior(self) -> Posterior:
        """``q(x_s | x_t, x_start)`` of every step, by Bayes' rule, on any path.

        With r = snr_t / snr_s: variance = sigma_s^2 (1 - r), coef_x_start = alpha_s (1 - r).
        """
        t, s = self
        one_minus_ratio = -np.expm1(t.log_snr - s.log_snr)
        return Posterior(
            coef_x_start=s.alpha * one_minus_ratio,
            coef_x_t=t.alpha * s.sigma**2 / (s.alpha * t.sigma**2),
            variance=s.sigma**2 * one_minus_ratio,
        )

    def noising(self) -> tuple[F64, F64]:
        """``q(x_t | x_s) = N(grow x_s, std^2)`` of every step, the forward direction; (1, 0) where s has no signal.

        With r = snr_t / snr_s: grow = alpha_t / alpha_s, std = sigma_t sqrt(1 - r), and 0 where s is noisier.
        """
        t, s = self
        signal = s.alpha > 0
        grow = np.divide(t.alpha, s.alpha, out=np.ones_like(s.alpha), where=signal)
        one_minus_ratio = -np.expm1(np.where(signal, t.log_snr, 0.0) - np.where(signal, s.log_snr, 0.0))
        return grow, np.sqrt(np.maximum(t.sigma**2 * one_minus_ratio, 0.0))


def _readonly(values: ArrayLike, dtype: type = np.float64) -> NDArray[Any]:
    array: NDArray[Any] = np.array(values, dtype=dtype)
    array.flags.writeable = False
    return array


_equal = attrs.cmp_using(eq=np.array_equal)


@frozen(eq=True, hash=False)
class ProcessTable:
    """Noise levels 0..T, immutable.

    Attributes:
        alpha_bar: Squared signal share, float64 (T+1,); 1 at level 0, non-increasing, 0 allowed at T.
        one_minus_alpha_bar: Squared noise share, stored separately to keep its precision at low levels when the table
            is made from sigma; `from_betas` computes 1 - alpha_bar, as improved-diffusion does.
        beta: 1 - alpha_bar[k] / alpha_bar[k-1], float64 (T+1,); 0 at level 0.
        total_std: sqrt(alpha^2 + sigma^2), float64 (T+1,); ones on a variance-preserving path.
        time: What the network is conditioned on at each level, float64 (T+1,); row 0 is never read.
        index: Level in the original table, before any respacing (the root table), int64 (T+1,).
        fraction: What a level in the root table is above `index`, in [0, 1), float64 (T+1,), if levels may lie between
            those of the root table (see `interpolate`); None otherwise.

    Make one with `from_betas`, `from_alpha_bar`, `from_alpha_sigma`, `from_sigmas` or `from_log_snr`.
    """

    alpha_bar: F64 = field(eq=_equal)
    one_minus_alpha_bar: F64 = field(eq=_equal, repr=False)
    beta: F64 = field(eq=_equal, repr=False)
    total_std: F64 = field(eq=_equal)
    time: F64 = field(eq=_equal, repr=False)
    index: NDArray[np.int64] = field(eq=_equal, repr=False)
    fraction: F64 | None = field(default=None, eq=_equal, repr=False)

    def __attrs_post_init__(self) -> None:
        rows = len(self.alpha_bar)
        if rows < 2:
            raise OptionError("a table needs at least one level beyond level 0")
        for name in ("alpha_bar", "one_minus_alpha_bar", "beta", "total_std", "time", "index"):
            values = getattr(self, name)
            if values.shape != (rows,):
                raise OptionError(f"{name} must have shape ({rows},), got {values.shape}")
            if values.flags.writeable or not np.all(np.isfinite(values)):
                raise OptionError(f"{name} must be read-only and finite; use one of the from_... constructors")
        if self.alpha_bar[0] != 1 or np.any(np.diff(self.alpha_bar) > 0) or self.alpha_bar[-1] < 0:
            raise OptionError("alpha_bar must start at 1 (level 0, clean data), never rise and never fall below 0")
        if np.any(self.alpha_bar[1:-1] == 0) or np.any(self.one_minus_alpha_bar[1:] <= 0):
            raise OptionError("every level but the last needs some signal, and every level but 0 some noise")
        if np.any(self.total_std <= 0):
            raise OptionError("total_std must be > 0 at every level")

    def __hash__(self) -> int:
        return hash((self.alpha_bar.tobytes(), self.total_std.tobytes(), self.time.tobytes(), self.index.tobytes()))

    @property
    def interpolated(self) -> bool:
        """True if levels may lie between those of the root table, where the time is interpolated."""
        return self.fraction is not None

    @classmethod
    def from_betas(cls, betas: ArrayLike, time: ArrayLike | None = None) -> ProcessTable:
        """Return the table of a variance-preserving path from per-step variances.

        Args:
            betas: Variance of each noising step, (T,), each in (0, 1].
            time: Conditioning of levels 1..T, (T,); k - 1 by default.
        Raises:
            OptionError: A beta is outside (0, 1], or 1 before the last step.
        """
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or betas.size == 0 or np.any(~(betas > 0)) or np.any(betas > 1):
            raise OptionError("betas must be a non-empty 1-d array with every value in (0, 1]")
        alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
        return cls._make(alpha_bar, 1 - alpha_bar, np.concatenate([[0.0], betas]), np.ones_like(alpha_bar), time)

    @classmethod
    def from_alpha_bar(cls, alpha_bar: ArrayLike, time: ArrayLike | None = None) -> ProcessTable:
        """Return the table of a variance-preserving path from alpha_bar at levels 0..T, (T+1,); alpha_bar[0] is 1."""
        alpha_bar = np.asarray(alpha_bar, dtype=np.float64)
        return cls._make(alpha_bar, 1 - alpha_bar, _betas_between(alpha_bar), np.ones_like(alpha_bar), time)

    @classmethod
    def from_alpha_sigma(cls, alpha: ArrayLike, sigma: ArrayLike, time: ArrayLike | None = None) -> ProcessTable:
        """Return the table of any Gaussian path from alpha and sigma at levels 1..T, each (T,); level 0 is added."""
        alpha = np.concatenate([[1.0], np.asarray(alpha, dtype=np.float64)])
        sigma = np.concatenate([[0.0], np.asarray(sigma, dtype=np.float64)])
        total = alpha**2 + sigma**2
        alpha_bar, noise = alpha**2 / total, sigma**2 / total
        return cls._make(alpha_bar, noise, _betas_between(alpha_bar, noise), np.sqrt(total), time)

    @classmethod
    def from_sigmas(cls, sigmas: ArrayLike, time: ArrayLike | Callable[[F64], ArrayLike] | None = None) -> ProcessTable:
        """Return the table of a variance-exploding path (alpha = 1) from ascending sigmas at levels 1..T, (T,).

        Args:
            sigmas: Noise scales, ascending.
            time: Conditioning of levels 1..T, or a function of the sigmas that gives it.
        """
        sigmas = np.asarray(sigmas, dtype=np.float64)
        return cls.from_alpha_sigma(np.ones_like(sigmas), sigmas, time(sigmas) if callable(time) else time)

    @classmethod
    def from_log_snr(
        cls, log_snr: ArrayLike, total_std: ArrayLike = 1.0, time: ArrayLike | None = None
    ) -> ProcessTable:
        """Return the table of any Gaussian path from descending log_snr at levels 1..T, (T,); level 0 is added.

        Args:
            log_snr: Natural log of alpha^2 / sigma^2; -inf allowed at T. No digits are lost at either end.
            total_std: sqrt(alpha^2 + sigma^2) at levels 1..T, (T,) or one for all; 1 is variance-preserving.
            time: Conditioning of levels 1..T, (T,); k - 1 by default.
        """
        log_snr = np.asarray(log_snr, dtype=np.float64)
        with np.errstate(over="ignore"):
            signal, noise = 1 / (1 + np.exp(-log_snr)), 1 / (1 + np.exp(log_snr))
        alpha_bar, noise = np.concatenate([[1.0], signal]), np.concatenate([[0.0], noise])
        total = np.concatenate([[1.0], np.broadcast_to(np.asarray(total_std, dtype=np.float64), log_snr.shape)])
        return cls._make(alpha_bar, noise, _betas_between(alpha_bar, noise), total, time)

    @classmethod
    def _make(cls, alpha_bar: F64, noise: F64, beta: F64, total_std: F64, time: ArrayLike | None) -> ProcessTable:
        levels = np.arange(len(alpha_bar))
        conditioning = np.maximum(levels - 1, 0) if time is None else np.concatenate([[0.0], np.asarray(time)])
        return cls(
            _readonly(alpha_bar),
            _readonly(noise),
            _readonly(beta),
            _readonly(total_std),
            _readonly(conditioning),
            _readonly(levels, np.int64),
        )

    @property
    def num_steps(self) -> int:
        """T, the number of levels beyond level 0."""
        return len(self.alpha_bar) - 1

    @property
    def alpha(self) -> F64:
        """Signal scale, (T+1,)."""
        return self.total_std * np.sqrt(self.alpha_bar)

    @property
    def sigma(self) -> F64:
        """Noise scale, (T+1,)."""
        return self.total_std * np.sqrt(self.one_minus_alpha_bar)

    @property
    def log_snr(self) -> F64:
        """Natural log of alpha^2 / sigma^2, (T+1,); +inf at level 0, -inf where alpha_bar is 0."""
        out = np.full(len(self.alpha_bar), np.inf)
        signal, noise = self.alpha_bar[1:], self.one_minus_alpha_bar[1:]
        out[1:] = np.log(signal, out=np.full_like(signal, -np.inf), where=signal > 0) - np.log(noise)
        return out

    def at(self, rows: slice | NDArray[np.int64] = slice(None)) -> Coefs:
        """alpha, sigma and log_snr of some rows."""
        return Coefs(self.alpha[rows], self.sigma[rows], self.log_snr[rows])

    def steps(self) -> Steps:
        """The steps of sampling, from level T down to 0: row i goes from T-i to T-i-1."""
        return Steps(self.at(slice(None, 0, -1)), self.at(slice(-2, None, -1)))

    @property
    def upper_variance(self) -> F64:
        """Reverse variance if data were a unit Gaussian: beta total_std[k-1]^2, (T+1,); IDDPM's beta.

        Source: Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1.
        """
        return np.concatenate([[0.0], self.beta[1:] * self.total_std[:-1] ** 2])

    def posterior(self) -> Posterior:
        """``q(x_{k-1} | x_k, x_start)`` at levels 1..T, each (T+1,); row 0 is zero.

        Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eqs. 10 and 11; times total_std where it is not 1.
        """
        signal_s, noise_s, std_s = self.alpha_bar[:-1], self.one_minus_alpha_bar[:-1], self.total_std[:-1]
        beta, noise_t, std_t = self.beta[1:], self.one_minus_alpha_bar[1:], self.total_std[1:]
        rows = (
            std_s * beta * np.sqrt(signal_s) / noise_t,
            std_s / std_t * np.sqrt(1 - beta) * noise_s / noise_t,
            std_s**2 * beta * noise_s / noise_t,
        )
        return Posterior(*[np.concatenate([[0.0], row]) for row in rows])

    @property
    def posterior_log_variance(self) -> F64:
        """Natural log of the posterior variance, (T+1,), clipped: level 1, where the variance is 0, has level 2's.

        With a single level it is the upper log-variance of level 1. Row 0 is zero.
        Source: Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1 (improved-diffusion clips the same way).
        """
        variance = self.posterior().variance
        variance[1] = variance[2] if self.num_steps > 1 else self.upper_variance[1]
        return np.concatenate([[0.0], log_of_variance(variance[1:])])

    @property
    def upper_log_variance(self) -> F64:
        """Natural log of `upper_variance`, (T+1,); row 0 is zero."""
        return np.concatenate([[0.0], log_of_variance(self.upper_variance[1:])])

    def with_time(self, time: ArrayLike) -> ProcessTable:
        """Return this table with another conditioning of levels 0..T, (T+1,)."""
        return attrs.evolve(self, time=_readonly(time))


def log_of_variance(variance: F64) -> F64:
    """Natural log with a floor of 1e-20 under the variance, so that repeated levels stay finite."""
    return np.asarray(np.log(np.maximum(variance, _SMALLEST_VARIANCE)))


def respace(table: ProcessTable, levels: Sequence[int]) -> ProcessTable:
    """Return the table of a shorter chain that visits only these levels.

    A pure row selection: selected values are bitwise equal, selecting all levels is the identity, and respacing twice
    is respacing once by the composed selection. Only beta, which belongs to a pair of levels, is recomputed where the
    level below was dropped.

    Args:
        table: Any table.
        levels: Levels to select, ascending, each in 1..T.
    Raises:
        OptionError: No levels, not ascending, or out of range.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 19.
    """
    selected = check_levels(levels, table.num_steps)
    rows = np.concatenate([[0], selected])
    alpha_bar, noise = table.alpha_bar[rows], table.one_minus_alpha_bar[rows]
    beta = np.where(np.diff(rows, prepend=-1) == 1, table.beta[rows], _betas_between(alpha_bar, noise))
    return ProcessTable(
        _readonly(alpha_bar),
        _readonly(noise),
        _readonly(beta),
        _readonly(table.total_std[rows]),
        _readonly(table.time[rows]),
        _readonly(table.index[rows], np.int64),
        None if table.fraction is None else _readonly(table.fraction[rows]),
    )


def with_first_level(table: ProcessTable, training: ProcessTable) -> ProcessTable:
    """Return a table made of another one's levels, with its level 1 as well; unchanged if that is in it."""
    if table.index[1] == training.index[1] and (table.fraction is None or table.fraction[1] == 0):
        return table

    def inserted(name: str) -> NDArray[Any]:
        column = getattr(table, name)
        return _readonly(np.insert(column, 1, getattr(training, name)[1]), column.dtype)

    names = ("alpha_bar", "one_minus_alpha_bar", "beta", "total_std", "time", "index")
    columns = {name: inserted(name) for name in names}
    beta = columns["beta"].copy()
    beta[2] = _betas_between(columns["alpha_bar"], columns["one_minus_alpha_bar"])[2]
    fraction = None if table.fraction is None else _readonly(np.insert(table.fraction, 1, 0.0))
    return ProcessTable(**columns | {"beta": _readonly(beta)}, fraction=fraction)


class PathLevels(NamedTuple):
    """Levels of a path at given noise, float64 arrays.

    Attributes:
        position: Levels of the table, real-valued.
        total_std: sqrt(alpha^2 + sigma^2).
        time: What the network is conditioned on.
    """

    position: F64
    total_std: F64
    time: F64


def interpolated_levels(table: ProcessTable, log_snr: F64) -> PathLevels:
    """Return the levels of a table at any log_snr, by a line in log_snr between its neighbours.

    Level and time are interpolated, and total_std by its logarithm. Beyond level 1 and the noisiest level with signal
    these have the values of that level; minus infinity is level T.
    Source: the time is that of k-diffusion's `DiscreteSchedule.sigma_to_t` and of diffusers' `_sigma_to_t`.
    """
    rows = np.flatnonzero(np.isfinite(table.log_snr))
    known, wanted = -table.log_snr[rows], -np.asarray(log_snr, dtype=np.float64)

    def of(values: F64) -> F64:
        return np.where(np.isposinf(wanted), values[-1], np.interp(wanted, known, values[rows]))

    position = of(np.arange(table.num_steps + 1, dtype=np.float64))
    return PathLevels(position, np.exp(of(np.log(table.total_std))), of(table.time))


_ROUNDING = 1e-12
"""Relative difference in log_snr from a level of the table up to which it is that level."""
_BEYOND = 0.02
"""How far log_snr may lie beyond the ends of a table, 1 % of sigma: published grids round their last digits."""


def interpolate(table: ProcessTable, log_snr: ArrayLike, time: ArrayLike | None = None) -> ProcessTable:
    """Return the table of a chain whose levels may lie between those of a table.

    alpha and sigma follow from log_snr and total_std, which is interpolated as the time is (see `interpolated_levels`).
    `index` and `fraction` are the level in the root table.

    Args:
        table: A table of trained levels.
        log_snr: Of levels 1, 2, ..., descending; minus infinity only last, if level T has no signal.
        time: What the network is conditioned on there, in place of the interpolated one.
    Raises:
        OptionError: They do not descend, or lie beyond the ends of the table.
    """
    wanted = _checked_grid(table, log_snr)
    level = interpolated_levels(table, wanted)
    nearest = np.rint(level.position).astype(np.int64)
    with np.errstate(invalid="ignore"):  # at a level without signal, which is level T
        same = ~(np.abs(table.log_snr[nearest] - wanted) > _ROUNDING * (1 + np.abs(wanted)))
    total_std = np.where(same, table.total_std[nearest], level.total_std)
    known_time = np.where(same, table.time[nearest], level.time)
    found = ProcessTable.from_log_snr(wanted, total_std, known_time if time is None else time)
    alpha_bar = np.concatenate([[1.0], np.where(same, table.alpha_bar[nearest], found.alpha_bar[1:])])
    noise = np.concatenate([[0.0], np.where(same, table.one_minus_alpha_bar[nearest], found.one_minus_alpha_bar[1:])])
    position = np.interp(np.where(same, nearest, level.position), np.arange(len(table.index)), table.index)
    lower = np.concatenate([[0.0], np.floor(position)])
    return attrs.evolve(
        found,
        alpha_bar=_readonly(alpha_bar),
        one_minus_alpha_bar=_readonly(noise),
        beta=_readonly(_betas_between(alpha_bar, noise)),
        index=_readonly(lower, np.int64),
        fraction=_readonly(np.concatenate([[0.0], position]) - lower),
    )


def _checked_grid(table: ProcessTable, log_snr: ArrayLike) -> F64:
    grid = np.asarray(log_snr, dtype=np.float64)
    if grid.ndim != 1 or not grid.size or np.any(np.isnan(grid)) or not np.all(np.diff(grid) < 0):
        raise OptionError("noise levels must be one number or more, each at most once")
    known, finite = table.log_snr[1:], grid[np.isfinite(grid)]
    known = known[np.isfinite(known)]
    if len(finite) < len(grid) and (grid[0] == np.inf or len(known) == table.num_steps):
        raise OptionError("noise levels must be finite and above 0; level 0 follows by itself")
    ends = (("sigma_min", finite[:1], known[0], 1, "less"), ("sigma_max", finite[-1:], known[-1], -1, "more"))
    for name, values, end, sign, amount in ends:
        if np.any(sign * (values - end) > _BEYOND):
            ratio, limit = np.exp(-values[0] / 2), np.exp(-end / 2)
            raise OptionError(
                f"sigma / alpha {ratio:.6g} is {amount} noise than the network was trained with; use {name}={limit:.6g}"
            )
    return grid


def check_levels(levels: Sequence[int], num_steps: int) -> NDArray[np.int64]:
    """Return levels as an int64 array, or raise `OptionError` if they are not ascending within 1..num_steps."""
    try:
        selected = np.asarray(levels)
    except ValueError:  # lists of several lengths in a list
        selected = np.zeros(())
    if selected.ndim != 1 or selected.size == 0 or selected.dtype.kind not in "iu":
        raise OptionError("must be a non-empty list of integers", option="levels", value=levels)
    if selected[0] < 1 or selected.max() > num_steps:
        raise OptionError(f"levels must lie in 1..{num_steps}, got {int(selected.min())}..{int(selected.max())}")
    if np.any(np.diff(selected) <= 0):
        raise OptionError("levels must be ascending, each at most once")
    return selected.astype(np.int64)


def nearest_levels(table: ProcessTable, log_snr: F64) -> tuple[int, ...]:
    """Return the levels nearest to given log_snr, each level at most once, ascending.

    Args:
        table: The table.
        log_snr: At most T values, in any order; -inf is level T.
    Raises:
        OptionError: There are more values than levels.
    """
    if len(log_snr) > table.num_steps:
        raise OptionError(
            f"must be <= {table.num_steps}, the number of levels of the table", option="steps", value=len(log_snr)
        )
    targets = np.sort(np.asarray(log_snr, dtype=np.float64))[::-1]
    known = np.where(np.isfinite(table.log_snr[1:]), table.log_snr[1:], np.finfo(np.float64).min)
    found = [table.num_steps if np.isneginf(w) else 1 + int(np.argmin(np.abs(known - w))) for w in targets]
    return distinct_levels(found, table.num_steps)


def distinct_levels(levels: list[int], num_steps: int) -> tuple[int, ...]:
    """Return the same number of distinct levels, each moved up and then down as little as possible."""
    out = list(levels)
    for i in range(1, len(out)):
        out[i] = max(out[i], out[i - 1] + 1)
    limit = num_steps
    for i in reversed(range(len(out))):
        out[i] = min(out[i], limit)
        limit = out[i] - 1
    return tuple(out)


def _betas_between(alpha_bar: F64, noise: F64 | None = None) -> F64:
    """1 - ratio of neighbouring alpha_bar; from one_minus_alpha_bar where that is more accurate."""
    ratio = alpha_bar[1:] / alpha_bar[:-1]
    beta = 1 - ratio
    if noise is not None:
        difference = (noise[1:] - noise[:-1]) / alpha_bar[:-1]
        beta = np.where(noise[1:] < 1e-3, difference, beta)
    return np.concatenate([[0.0], beta])
