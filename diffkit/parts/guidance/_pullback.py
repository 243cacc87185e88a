"""Gradients with respect to noisy data, inside and outside of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, overload

from diffkit.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

Pullback = Callable[["Tensor"], "Tensor"]
"""v -> v^T J, of x's shape."""

More = tuple["Tensor", ...]


@overload
def value_and_pullback(
    function: Callable[[Tensor], Tensor], x: Tensor, more: Literal[False] = False
) -> tuple[Tensor, Pullback]: ...


@overload
def value_and_pullback(
    function: Callable[[Tensor], tuple[Tensor, More]], x: Tensor, more: Literal[True]
) -> tuple[Tensor, Pullback, More]: ...


def value_and_pullback(function: Callable[[Tensor], Any], x: Tensor, more: bool = False) -> Any:
    """Return ``function(x)`` and the map from v to v^T J at x; J may be applied any number of times.

    Outside of a compiled graph autograd is used, which supports checkpointed and hand-written layers; inside,
    torch.func, which can be traced. Where gradients are on, the result stays differentiable: by x if that requires a
    gradient already, by weights and conditions, and by v.

    Args:
        function: Function of x.
        x: The point.
        more: The function returns ``(value, more tensors)``; those are returned last and not differentiated.
    """
    import torch

    from diffkit.tensors import differentiable_twice, ordinary

    if torch.compiler.is_compiling():
        found: Any = torch.func.vjp(function, x, has_aux=more)
        return (found[0], lambda v: found[1](v)[0], *found[2:])
    nested = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad(), differentiable_twice(nested):
        at = x if nested and x.requires_grad else ordinary(x).detach().requires_grad_()
        result = function(at)
    value, rest = result if more else (result, ())

    def pullback(v: Tensor) -> Tensor:
        if not value.requires_grad:  # a constant function
            return torch.zeros_like(x)
        with torch.inference_mode(False), torch.set_grad_enabled(nested):
            return torch.autograd.grad(
                value, at, v, retain_graph=True, create_graph=nested, allow_unused=True, materialize_grads=True
            )[0]

    if nested:
        return (value, pullback, rest) if more else (value, pullback)
    kept = tuple(part.detach() for part in rest)
    return (value.detach(), pullback, kept) if more else (value.detach(), pullback)


def row_gradient(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient by each row of x of its own value: log_prob maps (B, C, *S) to (B,).

    Raises:
        OptionError: It returns something else, or follows x without a gradient.
    """
    import torch

    def checked(at: Tensor) -> Tensor:
        value = log_prob(at)
        if not isinstance(value, torch.Tensor) or value.shape != at.shape[:1] or not value.is_floating_point():
            found = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
            raise OptionError(f"log_prob must return a number for each of {at.shape[0]} examples, got {found}")
        if not torch.compiler.is_compiling() and not value.requires_grad and _depends(log_prob, value, at):
            raise OptionError(
                "log_prob follows data but has no gradient, so that it would steer nothing; write it in torch's own "
                "functions, without detach(), no_grad, .numpy() or .item(), and with weights that are not quantized"
            )
        return value

    value, pullback = value_and_pullback(checked, x)
    return pullback(torch.ones_like(value))


def _depends(function: Callable[[Tensor], Tensor], value: Tensor, x: Tensor) -> bool:
    """Whether a function that autograd takes for constant has another value elsewhere."""
    import torch

    return not torch.equal(function(0.9 * x.detach() + 0.1), value)
