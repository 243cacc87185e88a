"""The training loss of a composition, with all randomness given: levels and noise in, per-example terms out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor, nn

from diffkit.errors import CompositionError, ProtocolError
from diffkit.gaussian import decode, mixed
from diffkit.protocols import (
    Composition,
    ContinuousSchedule,
    Decoder,
    Level,
    LossInputs,
    Model,
    NetworkLoss,
    PairSampler,
    Transition,
)
from diffkit.system.coefficients import (
    CoefficientTable,
    clean_time,
    level_coefficients,
    rate_coefficients,
    target_coefficients,
    transition_coefficients,
)
from diffkit.system.denoiser import PREVIOUS, call_network, end_of_step
from diffkit.system.loss_network import BoundNetwork, NetworkCall, teacher_of
from diffkit.system.numerics import computing
from diffkit.table import Coefs
from diffkit.tensors import has_values, load_forward_rules, precision_of

_RESERVED = ("level", "weight")
"""Keys that `System.forward` adds to a loss's terms."""
_TRIAL_LEVELS = 32
"""Number of levels at which the loss of a new composition is evaluated once."""
_TRIAL_LOG_SNR = 40.0
"""Largest absolute log-SNR of those levels."""
_TRIAL_VALUES = 2**16
"""Largest number of values of data in that evaluation, which then takes some milliseconds."""
_SAME = 1e-12
"""Tolerance for target coefficients of 0 and 1: float64 rounding."""


@frozen(eq=False)
class Objective:
    """The training loss of a composition.

    Attributes:
        parts: The composition.
        decoder: Log-likelihood of data at level 1.
        columns: Coefficients per level that the loss reads, of the training table.
        scales_input: False if c_in is 1 at every level.
        target: "x_start" or "noise" if that is exactly the network's target, else "mix".
        learned: Modules of parts that have weights, by kind: the system's own.
    """

    parts: Composition
    decoder: Decoder
    columns: CoefficientTable
    scales_input: bool
    target: str
    learned: Mapping[str, nn.Module] = field(factory=dict)

    @classmethod
    @computing("the training loss")
    def of(cls, parts: Composition, decoder: Decoder, learned: Mapping[str, nn.Module] | None = None) -> Objective:
        """Return the training objective of a composition, with its coefficients computed."""
        level = level_coefficients(parts, parts.table)
        target = target_coefficients(level)
        loss = parts.loss.columns(parts.table)
        transition = transition_coefficients(parts.table)
        blocks = {"level": level, "transition": transition, "target": target, "loss": loss}
        rates = {"rate": rate_coefficients(level)} if isinstance(parts.loss, NetworkLoss) else {}
        columns = CoefficientTable(blocks | rates)
        scales_input = bool(np.any(level["c_in"] != 1)) or parts.continuous_time
        found = cls(parts, decoder, columns, scales_input, _kind_of_target(target), learned or {})
        _check_finite(found)
        return found

    def terms(
        self,
        model: Model,
        x_start: Tensor,
        level: Tensor,
        noise: Tensor,
        decoder_rows: int,
        conditions: Mapping[str, Any],
        level_to: Tensor | None = None,
        teacher: NetworkCall | None = None,
        estimates: Tensor | None = None,
        rate: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss part's per-example terms, each (B,), unweighted; see `System.loss_terms`."""
        parts = self.parts
        at, transition, cols, mix = self._read(level, x_start)
        x_t = mixed(at.alpha, x_start, at.sigma, noise)
        to = None if level_to is None else self.record(level_to, x_start)
        end = None if parts.times == 1 else end_of_step(parts.times, at, to)
        precision = precision_of(model)
        if estimates is not None:
            conditions = {**conditions, PREVIOUS: self._estimate(model, x_t, at, conditions, precision, end, estimates)}
        out, raw = call_network(model, x_t, at, parts.var, self.scales_input, conditions, precision, end)
        log_variance = None if at.coefficients is None else self.parts.var.log_variance(raw, at.coefficients)
        inputs = LossInputs(
            x_start=x_start,
            noise=noise,
            x_t=x_t,
            out=out,
            target=self._target(mix, x_start, noise),
            log_variance=log_variance,
            level=at,
            transition=transition,
            cols=cols,
            num_steps=self.parts.table.num_steps,
            decoder=self.decoder,
            decoder_rows=decoder_rows,
            to=to,
            learned=self.learned.get("loss"),
            rate=None if rate is None else rate.to(x_start.dtype),
        )
        if isinstance(parts.loss, NetworkLoss):
            call = NetworkCall(model, parts, self.scales_input, conditions)
            found = parts.loss(inputs, self._network(call, inputs, level, level_to, teacher))
        else:
            found = parts.loss(inputs)
        return _checked(found, x_start.shape[0], parts.label("loss"))

    @torch.no_grad()
    def _estimate(
        self,
        model: Model,
        x_t: Tensor,
        at: Level,
        conditions: Mapping[str, Any],
        precision: torch.dtype | None,
        end: Level | None,
        estimates: Tensor,
    ) -> Tensor:
        """The network's own estimate of x_start for some of the examples, zeros for the others, without gradient."""
        out, _ = call_network(model, x_t, at, self.parts.var, self.scales_input, conditions, precision, end)
        return decode(out, x_t, at) * _spread(estimates, x_t)

    def _network(
        self, call: NetworkCall, inputs: LossInputs, t: Tensor, s: Tensor | None, teacher: NetworkCall | None
    ) -> BoundNetwork:
        """The network as a `NetworkLoss` calls it."""
        x = inputs.x_start
        asked = call
        if teacher is not None:
            asked = NetworkCall(teacher.model, teacher.parts, teacher.scales_input, call.conditions)
        ask = teacher_of(asked, self.parts)
        return BoundNetwork(
            call, ask, inputs, t, s, level_at=lambda k: self.record(k, x), rate_at=lambda k: self.rate(k, x)
        )

    def level(self, level: Tensor, x: Tensor) -> Level:
        """Return the `Level` of levels (B,), as `terms` takes them, broadcastable to x (B, C, *S)."""
        return self._read(level, x)[0]

    def at_log_snr(self, log_snr: Tensor, x: Tensor) -> Level:
        """Return the `Level` of any log_snr, (B,), of a continuous schedule, broadcastable to x (B, C, *S)."""
        return self._continuous(log_snr, x)[0]

    def rate(self, level: Tensor, x: Tensor) -> Level:
        """Return the derivative of `level` with respect to time, of the same shapes."""
        if not self.parts.continuous_time:
            return self.columns.level(self.columns.on(x.device, x.dtype)[level], x.ndim, "rate")
        log_snr = level.double()
        load_forward_rules()
        rates = torch.func.jvp(self._columns_at, (log_snr,), (torch.ones_like(log_snr),))[1]
        by_time = [rate / rates[-1] for rate in rates]
        return _level_of([torch.where(rate.isfinite(), rate, 0.0) for rate in by_time], x)

    def record(self, level: Tensor, x: Tensor) -> Level:
        """Return the `Level` of levels (B,) among which clean data may be: level 0, or an infinite log_snr."""
        found = self.level(level, x)
        if not self.parts.continuous_time:
            return found
        return found._replace(time=torch.where(level == math.inf, clean_time(self.parts), found.time))

    def _target(self, mix: tuple[Tensor, Tensor], x_start: Tensor, noise: Tensor) -> Tensor:
        if self.target == "noise":
            return noise
        if self.target == "x_start":
            return x_start
        return mixed(mix[0], x_start, mix[1], noise)

    def _read(
        self, level: Tensor, x: Tensor
    ) -> tuple[Level, Transition | None, dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Level, transition, the loss's columns and the target's coefficients of each row."""
        if self.parts.continuous_time:
            at, mix = self._continuous(level, x)
            return at, None, {}, mix
        columns, ndim = self.columns, x.ndim
        rows = columns.on(x.device, x.dtype)[level]
        target = columns.read(rows, ndim, "target")
        loss = columns.read(rows, ndim, "loss")
        return columns.level(rows, ndim), columns.transition(rows, ndim), loss, (target["x_start"], target["noise"])

    def _continuous(self, log_snr: Tensor, x: Tensor) -> tuple[Level, tuple[Tensor, Tensor]]:
        """Level and target coefficients at any log_snr, computed in float64 and then cast; there is no transition."""
        found = self._columns_at(log_snr.double())
        alpha, sigma, _, c_skip, c_out, _, _ = found
        p, q = (1 - c_skip * alpha) / c_out, -c_skip * sigma / c_out
        return _level_of(found, x), (_spread(p, x), _spread(q, x))

    def _columns_at(self, log_snr: Tensor) -> tuple[Tensor, ...]:
        """The columns of `LEVEL` at any log_snr, (B,) float64 each."""
        path = self.parts.schedule
        assert isinstance(path, ContinuousSchedule), "composition refuses continuous levels of another schedule"
        total_std, time = path.level(log_snr)
        at = Coefs(total_std * log_snr.sigmoid().sqrt(), total_std * (-log_snr).sigmoid().sqrt(), log_snr)
        return (*at, *self.parts.mean.scalings(at, None), time)


def _level_of(columns: Sequence[Tensor], x: Tensor) -> Level:
    """A `Level` of the columns of `LEVEL`, broadcastable to x."""
    *scales, time = columns
    alpha, sigma, log_snr, c_skip, c_out, c_in = (_spread(scale, x) for scale in scales)
    return Level(alpha, sigma, log_snr, c_skip, c_out, c_in, time.to(x.dtype), coefficients=None)


def _spread(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


def _checked(terms: object, batch: int, label: str) -> dict[str, Tensor]:
    """The terms of a loss, checked by their shapes, without synchronization."""
    if not isinstance(terms, Mapping) or "loss" not in terms:
        found = f"the keys {list(terms)}" if isinstance(terms, Mapping) else f"a {type(terms).__name__}"
        raise ProtocolError(f"{label} must return a mapping with 'loss', a value for each example, got {found}")
    for name, value in terms.items():
        if name in _RESERVED:
            raise ProtocolError(
                f"{label} returns {name!r}, a name reserved for the draws of the timestep sampler; rename it"
            )
        if not isinstance(value, Tensor) or value.shape != (batch,):
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ProtocolError(
                f"{label} must return {name!r} of shape ({batch},), a value for each example, got {found}; "
                "diffkit.gaussian.mean_flat averages over everything else"
            )
    return dict(terms)


def _check_finite(objective: Objective) -> None:
    """Raise `CompositionError` if the loss is not finite for data, noise and network outputs of ordinary size.

    It is evaluated at some levels only. A loss that fails in this evaluation is checked at its first real call.
    """
    parts = objective.parts
    count = min(_TRIAL_LEVELS, _TRIAL_VALUES // math.prod(parts.data_shape) + 2)
    rows = np.unique(np.geomspace(1, parts.table.num_steps, count).round().astype(np.int64))
    terms = tried(objective, rows, lambda out: lambda *_, **__: out)
    if terms is None or not has_values(terms["loss"]):
        return
    bad = (~terms["loss"].isfinite()).nonzero().flatten().tolist()
    if bad:
        where = f"level {int(parts.table.index[rows[bad[0]]])} of {parts.label('schedule')}"
        raise CompositionError(
            "1 problem composing this system:\n  "
            f"{parts.label('loss')} is not finite in float32 at {where}; use less extreme options of its parts"
        )


def tried(
    objective: Objective, rows: np.ndarray, model: Callable[[Tensor], Model], teacher: Model | None = None
) -> dict[str, Tensor] | None:
    """Return the terms at some levels of the table for data of zeros; None if the loss fails.

    Args:
        objective: The objective.
        rows: The levels.
        model: From what a network returns, zeros, to that network.
        teacher: The teacher's network; None for the same.
    """
    parts = objective.parts
    values = torch.zeros(len(rows), *parts.data_shape, device="cpu")
    log_snr = parts.table.log_snr[rows].clip(-_TRIAL_LOG_SNR, _TRIAL_LOG_SNR)
    level = torch.from_numpy(log_snr if parts.continuous_time else rows)
    to = level if isinstance(parts.timesteps, PairSampler) else None
    network = model(torch.zeros(len(rows), parts.out_channels, *values.shape[2:], device="cpu"))
    asked = None if teacher is None else NetworkCall(teacher, parts, objective.scales_input, {})
    try:
        with torch.no_grad():
            return objective.terms(network, values, level, torch.ones_like(values), len(rows), {}, to, asked)
    except Exception:
        return None
    finally:
        objective.columns.release()  # a later call may be on fake tensors, which do not mix with real ones


def _kind_of_target(columns: Mapping[str, np.ndarray]) -> str:
    p, q = columns["x_start"][1:], columns["noise"][1:]
    if np.all(np.abs(p) < _SAME) and np.all(np.abs(q - 1) < _SAME):
        return "noise"
    if np.all(np.abs(p - 1) < _SAME) and np.all(np.abs(q) < _SAME):
        return "x_start"
    return "mix"
