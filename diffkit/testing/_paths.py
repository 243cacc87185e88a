"""Noise levels that parts are checked on: three kinds of path, in closed form, at any log_snr."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from diffkit.protocols import (
    ContinuousSchedule,
    ContinuousTimestepSampler,
    NoiseSchedule,
    PairSampler,
    Scalings,
    State,
)
from diffkit.table import F64, Coefs, ProcessTable

_RHO = 7.0  # of the VE path's spacing, Karras et al. 2022, arXiv:2206.00364, eq. 5
_TIME = 1000.0  # time at full noise, so that it is of the size networks are used to


@frozen
class NoisePath(ContinuousSchedule):
    """Noise path of the checks, with levels evenly spaced in a clock: an angle, sigma^(1/7), or the share of noise.

    Attributes:
        kind: "vp" (cosine and sine of an angle), "ve" (alpha = 1) or "linear" (alpha = 1 - sigma).
        last: log_snr at level T; -inf for no signal at all.
        first: log_snr at level 1; None for the T-th part of the way.
        uneven: Every second gap between levels is twice as wide. Neighbouring gaps then differ however many levels
            there are, without which a method that mistakes one for the other still converges.
    """

    kind: str
    last: float = -9.0
    first: float | None = None
    uneven: bool = False

    @property
    def label(self) -> str:
        """Return the path's name in results."""
        return self.kind + (" (no signal at T)" if math.isinf(self.last) else "")

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table with levels 0..num_steps."""
        end = float(self._clock(math.exp(-self.last / 2)))
        start = end / num_steps if self.first is None else float(self._clock(math.exp(-self.first / 2)))
        gaps = np.where(np.arange(num_steps - 1) % 2, 2.0, 1.0) if self.uneven else np.ones(num_steps - 1)
        share = np.append(np.cumsum(gaps[::-1])[::-1] / max(gaps.sum(), 1), 0.0)
        clock = end - (end - start) * share
        alpha, sigma = self._alpha_sigma(clock)
        if math.isinf(self.last):
            alpha[-1] = 0.0
        return ProcessTable.from_alpha_sigma(alpha, sigma, _TIME * sigma**2 / (alpha**2 + sigma**2))

    def level(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return (total_std, time) at any log_snr."""
        ratio = torch.exp(-log_snr / 2)
        total_std = {
            "vp": lambda: torch.ones_like(ratio),
            "ve": lambda: torch.sqrt(1 + ratio**2),
            "linear": lambda: torch.sqrt(1 + ratio**2) / (1 + ratio),
        }[self.kind]()
        return total_std, _TIME * torch.sigmoid(-log_snr)

    def _clock(self, ratio: float) -> float:
        """Return the clock at which sigma / alpha is ``ratio``."""
        if self.kind == "vp":
            return math.atan(ratio)
        if self.kind == "ve":
            return float(ratio ** (1 / _RHO))
        return 1.0 if math.isinf(ratio) else ratio / (1 + ratio)

    def _alpha_sigma(self, clock: F64) -> tuple[F64, F64]:
        if self.kind == "vp":
            return np.cos(clock), np.sin(clock)
        if self.kind == "ve":
            return np.ones_like(clock), clock**_RHO
        return 1 - clock, clock.copy()


@frozen
class LevelsOnly(NoiseSchedule):
    """Noise path of the checks that is known at the levels of its table only, as most schedules are."""

    path: NoisePath

    @property
    def label(self) -> str:
        """Return the path's name in results."""
        return f"{self.path.label} (levels of the table only)"

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table with levels 0..num_steps."""
        return self.path.table(num_steps)


AnyPath = NoisePath | LevelsOnly

VP, VE, LINEAR = NoisePath("vp"), NoisePath("ve", first=12.0), NoisePath("linear")
"""Whole paths: from almost clean to almost only noise. The VE path's sigma goes from 0.0025 to 90."""

WHOLE = (VP, VE, LINEAR)
WITHOUT_SIGNAL = (NoisePath("vp", last=-math.inf), NoisePath("linear", last=-math.inf))
"""Paths that end in pure noise, where x_start / alpha means nothing."""


def middle_segment(path: NoisePath) -> NoisePath:
    """Return the middle of a noise path, log_snr 4 to -4, with coefficients of moderate size and uneven steps."""
    return NoisePath(path.kind, last=-4.0, first=4.0, uneven=True)


@frozen
class ContinuousLevels(ContinuousTimestepSampler):
    """Timestep sampler of the checks: normal log_snr, as in continuous training."""

    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return log_snr (B,) float64 and weights of one."""
        inside = u.clamp(min=1e-12)
        return 2 * torch.special.ndtri(inside), torch.ones_like(u, dtype=torch.float32)


@frozen
class LevelPairs(PairSampler):
    """Timestep sampler of the checks: t is uniform on 1..T, s on 0..t."""

    def sample(  # type: ignore[override]
        self, state: State, u: Tensor, num_steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return t, s, (B,) int64, and weights of one."""
        t = (u[:, 0] * num_steps).long() + 1
        return t, (u[:, 1] * (t + 1)).long(), torch.ones_like(u[:, 0], dtype=torch.float32)


def compose_on_path(path: AnyPath, num_steps: int, **parts: Any) -> Any:
    """Return a system on a noise path, without a network; parts that are not given are built-in ones that fit."""
    try:
        return _compose_once(path, num_steps, tuple(parts.items()))
    except TypeError:  # a part that has no hash, which another check is about
        return _compose(path, num_steps, tuple(parts.items()))


def _compose(path: AnyPath, num_steps: int, parts: tuple[tuple[str, Any], ...]) -> Any:
    import diffkit

    plain: dict[str, Any] = dict(
        mean="x_start", var="fixed_small", loss="vlb", timesteps="uniform", sampler="ddim", backbone=None
    )
    settings: dict[str, Any] = dict(num_steps=num_steps, data_shape=(2,), rescale_time=False, bins=None)
    return diffkit.compose(schedule=path, **(settings | plain | dict(parts)))


_compose_once = functools.lru_cache(maxsize=256)(_compose)


def target_of(at: Coefs, scalings: Scalings) -> tuple[Any, Any]:
    """Return p, q of a mean's training target ``p x_start + q eps``, computed here independently of the core."""
    c_skip, c_out, _ = scalings
    return (1 - c_skip * at.alpha) / c_out, -c_skip * at.sigma / c_out
