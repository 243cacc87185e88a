"""The networks that are measured: a small one for CPUs, and the published ones for GPUs, at their usual batches.

DiT's figures are those of training on latents that were made beforehand.
"""

from __future__ import annotations

from attrs import frozen
from measuring import DEVICE

import diffkit
from diffkit.explain.network_size import SizeReport, size_report

SMALL = "small"
"""Improved DDPM's U-Net at 3x32x32 with 64 channels, 2 blocks and attention at 16 and 8 pixels: 9.9 M parameters."""

BATCHES = {
    SMALL: (8,),
    "iddpm/cifar10-uncond": (128, 512),
    "iddpm/imagenet64-uncond": (128, 256),
    "adm/imagenet64": (64, 128),
    "dit/s2-256": (256,),
    "dit/b2-256": (256,),
    "dit/xl2-256": (128,),
}
"""Configuration -> examples per step."""


@frozen
class Case:
    """One configuration at one batch."""

    name: str
    batch: int


def cases(*, full: bool) -> list[Case]:
    """Return what is run here: the small network on a CPU, the published ones on a GPU; the second batch with full."""
    if DEVICE.type == "cpu":
        return [Case(SMALL, BATCHES[SMALL][0])]
    named = [(name, batches) for name, batches in BATCHES.items() if name != SMALL]
    return [Case(name, batch) for name, batches in named for batch in (batches if full else batches[:1])]


def system_of(name: str, *, var: str = "learned_range", device: str | None = None) -> diffkit.System:
    """Return a configuration's system, with fresh weights.

    Args:
        name: A key of `BATCHES`.
        var: Variance part of the small one.
        device: Where; by default the GPU if there is one. "meta" takes no memory.
    """
    device = device or str(DEVICE)
    if name != SMALL:
        return diffkit.preset(name).compose(device=device)
    options = dict(channels=64, num_res_blocks=2, channel_mult=(1, 2, 2, 2), attention_resolutions=(16, 8), num_heads=4)
    return diffkit.compose(
        schedule="cosine",
        var=var,
        loss="hybrid" if var == "learned_range" else "simple",
        backbone=("unet", options),
        data_shape=(3, 32, 32),
        device=device,
    )


def size_of(name: str, batch: int) -> SizeReport:
    """Return the counted size of a configuration; see `diffkit.explain.network_size`."""
    system = system_of(name, device="meta")
    channels = system.data_shape[0]
    out = channels * (1 + system.parts.var.extra_outputs)
    return size_report(system.parts.backbone, system.data_shape, out, batch_size=batch, precision="bf16")
