"""Networks, levels and counters for tests of guidance."""

from __future__ import annotations

import torch
from torch import nn

import diffkit
from diffkit.protocols import Estimate, Guidance, Level
from diffkit.system.call_parts import parts_for
from diffkit.system.coefficients import CoefficientTable, level_coefficients


class Labelled(nn.Module):
    """A small network whose mean and variance heads depend on x, the time and a label; "none" is label 3."""

    def __init__(self, channels: int, heads: int = 1, axes: int = 2):
        super().__init__()
        generator = torch.Generator().manual_seed(channels)
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.convolution = convolution(channels, channels * heads, 1)
        self.table = nn.Embedding(4, channels * heads)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        self.dropout = nn.Dropout(0.5)
        self.calls: list[int] = []

    def forward(self, x, time, y):
        self.calls.append(len(x))
        shape = (-1, self.table.embedding_dim, *(1,) * (x.ndim - 2))
        shift = self.table(y).view(shape) * (1 + time / 1000).view(-1, *(1,) * (x.ndim - 1))
        return self.dropout(torch.tanh(self.convolution(x)) + shift)


def system_of(
    channels: int = 3, mean: str = "eps", var: str = "learned_range", axes: int = 2, **more
) -> diffkit.System:
    heads = 2 if var.startswith("learned") else 1
    return diffkit.compose(
        schedule="cosine",
        mean=mean,
        var=var,
        loss="hybrid" if heads == 2 else "simple",
        backbone=Labelled(channels, heads, axes),
        data_shape=(channels, *(4,) * axes),
        num_steps=20,
        **more,
    ).eval()


def level_at(system: diffkit.System, k: int | torch.Tensor, *guidance: Guidance, ndim: int = 4) -> Level:
    """A level of the training table: 0-d for one k, a row for each example for a tensor of them."""
    parts = parts_for(system.parts, None, list(guidance)) if guidance else system.parts
    columns = CoefficientTable({"level": level_coefficients(parts, system.table)})
    return columns.level(columns.on(torch.device("cpu"))[k], ndim)


class Spy(Guidance):
    """Keeps the estimate it is handed."""

    def guide(self, evaluate, x, level, conditions) -> Estimate:
        self.seen = evaluate(x, level, conditions)
        return self.seen
