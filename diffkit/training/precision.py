"""What the network computes in; everything around it is float32, and so are the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffkit.training.engines.protocol import Network

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def in_precision(network: Network, precision: str, device: torch.device) -> Network:
    """Return the network under autocast, if the precision asks for it; its callers compute in float32."""
    dtype = DTYPES.get(precision)
    if dtype is None:
        return network

    def call(*args: Any, **conditions: Any) -> Tensor:
        with torch.autocast(device.type, dtype=dtype):
            return network(*args, **conditions)

    return call
