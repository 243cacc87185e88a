"""Check the values of a file's tensors before they are copied into a network, which could lose parts or spread NaN."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from diffkit.errors import CheckpointError


def check_tensor_values(path: Path, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    """Raise unless a network can take the values of a file's tensors.

    Args:
        path: The file, for messages.
        tensors: The tensors, by the network's names.
        network: The network to load them into.
    Raises:
        CheckpointError: A tensor is sparse, quantized, without values or of another kind of numbers; or a parameter is
            not finite.
    """
    own, parameters = network.state_dict(), dict(network.named_parameters(remove_duplicate=False))
    for name, tensor in tensors.items():
        if name in own:
            problem = _tensor_problem(tensor, own[name]) or (_not_finite(tensor) if name in parameters else None)
            if problem:
                raise CheckpointError(f"{path}: {name} {problem}")


def _tensor_problem(tensor: Tensor, own: Tensor) -> str | None:
    """Return what is wrong with the kind of a tensor, and the remedy; None if nothing is."""
    if tensor.is_quantized:
        return "is quantized; save tensor.dequantize()"
    if tensor.layout != torch.strided:
        return "is sparse; save tensor.to_dense()"
    if tensor.is_meta:
        return "has a shape and no values; save the network from a device that holds them"
    if tensor.is_complex() and not own.is_complex():
        return f"holds complex numbers, the network {_kind(own)}; save tensor.real if that is meant"
    if own.is_floating_point() and not tensor.is_floating_point():
        return f"holds {_kind(tensor)}, the network {_kind(own)}; save tensor.float(), with its scale if it has one"
    return None


def _not_finite(tensor: Tensor) -> str | None:
    values = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # torch has no isfinite for 8-bit floats
    count = int(values.isfinite().logical_not().sum())
    if not count:
        return None
    return f"has {count} values that are not finite; take the weights of an earlier checkpoint"


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
