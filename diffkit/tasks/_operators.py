"""Check an operator of an inverse problem on random data, before any work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import DiffkitError, OptionError
from diffkit.parts.guidance._linear import Measured, dot
from diffkit.parts.guidance._pullback import value_and_pullback
from diffkit.system.module import System

_ROWS = 3
"""Number of examples in the check; batches of one and two of them are checked too."""
_FAR = 2e-3
"""Allowed error of a linear operator, relative to the largest value; float32 and TF32 round by a quarter of it."""
_SAME = 1e-5
"""Allowed relative difference of two calls with the same data: a GPU may add up in another order."""
_LARGE = 1e3
"""Factor on data in [-1, 1] up to which an operator must be linear, as other data and early estimates are larger."""
_WRONG_SLOPE = 0.1
"""Relative error allowed between a gradient and finite differences, which include curvature."""


def check_operator(method: Measured, system: System, counts: Sequence[int], batch_size: int | None) -> Tensor:
    """Check an operator: return its measurements of random data, one row for each, or raise an error with its fault.

    Args:
        method: The method with the operator.
        system: The system whose data it measures.
        counts: Number of examples to draw; several numbers if it is not known yet.
        batch_size: Number of examples at a time; None for all.
    Raises:
        OptionError: The operator cannot be used by this method, or not with this batch size.
    """
    trial = _OperatorCheck(method)

    def run(rows: int, any_batch: bool) -> Tensor:
        uniform = torch.rand(2, rows, *system.parts.data_shape, generator=torch.Generator().manual_seed(0))
        x, other = (1.8 * uniform - 0.9).to(system.device)  # inside the range of data
        x, other = system.from_latents(x), system.from_latents(other)
        return trial.run(x, other, any_batch)

    with torch.inference_mode(False), torch.enable_grad():
        try:
            return run(_ROWS, any_batch=True)
        except _BatchError as error:
            refused = error
        for count in counts:
            try:
                value = run(count, any_batch=False)
            except _BatchError as error:
                refused = error
                continue
            if batch_size is not None and batch_size < count:
                raise OptionError(
                    f"batch_size={batch_size} splits {count} examples, but the operator takes all of them at once "
                    f"({refused}); leave batch_size out, or call solve for each example with an operator of its own"
                )
            return value
    raise refused


class _BatchError(OptionError):
    """Raised if the operator fails on a batch of this size, or returns another number of rows."""


@frozen
class _OperatorCheck:
    """The checks of an operator."""

    method: Measured

    def run(self, x: Tensor, other: Tensor, any_batch: bool) -> Tensor:
        """Check the operator A and return A x; with ``any_batch`` fewer rows are checked too."""
        value = self._measure(x)
        if _differs(value, self._measure(x), _SAME):
            raise OptionError("the operator measures the same data differently at each call; leave randomness out")
        if any_batch:
            for rows in range(1, len(x)):
                if self._measure(x[:rows].clone()).shape[1:] != value.shape[1:]:
                    raise _BatchError(f"the operator returns rows of another shape for {rows} examples")
        self._check_rows(x, other, value)
        if self.method.linear:
            self._check_linear(x, other, value)
        self._check_gradient(x, other, value)
        return value

    def _measure(self, x: Tensor) -> Tensor:
        """Return A x, after the checks of the operator that need one call."""
        before = x.clone()
        with _operator_errors(x):
            value = self.method.operator(x)
        _check_value(value, x)
        if not torch.equal(x, before):
            raise OptionError("the operator changes its argument in place; begin it with x = x.clone()")
        return value.detach()

    def _check_rows(self, x: Tensor, other: Tensor, value: Tensor) -> None:
        """Raise if rows of the operator's output depend on other rows of its input."""
        changed = torch.cat([other[:1], x[1:]])
        if _differs(self._measure(changed)[1:], value[1:]):
            raise OptionError("the operator's rows depend on other rows; each row must be measured on its own")

    def _check_linear(self, x: Tensor, other: Tensor, value: Tensor) -> None:
        """Raise if the operator is not linear."""
        instead = "use DPS, which takes any"
        if self._measure(torch.zeros_like(x)).any():
            raise OptionError(f"the operator is not linear: it does not map 0 to 0; {instead}")
        a, b = 0.7, -1.3  # any two numbers; the sum reaches beyond the range of data, where operators may clamp
        for size in (1.0, _LARGE):
            if _differs(self._measure(size * (a * x + b * other)), size * (a * value + b * self._measure(other))):
                raise OptionError(f"the operator is not linear: A(a x + b y) is not a A(x) + b A(y); {instead}")

    def _check_gradient(self, x: Tensor, other: Tensor, value: Tensor) -> None:
        """Raise if autograd cannot differentiate the operator, or its gradient differs from finite differences."""
        follow = "write it in torch's own functions, without detach(), no_grad, .numpy() or .item()"
        with_gradient = x.clone().requires_grad_()
        direction = torch.ones_like(value) + value.sign() * 0.5
        with _operator_errors(with_gradient, f"where a gradient is taken; {follow}"):
            if not self.method.operator(with_gradient).requires_grad:
                raise OptionError(f"the operator has no gradient; {follow}")
            pulled = value_and_pullback(self.method.operator, x)[1](direction)
        if not bool(pulled.isfinite().all()):
            raise OptionError("the operator's gradient is not finite for data in [-1, 1]")
        gradient = dot(pulled, other).flatten()
        if not gradient.any() and _differs(self._measure(other), value):
            raise OptionError(f"the operator has a gradient of 0 but depends on data, as with rounding; {follow}")
        slopes = [self._slope(x, other, direction, step) for step in (1e-2, 2e-2)]
        size = slopes[0].abs().max()
        # finite differences that disagree with each other, as over the jumps of a rounded value, are not used
        clear = bool((slopes[0] - slopes[1]).abs().max() < _WRONG_SLOPE / 2 * size)
        if clear and bool((gradient - slopes[0]).abs().max() > _WRONG_SLOPE * size):
            raise OptionError(f"the operator's gradient is wrong: part of it treats data as a constant; {follow}")

    def _slope(self, x: Tensor, other: Tensor, direction: Tensor, step: float) -> Tensor:
        """Return the slope of ``direction . A x`` towards ``other``, by finite differences, (B,)."""
        rise = self._measure(x + step * other) - self._measure(x - step * other)
        return dot(direction, rise).flatten() / (2 * step)


@contextmanager
def _operator_errors(x: Tensor, where: str = "") -> Iterator[None]:
    """Within the context, errors of the operator become errors that name it."""
    try:
        yield
    except DiffkitError:
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
        text = f"the operator fails on data of shape {tuple(x.shape)}: {first}"
        raise OptionError(f"{text}, {where}") if where else _BatchError(text) from error


def _check_value(value: object, x: Tensor) -> None:
    """Raise unless the value that an operator returns is a tensor of measurements."""
    if not isinstance(value, Tensor):
        raise OptionError(f"the operator must return a tensor, got {type(value).__name__}")
    if value.ndim == 0 or len(value) != len(x):
        raise _BatchError(f"the operator returns shape {tuple(value.shape)} for {len(x)} examples")
    if not value.numel():
        raise OptionError(f"the operator measures nothing: it returns shape {tuple(value.shape)}")
    if value.is_complex():
        raise OptionError(
            f"the operator returns {value.dtype}, and measurements must be real; return torch.view_as_real of it, and "
            "measure with that"
        )
    if value.dtype != x.dtype:
        raise OptionError(f"the operator returns {value.dtype} for {x.dtype} data; end it with .to(x.dtype)")
    if value.device != x.device:
        raise OptionError(f"the operator returns data on {value.device}, the system is on {x.device}; move its tensors")
    if not bool(value.isfinite().all()):
        raise OptionError("the operator returns values that are not finite for data in [-1, 1]")


def _differs(found: Tensor, expected: Tensor, share: float = _FAR) -> bool:
    """Return whether two results differ by more than a share of their largest value."""
    if not expected.numel():
        return False
    size = torch.maximum(found.abs().max(), expected.abs().max())
    return bool((found - expected).abs().max() > share * size)
