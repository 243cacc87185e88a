"""OpenAI's improved-diffusion, from a checkout: it is no package of any registry.

The environment variable `VARIABLE` names the root of the checkout; each function returns None where it is not set. Only
the modules that do without MPI and blobfile are used, so the published update is `plain.PlainTraining`'s, with the
checkout's own loss and network.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

VARIABLE = "IMPROVED_DIFFUSION"
NEEDED = ("gaussian_diffusion", "respace", "unet")
"""Modules of the checkout that are used."""


def checkout() -> Path | None:
    """Root of the checkout; None if `VARIABLE` is not set or empty.

    Raises:
        ValueError: The folder holds no such checkout.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    root = Path(named).expanduser().resolve()
    missing = [name for name in NEEDED if not (root / "improved_diffusion" / f"{name}.py").is_file()]
    if missing:
        raise ValueError(
            f"{VARIABLE} is {named!r}, which has no improved_diffusion/{missing[0]}.py; "
            "name the root of a checkout of openai/improved-diffusion, or unset it"
        )
    return root


def commit() -> str | None:
    """The checkout's commit, "unknown" if it was taken without its history; None if there is no checkout."""
    root = checkout()
    if root is None:
        return None
    if not (root / ".git").exists():  # git would answer for a repository around it
        return "unknown"
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=root)
    return found.stdout.strip() or "unknown"


def module(name: str) -> ModuleType | None:
    """Import one of `NEEDED` from the checkout; None if there is none."""
    root = checkout()
    if root is None:
        return None
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module(f"improved_diffusion.{name}")
    finally:
        sys.path.remove(str(root))


def diffusion(betas: np.ndarray, variance: str, steps: int | None = None) -> Any:
    """The checkout's process with eps prediction; None if there is no checkout.

    Args:
        betas: Of all levels, (T,), float64.
        variance: "learned_range", with the hybrid loss, or "fixed_small", with the simple one.
        steps: Respace to so many levels.
    """
    process, respace = module("gaussian_diffusion"), module("respace")
    if process is None or respace is None:
        return None
    return respace.SpacedDiffusion(
        use_timesteps=respace.space_timesteps(len(betas), [steps or len(betas)]),
        betas=betas,
        model_mean_type=process.ModelMeanType.EPSILON,
        model_var_type=process.ModelVarType[variance.upper()],
        loss_type=process.LossType.RESCALED_MSE,
        rescale_timesteps=True,
    )


def loop(
    sampler: str, betas: np.ndarray, steps: int, out: Tensor, start: Tensor, variance: str
) -> Callable[[], Tensor] | None:
    """The checkout's loop around a network that returns ``out``; None if it has no such sampler.

    Args:
        sampler: "ancestral" or "ddim".
        betas: Of all levels, (T,), float64.
        steps: How many of them.
        out: What the network returns, (B, C, *S) or, with "learned_range", (B, 2 C, *S).
        start: Data at the first level, (B, C, *S).
        variance: As in `diffusion`.
    """
    process = diffusion(betas, variance, steps)
    name = {"ancestral": "p_sample_loop", "ddim": "ddim_sample_loop"}.get(sampler)
    if process is None or name is None:
        return None
    walk, shape = getattr(process, name), tuple(start.shape)
    return lambda: walk(lambda x, time: out, shape, noise=start, device=start.device)


def bound(betas: np.ndarray, network: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor] | None:
    """The checkout's loop over the terms of the bound: data (B, C, *S) -> bits per dimension (B, T), cleanest first.

    It draws fresh noise for each level, noisiest first, and computes two mean squared errors as well.
    """
    process = diffusion(betas, "learned_range")
    if process is None:
        return None

    def terms(x_start: Tensor) -> Tensor:
        with torch.no_grad():
            return process.calc_bpd_loop(network, x_start)["vb"].flip(1)

    return terms


class PublishedLoss:
    """The checkout's training losses, called as those of `plain.PlainDiffusion` are."""

    def __init__(self, betas: np.ndarray):
        self.steps = len(betas)
        self._simple, self._hybrid = (diffusion(betas, variance) for variance in ("fixed_small", "learned_range"))

    def simple(self, model: Callable, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self._simple.training_losses(model, x_start, t, noise=noise)["loss"]

    def hybrid(self, model: Callable, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self._hybrid.training_losses(model, x_start, t, noise=noise)["loss"]


def unet(network: nn.Module, recipe: Any, side: int) -> nn.Module | None:
    """The checkout's U-Net with the weights of ours; None if there is no checkout.

    Args:
        network: Ours.
        recipe: What it was built from; one without classes.
        side: Pixels of its data.
    """
    networks = module("unet")
    if networks is None:
        return None
    peer = networks.UNetModel(**unet_options(network, recipe, side))
    peer.load_state_dict(network.state_dict(), strict=True)
    return peer


def unet_options(network: nn.Module, recipe: Any, side: int) -> dict[str, Any]:
    """What the published U-Net, and every copy of it, is built with to take our weights; arguments as in `unet`."""
    return dict(
        in_channels=network.state_dict()["input_blocks.0.0.weight"].shape[1],
        model_channels=recipe.channels,
        out_channels=network.out[-1].out_channels,
        num_res_blocks=recipe.num_res_blocks,
        attention_resolutions=tuple(side // resolution for resolution in recipe.attention_resolutions),  # factors
        dropout=recipe.dropout,
        channel_mult=recipe.channel_mult,
        num_heads=recipe.num_heads,
        use_scale_shift_norm=recipe.scale_shift_norm,
    )
