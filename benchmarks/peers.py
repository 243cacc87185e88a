"""Other libraries' ways of doing the same; each returns None if its library is not installed.

benchmarks/requirements-peers.txt says how to install them without a second torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

BETAS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
SCHEDULERS = {
    "ancestral": ("DDPMScheduler", {"clip_sample": True}),
    "ddim": ("DDIMScheduler", {"clip_sample": True}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
}
"""Sampler of diffkit -> the scheduler of diffusers that takes the same steps."""


def diffusers_loop(sampler: str, steps: int, out: Tensor, start: Tensor, variance: str) -> Callable[[], Tensor] | None:
    """diffusers' loop around a network that returns ``out``, its tables made beforehand.

    Args:
        sampler: A key of `SCHEDULERS`.
        steps: How many.
        out: What the network returns, (B, C, *S) or (B, 2 C, *S).
        start: Data at the first level, (B, C, *S).
        variance: "fixed_small" or "learned_range"; for "ancestral".
    """
    try:
        import diffusers
    except ImportError:
        return None
    name, options = SCHEDULERS[sampler]
    more = {"variance_type": variance} if sampler == "ancestral" else {}
    scheduler = getattr(diffusers, name)(**BETAS, **options, **more)
    scheduler.set_timesteps(steps)
    start = start * float(scheduler.init_noise_sigma)

    def run() -> Tensor:
        x = start
        if hasattr(scheduler, "_step_index"):  # a walk that starts anew
            scheduler._step_index = None
            scheduler.model_outputs = [None] * getattr(scheduler.config, "solver_order", 1)
            scheduler.lower_order_nums = 0
        with torch.no_grad():
            for t in scheduler.timesteps:
                scheduler.scale_model_input(x, t)
                x = scheduler.step(out, t, x).prev_sample
        return x

    return run


@contextmanager
def stored_noise(noise: Tensor) -> Iterator[None]:
    """Hand every peer that draws noise the same stored tensor, so that arithmetic is timed without the draw."""

    def stored(*args: object, **kwargs: object) -> Tensor:
        return noise

    with mock.patch.object(torch, "randn_like", stored):
        try:
            target = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
            with mock.patch(target, stored):
                yield
        except ModuleNotFoundError:
            yield
