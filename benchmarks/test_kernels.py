"""What diffkit-kernels gains: the U-Net of test_networks.py with its layers and with the kernel, and samples of it.

All is compared with the float32 network and its layers, which has the same weights. A forward pass with "weights" in
bfloat16 is one within a sampling, where autocast casts them once for all steps. Nothing runs without the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import published
import pytest
import torch
from measuring import DEVICE, interleaved, ratio
from test_networks import RECIPE, SHAPE, azulas, ours
from torch import Tensor, nn

import diffkit
from diffkit.registry.kernels import kernel_name

ROUNDS = {8: 5, 16: 3, 32: 3}
LAYERS, KERNEL = "", "diffkit-kernels"

pytestmark = pytest.mark.skipif(kernel_name(DEVICE) is None, reason="needs diffkit-kernels, and a device it is for")


@contextmanager
def plugins(allowed: str) -> Iterator[None]:
    before = os.environ.get("DIFFKIT_PLUGINS")
    os.environ["DIFFKIT_PLUGINS"] = allowed
    try:
        yield
    finally:
        os.environ.pop("DIFFKIT_PLUGINS")
        if before is not None:
            os.environ["DIFFKIT_PLUGINS"] = before


class Case(NamedTuple):
    """A network, which plugins it runs with, whether under autocast, and the dtype of its data."""

    network: nn.Module
    allowed: str = LAYERS
    autocast: bool = False
    dtype: torch.dtype = torch.float32

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        with plugins(self.allowed), torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.autocast):
            out: Tensor = self.network(x.to(self.dtype), time)
        return out


def built(allowed: str) -> nn.Module:
    with plugins(allowed):
        return ours().to(DEVICE)


def cases(*, only_forward: bool) -> dict[str, Case]:
    layers, kernel = built(LAYERS), built(KERNEL)
    peers = {
        "azula": azulas(layers, recompute=False),
        "improved-diffusion": published.unet(layers, RECIPE, SHAPE[1]),
    }
    found = {
        "layers": Case(layers),
        "kernel": Case(kernel, KERNEL),
        "layers bf16": Case(layers, LAYERS, True),
        "kernel bf16": Case(kernel, KERNEL, True),
        **{name: Case(peer.to(DEVICE)) for name, peer in peers.items() if peer is not None},
    }
    if only_forward:
        found["kernel bf16 weights"] = Case(built(KERNEL).bfloat16(), KERNEL, False, torch.bfloat16)
    return found


def rows(seconds: dict[str, list[float]], batch: int) -> list[dict[str, object]]:
    """One row per case: its best time, and its speed as a multiple of the layers' and of peers'."""
    peers = [peer for peer in ("layers", "azula", "improved-diffusion") if peer in seconds]
    return [
        {
            "case": case,
            "batch": batch,
            "best_ms": round(min(taken) * 1e3, 1),
            **{f"times_{peer}": ratio(seconds[peer], taken) for peer in peers},
            "best_times_layers": round(min(seconds["layers"]) / min(taken), 2),
        }
        for case, taken in seconds.items()
    ]


@pytest.mark.parametrize("batch", [8, 32])
def test_forward(record, batch):
    x, time = torch.randn(batch, *SHAPE, device=DEVICE), torch.rand(batch, device=DEVICE) * 1000

    def step(case: Case) -> None:
        with torch.no_grad():
            case(x, time)

    calls = {name: (lambda case=case: step(case)) for name, case in cases(only_forward=True).items()}
    found = rows(interleaved(calls, ROUNDS[batch], warm_ups=1), batch)
    record(f"kernels_forward_b{batch}", "Forward pass of the small U-Net, by layers and by kernel", found)


@pytest.mark.parametrize("batch", [8, 32])
def test_forward_and_backward(record, batch):
    x, time = torch.randn(batch, *SHAPE, device=DEVICE), torch.rand(batch, device=DEVICE) * 1000

    def step(case: Case) -> None:
        case(x, time).float().square().mean().backward()
        case.network.zero_grad(set_to_none=True)

    calls = {name: (lambda case=case: step(case)) for name, case in cases(only_forward=False).items()}
    about = "Forward and backward pass of the small U-Net, by layers and by kernel"
    record(f"kernels_forward_backward_b{batch}", about, rows(interleaved(calls, ROUNDS[batch], warm_ups=1), batch))


def test_sampling(record):
    batch, steps = 16, 5
    systems = {
        allowed: diffkit.compose(backbone=built(allowed), data_shape=SHAPE, schedule="cosine")
        for allowed in (LAYERS, KERNEL)
    }

    def sample(allowed, low):
        with plugins(allowed), torch.autocast(DEVICE.type, torch.bfloat16, enabled=low):
            systems[allowed].sample(batch, steps=steps, sampler="ddim", seed=0, progress=False)

    calls = {
        "layers": lambda: sample(LAYERS, False),
        "kernel": lambda: sample(KERNEL, False),
        "layers bf16": lambda: sample(LAYERS, True),
        "kernel bf16": lambda: sample(KERNEL, True),
    }
    found = rows(interleaved(calls, ROUNDS[batch], warm_ups=1), batch)
    record(f"kernels_sampling_b{batch}", f"{steps} steps of DDIM with the small U-Net", found, steps=steps)
