"""Properties of tensors and networks that are read without computing anything, and what autograd may do with them."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree

T = TypeVar("T")

_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""The dtypes that torch computes in; shorter ones only store weights."""


def has_values(tensor: Tensor) -> bool:
    """Whether values can be read without synchronization: on the host, outside of tracing and compilation."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    return tensor.is_cpu and not isinstance(tensor, FakeTensor) and tensor.numel() > 0


def device_of(network: nn.Module | None) -> torch.device | None:
    """Return the device of a network's first parameter, or of its first buffer; None if it has neither."""
    first = next(_tensors_of(network), None)
    return None if first is None else first.device


def precision_of(model: Any) -> torch.dtype | None:
    """Return the dtype that a network computes in: that of its first floating-point parameter, or else buffer.

    None if it has neither (a network with packed or quantized weights) or is a function.
    """
    for tensor in _tensors_of(model):
        if tensor.dtype in _PRECISIONS:
            return tensor.dtype
    return None


def ordinary(tree: T) -> T:
    """Return a tree whose tensors autograd can record: inference tensors are copied.

    Call it under ``torch.inference_mode(False)``, as otherwise the copies are inference tensors too.
    """
    if isinstance(tree, Tensor):  # a walk over a tree takes as long as several operations
        return tree.clone() if tree.is_inference() else tree  # type: ignore[return-value]  # mypy does not narrow T
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


@cache
def load_forward_rules() -> None:
    """Import what torch imports at the first derivative in forward mode, without the warning that torch 2.13 gives."""
    with warnings.catch_warnings(), suppress(ImportError):
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def _tensors_of(model: Any) -> Iterator[Tensor]:
    """Parameters, then buffers."""
    return chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else iter(())
