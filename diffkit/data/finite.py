"""Batches whose images or conditions hold values that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from diffkit.data.base import Batch
from diffkit.runtime.finite import examples_hold, rows_not_finite


def find_not_finite(batch: Batch) -> Iterator[str]:
    """Yield a message with the examples of a batch whose image or conditions have NaN or infinity."""
    for where, tree in (("", batch.images), *((f" in {name}", c) for name, c in batch.conditions.items())):
        rows = sorted({row for values in _tensors(tree) for row in rows_not_finite(values)})
        if rows:
            yield f"{examples_hold([int(batch.indices[row]) for row in rows])}{where}; correct or remove such examples"


def _tensors(tree: Any) -> list[Tensor]:
    """Return the tensors with a row for each example in a condition, which may be a mapping or a list."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.ndim]
