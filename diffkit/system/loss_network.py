"""The network as a loss calls it again: at other data and levels, its teacher, and derivatives along the path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from diffkit.errors import OptionError
from diffkit.gaussian import decode
from diffkit.protocols import Composition, Level, LossInputs, Model, Tangent
from diffkit.runtime.eval_mode import eval_mode
from diffkit.system.denoiser import call_network, end_of_step
from diffkit.table import Coefs
from diffkit.tensors import differentiable_twice, load_forward_rules, precision_of

JVP_METHODS = ("forward", "backward", "difference")
"""Ways to differentiate the network along a tangent."""
_STEP = 10.0
"""Step of a central difference in units of the cube root of the rounding error, where its two errors are equal."""
_TABLES = ("alpha_bar", "total_std", "time")


class NetworkCall:
    """A network with its conditions: mean channels at any data and level.

    A plain class, as torch.compile does not make frozen ones.

    Args:
        model: The network.
        parts: The composition whose mean and variance its channels are.
        scales_input: False if c_in is 1 at every level.
        conditions: Keywords for the network, a row for each example.
    """

    def __init__(self, model: Model, parts: Composition, scales_input: bool, conditions: Mapping[str, Any]):
        self.model, self.parts, self.scales_input, self.conditions = model, parts, scales_input, conditions
        self.precision = precision_of(model)

    def __call__(self, x: Tensor, level: Level, to: Level | None = None) -> tuple[Tensor, Tensor | None]:
        """Return mean channels and variance channels; see `call_network`."""
        to = end_of_step(self.parts.times, level, to)
        var, scales = self.parts.var, self.scales_input
        return call_network(self.model, x, level, var, scales, self.conditions, self.precision, to)


class BoundNetwork:
    """The `LossNetwork` of one batch; a plain class, as `NetworkCall` is.

    Args:
        call: The network in training.
        ask_teacher: The teacher's estimate of clean data.
        at: The inputs of the loss.
        t, s: The levels as drawn.
        level_at, rate_at: From levels as drawn to their record, and to its derivative.
    """

    def __init__(
        self,
        call: NetworkCall,
        ask_teacher: Callable[[Tensor, Level, Level | None], Tensor],
        at: LossInputs,
        t: Tensor,
        s: Tensor | None,
        level_at: Callable[[Tensor], Level],
        rate_at: Callable[[Tensor], Level],
    ):
        self.call, self.ask_teacher, self.at, self.t, self.s = call, ask_teacher, at, t, s
        self.level_at, self.rate_at = level_at, rate_at

    def predict(self, x: Tensor, level: Level, to: Level | None = None) -> Tensor:
        """Return the network's mean channels; see `LossNetwork`."""
        at = self.at
        end = None if self.call.parts.times == 1 else at.to
        if x is at.x_t and level is at.level and to is end:
            return at.out if torch.is_grad_enabled() else at.out.detach()
        return self.call(x, level, to)[0]

    def x_start(self, x: Tensor, level: Level, to: Level | None = None) -> Tensor:
        """Return the network's estimate of clean data; see `LossNetwork`."""
        return decode(self.predict(x, level, to), x, level)

    def teacher(self, x: Tensor, level: Level, to: Level | None = None) -> Tensor:
        """Return the teacher's estimate of clean data; see `LossNetwork`."""
        with torch.no_grad():
            return self.ask_teacher(x, level, to)

    def jvp(
        self, x: Tensor, level: Level, to: Level | None, tangent: Tangent, *, method: str = "forward"
    ) -> tuple[Tensor, Tensor]:
        """Return the network's mean channels and their derivative along a tangent; see `LossNetwork`."""
        if method not in JVP_METHODS:
            raise OptionError(f"must be one of {', '.join(map(repr, JVP_METHODS))}", option="method", value=method)
        out = self.predict(x, level, to)
        end = end_of_step(self.call.parts.times, level, to)
        moving = tangent.to if to is not None else tangent.level
        moves = (tangent.x, tangent.level, None if end is None else moving)
        return out, derivative(self.call, x, level, end, moves, method)

    def next_level(self, steps: int = 1) -> Level:
        """Return the record of the level ``steps`` below each row's; see `LossNetwork`."""
        if self.t.is_floating_point():
            raise OptionError("next_level is of discrete levels, and these are continuous; give level_at a log_snr")
        return self.level_at((self.t - steps).clamp(min=0))


Moves = tuple[Tensor, Level | None, Level | None]
"""Derivatives of the data, of its level, and of the level that the step goes to."""


def _moved(x: Tensor, level: Level, to: Level | None, moves: Moves, by: Any) -> tuple[Tensor, Level, Level | None]:
    """Data and levels after a step ``by`` along a tangent; of levels what the network reads, time and c_in."""
    along, at, end = moves
    spread = by.view(-1, *(1,) * (x.ndim - 1)) if isinstance(by, Tensor) else by
    level = level if at is None else level._replace(c_in=level.c_in + spread * at.c_in, time=level.time + by * at.time)
    to = to if to is None or end is None else to._replace(time=to.time + by * end.time)
    return x + spread * along, level, to


def _forward(call: NetworkCall, x: Tensor, level: Level, to: Level | None, moves: Moves) -> Tensor:
    along, at, end = moves
    if torch.compiler.is_compiling():  # which knows `torch.func` only, in which a network cannot look at values
        by = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        moved: Callable[[Tensor], Tensor] = lambda step: call(*_moved(x, level, to, moves, step))[0]  # noqa: E731
        with torch.no_grad():
            rate: Tensor = torch.func.jvp(moved, (by,), (torch.ones_like(by),))[1]
        return rate
    load_forward_rules()
    with torch.no_grad(), differentiable_twice(), forward_ad.dual_level():
        x_dual = _dual(x, along)
        if at is not None:
            level = level._replace(c_in=_dual(level.c_in, at.c_in), time=_dual(level.time, at.time))
        if to is not None and end is not None:
            to = to._replace(time=_dual(to.time, end.time))
        out, derivative = forward_ad.unpack_dual(call(x_dual, level, to)[0])  # type: ignore[no-untyped-call]
        return torch.zeros_like(out) if derivative is None else derivative


def _dual(value: Tensor, along: Tensor) -> Tensor:
    """A value with its derivative, in memory of one layout."""
    given = (value.contiguous(), along.to(value.dtype).contiguous())
    dual: Tensor = forward_ad.make_dual(*given)  # type: ignore[no-untyped-call]
    return dual


def _backward(call: NetworkCall, x: Tensor, level: Level, to: Level | None, moves: Moves) -> Tensor:
    """The derivative along a step length at 0, as the gradient of a gradient."""
    with torch.enable_grad(), differentiable_twice():
        by = torch.zeros(len(x), dtype=x.dtype, device=x.device, requires_grad=True)
        out = call(*_moved(x, level, to, moves, by))[0]
        weights = torch.zeros_like(out, requires_grad=True)
        if not out.requires_grad:
            return torch.zeros_like(out)
        (rows,) = torch.autograd.grad(out, by, weights, create_graph=True, allow_unused=True)
        if rows is None or not rows.requires_grad:
            return torch.zeros_like(out)
        (found,) = torch.autograd.grad(rows.sum(), weights)
    return found


def _difference(call: NetworkCall, x: Tensor, level: Level, to: Level | None, moves: Moves) -> Tensor:
    along, at, end = moves
    size = along.flatten(1).square().mean(1).sqrt()
    for rate in (at, end):
        size = size if rate is None else torch.maximum(size, rate.time.abs())
    by = _STEP * torch.finfo(x.dtype).eps ** (1 / 3) / torch.where(size > 0, size, 1.0)
    with torch.no_grad():
        ahead, behind = (call(*_moved(x, level, to, moves, step))[0] for step in (by, -by))
    found: Tensor = (ahead - behind) / (2 * by).view(-1, *(1,) * (x.ndim - 1))
    return found


def derivative(call: NetworkCall, x: Tensor, level: Level, to: Level | None, moves: Moves, method: str) -> Tensor:
    """Return the derivative of a network's mean channels along a direction, by one of `JVP_METHODS`, (B, C, *S)."""
    with eager():
        return _DERIVATIVES[method](call, x.detach(), level, to, moves).detach()


_DERIVATIVES = {"forward": _forward, "backward": _backward, "difference": _difference}


def eager() -> AbstractContextManager[Any]:
    """Return a context in which a compiled network runs as it is: its graphs have a first backward derivative only."""
    if torch.compiler.is_compiling() or "torch._dynamo" not in sys.modules:
        return nullcontext()
    found: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return found


# ---- the teacher -----------------------------------------------------------------------------------------------------


def teacher_of(teacher: NetworkCall, student: Composition) -> Callable[[Tensor, Level, Level | None], Tensor]:
    """Return the estimate of clean data by a network in eval mode, at levels of the one in training.

    It is that one itself where there is no other: what its running mean is before the first update.
    """
    same, model = teacher.parts.mean == student.mean, teacher.model

    def estimate(x: Tensor, level: Level, to: Level | None) -> Tensor:
        own = level if same else _as_mean(teacher.parts, level)
        end = None if teacher.parts.times == 1 else to
        trains = isinstance(model, nn.Module) and model.training
        with eval_mode(model) if trains else nullcontext():  # type: ignore[arg-type]
            return decode(teacher(x, own, end)[0], x, own)

    return estimate


def _as_mean(parts: Composition, level: Level) -> Level:
    """A level with the scalings of another mean parameterization."""
    at = Coefs(level.alpha.double(), level.sigma.double(), level.log_snr.double())
    c_skip, c_out, c_in = (c.to(level.alpha.dtype) for c in parts.mean.scalings(at, None))
    return level._replace(c_skip=c_skip, c_out=c_out, c_in=c_in)


def teacher_problems(teacher: Any, parts: Composition) -> Iterable[str]:
    """Yield why a system cannot be the teacher of a composition."""
    own = teacher.parts
    if teacher.network is None:
        yield "the teacher was composed with backbone=None; give a system with a network"
    if own.data_shape != parts.data_shape:
        yield f"the teacher is of data {own.data_shape}, the system of {parts.data_shape}; they must be equal"
    elif own.codec != parts.codec:
        yield "the teacher has another codec than the system; compose both with one"
    pairs = [(getattr(own.table, name), getattr(parts.table, name)) for name in _TABLES]
    if own.table.num_steps != parts.table.num_steps or not all(np.allclose(*pair, atol=1e-12) for pair in pairs):
        yield "the teacher has other levels than the system; compose both with one schedule, num_steps and spacing"
    if None not in (own.classes, parts.classes) and own.classes != parts.classes:
        yield f"the teacher has {own.classes} classes, the system {parts.classes}; they must be equal"
    if own.mean != parts.mean and not own.mean.continuous_time:
        yield f"the teacher's {own.label('mean')} is defined with the system's own alone; compose with that mean"
