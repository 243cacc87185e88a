"""Class numbers that a classifier is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffkit.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor


def checked_labels(name: str, y: Any, logits: Tensor) -> Tensor:
    """Labels in the dtype of torch's indices; on a CPU, labels that the classifier does not have are refused."""
    import torch
    from torch import Tensor

    if not isinstance(y, Tensor) or y.ndim != 1 or y.dtype == torch.bool or y.is_floating_point() or y.is_complex():
        raise OptionError(f"condition {name!r} must be class numbers, one for each example, got {y!r}")
    readable = type(y) is type(logits) is Tensor and y.is_cpu and not torch.compiler.is_compiling()
    if readable and y.numel():
        low, high, count = int(y.min()), int(y.max()), logits.shape[1]
        if low < 0 or high >= count:
            raise OptionError(
                f"condition {name!r} has label {low if low < 0 else high}, but the classifier has {count} classes, "
                f"0..{count - 1}"
            )
    return y.long()
