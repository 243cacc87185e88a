"""Second derivatives through a network: what autograd needs for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

T = TypeVar("T")


def ordinary(tree: T) -> T:
    """Return a tree of tensors for derivatives: inference tensors, which autograd cannot record, are copied.

    Call it under ``torch.inference_mode(False)``; otherwise the copies are inference tensors too.
    """
    from torch import Tensor
    from torch.utils import _pytree as pytree

    copied: T = pytree.tree_map_only(Tensor, lambda value: value.clone() if value.is_inference() else value, tree)
    return copied


def differentiable_twice(enabled: bool = True) -> AbstractContextManager[object]:
    """Return a context in which a network can be differentiated twice, and in forward mode.

    Torch's fused attention kernels only have a first derivative in reverse mode; in this context attention is computed
    by matrix products.

    Args:
        enabled: False for a context that changes nothing.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH) if enabled else nullcontext()
