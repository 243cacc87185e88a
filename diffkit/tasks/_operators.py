"""Whether an operator can be used to solve inverse problems: tried on made-up data before any work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import DiffkitError, OptionError
from diffkit.guidance._linear import Measured, dot
from diffkit.guidance._pullback import value_and_pullback

_ROWS = 3
"""Examples of the trial; one and two of them make further batches."""
_FAR = 2e-3
"""Share of the largest value by which a linear operator may miss: float32 and TF32 round by up to a quarter of it."""
_SAME = 1e-5
"""The same of two calls with the same data: sums may be taken in another order on a GPU."""
_LARGE = 1e3
"""How far beyond data in [-1, 1] an operator must be linear, too: other data is larger, and so are early estimates."""
_WRONG_SLOPE = 0.1
"""Share by which a gradient may miss the slope that differences show; differences have curvature in them."""


def try_operator(
    method: Measured, data_shape: tuple[int, ...], device: torch.device, counts: Sequence[int], batch_size: int | None
) -> Tensor:
    """Return measurements of made-up data, one row for each; what is wrong with the operator is an error.

    Args:
        method: Whose operator.
        data_shape: Shape of one example.
        device: Where the system is.
        counts: How many examples are to be made; several numbers where that is not known yet.
        batch_size: How many of them at a time; None is all.
    Raises:
        OptionError: The operator cannot be used by this method, or not with this batch size.
    """
    trial = _Trial(method)

    def run(rows: int, any_batch: bool) -> Tensor:
        made_up = torch.rand(2, rows, *data_shape, generator=torch.Generator().manual_seed(0))
        x, other = (1.8 * made_up - 0.9).to(device)  # inside of the range of data
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
    """The operator fails on a batch of this size, or returns another number of rows."""


@frozen
class _Trial:
    """An operator at trial."""

    method: Measured

    def run(self, x: Tensor, other: Tensor, any_batch: bool) -> Tensor:
        """Return A x, or raise `OptionError`; with ``any_batch`` also for fewer rows."""
        value = self._measured(x)
        if _far(value, self._measured(x), _SAME):
            raise OptionError("the operator gives the same data another measurement at each call; leave randomness out")
        if any_batch:
            for rows in range(1, len(x)):
                if self._measured(x[:rows].clone()).shape[1:] != value.shape[1:]:
                    raise _BatchError(f"the operator returns rows of another shape for {rows} examples")
        self._check_rows(x, other, value)
        if self.method.linear:
            self._check_linear(x, other, value)
        self._check_gradient(x, other, value)
        return value

    def _measured(self, x: Tensor) -> Tensor:
        """A x, checked for all that one call shows."""
        before = x.clone()
        with _of_the_operator(x):
            value = self.method.operator(x)
        _check_value(value, x)
        if not torch.equal(x, before):
            raise OptionError("the operator changes its argument in place; begin it with x = x.clone()")
        return value.detach()

    def _check_rows(self, x: Tensor, other: Tensor, value: Tensor) -> None:
        """Refuse rows that depend on other rows."""
        changed = torch.cat([other[:1], x[1:]])
        if _far(self._measured(changed)[1:], value[1:]):
            raise OptionError("the operator measures a row by other rows, too; each row must be measured on its own")

    def _check_linear(self, x: Tensor, other: Tensor, value: Tensor) -> None:
        """Refuse operators that are not linear."""
        instead = "use DPS, which takes any"
        if self._measured(torch.zeros_like(x)).any():
            raise OptionError(f"the operator is not linear: it does not map 0 to 0; {instead}")
        a, b = 0.7, -1.3  # any two numbers; the sum reaches beyond the range of data, where operators may clamp
        for size in (1.0, _LARGE):
            if _far(self._measured(size * (a * x + b * other)), size * (a * value + b * self._measured(other))):
                raise OptionError(f"the operator is not linear: A(a x + b y) is not a A(x) + b A(y); {instead}")

    def _check_gradient(self, x: Tensor, other: Tensor, value: Tensor) -> None:
        """Refuse operators that autograd cannot follow, and gradients that are not those of the operator."""
        follow = "write it in torch's own functions, without detach(), no_grad, .numpy() or .item()"
        with_gradient = x.clone().requires_grad_()
        direction = torch.ones_like(value) + value.sign() * 0.5
        with _of_the_operator(with_gradient, f"where a gradient is taken; {follow}"):
            if not self.method.operator(with_gradient).requires_grad:
                raise OptionError(f"the operator has no gradient; {follow}")
            pulled = value_and_pullback(self.method.operator, x)[1](direction)
        if not bool(pulled.isfinite().all()):
            raise OptionError("the operator's gradient is not finite for data in [-1, 1]")
        gradient = dot(pulled, other).flatten()
        if not gradient.any() and _far(self._measured(other), value):
            raise OptionError(f"the operator has a gradient of 0 though it follows data, as rounding has; {follow}")
        slopes = [self._slope(x, other, direction, step) for step in (1e-2, 2e-2)]
        size = slopes[0].abs().max()
        # where differences disagree, as over the jumps of a rounded value, they say nothing
        clear = bool((slopes[0] - slopes[1]).abs().max() < _WRONG_SLOPE / 2 * size)
        if clear and bool((gradient - slopes[0]).abs().max() > _WRONG_SLOPE * size):
            raise OptionError(f"the operator's gradient is not its own: some of it reads data as a constant; {follow}")

    def _slope(self, x: Tensor, other: Tensor, direction: Tensor, step: float) -> Tensor:
        """Slope of ``direction . A x`` towards ``other``, by differences, (B,)."""
        rise = self._measured(x + step * other) - self._measured(x - step * other)
        return dot(direction, rise).flatten() / (2 * step)


@contextmanager
def _of_the_operator(x: Tensor, where: str = "") -> Iterator[None]:
    """Name the operator in what it raises."""
    try:
        yield
    except DiffkitError:
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
        text = f"the operator fails on data of shape {tuple(x.shape)}: {first}"
        raise OptionError(f"{text}, {where}") if where else _BatchError(text) from error


def _check_value(value: object, x: Tensor) -> None:
    """Refuse what one call of an operator must not return."""
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
        raise OptionError(
            f"the operator returns data on {value.device}, the system is on {x.device}; move what it holds"
        )
    if not bool(value.isfinite().all()):
        raise OptionError("the operator returns values that are not finite for data in [-1, 1]")


def _far(found: Tensor, wanted: Tensor, share: float = _FAR) -> bool:
    """Whether two results differ by more than a share of their largest value."""
    if not wanted.numel():
        return False
    size = torch.maximum(found.abs().max(), wanted.abs().max())
    return bool((found - wanted).abs().max() > share * size)
