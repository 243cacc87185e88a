"""Derivatives of derivatives through a network."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

T = TypeVar("T")


def ordinary(tree: T) -> T:
    """Return a tree whose tensors autograd can follow: those made in `torch.inference_mode` are copied.

    To be called under ``torch.inference_mode(False)``, or the copies are of the same kind.
    """
    from torch import Tensor
    from torch.utils import _pytree as pytree

    copied: T = pytree.tree_map_only(Tensor, lambda held: held.clone() if held.is_inference() else held, tree)
    return copied


def differentiable_twice(wanted: bool = True) -> AbstractContextManager[object]:
    """Return a context in which what a network computes can be differentiated twice, and in forward mode.

    Torch's fused attention kernels have a first derivative in reverse mode and no other; attention is plain products
    meanwhile.

    Args:
        wanted: False for a context that changes nothing.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH) if wanted else nullcontext()
