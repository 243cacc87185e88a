"""Time and class labels as vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffkit._errors import OptionError


def timestep_embedding(time: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding ``[cos(time f_i) | sin(time f_i)]`` with ``f_i = max_period^(-i / half)``.

    Args:
        time: (B,), any real dtype, need not be whole.
        width: Number of columns; if odd, the last one is zero.
        max_period: Longest period, in units of time / 2 pi.
    Returns:
        (B, width), float32, whatever the dtype of the network: bfloat16 cannot tell time 999 from 1000.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, with half in place of half - 1 and cosines first,
        as the published diffusion models have it.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time.float()[:, None] * torch.exp(index * (-math.log(max_period) / max(half, 1)))
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width - 2 * half))


class TimeEmbedding(nn.ModuleList):
    """Sinusoidal embedding, then linear, SiLU, linear: (B,) or () -> (B, width) or (1, width)."""

    def __init__(self, columns: int, width: int):
        super().__init__([nn.Linear(columns, width), nn.SiLU(), nn.Linear(width, width)])
        self.columns = columns

    def forward(self, time: Tensor) -> Tensor:
        """Return the embedding in the dtype of the weights."""
        dtype = next(self.parameters()).dtype
        emb = timestep_embedding(time.reshape(-1), self.columns).to(dtype)
        for layer in self:
            emb = layer(emb)
        return emb


def add_labels(emb: Tensor, table: nn.Embedding | None, y: Tensor | None, batch: int) -> Tensor:
    """Return emb, (B, width), plus the rows of the label table that y, (B,), names.

    Raises:
        OptionError: y is missing though there are classes, given though there are none, or not (B,) integers; or, where
            looking makes nobody wait, names a row that is not there.
    """
    if table is None and y is None:
        return emb
    if table is None:
        raise OptionError("y was given, but the network has no classes; leave it out, or build with num_classes")
    if y is None:
        raise OptionError(f"y is missing, but the network has {table.num_embeddings} labels; pass y, (B,) integers")
    if not isinstance(y, Tensor):
        raise OptionError(f"y must be a tensor of integers of shape ({batch},), got {y!r}")
    if y.shape != (batch,) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        found = f"{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}"
        raise OptionError(f"y must be integers of shape ({batch},), got {found}")
    y = y.long()  # torch looks up rows by no shorter ones than 32 bits
    if type(y) is Tensor and y.is_cpu and batch and not torch.compiler.is_compiling():
        low, high = (int(label) for label in y.aminmax())
        if low < 0 or high >= table.num_embeddings:
            raise OptionError(f"y must lie in 0..{table.num_embeddings - 1}, got values in {low}..{high}")
    labels: Tensor = table(y)
    return emb + labels
