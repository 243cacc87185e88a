"""Second derivatives through a network."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

T = TypeVar("T")


def ordinary(tree: T) -> T:
    """Return a tree whose tensors autograd can record: inference tensors are copied.

    Call it under ``torch.inference_mode(False)``, as otherwise the copies are inference tensors too.
    """
    from torch import Tensor
    from torch.utils import _pytree as pytree

    if isinstance(tree, Tensor) and not tree.is_inference():  # to walk a tree takes as long as several operations
        return tree
    if isinstance(tree, dict) and not tree:
        return tree
    copied: T = pytree.tree_map_only(Tensor, lambda held: held.clone() if held.is_inference() else held, tree)
    return copied


def differentiable_twice(enabled: bool = True) -> AbstractContextManager[object]:
    """Return a context in which a network can be differentiated twice, and in forward mode.

    Torch's fused attention kernels have a first derivative in reverse mode only; in this context attention uses plain
    products.

    Args:
        enabled: False for a context that changes nothing.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH) if enabled else nullcontext()
