"""Linear measurements ``y = A x_start + noise_std n``: adjoints, conjugate gradients and their use by a guidance.

Shapes: data (B, C, *S), measurements (B, *M). Everything is row by row, with a fixed number of operations and no host
synchronization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import python_object
from diffkit.parts.guidance._pullback import Pullback, value_and_pullback
from diffkit.protocols import (
    BindableGuidance,
    Composition,
    ConditionalGuidance,
    Conditions,
    Estimate,
    Evaluate,
    Level,
)

if TYPE_CHECKING:
    from torch import Tensor

Operator = Callable[["Tensor"], "Tensor"]
"""x_start (B, C, *S) -> measurement (B, *M), each row on its own."""

MEASUREMENT = "measurement"
"""Name of the condition that holds the measurements; never passed to the network."""


def check_operator(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validator of an operator."""
    if not callable(value) or isinstance(value, type):
        raise OptionError("must be a function from data to measurements", option="operator", value=value)


@frozen
class Measured(ConditionalGuidance, BindableGuidance):
    """Guidance towards a measurement, which is an argument of `diffkit.tasks.solve`.

    The operator measures data; where a system has a codec, it is applied to decoded latents.

    Attributes:
        operator: A: data (B, C, *S) -> measurements (B, *M), each row on its own.
        linear: Whether A has to be linear.
        sampler: The default sampler for it.
    """

    operator: Operator = python_object(check_operator)
    linear: ClassVar[bool] = True
    sampler: ClassVar[str] = "ddim"

    @property
    def own_conditions(self) -> frozenset[str]:
        """The measurements."""
        return frozenset([MEASUREMENT])

    @property
    def required_conditions(self) -> frozenset[str]:
        """The measurements."""
        return frozenset([MEASUREMENT])

    def problems(self, composition: Composition) -> Iterable[str]:
        """Return that what is linear in data is not in latents."""
        codec = composition.codec
        if self.linear and codec is not None and not codec.affine:
            yield (
                f"needs a measurement that is linear, and {composition.label('codec')} is not, between latents and "
                "data; use 'dps'"
            )

    def bind(self, parts: Composition) -> Measured:
        """Return this guidance with an operator on latents."""
        return (
            self if parts.codec is None else attrs.evolve(self, operator=OfLatents(self.operator, parts.codec.decode))
        )


@frozen(eq=False)
class OfLatents:
    """The measurement of decoded latents.

    Attributes:
        operator: Data (B, C, *S) -> measurements (B, *M).
        decode: Latents -> data.
    """

    operator: Operator
    decode: Operator

    def __call__(self, z: Tensor) -> Tensor:
        """Return the measurement of latents, (B, *M)."""
        return self.operator(self.decode(z))


def linear_part(operator: Operator) -> Operator:
    """Return A without the constant that decoding adds."""
    if not isinstance(operator, OfLatents):
        return operator
    return lambda z: operator(z) - operator(z.new_zeros(z.shape))


def adjoint_of(operator: Operator, like: Tensor) -> Operator:
    """Return the adjoint A^T of a linear operator, (B, *M) -> (B, C, *S)."""
    return value_and_pullback(operator, like.new_zeros(like.shape))[1]


def estimate_and_pullback(
    evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions
) -> tuple[Estimate, Pullback]:
    """Return the estimate at x, and v -> v^T J with J the Jacobian of its x_start by x."""
    kept: list[Estimate] = []

    def x_start(at: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        estimate = evaluate(at, level, conditions)
        kept[:] = [estimate]
        rest = (estimate.raw, estimate.after_clipping)
        return estimate.x_start, tuple(part for part in rest if part is not None)

    value, pullback, rest = value_and_pullback(x_start, x, more=True)
    raw = None if kept[0].raw is None else rest[0]
    after_clipping = None if kept[0].after_clipping is None else rest[-1]
    return Estimate(value, raw, after_clipping), pullback


def reach(level: Level) -> Tensor:
    """``sigma^2 / alpha``, which turns a score into a shift of x_start; 0 where there is no signal.

    Source: Tweedie's formula, Efron 2011: ``alpha E[x_start | x_t] = x_t + sigma^2 score``.
    """
    return level.sigma**2 / level.alpha.where(level.alpha > 0, 1) * (level.alpha > 0)


def safe_reach(level: Level) -> Tensor:
    """The same for shifts that contain J; 0 where the signal is so weak that J, of order alpha, is rounding errors.

    An estimate ``c_skip x_t + c_out F`` has a derivative that rounds by eps (|c_skip| + |c_out| / scale), with F
    called on x_t / scale and scale = sqrt(alpha^2 + sigma^2); the variance of x_start given x_t,
    ``sigma^2 / alpha J``, rounds by this times sigma^2 / alpha.

    The result is 0 where that is as large as the variance of data itself: in float32,
    squared signal-to-noise ratios below 2e-7 where the network predicts eps, below 1e-14 for v and x_start on a
    variance-preserving path. Setting more levels to 0 would cost more than the rounding: a sampler of
    order 2 weights the difference of two estimates.
    """
    import torch

    far = reach(level)
    scale = (level.alpha**2 + level.sigma**2).sqrt()
    rounding = far * torch.finfo(level.alpha.dtype).eps * (level.c_skip.abs() + level.c_out.abs() / scale)
    return far * (rounding <= 1)


def residual(operator: Operator, x_start: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    """``y - A x_start``, (B, *M)."""
    measurement: Tensor = conditions[MEASUREMENT]
    measured = operator(x_start)
    if measurement.shape != measured.shape:  # otherwise it would broadcast
        raise OptionError(
            f"measurement has shape {tuple(measurement.shape)}, but the operator gives {tuple(measured.shape)} for "
            f"{x_start.shape[0]} examples; one row of the operator's shape for each is needed"
        )
    return measurement.to(x_start.dtype) - measured


def conjugate_gradients(apply: Operator, right: Tensor, iterations: int) -> Tensor:
    """Return v with ``apply(v) = right``, row by row; apply is symmetric, and positive on the subspace of right.

    Exact after as many iterations as ``apply`` has different eigenvalues; a row that has converged stays as it is.
    Source: Hestenes & Stiefel 1952, Methods of conjugate gradients for solving linear systems.
    """
    import torch

    v, left = torch.zeros_like(right), right
    direction, size = left, dot(left, left)
    enough = size * torch.finfo(right.dtype).eps ** 2
    for _ in range(iterations):
        image = apply(direction)
        curvature = dot(direction, image)
        going = (size > enough) & (curvature > 0)
        step = torch.where(going, size / curvature.where(going, 1), 0)
        v, left = v + step * direction, left - step * image
        before, size = size, dot(left, left)
        direction = left + torch.where(going, size / before.where(going, 1), 0) * direction
    return v


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each row, (B,1..)."""
    product = a * b
    return product if a.ndim == 1 else product.flatten(1).sum(1).view(-1, *(1,) * (a.ndim - 1))


def like_rows(value: Tensor, other: Tensor) -> Tensor:
    """Give a coefficient, 0-d or (B,1..), the number of dimensions of ``other``."""
    return value if value.ndim == 0 else value.view(-1, *(1,) * (other.ndim - 1))
