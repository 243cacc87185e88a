"""Small random models, and one loop for any scheduler of diffusers."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():  # diffusers imports what it can find, and some of that warns
    warnings.simplefilter("ignore")
    import diffusers  # noqa: F401

SMALL_UNET: dict[str, Any] = dict(
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=4,
)
SMALL_DIT: dict[str, Any] = dict(num_attention_heads=2, attention_head_dim=8, num_layers=2, num_embeds_ada_norm=3)


class Answers(torch.nn.Module):
    """A smooth made-up network: any channels out, bounded, sensitive to x and to time."""

    def __init__(self, extra_outputs: int = 0):
        super().__init__()
        self.repeats = 1 + extra_outputs

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        time = torch.as_tensor(time, dtype=x.dtype).expand(len(x)).view(-1, *(1,) * (x.ndim - 1))
        out = torch.tanh(x) + 0.3 * torch.sin(time / 300 + x.flip(-1))
        return torch.cat([out * (i + 1) / self.repeats for i in range(self.repeats)], 1)


def walk(scheduler: Any, model: Any, x: Tensor, steps: int, **options: Any) -> Tensor:
    """What every pipeline of diffusers does."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        out = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, **options).prev_sample
    return x
