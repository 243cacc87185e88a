"""Derivatives of derivatives through a network."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


def differentiable_twice(wanted: bool = True) -> AbstractContextManager[object]:
    """Return a context in which what a network computes can be differentiated twice, and in forward mode.

    Torch's fused attention kernels have a first derivative in reverse mode and no other; attention is plain products
    meanwhile.

    Args:
        wanted: False for a context that changes nothing.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH) if wanted else nullcontext()
