"""Time and class labels as vectors."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffkit.errors import OptionError
from diffkit.parts.backbones._blocks import zeroed
from diffkit.tensors import has_values


def timestep_embedding(time: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding ``[cos(time f_i) | sin(time f_i)]`` with ``f_i = max_period^(-i / half)``.

    Args:
        time: (B,), any real dtype, also fractional.
        width: Number of columns; if odd, the last one is zero.
        max_period: Longest period, in units of time / 2 pi.
    Returns:
        (B, width), float32 for every dtype of the network (bfloat16 does not distinguish time 999 from 1000), float64
        for float64 times.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, with half in place of half - 1 and cosines first,
        as in the published diffusion models.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=time.device)
    time = time if time.dtype == torch.float64 else time.float()
    angles = time[:, None] * torch.exp(index * (-math.log(max_period) / max(half, 1)))
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width - 2 * half))


class TimeEmbedding(nn.ModuleList):
    """Sinusoidal embedding, then linear, SiLU, linear: (B,) or () -> (B, width) or (1, width)."""

    def __init__(self, columns: int, width: int):
        super().__init__([nn.Linear(columns, width), nn.SiLU(), nn.Linear(width, width)])
        self.columns = columns

    def forward(self, time: Tensor, x: Tensor) -> Tensor:
        """Return the embedding of the times of data x, (B, ...), in the dtype of x.

        Raises:
            OptionError: There is neither one time for all examples nor one for each.
        """
        # compared in this order: a program exported for any batch must not depend on whether that is 1
        if time.ndim and time.shape != x.shape[:1] and time.shape != (1,):
            raise OptionError(f"time must have shape ({x.shape[0]},) or (), got {tuple(time.shape)}")
        time = time.reshape(-1) if x.dtype == torch.float64 else time.reshape(-1).float()
        emb = timestep_embedding(time, self.columns).to(x.dtype)
        for layer in self:
            emb = layer(emb)
        return emb


class SecondTimeEmbedding(TimeEmbedding):
    """Embedding of how far a step goes, ``time - time_to``, of the networks that are built with ``times=2``.

    Its last layer starts at zero, and weights of a network of one time are loaded as if they had that: the network then
    computes what that one did.
    """

    fills_in_weights = True

    def __init__(self, columns: int, width: int):
        super().__init__(columns, width)
        zeroed(self[2])
        self.register_load_state_dict_pre_hook(_add_missing)  # type: ignore[no-untyped-call]


def _add_missing(embedding: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = {f"{prefix}{name}": tensor for name, tensor in embedding.state_dict().items()}
    if not state.keys() & own.keys():
        state.update({name: torch.zeros_like(value) if f"{prefix}2." in name else value for name, value in own.items()})


def embed_times(first: nn.Module, second: nn.Module | None, time: Tensor, time_to: Tensor | None, x: Tensor) -> Tensor:
    """Return the embedding of a network's one or two times, (B, width) or (1, width).

    Raises:
        OptionError: There is a second time, but the network takes one.
    """
    emb: Tensor = first(time, x)
    if second is None:
        if time_to is not None:
            raise OptionError("time_to was given, but the network takes one time; leave it out, or build with times=2")
        return emb
    length: Tensor = second(torch.zeros_like(time) if time_to is None else time - time_to, x)
    return emb + length


def join_previous(x: Tensor, previous: Tensor | None, reads: bool) -> Tensor:
    """Return x, (B, C, *S), with a network's previous estimate of x_start as further channels, if it reads one.

    Args:
        x: The data.
        previous: The estimate; None for zeros.
        reads: Whether the network reads it.
    Raises:
        OptionError: There is an estimate that the network does not read, or of another shape than x.
    """
    if not reads:
        if previous is not None:
            raise OptionError("previous_x_start was given, but the network reads none; build with self_condition=True")
        return x
    if previous is not None and previous.shape != x.shape:
        raise OptionError(f"previous_x_start must have shape {tuple(x.shape)}, as x, got {tuple(previous.shape)}")
    return torch.cat([x, torch.zeros_like(x) if previous is None else previous.to(x.dtype)], 1)


def add_labels(emb: Tensor, table: nn.Module | None, num_labels: int, y: Tensor | None, x: Tensor) -> Tensor:
    """Return emb, (B, width), plus what the label table returns for y, (B,).

    Args:
        emb: (B, width) or (1, width).
        table: From labels, (B,), to vectors, (B, width); None without classes.
        num_labels: Number of labels.
        y: The labels, or None without classes.
        x: The data, (B, ...).
    Raises:
        OptionError: y is missing though there are classes, given though there are none, or not (B,) integers; or, on
            the CPU, out of range.
    """
    if table is None and y is None:
        return emb
    if table is None:
        raise OptionError("y was given, but the network has no classes; leave it out, or build with num_classes")
    if y is None:
        raise OptionError(f"y is missing, but the network has {num_labels} labels; pass y, (B,) integers")
    if not isinstance(y, Tensor):
        raise OptionError(f"must be a tensor of integers of shape ({x.shape[0]},)", option="y", value=y)
    if y.shape != x.shape[:1] or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        found = f"{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}"
        raise OptionError(f"y must be integers of shape ({x.shape[0]},), got {found}")
    y = y.long()  # torch needs indices of at least 32 bits
    if has_values(y):
        low, high = (int(label) for label in y.aminmax())
        if low < 0 or high >= num_labels:
            raise OptionError(f"y must lie in 0..{num_labels - 1}, got values in {low}..{high}")
    labels: Tensor = table(y)
    return emb + labels
