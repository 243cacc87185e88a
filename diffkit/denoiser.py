"""The one place that calls a network: scale, call, split, decode, guide, clip, and give the variance a meaning.

Order of operations, which every sampler, the bound and every task share:

1. the network is called and its channels are split into mean and variance;
2. the mean is decoded to an estimate of x_start;
3. guidance changes that estimate, each as listed, the first one nearest to the network (`Guidance.guide`);
4. ``x_transform``, then clipping;
5. the variance channels become a log-variance: those of the network under the caller's own conditions;
6. guidance that follows clipping changes x_start once more, in the same order (`Guidance.correct`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor, nn

from diffkit._errors import OptionError
from diffkit.gaussian import decode
from diffkit.protocols import Composition, Level, Prediction, VarianceParameterization

if TYPE_CHECKING:
    from diffkit.table import F64, Coefs, ProcessTable

Model = Callable[..., Tensor]
"""``model(x, time, **conditions) -> (B, C * (1 + extra_outputs), *S)``."""

Conditions = Mapping[str, Any]


def call_network(
    model: Model,
    x: Tensor,
    level: Level,
    var: VarianceParameterization,
    scales_input: bool,
    conditions: Conditions,
    precision: torch.dtype | None,
) -> tuple[Tensor, Tensor | None]:
    """Call a network and split its channels; arguments as the attributes of `Denoiser`.

    Args:
        x: Noisy data, (B, C, *S).
        level: Where it is.
        precision: What the network computes in, as `precision_of` says; x and floating-point conditions are given to
            it so, and time in float32 if that is longer. None gives it everything as it is.
    Returns:
        Mean channels (B, C, *S) and raw variance channels (B, C*extra_outputs, *S) (None if there are none), of x's
        dtype.
    Raises:
        OptionError: The network returns no tensor, or another number of channels than the parts ask for.
    """
    scaled = level.c_in * x if scales_input else x
    batch, channels, *sides = x.shape
    time = level.time.expand(batch)
    if batch == 1:
        time = time.clone()  # torch lets the network write into it, and these are numbers that later calls read too
    if precision is not None:
        if scaled.dtype != precision:
            scaled, time = scaled.to(precision), time.to(torch.promote_types(precision, torch.float32))
        if conditions:
            conditions = {name: _in_precision(value, precision) for name, value in conditions.items()}
    out, extra = model(scaled, time, **conditions), var.extra_outputs
    if not isinstance(out, Tensor):
        raise OptionError(not_a_tensor(out))
    if out.dtype != x.dtype:  # asked, as a call of `to` that changes nothing takes as long as half an operation
        out = out.to(x.dtype)
    wanted = (batch, channels * (1 + extra), *sides)
    if out.shape != wanted:
        raise OptionError(
            f"the network returned shape {tuple(out.shape)}, the parts ask for {wanted}: {channels} channels of "
            f"data times {1 + extra} ({'mean and variance' if extra else 'mean'})"
        )
    if not extra:
        return out, None
    # not two calls of narrow: the gradient of each would be a tensor of zeros as large as the whole
    mean, raw = out.split_with_sizes((channels, channels * extra), 1)
    return mean, raw


def not_a_tensor(out: Any) -> str:
    """Say what to do about a network that returns something else."""
    part = "[0]" if isinstance(out, tuple | list) else ".sample"
    return (
        f"the network returned a {type(out).__name__}, not a tensor; wrap it so that it returns the tensor inside, as "
        f"model=lambda x, time, **given: network(x, time, **given){part} does (for networks of diffusers there is "
        "the plugin diffkit-diffusers)"
    )


def precision_of(model: Model) -> torch.dtype | None:
    """Return the dtype of a network's first floating-point weight; None if it has none, or is a function."""
    if not isinstance(model, nn.Module):
        return None
    for weight in model.parameters():
        if weight.dtype in _PRECISIONS:
            return weight.dtype
    return None


_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Those that torch computes in; shorter ones are how weights are stored."""


def _in_precision(value: Any, precision: torch.dtype) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != precision
    return value.to(precision) if floating else value


# ---- guidance ----------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """What is known before clipping.

    Attributes:
        x_start: Estimate of clean data, (B, C, *S).
        raw: The network's variance channels, (B, C*extra_outputs, *S), or None. A guidance hands on those of the
            evaluation under the conditions it was given: guidance never changes a learned variance.
        after_clipping: To be added to x_start once it is clipped, (B, C, *S), or None.
    """

    x_start: Tensor
    raw: Tensor | None = None
    after_clipping: Tensor | None = None

    def with_x_start(self, x_start: Tensor) -> Estimate:
        """Return this estimate with another x_start, and everything else as it is."""
        return Estimate(x_start, self.raw, self.after_clipping)


class Evaluate(Protocol):
    """The network with the guidance that comes before; what a `Guidance` may ask, any number of times."""

    def __call__(self, x: Tensor, level: Level, conditions: Conditions, model: Model | None = None) -> Estimate:
        """Return the estimate at x, (B, C, *S), for any batch; ``model`` takes the place of the system's network."""


@runtime_checkable
class Guidance(Protocol):
    """What steers sampling besides the network; a frozen attrs class, given to ``system.sample(guidance=...)``.

    Inherit from it for the defaults; override `guide`, `correct` or both.
    """

    @property
    def own_conditions(self) -> frozenset[str]:
        """Conditions that are for this guidance only: the network is not given them."""
        return frozenset()

    @property
    def required_conditions(self) -> frozenset[str]:
        """Conditions it cannot do without."""
        return frozenset()

    @property
    def row_conditions(self) -> Conditions:
        """Conditions it brings along itself, with a row for each example; some of `own_conditions`.

        Whoever works on some of the examples hands on their rows, as of the caller's conditions.
        """
        return {}

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Networks it holds; their dropout is off while the system samples."""
        return ()

    def problems(self, parts: Composition) -> Iterable[str]:
        """Return one sentence for each thing in a composition it cannot work with, with what would work."""
        return ()

    def fitted(self, parts: Composition) -> Guidance:
        """Return this guidance with what it needs to know of the composition filled in."""
        return self

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return float64 columns (T+1,) of the table in use; `Level.var` then has them, under names all share."""
        return {}

    def idle(self, at: Coefs) -> NDArray[np.bool_]:
        """Return at which levels it is certain to change nothing, of the shape of at's float64 arrays.

        A step all of whose levels are idle is taken without it, which spares its evaluations.
        """
        return np.zeros(np.shape(at.alpha), dtype=bool)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the guided estimate before clipping.

        Args:
            evaluate: The network and the guidance before this one.
            x: Noisy data, (B, C, *S).
            level: Where it is.
            conditions: Everything the caller gave, `own_conditions` included.
        """
        return evaluate(x, level, conditions)

    def correct(self, prediction: Prediction, x: Tensor, level: Level, conditions: Conditions) -> Prediction:
        """Return the prediction changed after clipping; arguments as in `guide`."""
        return prediction


def evaluate_together(
    evaluate: Evaluate, x: Tensor, level: Level, conditions: Sequence[Conditions]
) -> tuple[Estimate, ...]:
    """Evaluate the same x under several sets of conditions in one call on a larger batch.

    Args:
        evaluate: As `Guidance.guide` is given.
        x: Noisy data, (B, C, *S).
        level: Where it is.
        conditions: The sets, which hold the same names.
    Returns:
        One estimate for each set, rows as if each had been asked for alone.
    Raises:
        OptionError: A condition cannot be joined: it is in some sets only, or differs and is no (B, ...) tensor.
    """
    count, batch = len(conditions), len(x)
    names = dict.fromkeys(name for given in conditions for name in given)
    joined = {name: _joined(name, [given.get(name) for given in conditions], batch) for name in names}
    estimate = evaluate(torch.cat([x] * count), _repeated(level, count), joined)
    pieces = ((None,) * count if part is None else part.tensor_split(count) for part in estimate)
    return tuple(Estimate(*parts) for parts in zip(*pieces, strict=True))


def _repeated(level: Level, count: int) -> Level:
    def repeat(value: Tensor) -> Tensor:
        return value if value.ndim == 0 else torch.cat([value] * count)

    var = None if level.var is None else {name: repeat(column) for name, column in level.var.items()}
    return Level(
        repeat(level.alpha),
        repeat(level.sigma),
        repeat(level.log_snr),
        repeat(level.c_skip),
        repeat(level.c_out),
        repeat(level.c_in),
        repeat(level.time),
        var,
    )


def _joined(name: str, values: Sequence[Any], batch: int) -> Any:
    first = values[0]
    if all(isinstance(value, Mapping) and value.keys() == first.keys() for value in values):
        return {key: _joined(name, [value[key] for value in values], batch) for key in first}
    if all(isinstance(value, list) and len(value) == batch for value in values):
        return [entry for value in values for entry in value]
    if all(isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch for value in values):
        return torch.cat(list(values))
    if any(value is not first for value in values):
        raise OptionError(
            f"condition {name!r} cannot be evaluated with and without in one call: it needs one row for each of "
            f"{batch} examples in both; use joint=False"
        )
    return first


# ---- the denoiser ------------------------------------------------------------------------------------------------


@frozen(eq=False)
class Denoiser:
    """A network read as an estimate of clean data and of the reverse step's variance.

    Attributes:
        model: The network.
        var: The variance part.
        scales_input: False if c_in is 1 at every level, which spares a multiplication.
        conditions: Keywords for the network, and those that guidance keeps to itself.
        transform: Applied to the estimate of x_start before clipping (the reference's denoised_fn).
        clip: Clip the estimate of x_start to [-1, 1].
        guidance: What steers the estimate, nearest to the network first.
    """

    model: Model
    var: VarianceParameterization
    scales_input: bool
    conditions: Conditions = field(factory=dict)
    transform: Callable[[Tensor], Tensor] | None = None
    clip: bool = False
    guidance: tuple[Guidance, ...] = ()
    _hidden: frozenset[str] = field(init=False, repr=False)
    _precision: torch.dtype | None = field(init=False, repr=False)

    @_hidden.default
    def _find_hidden(self) -> frozenset[str]:
        return own_conditions(self.guidance)

    @_precision.default
    def _find_precision(self) -> torch.dtype | None:
        return precision_of(self.model)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Return the processed estimate of x_start, and the log-variance of the reverse step."""
        x_start, raw, shift = self._evaluate(x, level, self.conditions, self.model, len(self.guidance))
        if self.transform is not None:
            x_start = self.transform(x_start)
        if self.clip:
            fresh = self.transform is None and len(self.guidance) == 0  # else it may be someone's own tensor
            x_start = x_start.clamp_(-1, 1) if fresh else x_start.clamp(-1, 1)
        if shift is not None:
            x_start = x_start + shift
        prediction = Prediction(x_start, None if level.var is None else self.var.log_variance(raw, level.var))
        for guidance in self.guidance:
            prediction = guidance.correct(prediction, x, level, self.conditions)
        return prediction

    def _evaluate(self, x: Tensor, level: Level, conditions: Conditions, network: Model, depth: int) -> Estimate:
        """Estimate of a network with the first ``depth`` guidances applied."""
        if not depth:
            if self._hidden:
                conditions = {name: value for name, value in conditions.items() if name not in self._hidden}
            precision = self._precision if network is self.model else precision_of(network)
            out, raw = call_network(network, x, level, self.var, self.scales_input, conditions, precision)
            return Estimate(decode(out, x, level), raw)

        def evaluate(x: Tensor, level: Level, conditions: Conditions, model: Model | None = None) -> Estimate:
            return self._evaluate(x, level, conditions, network if model is None else model, depth - 1)

        return self.guidance[depth - 1].guide(evaluate, x, level, conditions)


def own_conditions(guidance: Iterable[Guidance]) -> frozenset[str]:
    """Return the conditions that some guidance keeps from the network."""
    return frozenset().union(*(one.own_conditions for one in guidance))


def row_conditions(guidance: Iterable[Guidance]) -> Conditions:
    """Return the conditions that guidance brings along.

    Raises:
        OptionError: Two of them bring one of the same name.
    """
    found: dict[str, Any] = {}
    for one in guidance:
        for name, value in one.row_conditions.items():
            if name in found:
                raise OptionError(f"two guidances bring rows for {name!r}; give one of them a single row for all")
            found[name] = value
    return found


def as_float(x: Tensor) -> Tensor:
    """Return data in the precision that step arithmetic uses: float64 stays, anything shorter becomes float32."""
    return x if x.dtype == torch.float64 else x.float()
