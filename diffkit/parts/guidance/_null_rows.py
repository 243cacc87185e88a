"""The null condition (the null label, an empty text, an embedding) in place of a condition, with a row per example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import OptionError

LARGEST = 2**63 - 1
"""Largest integer that a tensor can hold."""


def none_of(name: str, null: Any, given: Any, n: int) -> Any:
    """Return the null condition of n examples, in the form of the condition that it replaces.

    Args:
        name: Name of the condition.
        null: A number, which fills the condition; a tensor of one example, of one row, or with a row for each example;
            a text; a mapping or list of such; or None, which leaves the condition out.
        given: The condition, as `diffkit.system.conditions` reads it.
        n: Number of examples.
    Raises:
        OptionError: It has another form than the condition.
    """
    if null is None:
        return None
    if isinstance(null, int) and abs(null) > LARGEST:
        raise OptionError(f"the null condition of {name!r} is {null}, which is more than 64 bits hold")
    if isinstance(given, Mapping):
        return _none_of_mapping(name, null, given, n)
    if isinstance(given, tuple):
        return _none_of_tuple(name, null, given, n)
    if isinstance(given, list):
        return _none_of_list(name, null, given, n)
    if isinstance(given, Tensor):
        return _none_of_tensor(name, null, given, n)
    return _none_by_itself(null, n)


def _none_of_mapping(name: str, null: Any, given: Mapping[str, Any], n: int) -> dict[str, Any]:
    if _is_number(null):
        return {key: none_of(f"{name}[{key!r}]", null, entry, n) for key, entry in given.items()}
    if not isinstance(null, Mapping):
        raise _unfit(name, null, "a mapping")
    found = {key: none_of(f"{name}[{key!r}]", entry, given.get(key), n) for key, entry in null.items()}
    left_out = {key for key, entry in found.items() if entry is None}
    return {key: entry for key, entry in {**given, **found}.items() if key not in left_out}


def _none_of_tuple(name: str, null: Any, given: tuple[Any, ...], n: int) -> tuple[Any, ...]:
    if _is_number(null):
        null = [null] * len(given)
    if not isinstance(null, list | tuple | Tensor | np.ndarray) or len(null) != len(given):
        raise _unfit(name, null, f"{len(given)} conditions side by side")
    pairs = zip(null, given, strict=True)
    return tuple(none_of(f"{name}[{i}]", own, entry, n) for i, (own, entry) in enumerate(pairs))


def _none_of_list(name: str, null: Any, given: list[Any], n: int) -> list[Any]:
    if isinstance(null, list | tuple):
        if len(null) not in (1, n):
            raise OptionError(
                f"the null condition of {name!r} has {len(null)} entries for {n} examples; give one, or {n}"
            )
        return [*null] * n if len(null) == 1 else [*null]
    if isinstance(null, np.ndarray):
        null = torch.as_tensor(null)
    like = next((entry for entry in given if isinstance(entry, Tensor)), None)
    if like is None:
        return [null] * n
    if _is_number(null):
        return [torch.full_like(entry, null) if isinstance(entry, Tensor) else null for entry in given]
    if not isinstance(null, Tensor):
        raise _unfit(name, null, "a tensor for each example")
    null = _like(name, null, like)
    if null.ndim == like.ndim + 1 and len(null) in (1, n):
        return [*null] * n if len(null) == 1 else [*null]
    return [null] * n


def _none_of_tensor(name: str, null: Any, given: Tensor, n: int) -> Tensor:
    if _is_number(null):
        if isinstance(null, float) and not given.is_floating_point() and not null.is_integer():
            raise OptionError(f"the null condition of {name!r} is {null!r}, but the condition has whole numbers")
        wide = is_whole(given) and abs(null) > torch.iinfo(given.dtype).max
        return torch.full_like(given, null, dtype=torch.int64 if wide else given.dtype)
    try:
        value = torch.as_tensor(null)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unfit(name, null, f"a tensor of shape {tuple(given.shape)}") from error
    value = _like(name, value, given)
    if value.ndim == 0:
        return value.expand(given.shape)
    if value.ndim == given.ndim - 1:
        value = value[None]
    if value.ndim != given.ndim:
        raise _unfit(name, value, f"a tensor of shape {tuple(given.shape)}")
    if value.shape[0] == n:
        return value
    if value.shape[0] != 1:
        raise OptionError(
            f"the null condition of {name!r} must have one row, or one for each of {n} examples, got {value.shape[0]}"
        )
    return value.expand(n, *value.shape[1:])


def _none_by_itself(null: Any, n: int) -> Any:
    """For a condition that is None, or one number or text for all examples."""
    if isinstance(null, np.ndarray):
        null = torch.as_tensor(null)
    if isinstance(null, int) and not isinstance(null, bool):
        return torch.full((n,), null)
    if isinstance(null, Tensor) and null.ndim:
        row = null if null.shape[0] in (1, n) else null[None]
        return row if row.shape[0] == n else row.expand(n, *row.shape[1:])
    if isinstance(null, Mapping):
        return {key: _none_by_itself(entry, n) for key, entry in null.items()}
    if isinstance(null, list | tuple):
        return [*null] * n if len(null) == 1 else [*null]
    return null


def _like(name: str, value: Tensor, given: Tensor) -> Tensor:
    """A null value of the condition's dtype and device."""
    if value.is_floating_point() and not given.is_floating_point():
        raise OptionError(f"the null condition of {name!r} is floating point, but the condition has whole numbers")
    return value.to(given)


def _unfit(name: str, null: Any, form: str) -> OptionError:
    found = f"a tensor of shape {tuple(null.shape)}" if isinstance(null, Tensor) else f"a {type(null).__name__}"
    return OptionError(
        f"the null condition of {name!r} is {found}, but the condition is {form}; give it in the same form"
    )


def is_whole(value: Tensor) -> bool:
    """Return whether a tensor holds integers."""
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float)
