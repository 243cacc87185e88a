"""Batches whose images or conditions hold values that are no finite numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from diffkit.data.base import Batch
from diffkit.runtime.finite import examples_hold, rows_not_finite


def not_finite(batch: Batch) -> Iterator[str]:
    """Say which examples of a batch, or of their conditions, hold NaN or an infinity; cheap for what is finite."""
    for where, given in (("", batch.images), *((f" in {name}", c) for name, c in batch.conditions.items())):
        rows = sorted({row for values in _tensors(given) for row in rows_not_finite(values)})
        if rows:
            yield f"{examples_hold([int(batch.indices[row]) for row in rows])}{where}; mend or remove such examples"


def _tensors(given: Any) -> list[Tensor]:
    """Every tensor with a row for each example in a condition, which may be a mapping or a list."""
    return [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor) and leaf.ndim]
