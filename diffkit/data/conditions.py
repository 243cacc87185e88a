"""Conditions of examples, collated into those of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import DataError
from diffkit.system.sequences import are_sequences


def as_condition(value: Any) -> Any:
    """Return a condition of one example, numbers and arrays as tensors; a text and None are not changed.

    Mappings are converted entry by entry, and so are lists that are not arrays of numbers.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {key: as_condition(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple) and not _is_array(value):
        return tuple(as_condition(entry) for entry in value)
    return torch.as_tensor(value)


def _is_array(value: Sequence[Any]) -> bool:
    try:
        torch.as_tensor(np.asarray(value) if any(isinstance(entry, np.ndarray) for entry in value) else value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def collate_condition(name: str, values: Sequence[Any], indices: Sequence[int]) -> Any:
    """Return a condition of a batch from those of its examples, as `diffkit.system.conditions` reads it.

    Args:
        name: Name of the condition.
        values: The condition of each example, as `as_condition` returns it.
        indices: Indices of the examples.
    Raises:
        DataError: The condition of an example has another form than that of the first.
    """
    first = values[0]
    for i, value in zip(indices, values, strict=True):
        if not _have_same_form(value, first):
            raise DataError(
                f"example {i} has {name} {_form_text(value)}, example {indices[0]} {_form_text(first)}; give one form, "
                "shorter ones padded, with a mask"
            )
    if isinstance(first, Mapping):
        return {key: collate_condition(f"{name}[{key!r}]", [value[key] for value in values], indices) for key in first}
    if isinstance(first, tuple):
        columns = enumerate(zip(*values, strict=True))
        return tuple(collate_condition(f"{name}[{i}]", entries, indices) for i, entries in columns)
    return torch.stack(list(values)) if isinstance(first, Tensor) else list(values)


def are_ragged(values: Sequence[Any]) -> bool:
    """Return whether conditions of examples are sequences of vectors, (L, width) each, of several lengths."""
    return are_sequences(values) and len({len(value) for value in values}) > 1


def _have_same_form(value: Any, first: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(value, Tensor) and value.shape == first.shape
    if isinstance(first, Mapping):
        return isinstance(value, Mapping) and value.keys() == first.keys()
    if isinstance(first, tuple):
        return isinstance(value, tuple) and len(value) == len(first)
    return value is None or isinstance(value, str)


def _form_text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"with entries {sorted(value)}"
    if isinstance(value, tuple):
        return f"of {len(value)} parts"
    return "None" if value is None else f"a {type(value).__name__}"
