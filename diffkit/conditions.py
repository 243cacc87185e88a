"""Conditions of a call: what a caller may write, made into tensors with a row for each example, and cut by rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit._errors import OptionError
from diffkit.signatures import name_problems

_NUMBERS = "biuf"
"""NumPy's letters for kinds of array that a tensor can hold."""


def conditions_for(
    model: Callable[..., Any], conditions: Mapping[str, Any], n: int, device: torch.device, own: frozenset[str]
) -> dict[str, Any]:
    """Return the conditions of n examples on a device.

    A whole number is for all examples; arrays and lists of numbers become tensors; lists of anything else, such as
    texts, stay as they are; mappings, and lists of tensors, are read entry by entry.

    Args:
        model: The network, which is asked for the names it takes.
        conditions: As the caller gave them.
        n: How many examples.
        device: Where tensors are put.
        own: Names of those that guidance keeps to itself.
    Raises:
        OptionError: A name is not one, or there is not one entry for each example; every problem is listed.
    """
    if not conditions:
        return {}
    problems = list(name_problems(model, conditions, own))
    found = {name: _read(f"condition {name!r}", value, n, device, problems) for name, value in conditions.items()}
    refuse(problems)
    return found


def check_names(model: Callable[..., Any], conditions: Mapping[str, Any], own: frozenset[str]) -> None:
    """Raise `OptionError` if there are conditions that cannot be meant for a network; see `name_problems`."""
    refuse(list(name_problems(model, conditions, own)))


def refuse_idle(model: Callable[..., Any], conditions: Mapping[str, Any], *names: str) -> None:
    """Raise `OptionError` if there are conditions of these names: options of other calls, without effect in this."""
    refuse(list(name_problems(model, [name for name in names if name in conditions], frozenset())))


def refuse(problems: Sequence[str]) -> None:
    """Raise one `OptionError` that lists the problems, if there are any."""
    if len(problems) == 1:
        raise OptionError(problems[0])
    if problems:
        raise OptionError("\n  ".join([f"{len(problems)} problems with this call:", *problems]))


def _read(name: str, value: Any, n: int, device: torch.device, problems: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _read(f"{name}[{key!r}]", entry, n, device, problems) for key, entry in value.items()}
    if _is_structure(value):
        return type(value)(_read(f"{name}[{i}]", entry, n, device, problems) for i, entry in enumerate(value))
    value = _as_entries(value, n)
    shape = value.shape if isinstance(value, Tensor) else (len(value),) if isinstance(value, list) else ()
    if shape and shape[0] != n:
        problems.append(f"{name} must have one value for each of {n} examples, got {shape[0]}")
    return value.to(device) if isinstance(value, Tensor) else value


def _as_entries(value: Any, n: int) -> Any:
    """Numbers as a tensor, and anything else as it is."""
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in _NUMBERS:
        return _tensor_of(value)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, int) and not isinstance(value, bool):
        return torch.full((n,), value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        try:
            return torch.as_tensor(np.asarray(value) if any(isinstance(v, np.ndarray) for v in value) else value)
        except (TypeError, ValueError, RuntimeError):  # it is no array of numbers
            return list(value)
    return value


def _is_structure(value: Any) -> bool:
    """True for a list or tuple of tensors with rows, or of mappings: conditions by themselves, not one an example."""
    if type(value) not in (list, tuple) or not value:
        return False
    return all(isinstance(entry, Mapping) or (isinstance(entry, Tensor) and entry.ndim) for entry in value)


def rows_of(conditions: Mapping[str, Any], rows: range | Tensor, n: int) -> dict[str, Any]:
    """Return the conditions, as `conditions_for` returns them, of some of n examples.

    Args:
        conditions: Of all examples; what has no entry for each is for all of them.
        rows: Indices of the examples, in a row or as a tensor, in which they may come more than once.
        n: How many examples there are.
    """
    return {name: _pick(value, rows, n) for name, value in conditions.items()}


def _pick(value: Any, rows: range | Tensor, n: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _pick(entry, rows, n) for key, entry in value.items()}
    if _is_structure(value):
        return type(value)(_pick(entry, rows, n) for entry in value)
    if isinstance(value, Tensor) and value.ndim > 0 and len(value) == n:
        return value[rows.start : rows.stop] if isinstance(rows, range) else value[rows]
    if isinstance(value, list) and len(value) == n:
        return [value[i] for i in (rows if isinstance(rows, range) else rows.tolist())]
    return value


def as_tensor(name: str, value: Any) -> Tensor:
    """Return a tensor as it is, and an array of numbers as a tensor.

    Args:
        name: What a message calls it.
        value: What was given.
    Raises:
        OptionError: It is something else.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in _NUMBERS:
        return _tensor_of(value)
    if not isinstance(value, Tensor):
        raise OptionError(f"{name} must be a tensor or a NumPy array of numbers, got {type(value).__name__}")
    return value


def _tensor_of(array: np.ndarray) -> Tensor:
    """A copy: torch takes no array that is read-only or runs backwards."""
    return torch.from_numpy(np.array(array, order="C"))
