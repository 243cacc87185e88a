"""k-diffusion: its functions ``sample_*``, on its own path, alpha = 1."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.court.entry import Entry, import_alone
from diffkit.testing import ExactModel
from diffkit.testing.exact_model import PATHS

DISTRIBUTION = "k-diffusion"
UNUSED = ("torchvision", "clip", "accelerate", "wandb", "resize_right", "cleanfid", "jsonmerge", "kornia", "skimage")
SOLVERS: dict[str, tuple[int, dict[str, Any]]] = {
    "euler": (1, {}),
    "euler_ancestral": (1, {}),
    "heun": (2, {}),
    "dpm_2": (2, {}),
    "dpm_2_ancestral": (1, {}),
    "lms": (4, {}),
    "dpmpp_2m": (2, {}),
    "dpmpp_2s_ancestral": (1, {}),
    "dpmpp_sde": (1, {}),
    "dpmpp_2m_sde": (1, {}),
    "dpmpp_3m_sde": (1, {}),
}
"""Function -> order, options. A stochastic one is held to a weak order of 1."""
WITHOUT_NOISE: dict[str, int] = {
    "dpm_2_ancestral": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_3m_sde": 3,
}
"""The same with eta = 0, by the order of the method that is then left."""


def solver(name: str, options: dict[str, Any]) -> Any:
    """Return ``solve(model, x, times)`` of a function of k-diffusion."""
    run = getattr(import_alone("k_diffusion.sampling", UNUSED), f"sample_{name}")

    def solve(model: ExactModel, x: Tensor, times: Sequence[float]) -> Tensor:
        def denoised(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            return model.x_start(x, sigma)

        given = dict(options)
        if "noise_sampler" in inspect.signature(run).parameters:
            given["noise_sampler"] = lambda t, s: torch.randn_like(x)
        sigmas = torch.tensor(times, dtype=torch.float64)
        return run(denoised, x, sigmas, disable=True, **given)

    return solve


def entries() -> Iterator[Entry]:
    """Yield its samplers on given noise levels."""
    for name, (order, options) in SOLVERS.items():
        yield Entry(name, solver(name, options), PATHS["ve"], order)
    for name, order in WITHOUT_NOISE.items():
        yield Entry(f"{name}(eta=0)", solver(name, {"eta": 0.0}), PATHS["ve"], order)
    churn = {"s_churn": 10.0}
    for name in ("euler", "heun", "dpm_2"):
        yield Entry(f"{name}(s_churn=10)", solver(name, churn), PATHS["ve"], 1)
