"""Comparing numbers so that a difference is reported where it is largest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diffkit.testing._check import LawError, Where

_NOWHERE = Where()


def as_array(values: Any) -> NDArray[Any]:
    """Return values as an array; a tensor is detached, anything else is taken as it is."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def require(condition: bool, expected: str, found: Any, where: Where = _NOWHERE, cause: str = "") -> None:
    """Raise `LawError` unless a condition holds."""
    if not condition:
        raise LawError(expected, str(found), where, cause)


def require_close(
    found: Any,
    expected: Any,
    tolerance: float,
    name: str,
    where: Where = _NOWHERE,
    *,
    scale: Any = None,
    level_of: Callable[[int], int] | None = None,
    cause: str = "",
) -> None:
    """Raise `LawError` unless two arrays agree elementwise.

    Args:
        found, expected: Arrays of one shape, or that broadcast.
        tolerance: Allowed difference in units of ``scale``.
        name: What is compared.
        where: Where.
        scale: Size of what is compared, broadcastable; the larger of 1 and |expected| by default.
        level_of: Level that a position of the first axis stands for.
        cause: What usually causes a difference.
    """
    got, want = np.broadcast_arrays(as_array(found).astype(np.float64), as_array(expected).astype(np.float64))
    size = np.maximum(np.abs(want), 1) if scale is None else as_array(scale)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(same, 0.0, np.abs(got - want) / size)
    error = np.where(np.isfinite(error), error, np.inf)
    if error.size == 0 or error.max() <= tolerance:
        return
    at = np.unravel_index(int(np.argmax(error)), error.shape)
    if level_of is not None and at:
        where = attrs.evolve(where, level=level_of(int(at[0])))
    raise LawError(f"{name} {want[at]:.10g} (within {tolerance:.1g})", f"{got[at]:.10g}", where, cause)


def require_same(found: Any, expected: Any, what: str, where: Where = _NOWHERE, cause: str = "") -> None:
    """Raise `LawError` unless two trees of tensors are equal to the bit."""
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        left, right = as_array(a), as_array(b)
        if left.shape != right.shape or not np.array_equal(left, right, equal_nan=left.dtype.kind == "f"):
            difference = (
                f"largest difference {_largest_difference(left, right)}"
                if left.shape == right.shape
                else f"{left.shape}"
            )
            raise LawError(what, difference, where, cause)


def tree_leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested tuples, lists and mappings, in order."""
    if isinstance(tree, Mapping):
        return [leaf for key in sorted(tree) for leaf in tree_leaves(tree[key])]
    if isinstance(tree, tuple | list):
        return [leaf for item in tree for leaf in tree_leaves(item)]
    return [tree]


def map_tree(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply a function to every leaf of a tree (and to the leaves in the same places of others)."""
    if isinstance(tree, Mapping):
        return {key: map_tree(function, value, *(o[key] for o in others)) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tree(function, *items) for items in zip(tree, *others, strict=True)))
    if isinstance(tree, tuple | list):
        return type(tree)(map_tree(function, *items) for items in zip(tree, *others, strict=True))
    return function(tree, *others) if isinstance(tree, Tensor) else tree


def _largest_difference(left: NDArray[Any], right: NDArray[Any]) -> str:
    if left.dtype.kind not in "fiu":
        return "unknown"
    with np.errstate(invalid="ignore"):
        return f"{np.nanmax(np.abs(left.astype(np.float64) - right.astype(np.float64)), initial=0):.3g}"
