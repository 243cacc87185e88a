"""The small IDDPM U-Net (3x32x32, 64 channels, 2 blocks, batch 8) against the same network elsewhere, in CPU time.

azula's ADM plugin holds guided-diffusion's own code and takes the very same weights; it recomputes activations in the
backward pass whatever one asks, so it is run as it is and without. diffusers' UNet2DModel is the nearest network that
library can build. denoising-diffusion-pytorch's is of a like size, not equal: as wide and as deep, with RMS norms, one
attention per resolution, and linear ones at the largest and the smallest. improved-diffusion's own, with the same
weights, comes from a checkout. Peers that are not there are left out; only their U-Nets are used.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import published
import pytest
import torch
from measuring import DEVICE, interleaved, median, ratio
from peers import DENOISING, denoising_diffusion
from torch import Tensor, nn

from diffkit.parts.backbones.unet import UNet
from diffkit.system.compiling import compile_blocks

SHAPE, BATCH, ROUNDS = (3, 32, 32), 8, 11
RECIPE = UNet(channels=64, num_res_blocks=2, channel_mult=(1, 2, 2, 2), attention_resolutions=(16, 8), num_heads=4)


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, *SHAPE, device=DEVICE), torch.rand(BATCH, device=DEVICE) * 1000


def ours() -> nn.Module:
    """The network, every weight random, so that equal outputs mean equal wiring."""
    network = RECIPE.build(SHAPE, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 4) ** 0.5)
    return network


def azulas(network: nn.Module, recipe: UNet = RECIPE, side: int = 32, *, recompute: bool) -> nn.Module | None:
    """guided-diffusion's network with the same weights, from azula; None if azula is not installed.

    Args:
        network: Ours.
        recipe: What it was built from; one without classes.
        side: Pixels of its data.
        recompute: Recompute activations in the backward pass, as azula does.
    """
    try:
        from azula.plugins.adm._src.unet import AttentionBlock, ResBlock, UNetModel
    except ImportError:
        return None
    peer = UNetModel(image_size=side, **published.unet_options(network, recipe, side))
    peer.load_state_dict(network.state_dict(), strict=True)
    if not recompute:
        for module in peer.modules():
            if isinstance(module, ResBlock | AttentionBlock):
                module.forward = module._forward
    return peer


def diffusers_unet(recipe: UNet = RECIPE, side: int = 32, out: int = 3) -> nn.Module | None:
    """The nearest network of diffusers; None if it is not installed.

    Args:
        recipe: What ours is built from.
        side: Pixels of its data.
        out: Channels it returns.
    """
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return None
    attends = [side >> i in recipe.attention_resolutions for i in range(len(recipe.channel_mult))]
    return UNet2DModel(
        sample_size=side,
        in_channels=3,
        out_channels=out,
        layers_per_block=recipe.num_res_blocks,
        block_out_channels=tuple(recipe.channels * int(mult) for mult in recipe.channel_mult),
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        attention_head_dim=recipe.channels * int(recipe.channel_mult[1]) // recipe.num_heads,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=32,
    )


def like_sized_unet() -> nn.Module | None:
    """denoising-diffusion-pytorch's network, as wide and as deep; None if it is not installed."""
    library = denoising_diffusion(DENOISING)
    if library is None:
        return None
    return library.Unet(
        dim=RECIPE.channels,
        dim_mults=tuple(int(mult) for mult in RECIPE.channel_mult),
        full_attn=(False, True, True, False),
        attn_heads=RECIPE.num_heads,
        attn_dim_head=32,  # four heads of 128 channels
    )


def forward(
    network: nn.Module,
    x: Tensor,
    time: Tensor,
    *,
    bf16: bool = False,
    wrapped: bool = False,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    x = x.to(dtype=dtype, memory_format=layout)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
        out = network(x, time)
        result: Tensor = out.sample if wrapped else out
    return result


def networks(*, only_forward: bool, full: bool) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """Case -> network and how to call it.

    Args:
        only_forward: Also weights in bfloat16, which are not for training.
        full: Also compiled by blocks, which takes minutes.
    """
    mine = ours()
    found: dict[str, tuple[nn.Module | None, dict[str, Any]]] = {
        "diffkit": (mine, {}),
        "azula": (azulas(mine, recompute=False), {}),
        "azula as it is": (azulas(mine, recompute=True), {}),
        "improved-diffusion": (published.unet(mine, RECIPE, SHAPE[1]), {}),
        "diffusers": (diffusers_unet(), {"wrapped": True}),
        "denoising-diffusion-pytorch": (like_sized_unet(), {}),
        "diffkit bf16": (mine, {"bf16": True}),
        "azula bf16": (azulas(mine, recompute=False), {"bf16": True}),
    }
    if only_forward:
        found["diffkit bf16 weights"] = (ours().bfloat16(), {"dtype": torch.bfloat16})
    if full:
        last = dict(bf16=True, layout=torch.channels_last)
        found["diffkit bf16 compiled"] = (compile_blocks(ours().to(memory_format=torch.channels_last)), last)
    return {name: (network.to(DEVICE), options) for name, (network, options) in found.items() if network is not None}


def rows(seconds: dict[str, list[float]], sizes: dict[str, int]) -> list[dict[str, object]]:
    """One row per case, with its speed as a multiple of azula's float32 and of diffkit's."""
    found = []
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        row: dict[str, object] = {
            "case": name,
            "parameters": sizes[name],
            "ms": round(middle * 1e3, 1),
            "images_per_cpu_second": round(BATCH / middle, 2),
            "times_diffkit": ratio(seconds["diffkit"], taken),
        }
        for peer in ("azula", "improved-diffusion"):
            if peer in seconds:
                row[f"times_{peer}"] = ratio(seconds[peer], taken)
        found.append(row)
    return found


def run(record, name: str, about: str, step: Callable[..., object], rounds: int, **which: bool) -> None:
    cases = networks(**which)
    x, time = inputs()
    with torch.no_grad():
        want = forward(cases["diffkit"][0], x, time)
        for peer in {"azula", "improved-diffusion"} & set(cases):
            got = forward(cases[peer][0], x, time)
            assert (got - want).abs().max() <= 1e-5 * want.abs().max(), f"{peer} has not the same network"
    calls = {
        case: (lambda network=network, options=options: step(network, x, time, options))
        for case, (network, options) in cases.items()
    }
    sizes = {case: sum(p.numel() for p in network.parameters()) for case, (network, _) in cases.items()}
    record(name, about, rows(interleaved(calls, rounds), sizes), shape=[BATCH, *SHAPE])


def test_forward(record, full):
    def step(network, x, time, options):
        with torch.no_grad():
            forward(network, x, time, **options)

    run(record, "network_forward", "Forward pass of the small U-Net", step, ROUNDS, only_forward=True, full=full)


def test_forward_and_backward(record, full):
    def step(network, x, time, options):
        forward(network, x, time, **options).float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    about = "Forward and backward pass of the small U-Net"
    run(record, "network_forward_backward", about, step, ROUNDS, only_forward=False, full=full)


def test_slices(record, full):
    """A large batch, which the network evaluates in slices, against the same images in calls of 16."""
    if not full:
        pytest.skip("half a minute; add --full")
    network, count = ours().eval(), 128
    x, time = torch.randn(count, *SHAPE, device=DEVICE), torch.rand(count, device=DEVICE) * 1000

    def run(at_once: int) -> None:
        with torch.no_grad():
            for piece, times in zip(x.split(at_once), time.split(at_once), strict=True):
                network(piece, times)

    seconds = interleaved({f"{n} at once": lambda n=n: run(n) for n in (16, count)}, rounds=2, warm_ups=1)
    found = [
        {"case": case, "ms_per_image": median(taken, count / 1e3), "times_in_16": ratio(seconds["16 at once"], taken)}
        for case, taken in seconds.items()
    ]
    record("network_slices", f"{count} images through the small U-Net", found, shape=[count, *SHAPE])
