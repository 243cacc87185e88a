"""The one place that calls a network: scale, call, split, decode, guide, clip, and compute the log-variance.

Order of operations, which every sampler, the bound and every task share:

1. the network is called and its channels are split into mean and variance;
2. the mean is decoded to an estimate of x_start;
3. guidance changes that estimate, each as listed, the first one nearest to the network (`Guidance.guide`);
4. ``x_transform``, then clipping;
5. the variance channels become a log-variance: those of the network under the caller's own conditions;
6. guidance that follows clipping changes x_start once more, in the same order (`Guidance.correct`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.gaussian import decode
from diffkit.protocols import (
    Conditions,
    Estimate,
    Guidance,
    Level,
    Model,
    Prediction,
    Sampler,
    UnclippedPrediction,
    UnclippedSampler,
    VarianceParameterization,
)
from diffkit.system.coefficients import VARIANCE, guidance_owner
from diffkit.system.guidance import own_conditions
from diffkit.tensors import precision_of

PREVIOUS = "previous_x_start"
"""Keyword by which a network that reads its previous estimate of x_start gets it."""


def call_network(
    model: Model,
    x: Tensor,
    level: Level,
    var: VarianceParameterization,
    scales_input: bool,
    conditions: Conditions,
    precision: torch.dtype | None,
    to: Level | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Call a network and split its channels; arguments as the attributes of `Denoiser`.

    Args:
        x: Noisy data, (B, C, *S).
        level: The level of x.
        precision: The network's dtype, from `precision_of`; x and floating-point conditions are cast to it, and time
            to ``torch.promote_types(precision, float32)``. None casts nothing.
        to: The level that a step goes to, for a network of two times; None for a network of one.
    Returns:
        Mean channels (B, C, *S) and raw variance channels (B, C*extra_outputs, *S) (None if there are none), of x's
        dtype.
    Raises:
        OptionError: The network does not return a tensor, or returns another number of channels than the parts need.
    """
    scaled = level.c_in * x if scales_input else x
    shape: tuple[int, ...] = x.shape
    extra = var.extra_outputs
    batch, channels = shape[0], shape[1]
    time = level.time.expand(batch) if level.time_of_rows is None else level.time_of_rows(batch)
    if precision is not None:
        if scaled.dtype != precision:
            scaled, time = scaled.to(precision), time.to(torch.promote_types(precision, torch.float32))
        if conditions:
            conditions = {name: _in_precision(value, precision) for name, value in conditions.items()}
    if to is None:
        out = model(scaled, time, **conditions)
    else:
        out = model(scaled, time, time_to=to.time.expand(batch).to(time.dtype, copy=True), **conditions)
    if not isinstance(out, Tensor):
        raise OptionError(not_a_tensor(out))
    if out.dtype != x.dtype:  # a call of `to` without effect takes half as long as an operation
        out = out.to(x.dtype)
    wanted: tuple[int, ...] = (batch, channels * (1 + extra), *shape[2:]) if extra else shape
    if out.shape != wanted:
        raise OptionError(
            f"the network returned shape {tuple(out.shape)}, the parts need {tuple(wanted)}: {channels} channels of "
            f"data times {1 + extra} ({'mean and variance' if extra else 'mean'})"
        )
    if not extra:
        return out, None
    # not two calls of narrow: the gradient of each would be a tensor of zeros as large as the whole
    mean, raw = out.split_with_sizes((channels, channels * extra), 1)
    return mean, raw


def not_a_tensor(out: Any) -> str:
    """Return the error text for a network that returns something else than a tensor."""
    part = "[0]" if isinstance(out, tuple | list) else ".sample"
    return (
        f"the network returned a {type(out).__name__}, not a tensor; wrap it so that it returns the tensor inside, as "
        f"model=lambda x, time, **given: network(x, time, **given){part} does (for networks of diffusers there is "
        "the plugin diffkit-diffusers)"
    )


def _in_precision(value: Any, precision: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(precision) if value.is_floating_point() and value.dtype != precision else value
    if isinstance(value, Mapping):
        return {key: _in_precision(entry, precision) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_in_precision(entry, precision) for entry in value)
    return value


@frozen(eq=False)
class Denoiser:
    """A network with its processing: an estimate of clean data and of the reverse step's variance.

    Attributes:
        model: The network.
        var: The variance part.
        scales_input: False if c_in is 1 at every level, which saves a multiplication.
        conditions: Keywords for the network, and those for guidance only.
        transform: Applied to the estimate of x_start before clipping (improved-diffusion's denoised_fn).
        clip: Clip the estimate of x_start to [-1, 1].
        guidance: Guidance, nearest to the network first.
        acting: Whether each guidance is active; its own conditions are withheld from the network in either case.
        times: How many times the network takes; None if that is unknown, and then it gets what the sampler gives.
        keeps_unclipped: Return the estimate before clipping, too.
    """

    model: Model
    var: VarianceParameterization
    scales_input: bool
    conditions: Conditions = field(factory=dict)
    transform: Callable[[Tensor], Tensor] | None = None
    clip: bool = False
    guidance: tuple[Guidance, ...] = ()
    acting: tuple[bool, ...] = field()
    times: int | None = 1
    keeps_unclipped: bool = False
    _hidden: frozenset[str] = field(init=False, repr=False)
    _guided: bool = field(init=False, repr=False)
    _own: Conditions = field(init=False, repr=False)
    _precision: torch.dtype | None = field(init=False, repr=False)

    @acting.default
    def _all_act(self) -> tuple[bool, ...]:
        return (True,) * len(self.guidance)

    @_hidden.default
    def _find_hidden(self) -> frozenset[str]:
        return own_conditions(self.guidance)

    @_guided.default
    def _find_guided(self) -> bool:
        return any(self.acting)

    @_own.default
    def _find_own(self) -> Conditions:
        return _without(self.conditions, self._hidden)

    @_precision.default
    def _find_precision(self) -> torch.dtype | None:
        return precision_of(self.model)

    def __call__(self, x: Tensor, level: Level, to: Level | None = None, previous: Tensor | None = None) -> Prediction:
        """Return the processed estimate of x_start, and the log-variance of the reverse step; see `Denoise`.

        ``previous`` is the estimate before this one, for a network that reads it.
        """
        guided, precision = self._guided, self._precision
        if self.times != 1 or to is not None:
            to = end_of_step(self.times, level, to)
        given, own = self.conditions, self._own
        if previous is not None:
            given, own = {**given, PREVIOUS: previous}, {**own, PREVIOUS: previous}
        if guided:
            x_start, raw, shift = self._evaluate(x, level, given, self.model, len(self.guidance), to)
        else:
            out, raw = call_network(self.model, x, level, self.var, self.scales_input, own, precision, to)
            x_start, shift = decode(out, x, level), None
        if self.transform is not None:
            x_start = self.transform(x_start)
        unclipped = x_start
        if self.clip:
            # otherwise the tensor may belong to a caller, or is needed
            fresh = self.transform is None and not guided and not self.keeps_unclipped
            x_start = x_start.clamp_(-1, 1) if fresh else x_start.clamp(-1, 1)
        if shift is not None:
            x_start = x_start + shift
        known = None if level.coefficients is None else level.coefficients.of(VARIANCE)
        prediction = Prediction(x_start, None if known is None else self.var.log_variance(raw, known))
        if guided:
            for i, guidance in enumerate(self.guidance):
                if self.acting[i]:
                    prediction = guidance.correct(prediction, x, _as_read_by(level, i), self.conditions)
        if self.keeps_unclipped:
            kept: Any = UnclippedPrediction(*prediction, unclipped)
            return kept
        return prediction

    def _evaluate(
        self, x: Tensor, level: Level, conditions: Conditions, network: Model, depth: int, to: Level | None = None
    ) -> Estimate:
        """Denoise: the estimate of the network with the first ``depth`` guidances applied."""
        while depth and not self.acting[depth - 1]:
            depth -= 1
        if not depth:
            conditions = _without(conditions, self._hidden)
            precision = self._precision if network is self.model else precision_of(network)
            out, raw = call_network(network, x, level, self.var, self.scales_input, conditions, precision, to)
            return Estimate(decode(out, x, level), raw)

        def evaluate(x: Tensor, level: Level, conditions: Conditions, model: Model | None = None) -> Estimate:
            return self._evaluate(x, level, conditions, network if model is None else model, depth - 1, to)

        return self.guidance[depth - 1].guide(evaluate, x, _as_read_by(level, depth - 1), conditions)


def reads_unclipped(sampler: Sampler) -> bool:
    """Return whether a sampler reads estimates before clipping."""
    return isinstance(sampler, UnclippedSampler) and sampler.reads_unclipped


def end_of_step(times: int | None, level: Level, to: Level | None) -> Level | None:
    """Return the level whose time a network gets as its second one; None for a network of one time.

    Args:
        times: How many times the network takes; None if that is unknown.
        level: The level of the data, where a step of a network of two times ends by default.
        to: The level that a step goes to, or None.
    Raises:
        OptionError: There is such a level, but the network takes one time.
    """
    if times == 1 and to is not None:
        raise OptionError(
            "this step gives the network the time that it goes to, but the network takes one time; compose with a "
            "backbone that has times=2, or give time_to_argument= for a network of your own"
        )
    return level if times == 2 and to is None else to


def _without(conditions: Conditions, hidden: frozenset[str]) -> Conditions:
    """The conditions that the network receives."""
    return {name: value for name, value in conditions.items() if name not in hidden} if hidden else conditions


def _as_read_by(level: Level, place: int) -> Level:
    """The level with the coefficients of the guidance at a place in the list."""
    known = level.coefficients
    return level if known is None else level._replace(coefficients=known.of(guidance_owner(place)))


def as_float(x: Tensor) -> Tensor:
    """Return data in the dtype of step arithmetic: float64 stays, anything shorter becomes float32."""
    return x if x.dtype == torch.float64 else x.float()
