"""DPM-Solver++ SDE: two evaluations a step, with correlated fresh noises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import number
from diffkit.parts.samplers._coefficients import straight, within
from diffkit.parts.samplers._multistep import start_history
from diffkit.parts.samplers._singlestep import inverse_position
from diffkit.parts.samplers._stochastic import fresh_std, without_noise
from diffkit.protocols import Denoise, MultistageSampler, RoutedSampler, State, StepRow
from diffkit.registry import registry
from diffkit.table import Coefs, Steps

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from diffkit.table import F64

    Bools = NDArray[np.bool_]


@registry("sampler").register("dpmpp_sde")
@frozen
class DPMSolverPPSDE(RoutedSampler, MultistageSampler):
    """``x_s = carry x_t + held (x_start_t + (x_start_u - x_start_t) / 2r) + std noise``, u at lambda_t + r h.

    ``std = eta sigma_s sqrt(1 - snr_t / snr_s)``, ``carry = sqrt(sigma_s^2 - std^2) / sigma_t``,
    ``held = alpha_s - carry alpha_t``; x_u is reached in the same way by holding x_start_t, with the noise of the way
    from t to u, which is part of that from t to s. Two noises a step, so each step is two moves: to s by holding
    x_start_t, and again from t to s, which corrects x_s by the evaluation at u. One evaluation a move.

    Attributes:
        eta: Stochasticity in (0, 1]; 0 would be 'dpmpp_2s'.
        r: Where in the step the second evaluation is, as a share of h, in (0, 1).
        s_noise: Standard deviation of the noise, > 0. Other values than 1 compensate for trained denoisers, and
            change the marginals.
    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1 and section 5, in the form that other libraries give this
    name, with the noise of Song et al. 2021, arXiv:2010.02502, eq. 16; s_noise: Karras et al. 2022, arXiv:2206.00364.
    Deviates: noises share what the linear part carries from u to s, where others draw both from a Brownian path in
    rho; to leading order the correlation is sqrt(r) in both, which order 2 needs. Where a step holds no level of a
    discrete schedule, and at infinite log-SNR, the second move changes nothing.
    """

    eta: float = number(1.0, gt=0, le=1)
    r: float = number(0.5, gt=0, lt=1)
    s_noise: float = number(1.0, gt=0)
    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    uses_last: ClassVar[bool] = False

    def route(self, log_snr: F64) -> Sequence[tuple[int, int]]:
        """Return every step twice except the last, which holds its estimate."""
        return [(k, k - 1) for k in range(len(log_snr) - 1, 1, -1) for _ in range(2)] + [(1, 0)]

    def nodes(self, steps: Steps) -> F64:
        """Return log_snr of the evaluation of each move, (n, 1): t itself, then u."""
        return np.where(_is_second(steps), within(steps, self.r), steps.t.log_snr)[:, None]

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of x_s, of x_u, and of what the second move takes back of the first."""
        second, u = _is_second(steps), _second_node(steps)
        carry, held = straight(*without_noise(steps, self.eta))
        std = self.s_noise * fresh_std(steps, self.eta)
        slope = inverse_position(u, steps)[1] / 2
        carry_u, held_u, std_u = self._way_to(u, steps, slope > 0)
        shared = np.divide(carry * std_u, carry_u * std, out=np.ones_like(std), where=(slope > 0) & (std > 0))
        own = std * np.sqrt(np.maximum(1 - shared**2, 0.0))
        columns = {
            "x": (carry, 1.0),
            "x_start": (held, held * slope),
            "noise": (std, own),
            "u_x": (carry_u, 0.0),
            "u_x_start": (held_u, 0.0),
            "u_noise": (std_u, 0.0),
            "rest_x_start": (-held * slope, 0.0),
            "rest_noise": ((shared - 1) * std, 0.0),
        }
        return {name: np.where(second, then, at_first) for name, (at_first, then) in columns.items()} | {
            "second": second.astype(np.float64)
        }

    def init(self, x: Tensor) -> State:
        """Return x_u and what the second move adds, both unused in the first."""
        return start_history(x, 2)

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x at level s, and for the move that follows x_u and the rest of the first estimate and noise."""
        c, (x_u, rest) = row.coef, state
        assert noise is not None, "a stochastic sampler is always given noise"
        estimate = denoise(x.lerp(x_u, c["second"]), row.nodes[0]).x_start
        y = (c["x"] * x).addcmul_(c["x_start"], estimate).addcmul_(c["second"], rest).addcmul_(c["noise"], noise)
        x_u = (c["u_x"] * x).addcmul_(c["u_x_start"], estimate).addcmul_(c["u_noise"], noise)
        return y, (x_u, (c["rest_x_start"] * estimate).addcmul_(c["rest_noise"], noise))

    def _way_to(self, u: Coefs, steps: Steps, exists: Bools) -> tuple[F64, F64, F64]:
        """Coefficients of x_t, of x_start_t and of the noise in x_u; x_t itself where there is no u."""
        part = Steps(steps.t, u)
        with np.errstate(invalid="ignore"):  # both at a level without signal
            carry, held = straight(*without_noise(part, self.eta))
            std = self.s_noise * fresh_std(part, self.eta)
        return np.where(exists, carry, 1.0), np.where(exists, held, 0.0), np.where(exists, std, 0.0)


def _is_second(steps: Steps) -> Bools:
    """Which moves go the way of the one before a second time, (n,)."""
    pairs = np.stack([steps.t.log_snr, steps.s.log_snr], axis=1)
    again = np.append(False, np.all(pairs[1:] == pairs[:-1], axis=1))
    for i in range(1, len(again)):
        again[i] &= not again[i - 1]
    return again


def _second_node(steps: Steps) -> Coefs:
    """Levels of the second move's evaluation, also given at each first move; t where there is no second move."""
    follows = np.append(_is_second(steps)[1:], False)
    return Coefs(*(np.where(follows, np.append(c[1:], c[-1:]), c) for c in steps.nodes[0]))
