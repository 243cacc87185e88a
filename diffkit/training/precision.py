"""The precision in which the network computes; everything around it is float32, and so are the weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from diffkit.training.engines.engine import Network

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which networks on a device compute in "fp32", "bf16" or "fp16"."""
    dtype = DTYPES.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def in_precision(network: Network, precision: str, device: torch.device) -> Network:
    """Return the network with autocast inside, if the precision needs it, so that its callers compute in float32."""
    if precision not in DTYPES:
        return network

    def call(*args: Any, **conditions: Any) -> Tensor:
        with computing_in(precision, device):
            return network(*args, **conditions)

    return call


def emulation_warning(precision: str, device: torch.device) -> str | None:
    """Return a warning if the CPU only emulates a precision, or None.

    Versions of torch before 2.9 do not report what a CPU supports; then the result is None.
    """
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)
    if device.type != "cpu" or precision not in DTYPES or get_capabilities is None:
        return None
    capabilities = get_capabilities()
    names = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}[precision]
    if capabilities.get("architecture") != "x86_64" or any(capabilities.get(name, True) for name in names):
        return None
    return f"this CPU has no instructions for {precision} and emulates them: fp32 is several times as fast"
